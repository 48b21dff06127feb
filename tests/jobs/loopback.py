"""A bench for jobs over hosts: all hosts are addresses of one machine, and what is called in place of ssh runs its
command on it, with folders of the host's own."""

from __future__ import annotations

import os
from collections.abc import Sequence

import harness

HOSTS = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
SSH = """#!/bin/sh
while [ "$1" = -o ]; do shift 2; done
export TORPOR_RUNTIME={folder}/run-$1 XDG_STATE_HOME={folder}/state-$1 HOSTNAME=$1
shift
exec sh -c "$*"
"""


class Over:
    """A job over hosts."""

    def __init__(self, bench: harness.Bench) -> None:
        self.bench = bench
        self.python = os.path.join(os.path.dirname(bench.account.torpor[0]), "python")
        self.rsh = f"{self.python} -m torpor rsh"
        path = f"{bench.folder}/ssh"
        with open(path, "w") as file:
            file.write(SSH.format(folder=bench.folder))
        os.chmod(path, 0o755)
        bench.env |= {"TORPOR_SSH": path, **self.env(HOSTS[0])}

    def env(self, host: str) -> dict[str, str]:
        folder = self.bench.folder
        return {"TORPOR_RUNTIME": f"{folder}/run-{host}", "XDG_STATE_HOME": f"{folder}/state-{host}"}

    def run(self, script: str, hosts: Sequence[str] = HOSTS, **options: str) -> harness.Running:
        return self.bench.run(["sh", "-c", script], flags=["--hosts", ",".join(hosts)])

    def on(self, host: str, *words: str) -> harness.Said:
        return self.bench.torpor(*words, env=self.env(host))

    def ended(self, job: harness.Running, status: int) -> None:
        assert job.finish() == status, job.trace()
        for host in HOSTS:
            assert self.on(host, "jobs").out == "no job is running\n"
        self.bench.gone("after the job has ended")
