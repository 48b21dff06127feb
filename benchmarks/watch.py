"""What it costs a job to be watched (docs/watch.md): microseconds for each system call.

    .venv/bin/python benchmarks/watch.py [COUNT]

A call that no filter looks for, with and without the filter; a wrapped call; the same while the job is saved over and
over. The last figure is worst where the machine has few processors, since a save is busy on one of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TORPOR = os.path.join(os.path.dirname(sys.executable), "torpor")


def run(words: list[str], env: dict[str, str], *flags: str, saving: bool = False) -> str:
    """The program's line."""
    command = [TORPOR, "run", "--name", "bench", *flags, "--", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as job:
        saves = 0
        while saving and job.poll() is None:
            done = subprocess.run([TORPOR, "checkpoint", "bench"], env=env, capture_output=True, check=False)
            saves += done.returncode == 0
            time.sleep(0.05)
        assert job.stdout is not None
        line = job.stdout.read().strip()
    return f"{line}   ({saves} checkpoints)" if saving else line


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    folder = tempfile.mkdtemp(prefix="torpor-bench-", dir="/var/tmp")
    env = {**os.environ, "TORPOR_RUNTIME": f"{folder}/runtime", "TORPOR_STORE": f"{folder}/store"}
    try:
        program = f"{folder}/calls"
        subprocess.run(["gcc", "-O2", "-o", program, f"{HERE}/programs/calls.c"], check=True)
        print("microseconds: median, 99th percentile")
        many = str(count // 50)
        print("getppid, without a filter ", run([program, "getppid", many], env))
        print("getppid, with the filter  ", run([program, "getppid", many], env, "--watch"))
        for kind, how in (
            ("connect", "--watch"),
            ("recvfrom", "--watch"),
            ("sendmsg", "--watch"),
            ("sendmsg", "--watch=sendmsg"),
        ):
            print(f"{kind}, not watched       ", run([program, kind, str(count)], env))
            print(f"{kind}, {how:17}", run([program, kind, str(count)], env, how))
        print("connect, during checkpoints", run([program, "connect", str(count)], env, "--watch", saving=True))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
