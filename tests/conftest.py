"""For all tests: property tests judge what is right, not how fast this machine is just now."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("torpor", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("torpor")
