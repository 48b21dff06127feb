"""Pairs of pseudo-terminals held by the job, sessions on them, and real programs that people use at terminals."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import catalogue
import harness
import pytest

SESSION = """
import os, pty, re, select, sys, time
go = sys.argv[1]
pid, master = pty.fork()
if pid == 0:
    os.environ["PS1"] = "$ "
    os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
seen = b""
def until(pattern, patience=100):
    global seen
    end = time.time() + patience
    while not re.search(pattern, seen):
        if time.time() > end or not (select.select([master], [], [], 0.2)[0] or time.time() < end):
            print("FAIL: no", pattern, "in", seen, flush=True)
            os._exit(1)
        if select.select([master], [], [], 0.1)[0]:
            seen += os.read(master, 65536)
    found = re.search(pattern, seen)
    seen = seen[found.end():]
    return found
def in_front(name):
    "Until the group in front of the terminal is led by that program: only then a key reaches it."
    end = time.time() + 100
    while time.time() < end:
        try:
            with open(f"/proc/{os.tcgetpgrp(master)}/comm") as file:
                if file.read().strip() == name:
                    return
        except OSError:
            pass
        time.sleep(0.01)
    print("FAIL:", name, "is not in front", flush=True)
    os._exit(1)
def type(text):
    os.write(master, text.encode())
until(rb"\\$ ")
type("sleep 9991 & sleep 9992\\n")
in_front("sleep")
type("\\x1a")
until(rb"Stopped")
type("tty; echo pid $$\\n")
tty = until(rb"(/dev/pts/\\d+)").group(1)
shell = until(rb"pid (\\d+)").group(1)
until(rb"\\$ ")
type("echo half a li")
until(rb"half a li")
print("READY", flush=True)
while not os.path.exists(go):
    time.sleep(0.01)
type("ne\\n")
until(rb"\\nhalf a line\\r\\n")
type("jobs\\n")
until(rb"Running\\s+sleep 9991")
until(rb"Stopped\\s+sleep 9992")
type("tty; echo pid $$\\n")
assert until(rb"(/dev/pts/\\d+)").group(1) == tty
assert until(rb"pid (\\d+)").group(1) == shell
type("fg\\n")
until(rb"sleep 9992\\r\\n")
in_front("sleep")
type("\\x03")
until(rb"\\$ ")
type("kill %1; wait %1; echo status $?; exit 5\\n")
until(rb"status 143")
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 5, status
print("OK", flush=True)
"""


@pytest.mark.parametrize("program", catalogue.parameters(catalogue.TERMINALS))
def test_two_generations(program: catalogue.Program, via: str, bench: harness.Bench) -> None:
    bench.cycle(program.command(bench.go), via)


@pytest.mark.parametrize("program", catalogue.parameters(catalogue.SANDBOX))
def test_filters_of_its_own(program: catalogue.Program, via: str, root_bench: harness.Bench) -> None:
    root_bench.cycle(program.command(root_bench.go), via)


def test_filters_are_refused_without_privilege(user_bench: harness.Bench) -> None:
    job = user_bench.run(catalogue.Program("sandbox.c", "all").command(user_bench.go))
    job.ready()
    said = user_bench.torpor("checkpoint", job.name, "--store", user_bench.store)
    assert said.status == 1 and "seccomp" in said.err and len(said.err.strip().splitlines()) == 1, said
    job.verified()


def test_vfork_in_progress(via: str, bench: harness.Bench) -> None:
    """The parent cannot be stopped until its child has ended: the checkpoint waits for that."""
    bench.cycle(catalogue.Program("vfork.c", "short").command(bench.go), via)


def test_vfork_that_does_not_end(bench: harness.Bench) -> None:
    job = bench.run(catalogue.Program("vfork.c", "long").command(bench.go))
    job.ready()
    said = bench.torpor("checkpoint", job.name, "--store", bench.store)
    assert said.status != 0 and "vfork" in said.err and len(said.err.strip().splitlines()) == 1, said
    job.verified()


@pytest.mark.parametrize(("mode", "flag"), [("shared", "CLONE_VM"), ("files", "CLONE_FILES"), ("folder", "CLONE_FS")])
def test_what_is_shared_without_threads_is_refused(mode: str, flag: str, user_bench: harness.Bench) -> None:
    job = user_bench.run(catalogue.Program("vfork.c", mode).command(user_bench.go))
    job.ready()
    said = user_bench.torpor("checkpoint", job.name, "--store", user_bench.store)
    assert said.status == 1 and flag in said.err and len(said.err.strip().splitlines()) == 1, said
    job.verified()


def test_numbers_that_are_taken(bench: harness.Bench) -> None:
    """Somebody else has the number of the job's pseudo-terminal at the restart: the job has a devpts of its own."""
    job = bench.run(catalogue.Program("terminals.c", "session").command(bench.go))
    job.ready()
    saved = bench.checkpoint(job)
    bench.kill()
    taken = []
    try:
        while len(taken) < 12:
            taken += os.openpty()
        again = bench.restart(f"{job.name}@{saved['number']}", detach=True)
        saved = bench.checkpoint(again)
        bench.kill()
        bench.restart(f"{job.name}@{saved['number']}").verified()
    finally:
        for fd in taken:
            os.close(fd)


def test_a_shell_with_jobs(via: str, bench: harness.Bench) -> None:
    """An interactive shell on a pseudo-terminal: a running job, a stopped one, half a line typed."""
    path = os.path.join(bench.folder, "session.py")
    with open(path, "w") as f:
        f.write(SESSION)
    bench.cycle([bench.account.python, path, bench.go], via)


@pytest.mark.skipif(not shutil.which("script"), reason="there is no script")
def test_script(bench: harness.Bench) -> None:
    """script(1) records a shell that counts; nothing is lost or doubled."""
    log = os.path.join(bench.folder, "typescript")
    loop = f"i=0; echo READY; while [ ! -e {bench.go} ]; do i=$((i+1)); echo n $i; sleep 0.02; done; echo OK"
    job = bench.run(["script", "-q", "-f", "-c", loop, log])
    job.ready()
    saved = bench.checkpoint(job)
    bench.kill()
    again = bench.restart(f"{job.name}@{saved['number']}", detach=True)
    saved = bench.checkpoint(again)
    bench.kill()
    bench.restart(f"{job.name}@{saved['number']}").verified()
    numbers = [int(number) for number in re.findall(r"^n (\d+)", harness.text(log), re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1)), numbers


@pytest.mark.skipif(not all(shutil.which(name) for name in ("tmux", "vim", "top")), reason="needs tmux, vim and top")
def test_a_server_of_windows(bench: harness.Bench) -> None:
    """tmux with three windows: an editor with unsaved text, a shell with jobs, top; attached to again."""
    socket, text = os.path.join(bench.folder, "socket"), os.path.join(bench.home, "unsaved.txt")
    bench.env["TERM"] = "xterm"
    tmux = ["tmux", "-S", socket, "-f", "/dev/null"]

    def ask(*words: str) -> str:
        client = bench.popen([*tmux, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        out, _ = client.communicate(timeout=20)
        return str(out.decode(errors="replace"))

    def shows(window: int, pattern: str) -> None:
        harness.until(
            lambda: re.search(pattern, ask("capture-pane", "-p", "-t", f"a:{window}"), re.MULTILINE),
            f"{pattern} in window {window}: {ask('capture-pane', '-p', '-t', f'a:{window}')}",
        )

    def attach() -> subprocess.Popen[bytes]:
        """A client outside the job, on a terminal of its own."""
        master, slave = os.openpty()
        os.set_blocking(master, False)
        client = bench.popen([*tmux, "attach"], stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        terminals.append(master)
        harness.until(lambda: ask("list-clients").strip(), "client")
        return client

    terminals: list[int] = []
    job = bench.run([*tmux, "-D"])
    harness.until(lambda: os.path.exists(socket), "socket")
    ask("new-session", "-d", "-x", "100", "-y", "30", "-s", "a", f"vim -u NONE -n {text}")
    ask("new-window", "bash --norc --noprofile")
    ask("new-window", "top -d 0.5")
    ask("send-keys", "-t", "a:0", "ihello unsaved")
    ask("send-keys", "-t", "a:1", "sleep 9981 & sleep 9982", "Enter")
    running = ("display-message", "-p", "-t", "a:1", "#{pane_current_command}")
    harness.until(lambda: ask(*running).strip() == "sleep", "the one that is to be stopped")
    ask("send-keys", "-t", "a:1", "C-z")
    shows(1, "Stopped")
    ask("send-keys", "-t", "a:1", "echo half")
    shows(0, "hello unsaved")
    shows(1, "echo half$")
    shows(2, "load average")
    client = attach()
    try:
        for _ in range(2):
            saved = bench.checkpoint(job)
            assert client.poll() is None, "the client has noticed"
            bench.kill()
            job = bench.restart(f"{job.name}@{saved['number']}", detach=True)
            harness.until(lambda: "a:" in ask("list-sessions") or "a" in ask("list-sessions"), "server")
            assert ask("list-clients").strip() == "", "the old client has gone with the old job"
            client = attach()
        ask("send-keys", "-t", "a:1", " of it", "Enter")
        shows(1, "^half of it$")
        ask("send-keys", "-t", "a:1", "clear; jobs", "Enter")
        shows(1, r"Running\s+sleep 9981")
        shows(1, r"Stopped\s+sleep 9982")
        before = ask("capture-pane", "-p", "-t", "a:2")
        harness.until(lambda: ask("capture-pane", "-p", "-t", "a:2") != before, "top goes on")
        ask("send-keys", "-t", "a:0", " and saved", "Escape", ":wq", "Enter")
        harness.until(lambda: harness.text(text) == "hello unsaved and saved\n", "text")
        ask("kill-server")
        assert client.wait(20) is not None
    finally:
        for fd in terminals:
            os.close(fd)
