"""Where the first bytes of code go in a living process: zero padding behind an executable segment.

Text that can run is never overwritten. The linker pads an executable segment with zeros to the end of its last page;
those bytes are mapped, executable, and never reached. What a killed tracer of ours left there is recognised by its
magic and used again.
"""

from __future__ import annotations

from collections.abc import Sequence

from torpor.linux import uio
from torpor.linux.arch.x86_64_code import MAGIC, SIZE
from torpor.linux.proc import Area

PAGE = 4096


def free_slots(tail: bytes, base: int) -> list[int]:
    """Addresses of the free slots in `tail`, the last bytes of an executable area that ends at base + len(tail).

    A slot is SIZE bytes, counted back from the end of the page; free is what is zero, or bears our magic.
    """
    slots = []
    at = len(tail) - SIZE
    while at >= 0:
        slot = tail[at : at + SIZE]
        if slot.startswith(MAGIC) or not slot.strip(b"\0"):
            slots.append(base + at)
            at -= SIZE
        else:
            break
    return slots


def tails(areas: Sequence[Area]) -> list[tuple[int, int]]:
    """Where slots may be: the last pages of executable areas, as (start, end). Pure."""
    return [(area.end - PAGE, area.end) for area in areas if _runs(area)]


def _runs(area: Area) -> bool:
    if area.perms[2] != "x" or area.perms[1] == "w" or area.perms[3] == "s":
        return False
    return area.path.startswith("/") or area.path == "[vdso]"


def find(memory: uio.Memory, areas: Sequence[Area], wanted: int = 2) -> list[int]:
    """Addresses of up to `wanted` slots in a stopped process."""
    found: list[int] = []
    for start, end in tails(areas):
        try:
            tail = memory.read(start, end - start)
        except OSError:
            continue
        found += free_slots(tail, start)
        if len(found) >= wanted:
            break
    return found[:wanted]
