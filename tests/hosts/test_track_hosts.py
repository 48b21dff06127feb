"""A job over hosts whose writes are tracked, and what whoever has it saved is told of its hosts."""

from __future__ import annotations

import json
import os
import sys

import pytest
from bed import NEEDED, bed
from over import TORPOR, running, said, start, text, until

pytest.importorskip("nats")
pytestmark = NEEDED
PROGRAM = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "programs", "far_memory.py")
BIG = 100 << 20
"""Bytes: less than the memory of the two programs, and much more than what they write."""


@pytest.mark.exam
def test_only_what_was_written_is_read_on_all_hosts() -> None:
    with bed(["h1", "h2", "h3", "h4"]) as made:
        h1, h2, h3, h4 = made.hosts.values()
        store, go = f"{made.folder}/store", f"{made.folder}/go"
        outs = [f"{made.folder}/{name}.out" for name in ("h1", "h2")]
        own = f"{sys.executable} {PROGRAM} {go} > "
        script = f"{TORPOR}-rsh h2 '{own}{outs[1]}' & {own}{outs[0]}; wait"
        words = ["--name", "far", "--store", store, "--track", "--hosts", "h1,h2", "--", "sh", "-c", script]
        job = start(made, h1, "run", *words)
        for out in outs:
            until(out, "READY", made)
        read = [json.loads(h2.run([TORPOR, "checkpoint", "far", "--json"]))["bytes_read"] for _ in range(3)]
        assert read[0] > BIG > max(read[1:]), read
        h1.run([TORPOR, "checkpoint", "far", "--stop"])
        job.wait(30)
        job = start(made, h3, "restart", "far", "--store", store, "--wait", "60s", "--hosts", "h3,h4")
        running(made, job, h4, "far")
        read = [json.loads(h3.run([TORPOR, "checkpoint", "far", "--json"]))["bytes_read"] for _ in range(2)]
        assert read[0] > BIG > read[1], read
        open(go, "w").close()
        assert job.wait(60) == 0, said(made)
        assert [text(out).split() for out in outs] == [["READY", "True"]] * 2


def test_notes_name_their_hosts() -> None:
    with bed(["h1", "h2"]) as made:
        h1, _ = made.hosts.values()
        store, out, go = (f"{made.folder}/{name}" for name in ("store", "out", "go"))
        wait = f"until [ -e {go} ]; do sleep 0.1; done"
        far = f"{TORPOR}-rsh h2 'SECRET=1 sh -c \"echo READY > {out}; {wait}\"'"
        words = ["--name", "far", "--store", store, "--hosts", "h1,h2", "--", "sh", "-c", f"{far} & wait"]
        job = start(made, h1, "run", *words)
        until(out, "READY", made)
        notes = json.loads(h1.run([TORPOR, "checkpoint", "far", "--json", "--forget", "SECRET"]))["notes"]
        assert [note for note in notes if note.startswith("h2: left out: ") and "SECRET" in note], notes
        open(go, "w").close()
        assert job.wait(60) == 0, said(made)
