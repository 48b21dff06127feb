"""Typed bindings to the kernel, one module per facility; no policy, no knowledge of torpor."""
