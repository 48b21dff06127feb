"""`torpor core`: what a debugger finds in the core file of a saved process."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator

import harness
import pytest

pytestmark = pytest.mark.skipif(shutil.which("gdb") is None, reason="needs gdb")


@pytest.fixture
def saved(bench: harness.Bench) -> Iterator[tuple[harness.Running, str, str]]:
    """A job that was saved in its second generation; the checkpoint, and its program."""
    program = harness.build("cored.c", "-O0")
    job = bench.run([program, bench.go, "0"])
    job.ready()
    with open(f"{bench.folder}/child", "w") as f:
        f.write(job.wait_for(r"^CHILD \d+$").split()[1])
    name = f"{job.name}@{bench.checkpoint(job)['number']}"
    bench.kill()
    again = bench.restart(name, detach=True)
    name = f"{job.name}@{bench.checkpoint(again)['number']}"
    yield again, name, program
    again.verified()


def gdb(bench: harness.Bench, program: str, core: str, *asked: str) -> str:
    """What gdb answers, without what it says at its start."""
    words = ["gdb", "-nx", "-q", "-batch", program, core]
    for each in asked:
        words += ["-ex", each]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert "Cannot access memory" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.diagonal
def test_threads_variables_and_memory(bench: harness.Bench, saved: tuple[harness.Running, str, str]) -> None:
    _, name, program = saved
    core = os.path.join(bench.folder, "whole.core")
    said = bench.must("core", name, "-o", core, "--store", bench.store)
    assert "4 threads" in said.out
    seen = os.stat(core)
    assert seen.st_mode & 0o777 == 0o600 and seen.st_blocks * 512 < 4 << 20 < 24 << 20 < seen.st_size
    out = gdb(
        bench, program, core, "thread apply all backtrace", "print root->value + root->left->value", "print table",
        "print untouched[500000]", "print shared_text + 5000", "print private_text + 4096",
        "thread apply all -q print mine", "info auxv", "x/4xb private_text",
    )  # fmt: skip
    assert len(re.findall(r"^#\d+ .* in work \(arg=", out, re.MULTILINE)) == 3, out
    assert len(re.findall(r"^#\d+ .* deep \(n=3\)", out, re.MULTILINE)) == 3, out
    assert re.search(r"^#\d+ .* main \(argc=3, argv=", out, re.MULTILINE), out
    assert "= 49\n" in out and "{3, 1, 9, 1, 5}" in out and "= 0\n" in out, out
    assert "words that are shared" in out and "written over a file" in out, out
    assert sorted(re.findall(r"= (10\d)\n", out)) == ["100", "101", "102"], out
    assert f'"{program}"' in out and "AT_SYSINFO_EHDR" in out, out
    assert re.search(r"0x7f\s+0x45\s+0x4c\s+0x46", out), out  # from the file, which shows through
    again = bench.torpor("core", name, "-o", core, "--store", bench.store)
    assert again.status == 2 and "exists already" in again.err


@pytest.mark.diagonal
def test_another_process(bench: harness.Bench, saved: tuple[harness.Running, str, str]) -> None:
    job, name, program = saved
    child = harness.text(f"{bench.folder}/child")
    core = os.path.join(bench.folder, "child.core")
    bench.must("core", name, "--pid", child, "-o", core, "--store", bench.store)
    assert "= 43\n" in gdb(bench, program, core, "print root->value")
    # With copies of files: what was written lies over them.
    name = f"{job.name}@{bench.checkpoint(job, '--with-files')['number']}"
    bench.must("core", name, "-o", core + "3", "--store", bench.store)
    out = gdb(bench, program, core + "3", "print private_text + 4096", "print table")
    assert "written over a file" in out and "{3, 1, 9, 1, 5}" in out, out
    assert os.stat(core + "3").st_blocks * 512 > 1 << 20  # the code of libraries is there
    none = bench.torpor("core", name, "--pid", "999999", "-o", core + "2", "--store", bench.store)
    assert none.status == 2 and child in none.err and not os.path.exists(core + "2")


MAPPED = """
import mmap, sys, time
file = open(sys.argv[1], "w+b")
file.truncate(4096)
room = mmap.mmap(file.fileno(), 4096)
room[:8] = bytes(range(200, 208))
where = next(line for line in open("/proc/self/maps") if line.rstrip().endswith(sys.argv[1]))
print("AT", where.split("-")[0], flush=True)
time.sleep(1000)
"""


def test_a_mapped_file_that_was_saved_open(user_bench: harness.Bench) -> None:
    """What an area shows of a file whose contents are kept with its descriptor."""
    bench = user_bench
    job = bench.run([bench.account.python, "-c", MAPPED, f"{bench.folder}/mapped"])
    address = job.wait_for(r"^AT .*$").split()[1]
    name = f"{job.name}@{bench.checkpoint(job, '--files=save')['number']}"
    bench.kill()
    with open(f"{bench.folder}/mapped", "r+b") as file:
        file.write(bytes(8))  # a debugger looks there for what the core file has not
    core = f"{bench.folder}/core"
    bench.must("core", name, "--store", bench.store, "-o", core)
    told = gdb(bench, bench.account.python, core, f"x/8xb 0x{address}")
    assert re.findall(r"\t0x(..)", told) == [f"{byte:02x}" for byte in range(200, 208)], told
