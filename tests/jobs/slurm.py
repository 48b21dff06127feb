"""A real Slurm on this host, for the tests: munged, slurmctld and slurmd from the distribution's packages, configured
in a folder of their own, on loopback, with a key of their own; started and stopped by their pids. Needs root."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from typing import Any

from accounts import Account
from harness import PATIENCE, Failed, until

NEEDS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "squeue")

CONFIG = """\
ClusterName=torpor-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A job that is requeued may start again once its old credential has expired: after 2 minutes by default.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/linear
SchedulerType=sched/builtin
SchedulerParameters=sched_min_interval=100000,sched_interval=1,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=10
MinJobAge=300
JobRequeue=1
RequeueExit=75
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:8
"""


def missing() -> str:
    """Why there can be no Slurm here, '' if there can."""
    if os.getuid():
        return "Slurm's daemons need root"
    return next((f"no {name}" for name in NEEDS if shutil.which(name) is None), "")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Slurm:
    """The three daemons, running. `folder` has to be readable by those who submit jobs."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.host = os.uname().nodename.partition(".")[0]
        self.conf = f"{folder}/slurm.conf"
        self.daemons: list[subprocess.Popen[bytes]] = []
        for name in ("", "munge", "state", "spool"):
            os.makedirs(f"{folder}/{name}", 0o755, exist_ok=True)
            os.chmod(f"{folder}/{name}", 0o755)
        with open(self.conf, "w") as f:
            f.write(CONFIG.format(folder=folder, host=self.host, ctld_port=_free_port(), slurmd_port=_free_port()))
        key = f"{folder}/munge/key"
        fd = os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
        os.write(fd, os.urandom(1024))
        os.close(fd)
        os.chown(f"{folder}/munge", 0, 0)

    def start(self) -> None:
        """Start them, and return once the node takes jobs."""
        munge = f"{self.folder}/munge"
        self._daemon(
            "munged", "--foreground", "--force", f"--socket={munge}/socket", f"--key-file={munge}/key",
            f"--log-file={munge}/log", f"--pid-file={munge}/pid", f"--seed-file={munge}/seed", "--num-threads=1",
        )  # fmt: skip
        until(lambda: os.path.exists(f"{munge}/socket"), "munged listens")
        self._daemon("slurmctld", "-D", "-i", "-c", "-f", self.conf)
        self._daemon("slurmd", "-D", "-f", self.conf, "-N", self.host)
        until(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%T"), f"the node is idle\n{self.logs()}")

    def _daemon(self, *words: str) -> None:
        with open(f"{self.folder}/{words[0]}.out", "ab") as out:
            self.daemons.append(
                subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.environment(), cwd="/",
                    start_new_session=True,
                )
            )  # fmt: skip

    def environment(self) -> dict[str, str]:
        return {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8", "SLURM_CONF": self.conf}

    def ask(
        self, *words: str, account: Account | None = None, cwd: str = "/", env: dict[str, str] | None = None
    ) -> str:
        """Run one of Slurm's commands; what it says, '' if it fails."""
        options: dict[str, Any] = account.popen_options() if account else {}
        done = subprocess.run(
            words, capture_output=True, text=True, cwd=cwd, env={**self.environment(), **(env or {})},
            stdin=subprocess.DEVNULL, timeout=PATIENCE, check=False, **options,
        )  # fmt: skip
        return done.stdout if done.returncode == 0 else ""

    def submit(self, account: Account, cwd: str, env: dict[str, str], *words: str) -> str:
        """sbatch; the number of the job."""
        options = account.popen_options()
        done = subprocess.run(
            ["sbatch", "--parsable", *words], capture_output=True, text=True, cwd=cwd,
            env={**self.environment(), **env}, stdin=subprocess.DEVNULL, timeout=PATIENCE, check=False, **options,
        )  # type: ignore[call-overload]  # fmt: skip
        if done.returncode:
            raise Failed(f"sbatch {words}: {done.stderr}\n{self.logs()}")
        return str(done.stdout.strip().partition(";")[0])

    def show(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says of a job, by field."""
        said = self.ask("scontrol", "-o", "show", "job", job)
        return dict(word.split("=", 1) for word in said.split() if "=" in word)

    def logs(self) -> str:
        """The ends of the logs."""
        out = ""
        for name in ("slurmctld.log", "slurmd.log", "munge/log", "slurmctld.out", "slurmd.out", "munged.out"):
            with contextlib.suppress(OSError), open(f"{self.folder}/{name}", errors="replace") as f:
                out += f"--- {name}\n{f.read()[-3000:]}\n"
        return out

    def stop(self) -> None:
        """End jobs and daemons."""
        self.ask("scancel", "--full", "--signal=KILL", "--state=RUNNING", "--user=root")
        for daemon in reversed(self.daemons):
            with contextlib.suppress(ProcessLookupError):
                daemon.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 15
        for daemon in self.daemons:
            try:
                daemon.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
