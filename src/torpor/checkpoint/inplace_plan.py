"""Before a restart in place (checkpoint/inplace.py): can it be done here, and what is planted?

Every process and thread is to have its old number, so none of them may be in use; and where they may not be chosen,
they have to be near enough to be walked to. Nothing of the job may hang on its monotonic clock if that jumps
(checkpoint/clocks.py). What does not fit is refused; nothing was done then.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable

from torpor.checkpoint import machine
from torpor.checkpoint.clocks import clock_jump, monotonic_state
from torpor.checkpoint.inplace import PATIENCE, InPlace
from torpor.checkpoint.plan import Birth, Helper, Plan, plan
from torpor.image.manifest import Manifest
from torpor.linux import clone, pidwalk, proc
from torpor.model.errors import Refusal, Refused


def prepare(
    manifest: Manifest, keep_session: bool, budget: float, say: Callable[[str], None],
    progress: Callable[[str, int, int], None] | None = None,
) -> InPlace:  # fmt: skip
    """Look whether a job can be restarted in place, and plan it. budget: seconds that walking to its numbers may take.
    say: called with notes. Raises Refused."""
    wanted = _wanted(manifest)
    used = _in_use(wanted, _wished(manifest))
    refusals = [_taken(number, used[number], wanted[number]) for number in sorted(wanted) if number in used]
    jump = clock_jump(manifest, machine.clocks(), proc.boot_id())
    state = sorted(set(monotonic_state(manifest))) if jump else []
    if state:
        way = "restart it where namespaces can be had (`torpor doctor`)"
        refusals.append(Refusal(0, "", f"{jump}, and the job has {' and '.join(state)}", way))
    if refusals:
        raise Refused(refusals, "cannot restart in place")
    if jump:
        say(f"the monotonic clock jumps: {jump}")
    choosing, _ = clone.can_choose()
    at, end = pidwalk.last(), pidwalk.highest()

    def to_be_had(number: int) -> bool:
        return number not in used and number not in wanted and (
            number < end if choosing else pidwalk.distance(at, number, end) < pidwalk.NEVER
        )  # fmt: skip

    births = plan(manifest, keep_session, to_be_had, any_number=not choosing)
    threads = [t.tid for record in manifest.processes for t in record.threads if t.tid != record.pid]
    high = [number for number in (*births.numbers(), *threads) if number >= end]
    if high:
        raise _refused(f"its process number {max(high)} is not to be had", f"sysctl kernel.pid_max={1 << 22}")
    if choosing:
        return InPlace(births, threads, None)
    way = "as root, with CAP_CHECKPOINT_RESTORE, or where namespaces can be had (`torpor doctor`)"
    count = steps(births, threads, at, end)
    plain = plan(manifest, keep_session, lambda _: False, any_number=True)
    without = steps(plain, threads, at, end)
    if count > without + end // 2:
        # Stand-ins are not worth a round of their own.
        births, count = plain, without
    if count >= pidwalk.NEVER:
        raise _refused("its process numbers are not handed out any more, or not in that order", way)
    seconds = count * pidwalk.price()
    if seconds > budget:
        what = f"its process numbers are {count} steps away, which takes about {seconds:.1f} s"
        raise _refused(what, f"say --pid-budget={seconds * 1.5 + 1:.0f}, or {way}")
    if seconds > 1:
        say(f"walking to the old process numbers took about {seconds:.1f} s ({count} steps)")
        if progress is not None:
            progress(f"walking to the old process numbers, about {seconds:.1f} s", 0, 0)
    return InPlace(births, threads, pidwalk.Walker(used, time.monotonic() + 2 * max(budget, seconds) + 5))


def _refused(what: str, way: str) -> Refused:
    return Refused([Refusal(0, "", what, way)], "cannot restart in place")


def _wanted(manifest: Manifest) -> dict[int, str]:
    """All numbers of the job's processes and threads, with the process' name."""
    found = {}
    for record in manifest.processes:
        found[record.pid] = record.comm
        found.update((thread.tid, record.comm) for thread in record.threads)
    return found


def _wished(manifest: Manifest) -> set[int]:
    """The numbers of what was outside, for stand-ins."""
    return {number for record in manifest.processes for number in (record.parent, record.pgid, record.sid)}


def _in_use(wanted: Collection[int], wished: Collection[int]) -> dict[int, int]:
    """`pidwalk.in_use`. Processes that have ended and are being reaped just now are waited for."""
    began = time.monotonic()
    while True:
        used = pidwalk.in_use()
        taken = [used[number] for number in wanted if number in used]
        dead = [pid for pid in taken if not proc.alive(pid)]
        waited = time.monotonic() - began
        late = any(number in used and not proc.alive(used[number]) for number in wished)
        if not ((dead and len(dead) == len(taken) and waited < PATIENCE) or (late and waited < PATIENCE / 5)):
            return used
        time.sleep(0.01)


def _taken(number: int, by: int, needs: str) -> Refusal:
    """Somebody has a number."""
    if by == os.getpid():
        return Refusal(by, "torpor", f"has the number {number} itself, which {needs} needs", "start it again")
    kind = "" if number == by or os.path.exists(f"/proc/{number}") else " as its group or session"
    return Refusal(by, proc.comm(by), f"has the number {number}{kind}, which {needs} needs", "end it first")


def steps(births: Plan, threads: Iterable[int], at: int, end: int) -> int:
    """How many numbers are handed out from `at` on until every process and thread has its own: an estimate, since it
    forks whatever has its parent. Pure."""
    total = 0
    ready: list[Birth | Helper] = [births.init]
    while ready:
        following = min(ready, key=lambda each: 0 if each.pid <= 1 else pidwalk.distance(at, each.pid, end))
        ready.remove(following)
        if following.pid > 1:
            total += pidwalk.distance(at, following.pid, end)
            at = following.pid
        if isinstance(following, Helper):
            ready += following.births
        else:
            ready += [*following.early, *following.late, *following.helpers]
    for number in sorted(threads, key=lambda n: pidwalk.distance(at, n, end)):
        total += pidwalk.distance(at, number, end)
        at = number
    return total
