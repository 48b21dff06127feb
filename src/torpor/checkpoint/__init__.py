"""The two pipelines: save (freeze, survey, capture, store) and restart (plan, recreate, fill, release)."""
