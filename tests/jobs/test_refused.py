"""What cannot be saved is refused by name, with the way out, before anything is changed; the program goes on."""

from __future__ import annotations

import os
import subprocess

import harness
import pytest
from test_real_programs import needs
from test_robustness import one_line, picture, program_of, same_again

THINGS = {
    # mode of tests/programs/refused.c: words that the line must have
    "io_uring": "io_uring",
    "aio": "asynchronous I/O",
    "fanotify": "fanotify",
    "userfaultfd": "userfaultfd",
    "userfaultfd-memory": "userfaultfd",
    "perf": "perf event",
    "bpf": "BPF map",
    "secretmem": "secret memory",
    "landlock-ruleset": "landlock ruleset",
    "raw": "raw socket",
    "packet": "packet socket",
    "vsock": "socket",
    "mptcp": "socket",
    "lease": "lease",
    "namespace": "namespace",
    "fuse": "/dev/fuse",
    "kvm": "/dev/kvm",
    "net/tun": "/dev/net/tun",
    "kmsg": "/dev/kmsg",
}
ROOT = ("fanotify", "perf", "bpf", "raw", "packet", "fuse", "kvm", "net/tun", "kmsg")
"""What an ordinary user mostly cannot have."""


def refused(job: harness.Running, words: str) -> None:
    """By `torpor check` and by `torpor checkpoint`; nothing changes, and the program verifies itself."""
    bench = job.bench
    root = program_of(job)
    before = picture(root, True)
    which = ["--pid", str(root), "--name", job.name] if job.via == "pid" else [job.name]
    said = bench.torpor("check", str(root) if job.via == "pid" else job.name)
    lines = [line for line in said.out.splitlines() if line.startswith("in the way: ")]
    assert said.status == 1 and lines and not said.err, said
    assert any(words in line for line in lines), lines
    said = bench.torpor("checkpoint", *which, "--store", bench.store)
    assert said.status == 1, said
    line = one_line(said)
    thing, _, way_out = line.partition("; ")
    assert f"process {root} (" in thing and words in line and way_out, line
    same_again(root, before, True, "after the refusal")
    assert not bench.torpor("list", "--store", bench.store, "--json").out.count('"number"')
    job.verified()
    bench.gone("after the job has ended")


@pytest.mark.parametrize("mode", THINGS)
def test_refused(mode: str, bench: harness.Bench) -> None:
    needs("gcc")
    if bench.account.label == ("user" if mode in ROOT else "root"):
        pytest.skip("tested as root" if mode in ROOT else "tested as an ordinary user")
    via = "pid" if sorted(THINGS).index(mode) % 2 else "run"
    job = bench.run([harness.build("refused.c"), bench.go, "0", mode], via)
    harness.until(lambda: job.output().endswith("\n"), "the program")
    if not job.output().startswith("READY"):
        assert job.finish() == 77, job.trace()
        pytest.skip(job.output().strip())
    refused(job, THINGS[mode])


@pytest.mark.parametrize("tracer", ["strace", "gdb"])
def test_traced(tracer: str, root_bench: harness.Bench) -> None:
    """A program under a debugger: the tracer is named."""
    needs("gcc", tracer)
    job = root_bench.run([harness.build("memory.c"), root_bench.go], "pid")
    job.ready()
    assert job.popen is not None
    pid = str(job.popen.pid)
    command = ["strace", "-o", os.devnull, "-p", pid] if tracer == "strace" else ["gdb", "-q", "-nx", "-p", pid]
    other = root_bench.popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def traced() -> bool:
        return f"TracerPid:\t{other.pid}" in harness.text(f"/proc/{pid}/status")

    harness.until(lambda: traced() or other.poll() is not None, "the tracer")
    if not traced():
        pytest.skip(f"{tracer} cannot trace here")
    said = root_bench.torpor("checkpoint", "--pid", pid, "--name", job.name, "--store", root_bench.store)
    assert said.status == 1 and traced(), said
    assert f"is being traced by process {other.pid} ({tracer})" in one_line(said), said
    assert other.stdin is not None
    if tracer == "strace":
        other.terminate()
    else:
        other.stdin.write(b"detach\nquit\n")
        other.stdin.flush()
    other.wait(30)
    root_bench.checkpoint(job)
    job.verified()
