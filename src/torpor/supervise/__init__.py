"""A job on this host: the supervisor and the registry of running jobs."""
