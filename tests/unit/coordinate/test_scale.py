"""How coordination grows with the number of hosts (benchmarks/scale.py shows the same at length)."""

from __future__ import annotations

import os
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
sys.path.insert(0, os.path.join(ROOT, "benchmarks"))

from measure.hosts import Figures, checkpoint  # noqa: E402

BUDGET = 0.01 * 11 * 60
"""Seconds: 1 % of the 11 minutes in which 38 TB are to be saved."""


def growth(small: Figures, large: Figures) -> float:
    """How much more one host costs in a larger job, in processor time of the coordinator."""
    return (large.cpu / large.hosts) / (small.cpu / small.hosts)


def test_messages_grow_with_hosts_and_nothing_else() -> None:
    small, large = checkpoint(50, 64), checkpoint(400, 64)
    assert small.announced == large.announced
    for figures in (small, large):
        # SURVEY, FREEZE, SETTLE, CAPTURE, RESUME, STORE: one word of each host, and one more that it is still at it.
        assert figures.received <= 7 * figures.hosts
        assert figures.delivered <= 7 * figures.hosts
    assert large.bytes_in / large.hosts < 1.2 * small.bytes_in / small.hosts
    assert growth(small, large) < 4, (small, large)


@pytest.mark.exam
def test_2047_hosts_of_16_processes() -> None:
    small, figures = checkpoint(256, 1024), checkpoint(2047, 1024)
    print(figures)
    assert sum(figures.phases.values()) < BUDGET and figures.cpu < BUDGET
    assert growth(small, figures) < 4, (small, figures)


@pytest.mark.exam
def test_2047_hosts_that_store_for_ten_minutes() -> None:
    figures = checkpoint(2047, 128, store=600.0)
    print(figures)
    assert sum(figures.phases.values()) < BUDGET and figures.cpu < BUDGET


@pytest.mark.exam
def test_10000_hosts() -> None:
    small, figures = checkpoint(256, 128), checkpoint(10000, 128)
    print(figures)
    assert sum(figures.phases.values()) < 5 * BUDGET
    assert growth(small, figures) < 6, (small, figures)
