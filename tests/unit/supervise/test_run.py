"""`torpor run` and the commands around it, without a terminal: status, signals, environment, registry."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import TORPOR, until  # type: ignore[import-not-found]

Torpor = Callable[..., subprocess.CompletedProcess[str]]
Env = dict[str, str]


def started(env: Env, tmp_path: Path, *words: str, **more: object) -> subprocess.Popen[str]:
    """A `torpor run` in the background, once it is listed."""
    process = subprocess.Popen(
        [*TORPOR, "run", *words], env=env, cwd=tmp_path, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more,  # type: ignore[call-overload]
    )  # fmt: skip
    runtime = Path(env["TORPOR_RUNTIME"])
    until(lambda: any(runtime.glob("*/socket")) or process.poll() is not None, "the job is listed")
    return process


def connected(pid: int) -> bool:
    """Does that process hold a socket (connections to a supervisor are the only ones of a command)?"""
    try:
        return any(os.readlink(f"/proc/{pid}/fd/{n}").startswith("socket:") for n in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False  # it has closed one in between, or is gone


def test_status_and_streams(torpor: Torpor) -> None:
    done = torpor("run", "--", "sh", "-c", "cat; echo err >&2; exit 9", input="words")
    assert (done.returncode, done.stdout, done.stderr) == (9, "words", "err\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGRTMIN + 3])
def test_death_by_signal(torpor: Torpor, number: int) -> None:
    assert torpor("run", "sh", "-c", f"kill -{int(number)} $$").returncode == -number


def test_no_core_of_ours(torpor: Torpor, tmp_path: Path) -> None:
    assert torpor("run", "sh", "-c", "ulimit -c 0; kill -SEGV $$").returncode == -signal.SIGSEGV
    assert not list(tmp_path.glob("core*"))


def test_cannot_start(torpor: Torpor, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("x")
    for words, status, reason in (
        (["no-such-program"], 127, "torpor: no-such-program: command not found\n"),
        (["/no/such"], 127, "torpor: /no/such: No such file or directory\n"),
        (["./text"], 126, "torpor: ./text: Permission denied\n"),
        (["/"], 126, "torpor: /: Permission denied\n"),
        (["--detach", "no-such-program"], 127, "torpor: no-such-program: command not found\n"),
    ):
        done = torpor("run", *words)
        assert (done.returncode, done.stderr) == (status, reason)
    assert torpor("jobs").stdout == "no job is running\n"


def test_script_without_interpreter_line(torpor: Torpor, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo from $1\n")
    script.chmod(0o755)
    assert torpor("run", "./script", "there").stdout == "from there\n"


def test_environment_is_untouched(env: Env, torpor: Torpor) -> None:
    given = {key: value for key, value in env.items() if key != "LC_ALL"} | {"ODD": "a=b\udcff"}
    done = torpor("run", "env", "-0", env=given, text=False)
    seen = dict(line.split(b"=", 1) for line in done.stdout.split(b"\0") if line)  # type: ignore[attr-defined]
    assert seen == {os.fsencode(key): os.fsencode(value) for key, value in given.items()}


def test_signal_dispositions_are_untouched(torpor: Torpor) -> None:
    def before() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})

    there = subprocess.run(["grep", "^Sig[IB]", "/proc/self/status"], preexec_fn=before, capture_output=True, text=True)
    here = torpor("run", "grep", "^Sig[IB]", "/proc/self/status", preexec_fn=before)
    assert here.stdout == there.stdout


def test_descriptors_are_untouched(torpor: Torpor) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    words = ["ls", "/proc/self/fd"]
    there = subprocess.run(words, pass_fds=(writing,), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    here = torpor("run", *words, pass_fds=(writing,), stdin=subprocess.DEVNULL)
    assert here.stdout == there.stdout
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(env: Env, tmp_path: Path, closed: str) -> None:
    program = "s=8; for n in 0 1 2; do [ -e /proc/$$/fd/$n ] && s=$((s + (1 << n))); done; exit $s"
    command = f"{sys.executable} -m torpor run sh -c '{program}' {closed}"
    there = subprocess.run(["bash", "-c", f"sh -c '{program}' {closed}"]).returncode
    assert there < 15
    assert subprocess.run(["bash", "-c", command], env=env, cwd=tmp_path).returncode == there


@pytest.mark.parametrize("name", ["TERM", "HUP", "USR1", "INT", "QUIT"])
def test_signals_are_passed_on_once(env: Env, tmp_path: Path, name: str) -> None:
    program = f"import signal, time; n = 0\ndef got(*_):\n global n; n += 1\nsignal.signal(signal.SIG{name}, got)\n"
    program += "print('ready', flush=True)\nwhile not n: time.sleep(0.05)\ntime.sleep(0.3); print(n)"
    process = started(env, tmp_path, sys.executable, "-c", program)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, f"SIG{name}"))
    assert process.communicate(timeout=20)[0] == "1\n"
    assert process.returncode == 0


def test_program_that_signals_its_parent_is_not_told(torpor: Torpor) -> None:
    program = "trap 'echo told' USR1; kill -USR1 $PPID; sleep 0.5; exit 4"
    done = torpor("run", "bash", "-c", program)
    assert (done.returncode, done.stdout) == (4, "")


def test_orphans_are_reaped_and_live_on(env: Env, torpor: Torpor, tmp_path: Path) -> None:
    program = "(sleep 0.2 & echo $! > one); (sleep 100 & echo $! > two); sleep 1; test -e /proc/$(cat one)"
    done = torpor("run", "bash", "-c", program, capture_output=False)
    assert done.returncode == 1
    pid = int((tmp_path / "two").read_text())
    os.kill(pid, signal.SIGKILL)


def test_jobs_lists_and_cleans_up(env: Env, torpor: Torpor, tmp_path: Path) -> None:
    process = started(env, tmp_path, "--name", "one", "sleep", "60")
    (job,) = json.loads(torpor("jobs", "--json").stdout)
    assert (job["name"], job["state"], job["supervisor"]) == ("one", "running", process.pid)
    assert [member["comm"] for member in job["processes"]] == ["sleep"]
    assert job["pid"] == job["pid_inside"]
    process.kill()
    process.wait()
    (job,) = json.loads(torpor("jobs", "--json").stdout)
    assert job["state"] == "running, unsupervised"
    assert torpor("stop", "one").stdout == "stopped one\n"
    assert torpor("jobs").stdout == "no job is running\n"
    assert not [p for p in Path(env["TORPOR_RUNTIME"]).iterdir() if not p.name.startswith(".new")]
    process.communicate()


def test_names(env: Env, torpor: Torpor, tmp_path: Path) -> None:
    assert "started sleep," in torpor("run", "--detach", "sleep", "60").stdout
    assert "started sleep-2," in torpor("run", "--detach", "sleep", "60").stdout
    refused = torpor("run", "--name", "sleep", "true")
    assert (refused.returncode, refused.stderr) == (2, "torpor: a job named sleep is running already\n")
    assert torpor("run", "--name", "a b", "true").returncode == 2
    assert torpor("run", "--name", "../x", "true").returncode == 2
    several = torpor("stop")
    assert (several.returncode, several.stderr) == (2, "torpor: which job? sleep, sleep-2\n")
    assert torpor("stop", "nobody").returncode == 2


def test_two_of_one_name_at_the_same_moment(env: Env, tmp_path: Path) -> None:
    words = [*TORPOR, "run", "--detach", "--name", "only", "sleep", "60"]
    both = [subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    assert sorted(process.wait() for process in both) == [0, 2, 2, 2]
    for process in both:
        process.communicate()
    subprocess.run([*TORPOR, "stop", "only"], env=env, check=True, stdout=subprocess.DEVNULL)


def test_detached(env: Env, torpor: Torpor, tmp_path: Path) -> None:
    done = torpor("run", "--detach", "--name", "d", "--", "sh", "-c", "ps -o sid= -p $$; echo $$; sleep 1; exit 4")
    assert done.returncode == 0
    log = Path(done.stdout.strip().rpartition("log ")[2])
    assert log.stat().st_mode & 0o777 == 0o600
    assert torpor("attach", "d", "--all").returncode == 4
    session, pid = log.read_text().split()
    assert session == pid
    assert torpor("logs", "d").stdout.split() == [session, pid]
    assert torpor("wait", "d").returncode == 4
    assert torpor("wait", "other").returncode == 2


def test_attach_ends_with_control_c_and_the_job_goes_on(env: Env, torpor: Torpor) -> None:
    torpor("run", "--detach", "--name", "d", "sleep", "60")
    process = subprocess.Popen([*TORPOR, "attach", "d"], env=env, stderr=subprocess.PIPE, text=True)
    until(lambda: connected(process.pid), "attach speaks to the supervisor")
    process.send_signal(signal.SIGINT)
    assert "goes on" in process.communicate(timeout=20)[1]
    assert process.returncode == 0
    assert len(json.loads(torpor("jobs", "--json").stdout)) == 1


def test_waiting_for_an_unsupervised_job(env: Env, torpor: Torpor, tmp_path: Path) -> None:
    process = started(env, tmp_path, "--name", "one", "sleep", "3")
    waiting = subprocess.Popen([*TORPOR, "wait", "one"], env=env, stderr=subprocess.PIPE, text=True)
    until(lambda: connected(waiting.pid), "wait speaks to the supervisor")
    process.kill()
    process.communicate()
    assert "its supervisor had died" in waiting.communicate(timeout=30)[1]
    assert waiting.returncode == 1


def test_stop_kills_what_does_not_go(env: Env, torpor: Torpor, tmp_path: Path) -> None:
    deaf = f"trap '' TERM; touch {tmp_path}/deaf; while :; do sleep 0.1; done"
    torpor("run", "--detach", "--name", "hard", "bash", "-c", deaf)
    until((tmp_path / "deaf").exists, "the signal is ignored")
    assert "killed" in torpor("stop", "hard", "--grace", "0.5").stdout
    assert torpor("wait", "hard").returncode == -signal.SIGKILL


@pytest.mark.parametrize("kind", ["unset", "missing", "unwritable", "foreign"])
def test_runtime_folders(env: Env, torpor: Torpor, tmp_path: Path, kind: str) -> None:
    del env["TORPOR_RUNTIME"]
    if kind == "unset":
        env.pop("XDG_RUNTIME_DIR", None)
    elif kind == "missing":
        env["XDG_RUNTIME_DIR"] = str(tmp_path / "nowhere")
    elif kind == "unwritable":
        env["XDG_RUNTIME_DIR"] = "/proc"
    elif os.geteuid() == 0:
        other = tmp_path / "other"
        other.mkdir()
        os.chown(other, 12345, 12345)
        env["XDG_RUNTIME_DIR"] = str(other)
    name = f"t-{os.getpid()}-{kind}"
    assert torpor("run", "--detach", "--name", name, "sleep", "60").returncode == 0
    assert name in torpor("jobs").stdout
    assert torpor("stop", name).returncode == 0


def test_somebody_elses_runtime_folder_is_refused(env: Env, torpor: Torpor, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to make a folder of another user")
    folder = tmp_path / "theirs" / "torpor"
    folder.mkdir(parents=True)
    del env["TORPOR_RUNTIME"]
    env["XDG_RUNTIME_DIR"] = str(folder.parent)
    os.chown(folder, 12345, 12345)
    (folder / "x").mkdir()
    program = (
        "import torpor.supervise.registry as r; print(r.folders())\n"
        "try: r._make(r._candidates()[0])\nexcept Exception as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert str(folder) not in done.stdout.splitlines()[0]
    assert "not a folder of ours" in done.stdout


def test_long_socket_path(env: Env, torpor: Torpor, tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir(mode=0o700)
    env["TORPOR_RUNTIME"] = str(folder)
    assert torpor("run", "--detach", "--name", "far", "sh", "-c", "sleep 1; exit 5").returncode == 0
    assert torpor("wait", "far").returncode == 5


def test_no_home(env: Env, torpor: Torpor) -> None:
    for key in ("HOME", "XDG_STATE_HOME"):
        del env[key]
    assert torpor("run", "true").returncode == 0
    assert torpor("jobs").returncode == 0


def test_nobody_reads(env: Env) -> None:
    command = f"{sys.executable} -m torpor --help | head -n 0; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True)
    assert done.stdout.strip() in ("0", "141")
    assert done.stderr == ""


def test_an_entry_that_vanished_comes_back(env: Env, torpor: Torpor, tmp_path: Path) -> None:
    import shutil

    code = "import torpor.supervise.supervisor as s; s.TICK_SECONDS = 0.3\n"
    code += "from torpor.cli.main import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code, "run", "--name", "back", "sleep", "60"], env=env)
    folder = Path(env["TORPOR_RUNTIME"])
    until((folder / "back" / "socket").exists, "the job is there")
    shutil.rmtree(folder)
    until((folder / "back" / "socket").exists, "its entry is there again")
    assert "back" in torpor("jobs").stdout
    assert torpor("stop").returncode == 0
    assert process.wait() == -signal.SIGTERM
