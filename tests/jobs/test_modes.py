"""With every optional facility masked; and the standard streams of programs started in different ways."""

from __future__ import annotations

import os
import subprocess
import sys

import catalogue
import harness
import pytest

SOME = [
    pytest.param(p, id=p.label, marks=[pytest.mark.exam] if p.label in ("threads", "tree") else [])
    for p in catalogue.STATE
    if p.label in ("threads", "tree", "memory", "signals", "pipes", "events", "identity")
]
"""To a hundred numbers one walks for long, and others beside it as well: in make exam."""


def masks() -> str:
    """Every facility that can be masked, as the documentation of the masks lists them."""
    probe = "from torpor.linux import masks; print(','.join(masks.NAMES))"
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), harness.ROOT + "/src"])),
    }
    return subprocess.run(
        [sys.executable, "-c", probe], env=env, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.diagonal
@pytest.mark.usefixtures("one_walk")
@pytest.mark.parametrize("program", SOME)
def test_with_everything_masked(program: catalogue.Program, bench: harness.Bench) -> None:
    """As on the oldest kernel and the most locked-down machine: whatever is optional is not used."""
    bench.env["TORPOR_WITHOUT"] = masks()
    bench.cycle(program.command(bench.go), "run", again=("--pid-budget", "300"))


@pytest.mark.diagonal
@pytest.mark.parametrize("how", ["tee", "file", "closed", "pipe-out", "shared", "null"])
def test_standard_streams(how: str, bench: harness.Bench) -> None:
    """Started in different ways; at the restart the streams are the restarter's own."""
    program = catalogue.Program("stack.c").command(bench.go)
    name = bench.new_name()
    words = [*bench.account.torpor, "run", "--name", name, "--store", bench.store, "--", *program]
    line = " ".join(f"'{word}'" for word in words)
    out = bench.output_file()
    shell = {
        "tee": f"{line} | tee {out}",
        "file": f"{line} < /etc/passwd > {out} 2>&1",
        "closed": f"{line} <&- > {out} 2>&-",
        "pipe-out": f"{line} 2>&1 | cat > {out}",
        "shared": f"exec 7> {out} 8>&7; {line} >&7 2>&8",
        "null": f"{line} < /dev/null > {out} 2> /dev/null",
    }[how]
    started = bench.popen(["sh", "-c", shell], start_new_session=True)
    job = harness.Running(bench, started, out, name, "run")
    job.ready()
    saved = bench.checkpoint(job)
    job.verified()
    bench.gone("after the job has ended")
    bench.untell()
    again = bench.restart(f"{name}@{saved['number']}", detach=True)
    saved = bench.checkpoint(again)
    bench.kill()
    bench.restart(f"{name}@{saved['number']}").verified()
