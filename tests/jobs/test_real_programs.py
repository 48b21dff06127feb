"""Real programs of many kinds: after checkpoint, SIGKILL and restart, twice, the result is that of an undisturbed run.

The seven items of the first issue, as an ordinary user and as root, through `torpor run` and `--pid`.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import math
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time

import harness
import pytest
from toolchain import SIMPLE_PATH, go, java, needs, once


@functools.cache
def undisturbed(*command: str) -> str:
    """The RESULT line of a run that nobody disturbs."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done
    found = re.search(r"^RESULT .*$", done.stdout, re.MULTILINE)
    assert found, done.stdout
    return found.group(0)


# -- how each is started ----------------------------------------------------------------------------------------------


def numpy_command(bench: harness.Bench) -> list[str]:
    probe = subprocess.run([bench.account.python, "-c", "import numpy"], capture_output=True)
    if probe.returncode:
        pytest.skip("needs numpy")
    return [bench.account.python, harness.script("numpy_sum.py"), bench.go]


def go_command(bench: harness.Bench) -> list[str]:
    return [go("work.go"), bench.go]


def java_command(bench: harness.Bench) -> list[str]:
    return [*java("Work.java"), bench.go]


def node_command(bench: harness.Bench) -> list[str]:
    needs("node")
    return ["node", harness.script("work.js"), bench.go]


def perl_command(bench: harness.Bench) -> list[str]:
    needs("perl")
    return ["perl", harness.script("work.pl"), bench.go]


def bash_command(bench: harness.Bench) -> list[str]:
    needs("bash")
    return ["bash", harness.script("work.sh"), bench.go, os.path.join(bench.home, "place")]


RESULTS = {
    "numpy": numpy_command,
    "go": go_command,
    "java": java_command,
    "node": node_command,
    "perl": perl_command,
    "bash": bash_command,
}
REMOVES_FILES = {"java"}
"""It removes a file of its own at its end, which an earlier checkpoint still needs."""


@pytest.mark.diagonal
@pytest.mark.parametrize("kind", RESULTS)
def test_result_is_that_of_an_undisturbed_run(kind: str, via: str, bench: harness.Bench) -> None:
    command = RESULTS[kind](bench)
    other = [word.replace(bench.go, "/dev/null").replace(bench.home, "/tmp") for word in command]
    bench.cycle(command, via, says=undisturbed(*other), rewind=kind not in REMOVES_FILES)


@pytest.mark.diagonal
@pytest.mark.parametrize(
    ("source", "flags"),
    [
        ("threads.c", ("-static",)),
        ("memory.c", ("-static",)),
        ("signals.c", ("-static",)),
        ("memory.c", ("-static-pie", "-fPIE")),
        ("exceptions.cc", ()),
        ("exceptions.cc", ("-static",)),
        ("openmp.c", ("-fopenmp",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "".join(value) or "dynamic",
)
def test_compiled_program(source: str, flags: tuple[str, ...], via: str, bench: harness.Bench) -> None:
    needs("gcc", "g++")
    try:
        program = harness.build(source, *flags)
    except harness.Failed as error:
        if "-static" in flags and "cannot find" in str(error):
            pytest.skip("needs the static C library")
        raise
    bench.cycle([program, bench.go, "0"], via)


# -- a pipeline -------------------------------------------------------------------------------------------------------

PIPELINE = (
    "echo READY; seq 1 {lines} | "
    "awk '{{ s = ($1 * 7919) % 1000003; for (i = 0; i < 10; i++) s = (s * 31 + i) % 1000003; "
    "print s, $1 }}' | sort -n | gzip -n -c | sha256sum && echo OK"
)


OVER = "has (just )?ended|no job named|no processes any more"
"""What a command says about a job that is over."""


def undisturbed_pipeline(lines: int) -> tuple[list[str], str, float]:
    """The command for so many lines, its sum, and how many seconds it takes."""
    command = ["sh", "-c", PIPELINE.format(lines=lines)]
    began = time.monotonic()
    want = subprocess.run(command, capture_output=True, text=True, env={"PATH": SIMPLE_PATH}, check=True)
    return command, want.stdout.splitlines()[1], time.monotonic() - began


def pipeline(moments: int, via: str, bench: harness.Bench) -> None:
    """Saved and killed at moments spread over the run, each time with a second generation: always the same sum."""
    needs("seq", "awk", "sort", "gzip", "sha256sum", "sh")
    lines, saved = 200000, 0
    command, digest, took = undisturbed_pipeline(lines)
    for k in range(moments):
        job = bench.run(command, via)
        job.ready()
        time.sleep(took * k / moments)  # a moment of the run: the subject of this test
        began = time.monotonic()
        said = bench.torpor("checkpoint", *job.which(), "--store", bench.store, "--json", "--stop")
        if said.status:
            assert re.search(OVER, said.err), said  # the only good reason
            latency = time.monotonic() - began
            job.verified(says=digest)
            if not saved:  # it is over sooner than a command starts on this machine, just now
                lines *= 1 + math.ceil(4 * latency / took)
                command, digest, took = undisturbed_pipeline(lines)
            continue
        saved += 1
        bench.gone("after checkpoint --stop")
        name = f"{job.name}@{said.json()['number']}"
        lives = [job]
        if k % 4 == 1:
            again = bench.restart(name, detach=True)
            lives.append(again)
            said = bench.torpor("checkpoint", job.name, "--store", bench.store, "--json", "--stop")
            if said.status:
                assert re.search(OVER, said.err), said
                assert again.finish() == 0, said
                continue
            name = f"{job.name}@{said.json()['number']}"
        # Saved so late that the sum had been printed: then what is left is to say that all went well.
        printed = any(digest in each.output() for each in lives)
        bench.restart(name).verified(says="OK" if printed else digest)
        bench.gone(f"after the restart of moment {k}")
    assert saved >= moments // 3, f"only {saved} of {moments} moments fell into the run:\n{bench.history}"


@pytest.mark.diagonal
def test_pipeline_at_moments(via: str, bench: harness.Bench) -> None:
    pipeline(20 if bench.account.label == "user" and via == "run" else 6, via, bench)


@pytest.mark.exam
def test_pipeline_at_many_moments(via: str, bench: harness.Bench) -> None:
    pipeline(40, via, bench)


# -- make -j4 of a real source ----------------------------------------------------------------------------------------


def c_source() -> str:
    """A folder of C sources as a PyPI package ships them (Brotli's), with a makefile of ours."""

    def make(target: str) -> None:
        download = target + ".download"
        shutil.rmtree(download, ignore_errors=True)
        for command in (
            [sys.executable, "-m", "pip", "download", "-q", "--no-binary", ":all:", "--no-deps", "-d", download,
             "Brotli==1.1.0"],
        ):  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if done.returncode:
                pytest.skip(f"needs Brotli's source from a package index: {done.stderr.strip()[-200:]}")
        archive = glob.glob(os.path.join(download, "*.tar.gz"))[0]
        subprocess.run(["tar", "-xzf", archive, "-C", download], check=True)
        unpacked = next(p for p in glob.glob(os.path.join(download, "*")) if os.path.isdir(p))
        os.rename(os.path.join(unpacked, "c"), target)
        shutil.rmtree(download)
        with open(os.path.join(target, "Makefile"), "w") as f:
            f.write(
                "S := $(wildcard common/*.c dec/*.c enc/*.c)\n"
                "all: $(S:.c=.o)\n\t@echo OK\n"
                "%.o: %.c\n\tgcc -O1 -pipe -Iinclude -c $< -o $@\n"
            )

    return once("brotli-source-O1", make)


def objects(folder: str) -> dict[str, str]:
    out = {}
    for path in sorted(glob.glob(f"{folder}/*/*.o")):
        with open(path, "rb") as f:
            out[os.path.relpath(path, folder)] = hashlib.sha256(f.read()).hexdigest()
    return out


def built() -> dict[str, str]:
    """Digests of the object files of an undisturbed build."""

    def make(target: str) -> None:
        shutil.copytree(c_source(), target)
        subprocess.run(["make", "-j4"], cwd=target, check=True, capture_output=True, env={"PATH": SIMPLE_PATH})

    return objects(once("brotli-built-O1", make))


@pytest.mark.diagonal
def test_parallel_build(via: str, bench: harness.Bench) -> None:
    """Saved twice in the middle, killed at once each time: the objects are byte for byte those of another build."""
    needs("make", "gcc")
    want = built()
    assert len(want) > 15
    tree = os.path.join(bench.home, "tree")
    shutil.copytree(c_source(), tree)
    for folder, names, files in os.walk(tree):
        for name in [".", *names, *files]:
            os.chown(os.path.join(folder, name), bench.account.uid, bench.account.gid)
    job = bench.run(["make", "-j4"], via, cwd=tree)

    def done() -> int:
        return len(glob.glob(f"{tree}/*/*.o"))

    harness.until(lambda: done() >= len(want) // 4, "a quarter of the objects")
    saved = bench.checkpoint(job, "--stop")
    bench.gone("after checkpoint --stop")
    assert done() < len(want), "the build was over before it was saved"
    again = bench.restart(f"{job.name}@{saved['number']}", detach=True)
    harness.until(lambda: done() >= len(want) // 2, "half of the objects")
    saved = bench.checkpoint(again, "--stop")
    bench.gone("after checkpoint --stop")
    last = bench.restart(f"{job.name}@{saved['number']}")
    last.verified(patience=120)
    assert objects(tree) == want


@pytest.mark.diagonal
def test_parallel_build_goes_on(via: str, bench: harness.Bench) -> None:
    """Five checkpoints during a build do not disturb it."""
    needs("make", "gcc")
    want = built()
    tree = os.path.join(bench.home, "tree")
    shutil.copytree(c_source(), tree)
    for folder, names, files in os.walk(tree):
        for name in [".", *names, *files]:
            os.chown(os.path.join(folder, name), bench.account.uid, bench.account.gid)
    job = bench.run(["make", "-j4"], via, cwd=tree)
    for k in range(5):
        harness.until(lambda k=k: len(glob.glob(f"{tree}/*/*.o")) >= (k + 1) * len(want) // 7, "objects")
        bench.checkpoint(job)
    job.verified(patience=120)
    assert objects(tree) == want


# -- a database -------------------------------------------------------------------------------------------------------


def check_database(path: str, at_least: int) -> int:
    base = sqlite3.connect(path)
    try:
        assert base.execute("pragma integrity_check").fetchall() == [("ok",)]
        rows = base.execute("select n, square from numbers order by n").fetchall()
    finally:
        base.close()
    assert [n for n, _ in rows] == list(range(len(rows))), "a transaction is missing or doubled"
    assert all(square == n * n for n, square in rows)
    assert len(rows) >= at_least
    return len(rows)


@pytest.mark.diagonal
@pytest.mark.parametrize("mode", ["delete", "wal"])
@pytest.mark.parametrize("late", [0.0, 1.0], ids=["at-once", "later"])
def test_database_with_saved_files(mode: str, late: float, via: str, bench: harness.Bench) -> None:
    """`--files=save`: the file comes back as it was at the pause, and the program goes on writing to it. The job is
    killed at once, or after it has written on for a second (30 s in the exam)."""
    database(mode, late, via, bench)


@pytest.mark.exam
@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_database_long_after(mode: str, via: str, bench: harness.Bench) -> None:
    database(mode, 30.0, via, bench)


def database(mode: str, late: float, via: str, bench: harness.Bench) -> None:
    path = os.path.join(bench.home, "numbers.db")
    command = [bench.account.python, harness.script("transactions.py"), bench.go, path, mode]
    job = bench.run(command, via)
    job.ready()
    saved = bench.checkpoint(job, "--files=save")
    time.sleep(late)  # the time passed is the test's parameter, not a wait for anything
    bench.kill()
    again = bench.restart(f"{job.name}@{saved['number']}", detach=True)
    harness.until(lambda: int(harness.text(path + ".count") or 0) > 40, "transactions after the restart")
    saved = bench.checkpoint(again, "--files=save")
    bench.kill()
    last = bench.restart(f"{job.name}@{saved['number']}")
    last.verified()
    total = int(last.output().split("TOTAL ")[1].split()[0])
    assert check_database(path, 40) == total


# -- a folder ---------------------------------------------------------------------------------------------------------


@pytest.mark.diagonal
def test_folder_saved_whole(via: str, bench: harness.Bench) -> None:
    """`--files=save:FOLDER`: the folder is as it was, whatever the program did in it after the checkpoint."""
    top = os.path.join(bench.home, "state")
    job = bench.run([bench.account.python, harness.script("folder.py"), bench.go, top], via)
    job.ready()
    said = bench.torpor("checkpoint", *job.which(), f"--files=save:{top}/not/there")
    assert said.status == 2 and "not/there" in said.err, said
    saved = bench.checkpoint(job, f"--files=save:{top}")
    job.verified()  # it has gone on, and changed the folder
    bench.untell()
    again = bench.restart(f"{job.name}@{saved['number']}", detach=True)
    saved = bench.checkpoint(again, f"--files=save:{top}")
    bench.kill()
    shutil.rmtree(top)
    bench.restart(f"{job.name}@{saved['number']}").verified()
