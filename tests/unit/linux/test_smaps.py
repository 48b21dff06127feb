"""/proc/PID/smaps, as it is read."""

from __future__ import annotations

import mmap
import os

from torpor.linux import proc


def test_areas_are_those_of_maps_with_all_of_their_fields() -> None:
    room = mmap.mmap(-1, 3 * mmap.PAGESIZE)
    room[0] = 1
    found = dict(proc.smaps(os.getpid()))
    like_maps = {area for area in proc.maps(os.getpid()) if area.path not in ("[heap]", "[stack]")}
    # What was mapped in between for the reading itself may differ.
    assert len(like_maps ^ set(found)) < 12
    area = next(area for area in found if area.path.startswith("[stack"))
    fields = found[area]
    lines = proc.text("/proc/self/smaps").partition(" [stack]\n")[2].partition("VmFlags:")[0].splitlines()
    assert set(fields) == {line.partition(":")[0] for line in lines} | {"VmFlags"}
    assert fields["Size"] == f"{area.size // 1024} kB"
    assert {"rd", "wr", "gd"} <= set(fields["VmFlags"].split())
    room.close()
