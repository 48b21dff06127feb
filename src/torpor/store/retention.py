"""Which checkpoints are kept. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def surplus(saved: Sequence[tuple[int, float]], keep_last: int, keep_every: float = 0.0) -> list[int]:
    """The numbers of the checkpoints of one job that may go.

    saved: number and time (unix seconds) of those that are whole.  keep_last: that many of the newest stay, at least
    one. keep_every: beside these, the oldest one in each span of so many seconds stays; 0: none.
    """
    newest = sorted(saved, reverse=True)
    kept = {number for number, _ in newest[: max(1, keep_last)]}
    if keep_every > 0:
        spans: set[int] = set()
        for number, when in sorted(saved):
            span = int(when // keep_every)
            if span not in spans:
                spans.add(span)
                kept.add(number)
    return sorted(number for number, _ in saved if number not in kept)
