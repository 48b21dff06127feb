"""What was measured on."""

from __future__ import annotations

import os
import sys


def machine() -> dict[str, object]:
    """For results: processor, kernel, and what else went on."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": os.uname().release,
        "python": sys.version.split()[0],
        "user": os.geteuid(),
        "load_before": os.getloadavg(),
    }
