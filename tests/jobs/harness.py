"""What the tests of whole jobs share: programs are built, started, checkpointed, killed and restarted here, and only
through the public commands.

A test program prints `READY` when it is set up, waits for a file to appear, verifies itself, prints `OK` and exits 0
(tests/programs/check.h). So the verdict is always the program's own, never "it is alive".
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
from accounts import ROOT, STAGE, Account, readable_copy

PROGRAMS = os.path.join(ROOT, "tests", "programs")
PATIENCE = float(os.environ.get("TORPOR_TEST_PATIENCE", "120"))
"""Seconds after which something that should have happened counts as never happening. Only a failing test waits."""
TICK = 0.003
LACKING = 77
"""Exit status of a program that cannot do here what it is for; its last line says why."""
_numbers = itertools.count(1)


class Failed(AssertionError):
    """The job, or torpor, did not do what it should."""


def until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Poll until `condition()` is true; its value."""
    end = time.monotonic() + patience
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Failed(f"not within {patience:g} s: {what}")
        time.sleep(TICK)


def text(path: str) -> str:
    """A file's text, '' if it is not there (yet)."""
    try:
        with open(path, errors="replace") as f:
            return f.read()
    except FileNotFoundError:
        return ""


# -- programs ---------------------------------------------------------------------------------------------------------


def build(source: str, *flags: str, compiler: str | None = None, libs: Sequence[str] = ()) -> str:
    """Compile a program of tests/programs once; the path of the executable. Everybody may run it."""
    path = os.path.join(PROGRAMS, source)
    compiler = compiler or ("g++" if source.endswith(".cc") else "gcc")
    digest = hashlib.sha256("\0".join([compiler, *flags, *libs]).encode())
    for name in sorted({path, *(os.path.join(PROGRAMS, n) for n in os.listdir(PROGRAMS) if n.endswith(".h"))}):
        with open(name, "rb") as f:
            digest.update(f.read())
    stem = os.path.splitext(os.path.basename(source))[0]
    target = os.path.join(STAGE, "bin", f"{stem}-{digest.hexdigest()[:12]}")
    if not os.path.exists(target):
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        temporary = f"{target}.{os.getpid()}"
        command = [compiler, "-O1", "-g", "-Wall", "-pthread", *flags, "-o", temporary, path, "-lrt", "-lm", *libs]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"{' '.join(command)}:\n{done.stderr}")
        os.chmod(temporary, 0o755)
        with contextlib.suppress(FileExistsError):  # somebody was quicker, and may be running it already
            os.link(temporary, target)
        os.unlink(temporary)
    return target


def script(name: str) -> str:
    """A Python (or other) program of tests/programs, where every user can read it."""
    return readable_copy(os.path.join(PROGRAMS, name))


# -- processes --------------------------------------------------------------------------------------------------------


def tagged(tag: str, folder: str = "") -> list[int]:
    """The processes (host pids) that carry a test's mark in their environment, zombies not among them.

    Servers that write their title over their environment lose it: with `folder`, those whose working directory is
    in it count too.
    """
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and is_tagged(name, tag, folder)]


def is_tagged(pid: str, tag: str, folder: str = "") -> bool:
    """Does this one?"""
    mark = f"TORPOR_TEST={tag}".encode() + b"\0"
    return mark in _environ(pid) + b"\0" or bool(folder and _works_in(pid, folder))


def _works_in(name: str, folder: str) -> bool:
    try:
        return (os.readlink(f"/proc/{name}/cwd") + "/").startswith(folder + "/")
    except OSError:
        return False


def _environ(name: str) -> bytes:
    """The environment of a process; if its first thread has ended, that of one that lives."""
    with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb", buffering=0) as f:
        return f.read(1 << 16) or b""
    with contextlib.suppress(OSError):
        for tid in os.listdir(f"/proc/{name}/task"):
            if tid != name:
                with open(f"/proc/{name}/task/{tid}/environ", "rb", buffering=0) as f:
                    return f.read(1 << 16) or b""
    return b""


def adopt_orphans() -> None:
    """Orphans of the tests become children of this process, which reaps them: the first process of a container may take
    its time, and until then their numbers are taken (a restart in place needs them)."""
    ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def reap_orphans(known: Iterable[int]) -> None:
    """Reap those that have ended; `known` are ours and somebody else's to wait for."""
    for pid in set(children(os.getpid())) - set(known):
        if state_of(pid) == "Z":
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def describe(pids: Iterable[int]) -> str:
    """Names and states of processes, for messages."""
    lines = []
    for pid in pids:
        with contextlib.suppress(OSError):
            status = dict(line.split(":", 1) for line in text(f"/proc/{pid}/status").splitlines() if ":" in line)
            command = text(f"/proc/{pid}/cmdline").replace("\0", " ")[:120]
            lines.append(f"{pid} {status.get('Name', '?').strip()} {status.get('State', '?').strip()}: {command}")
    return "; ".join(lines)


def state_of(pid: int) -> str:
    """The letter of /proc/PID/stat; '' once the process is gone."""
    return text_of_proc(f"/proc/{pid}/stat").rpartition(")")[2][1:2]


def text_of_proc(path: str) -> str:
    """A file of /proc, '' if the process is gone."""
    try:
        return text(path)
    except OSError:
        return ""


def children(pid: int) -> list[int]:
    """Direct children of a process, by any of its threads."""
    out: list[int] = []
    with contextlib.suppress(OSError):
        for tid in os.listdir(f"/proc/{pid}/task"):
            out += [int(word) for word in text(f"/proc/{pid}/task/{tid}/children").split()]
    return out


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    out: list[int] = []
    for child in children(pid):
        out += [child, *descendants(child)]
    return out


class Said(NamedTuple):
    """What a command of torpor answered."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class Running:
    """A job that runs: through `torpor run`, `torpor restart` or on its own (to be attached to by pid)."""

    def __init__(self, bench: Bench, popen: subprocess.Popen[bytes] | None, out: str, name: str, via: str) -> None:
        self.bench, self.popen, self.out, self.name, self.via = bench, popen, out, name, via

    def output(self) -> str:
        return text(self.out)

    def which(self) -> list[str]:
        """The words that name it to `torpor checkpoint`."""
        if self.via != "pid":
            return [self.name]
        assert self.popen is not None
        return ["--pid", str(self.popen.pid), "--name", self.name]

    def ended(self) -> int | None:
        """The exit status, None while it runs."""
        if self.popen is None:
            said = self.bench.torpor("jobs", "--json")
            if any(job["name"] == self.name for job in said.json()):
                return None
            return self.bench.torpor("wait", self.name).status
        return self.popen.poll()

    def wait_for(self, pattern: str, patience: float = PATIENCE) -> str:
        """Until the output has a line that matches; the line."""
        compiled = re.compile(pattern, re.MULTILINE)

        def look() -> str:
            seen = self.output()
            match = compiled.search(seen)
            if match and "\n" in seen[match.end() :] + ("\n" if seen.endswith("\n") else ""):
                return match.group(0)
            if self.popen is not None and self.popen.poll() is not None:
                match = compiled.search(self.output())
                if match:
                    return match.group(0)
                raise Failed(f"ended with {self.popen.returncode} before {pattern!r}:\n{self.trace()}")
            return ""

        try:
            return until(look, f"{pattern!r} from {self.name}", patience)
        except Failed as error:
            raise Failed(f"{error}\n{self.trace()}") from None

    def ready(self) -> None:
        """Until the program is. Skips the test where it says that this machine has not got what it needs."""
        try:
            self.wait_for(r"^READY.*$")
        except Failed:
            if self.popen is not None and self.popen.poll() == LACKING:
                pytest.skip(self.output().strip().splitlines()[-1])
            raise

    def finish(self, patience: float = PATIENCE) -> int:
        """Wait for the end; the exit status."""
        if self.popen is None:
            return self.bench.torpor("wait", self.name, patience=patience).status
        try:
            return self.popen.wait(patience)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} does not end:\n{self.trace()}") from None

    def verified(self, patience: float = PATIENCE, says: str = "") -> None:
        """Tell the program to verify itself; it must end well (and have printed the line `says`)."""
        self.bench.tell()
        status = self.finish(patience)
        seen = self.output()
        if status != 0 or not re.search(r"^OK$", seen, re.MULTILINE) or "FAIL" in seen:
            raise Failed(f"exit status {status}\n{self.trace()}")
        if says and says not in seen.splitlines():
            raise Failed(f"did not print {says!r}\n{self.trace()}")

    def trace(self) -> str:
        """Everything known about it, for a message."""
        processes = describe(tagged(self.bench.tag, self.bench.folder))
        return (
            f"--- {self.via} {self.name}: output ---\n{self.output()[-3000:]}\n"
            f"--- standard error ---\n{text(self.out + '.err')[-3000:]}\n--- processes: {processes}\n"
            f"--- {self._fate()}\n--- commands:\n" + "\n".join(self.bench.history[-12:])
        )

    def _fate(self) -> str:
        """Whether it runs, or how it has ended, as far as can be known; for a message."""
        if self.popen is not None:
            status = self.popen.poll()
            return f"{self.popen.pid} runs" if status is None else f"{self.popen.pid} has ended with {status}"
        try:
            listed = self.bench.torpor("jobs", "--json", patience=20)
            if f'"{self.name}"' in listed.out:
                return f"it runs: {listed.out}"
            ended = self.bench.torpor("wait", self.name, patience=20)
            log = self.bench.torpor("logs", self.name, patience=20)
        except Failed as error:
            return f"what became of it is not known: {error}"
        return f"it has ended with {ended.status} {ended.err!r}; its log: {log.out[-2000:]!r}"


class Bench:
    """The place of one test: a folder, a store, a user, and a mark on every process."""

    def __init__(self, account: Account, folder: str) -> None:
        self.account = account
        self.tag = f"{os.getpid()}.{next(_numbers)}.{int(time.time())}"
        self.folder = folder
        os.makedirs(folder, mode=0o755, exist_ok=True)
        self.home = os.path.join(folder, "home")
        self.store = os.path.join(folder, "store")
        os.makedirs(self.home, exist_ok=True)
        for path in (folder, self.home):
            os.chown(path, account.uid, account.gid)
        self.go = os.path.join(folder, "go")
        self.env = account.environment(self.home, self.tag)
        self.history: list[str] = []
        self.started: list[subprocess.Popen[bytes]] = []

    # -- commands

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start something as the account of this bench."""
        options.setdefault("env", self.env)
        options.setdefault("cwd", self.folder)
        options.setdefault("stdin", subprocess.DEVNULL)
        process = subprocess.Popen(list(command), **self.account.popen_options(), **options)
        self.started.append(process)
        return process

    def torpor(
        self,
        *words: str,
        patience: float = PATIENCE,
        env: dict[str, str] | None = None,
        stdin: Any = subprocess.DEVNULL,
    ) -> Said:
        """Run a command to its end."""
        began = time.monotonic()
        process = self.popen(
            [*self.account.torpor, *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=stdin, env={**self.env, **(env or {})},
        )  # fmt: skip
        try:
            out, err = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise Failed(f"torpor {' '.join(words)} does not end; it said {out!r} {err!r}") from None
        said = Said(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))
        took = time.monotonic() - began
        self.history.append(f"torpor {' '.join(words)} -> {said.status} in {took:.2f} s {said.out!r} {said.err!r}")
        return said

    def must(self, *words: str, **options: Any) -> Said:
        """Run a command that has to succeed."""
        said = self.torpor(*words, **options)
        if said.status != 0:
            raise Failed(f"torpor {' '.join(words)}: exit status {said.status}: {said.out}{said.err}\n" + "\n".join(
                self.history[-8:]
            ))  # fmt: skip
        if "Traceback" in said.err:
            raise Failed(f"torpor {' '.join(words)} printed a traceback:\n{said.err}")
        return said

    def new_name(self) -> str:
        return f"t{os.getpid()}-{next(_numbers)}"

    def output_file(self) -> str:
        path = os.path.join(self.folder, f"out.{next(_numbers)}")
        for name in (path, path + ".err"):
            with open(name, "w"):
                pass
            os.chown(name, self.account.uid, self.account.gid)
        return path

    def policy(self, text: str = '[[service]]\naction = "reset"\n') -> None:
        """The user's policy: by default, that nothing outside needs to be asked about."""
        path = os.path.join(self.home, ".config", "torpor", "policy.toml")
        for folder in (os.path.join(self.home, ".config"), os.path.dirname(path)):
            os.makedirs(folder, exist_ok=True)
            os.chown(folder, self.account.uid, self.account.gid)
        with open(path, "w") as file:
            file.write(text)

    # -- jobs

    def tell(self) -> None:
        """The word to verify."""
        with open(self.go, "w"):
            pass

    def untell(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.go)

    def run(
        self, command: Sequence[str], via: str = "run", name: str | None = None, flags: Sequence[str] = (),
        **options: Any,
    ) -> Running:  # fmt: skip
        """Start a job: via 'run' (torpor run, with these flags) or 'pid' (on its own, as a session of its own)."""
        name = name or self.new_name()
        out = self.output_file()
        words = list(command)
        if via == "run":
            words = [*self.account.torpor, "run", "--name", name, "--store", self.store, *flags, "--", *words]
        with open(out, "ab") as f, open(out + ".err", "ab") as e:
            options.setdefault("stdout", f)
            options.setdefault("stderr", e)
            process = self.popen(words, start_new_session=True, **options)
        self.history.append(f"started {' '.join(words)} as {process.pid}")
        return Running(self, process, out, name, via)

    def checkpoint(self, job: Running, *options: str) -> dict[str, Any]:
        """Save a job; what `--json` said. The whole thing is checked: it must be a checkpoint of that name."""
        try:
            said = self.must("checkpoint", *job.which(), "--store", self.store, "--json", *options)
        except Failed as error:
            raise Failed(f"{error}\n{job.trace()}") from None
        return said.json()  # type: ignore[no-any-return]

    def restart(self, name: str, *options: str, detach: bool = False, **popen: Any) -> Running:
        """Start a saved job again, in the foreground or detached."""
        out = self.output_file()
        job = name.partition("@")[0]
        if detach:
            self.must("restart", name, "--store", self.store, "--detach", "--stdout", out, "--stderr", out + ".err",
                      *options)  # fmt: skip
            return Running(self, None, out, job, "restart")
        with open(out, "ab") as f, open(out + ".err", "ab") as e:
            words = [*self.account.torpor, "restart", name, "--store", self.store, *options]
            popen.setdefault("stdout", f)
            popen.setdefault("stderr", e)
            process = self.popen(words, start_new_session=True, **popen)
        self.history.append(f"started torpor {' '.join(words[1:])} as {process.pid}")
        return Running(self, process, out, job, "restart")

    def kill(self) -> None:
        """SIGKILL to everything this test has started: job, supervisor, helpers. Returns when all of it is dead."""
        end = time.monotonic() + PATIENCE
        killed: set[int] = set()
        while True:
            found = tagged(self.tag, self.folder)
            for pid in found:
                self._end(pid)
            killed.update(found)
            for process in self.started:
                process.poll()
            reap_orphans(process.pid for process in self.started)
            # The memory of a dying process is gone before it is: it carries no mark any more, and still counts; so does
            # a zombie that is ours to reap, since it holds its number.
            ours = set(children(os.getpid())) - {process.pid for process in self.started}
            killed = {pid for pid in killed if state_of(pid) not in (("", "X") if pid in ours else ("", "Z", "X"))}
            if not found and not killed:
                return
            if time.monotonic() > end:
                raise Failed(f"not to be killed: {describe(found or killed)}")
            time.sleep(TICK)

    def _end(self, pid: int) -> None:
        """SIGKILL, if it still is what it was: where others walk to numbers, one is used again within milliseconds."""
        try:
            handle = os.pidfd_open(pid)
        except OSError:
            return
        try:
            if is_tagged(str(pid), self.tag, self.folder):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        except ProcessLookupError:
            pass
        finally:
            os.close(handle)

    def gone(self, what: str) -> None:
        """Nothing of this test may be running any more (torpor may take a moment to end)."""
        try:
            until(lambda: not self._left(), what)
        except Failed:
            raise Failed(f"{what}, left over: {describe(self._left())}") from None

    def _left(self) -> list[int]:
        for process in self.started:
            process.poll()
        reap_orphans(process.pid for process in self.started)
        return tagged(self.tag, self.folder)

    # -- the cycle

    def cycle(
        self,
        command: Sequence[str],
        via: str,
        *,
        rewind: bool = True,
        prepare: Callable[[Running], None] | None = None,
        save: Sequence[str] = (),
        again: Sequence[str] = (),
        patience: float = PATIENCE,
        says: str = "",
        **options: Any,
    ) -> None:
        """The life that every program of these tests has to live through:

        1. start, checkpoint, go on: it must verify itself;
        2. restart that checkpoint, checkpoint the restarted job, SIGKILL everything;
        3. restart the second checkpoint: it must verify itself.

        rewind=False: the program changes its surroundings when it verifies itself (deletes what it had, writes to
        mapped files), so the job of step 1 is killed right after the checkpoint, and its going on is a test of its own.
        """
        self.untell()
        job = self.run(command, via, **options)
        job.ready()
        if prepare:
            prepare(job)
        saved = self.checkpoint(job, *save)
        first = f"{job.name}@{saved['number']}"
        if rewind:
            try:
                job.verified(patience, says)
            except Failed as error:
                raise Failed(f"after going on: {error}") from None
            self.gone("after the job has ended")
        else:
            self.kill()
        self.untell()
        again_job = self.restart(first, *again, detach=True)
        saved = self.checkpoint(again_job, *save)
        self.kill()
        second = f"{job.name}@{saved['number']}"
        assert second != first
        last = self.restart(second, *again)
        try:
            last.verified(patience, says)
        except Failed as error:
            raise Failed(f"after the second restart: {error}\n--- first restart ---\n{again_job.output()}") from None
        self.gone("after the restarted job has ended")

    def goes_on(self, command: Sequence[str], via: str, times: int = 1, patience: float = PATIENCE) -> None:
        """Start, checkpoint, go on: the program must verify itself."""
        self.untell()
        job = self.run(command, via)
        job.ready()
        for _ in range(times):
            self.checkpoint(job)
        job.verified(patience)
        self.gone("after the job has ended")

    def close(self) -> None:
        """End and remove everything."""
        left = tagged(self.tag, self.folder)
        self.kill()
        for process in self.started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            for pipe in (process.stdout, process.stderr, process.stdin):
                if pipe:
                    pipe.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        del left


@contextlib.contextmanager
def patience_of(seconds: float) -> Iterator[None]:
    """A deadline around a block, for what would otherwise hang for ever."""

    def alarm(_number: int, _frame: object) -> None:
        raise Failed(f"not within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
