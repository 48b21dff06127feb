"""Facilities that may be left unused: for old kernels, for locked-down machines, and for the tests.

TORPOR_WITHOUT=pagemap_scan,time_namespace,... makes torpor behave as if the kernel did not have them.
"""

from __future__ import annotations

import os

_masked = frozenset(word.strip() for word in os.environ.get("TORPOR_WITHOUT", "").split(",") if word.strip())


def masked(facility: str) -> bool:
    """Is the facility to be treated as missing?"""
    return facility in _masked
