"""`torpor run` in a terminal feels as if it were not there: tried with a real shell in a real terminal."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from conftest import Screen, until  # type: ignore[import-not-found]


def test_exit_status_and_output(shell: Screen) -> None:
    shell.send("torpor run -- sh -c 'echo hello; exit 7'; echo status $?\n")
    shell.expect(r"\nhello\r\n")
    shell.expect(r"status 7")


def test_control_c_ends_the_program_once(shell: Screen, tmp_path: Path) -> None:
    program = "trap 'echo got it' INT; echo ready; read x; sleep 0.5; echo after $?; exit 5"
    shell.send(f'torpor run -- bash -c "{program}"; echo status $?\n')
    shell.expect(r"\nready")
    shell.doing("bash", "read")
    shell.send("\x03")
    shell.expect("got it")
    shell.doing("bash", "read")
    shell.send("\n")
    match = shell.expect(r"(?s)(.*)status 5")
    assert "got it" not in match.group(1)


def test_death_by_control_c_is_passed_on(shell: Screen) -> None:
    shell.send("torpor run -- sleep 60; echo not reached\n")
    shell.doing("sleep", "clock_nanosleep")
    shell.send("\x03")
    shell.expect(r"\$ ")
    shell.send("echo status $?\n")
    match = shell.expect(r"(?s)(.*)status 130")
    assert "\nnot reached" not in match.group(1)


def test_control_c_in_a_loop_ends_the_loop(shell: Screen) -> None:
    # A shell goes on with its loop after a command that exits 130, but not after one that died of SIGINT.
    shell.send("for i in 1 2 3; do echo round $i; torpor run -- sleep 30; done\n")
    shell.expect("round 1")
    shell.doing("sleep", "clock_nanosleep")
    shell.send("\x03")
    match = shell.expect(r"(?s)(.*)\$ ")
    assert "round 2" not in match.group(1)


@pytest.mark.parametrize("kill", ["KILL", "TERM", "SEGV"])
def test_death_by_signal_is_passed_on(shell: Screen, kill: str) -> None:
    shell.send(f"torpor run -- sh -c 'kill -{kill} $$'; echo status $?\n")
    shell.expect(f"status {128 + signal.Signals[f'SIG{kill}']}")


def test_control_z_and_fg(shell: Screen) -> None:
    shell.send("torpor run -- sh -c 'echo ready; sleep 2; echo woke; read x; echo got $x; exit 3'\n")
    shell.expect(r"\nready")
    shell.doing("sleep", "clock_nanosleep")
    shell.send("\x1a")
    shell.expect(r"Stopped")
    shell.expect(r"\$ ")
    shell.send("torpor jobs\n")
    shell.expect(r"sh +stopped")
    shell.send("fg\n")
    shell.expect("woke")
    shell.send("input\n")
    shell.expect("got input")
    shell.send("echo status $?\n")
    shell.expect("status 3")


def test_control_z_bg_and_reading_in_the_background(shell: Screen) -> None:
    shell.send("torpor run -- sh -c 'echo ready; sleep 2; echo woke; read x; echo got $x'\n")
    shell.expect(r"\nready")
    shell.doing("sleep", "clock_nanosleep")
    shell.send("\x1a")
    shell.expect(r"Stopped")
    shell.send("bg\n")
    shell.expect(r"(\n|\$ )woke")
    shell.stopped()
    shell.send("\n")
    shell.expect(r"\[1\]\+  Stopped")
    shell.send("fg\n")
    shell.doing("sh", "read")
    shell.send("input\n")
    shell.expect("got input")


def test_only_the_program_is_stopped_and_continued(shell: Screen, tmp_path: Path) -> None:
    shell.send(f"torpor run -- sh -c 'echo $$ > {tmp_path}/pid; echo ready; sleep 1; echo done'\n")
    shell.expect(r"\nready")
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    shell.expect(r"Stopped")
    shell.stopped()
    os.kill(pid, signal.SIGCONT)  # by somebody else than the shell
    shell.expect("done")


def test_killed_while_stopped(shell: Screen, tmp_path: Path) -> None:
    shell.send(f"torpor run -- sh -c 'echo $$ > {tmp_path}/pid; echo ready; sleep 30'\n")
    shell.expect(r"\nready")
    shell.doing("sleep", "clock_nanosleep")  # a child of vfork(2) that stops before its exec keeps its parent going
    shell.send("\x1a")
    shell.expect(r"Stopped")
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    until(lambda: not shell.children(), "the job over")
    shell.send("\n")
    shell.expect("Killed")


def test_window_size(shell: Screen) -> None:
    import fcntl
    import struct
    import termios

    program = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.1; done"
    shell.send(f'torpor run -- bash -c "{program}"\n')
    shell.expect(r"\nready")
    fcntl.ioctl(shell.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    shell.expect("33 101")


def test_nested_interactive_shell(shell: Screen) -> None:
    shell.send("torpor run -- bash --norc --noprofile --noediting -i\n")
    shell.expect(r"\$ .*\$ |\n\$ $")
    shell.send("sleep 60\n")
    shell.doing("sleep", "clock_nanosleep")
    shell.send("\x03")
    shell.send("echo inner $?\n")
    shell.expect("inner 130")
    shell.send("sleep 60\n")
    shell.doing("sleep", "clock_nanosleep")
    shell.send("\x1a")
    shell.expect("Stopped")
    shell.send("suspend\n")
    shell.expect("Stopped.*torpor run")
    shell.send("echo ou''ter\n")
    shell.expect("outer")
    shell.send("fg\n")
    shell.doing("bash", "read")
    shell.send("fg\n")
    shell.doing("sleep", "restart_syscall")
    shell.send("\x03")
    shell.send("echo again $?\n")
    shell.expect("again 130")
    shell.send("(exit 9); exit\n")
    shell.expect("exit\r\n")
    shell.send("echo status $?\n")
    shell.expect("status 9")


def test_pipes_around_it(shell: Screen) -> None:
    shell.send("echo some words > in; torpor run -- tr a-z A-Z < in | tee out | cat -n\n")
    shell.expect(r"1\tSOME WORDS")
    shell.send("torpor run -- seq 1000000 | head -n 1; echo ${PIPESTATUS[0]}\n")
    shell.expect(r"1\r\n141\r\n")


def test_same_group_and_session(shell: Screen) -> None:
    shell.send("torpor run -- sh -c 'ps -o pgid=,sid=,tpgid= -p $$ -p $PPID; echo end'\n")
    match = shell.expect(r"(?s)\n((?: *\d+ +\d+ +\d+\r\n){2})end")
    lines = [line.split() for line in match.group(1).splitlines()]
    assert lines[0] == lines[1]
    assert lines[0][0] == lines[0][2]


def test_hangup(shell: Screen, tmp_path: Path) -> None:
    program = f'trap "echo hup > {tmp_path}/hup; exit" HUP; echo ready; sleep 30 & wait'
    shell.send(f"torpor run -- bash -c '{program}'\n")
    shell.expect(r"\nready")
    os.kill(shell.pid, signal.SIGHUP)
    until(lambda: (tmp_path / "hup").exists() and (tmp_path / "hup").read_text() == "hup\n", "the hangup")


def test_full_screen_editor(shell: Screen, tmp_path: Path) -> None:
    if not any(os.access(f"{folder}/vim", os.X_OK) for folder in os.environ["PATH"].split(":")):
        pytest.skip("no vim on this machine")
    shell.send("stty -a | md5sum; TERM=xterm torpor run -- vim -u NONE -n text\n")
    before = shell.expect(r"([0-9a-f]{32})").group(1)
    shell.doing("vim", "select", "pselect6", "poll")
    shell.send("ihello")
    shell.expect("hello")
    shell.send("\x1b\x1a")
    shell.expect("Stopped")
    shell.send("stty -a | md5sum\n")
    assert shell.expect(r"([0-9a-f]{32})").group(1) == before
    shell.send("fg\n")
    shell.expect("hello")
    shell.send(":wq\r")
    shell.expect(r"\$ ")
    assert re.match("hello", (tmp_path / "text").read_text())


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
