"""Who runs the jobs of the tests: the user who started the tests and, if that is root, also an ordinary user.

As root the ordinary user `torpor-test` is made with useradd where it is missing. It needs a Python it can read: where
the one of the tests is out of its reach (below /root, say), a second virtual environment is made for it, with the
same versions of the dependencies and this source.
"""

from __future__ import annotations

import fcntl
import filecmp
import os
import pwd
import shutil
import stat
import subprocess
import sys
import sysconfig
import tomllib
from typing import NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
STAGE = os.environ.get("TORPOR_TEST_STAGE", f"/var/tmp/torpor-tests-{os.getuid()}")
"""Compiled test programs and what else may be kept from run to run; readable by everybody."""
USER = "torpor-test"


class Account(NamedTuple):
    """A user that jobs are run as."""

    label: str
    """'root' or 'user': stands in the names of the tests."""
    uid: int
    gid: int
    name: str
    torpor: tuple[str, ...]
    """The command `torpor`, as this user can run it."""
    python: str
    """A Python with the libraries that test programs need (numpy)."""

    def popen_options(self) -> dict[str, object]:
        """What subprocess.Popen needs to run something as this user."""
        if self.uid == os.getuid():
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def environment(self, home: str, tag: str) -> dict[str, str]:
        """A small, known environment. `tag` marks every process of one test."""
        env = {
            "HOME": home,
            "USER": self.name,
            "LOGNAME": self.name,
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
            "LANG": "C.UTF-8",
            "TMPDIR": home,
            "TORPOR_TEST": tag,
        }
        if "/bin/python" not in self.torpor[0] and not os.path.isabs(self.torpor[0]):
            raise AssertionError(self.torpor)
        for name in ("PYTHONPATH", "TORPOR_WITHOUT"):
            if name in os.environ:
                env[name] = os.environ[name]
        if "-m" in self.torpor:
            env["PYTHONPATH"] = os.path.join(ROOT, "src")
        return env


def _works(uid: int, gid: int, command: list[str], env: dict[str, str] | None = None) -> bool:
    options: dict[str, object] = {} if uid == os.getuid() else {"user": uid, "group": gid, "extra_groups": []}
    try:
        return (
            subprocess.run(
                command, cwd="/", env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=60,
                check=False, **options,  # type: ignore[call-overload]
            ).returncode == 0
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False


def own() -> Account:
    """The user who runs the tests."""
    uid = os.getuid()
    entry = pwd.getpwuid(uid)
    command = _command(sys.executable)
    return Account("root" if uid == 0 else "user", uid, os.getgid(), entry.pw_name, command, sys.executable)


def _command(python: str) -> tuple[str, ...]:
    """`torpor` beside this Python if it is installed there, else `python -m torpor` of this source."""
    script = os.path.join(os.path.dirname(python), "torpor")
    return (script,) if os.access(script, os.X_OK) else (python, "-m", "torpor")


def ordinary() -> Account | str:
    """The ordinary user for a test run of root; a reason why there is none as a string."""
    try:
        entry = pwd.getpwnam(USER)
    except KeyError:
        made = subprocess.run(
            ["useradd", "--system", "--create-home", "--shell", "/bin/sh", USER], capture_output=True, text=True
        )
        if made.returncode:
            return f"no ordinary user: useradd {USER}: {made.stderr.strip()}"
        entry = pwd.getpwnam(USER)
    probe = [sys.executable, "-c", "import torpor.cli.main, msgspec, blake3"]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": os.path.join(ROOT, "src")}
    if _works(entry.pw_uid, entry.pw_gid, probe, env):
        command, python = _command(sys.executable), sys.executable
    else:
        found = _second_venv(entry.pw_uid, entry.pw_gid)
        if found.startswith("!"):
            return found[1:]
        command, python = (os.path.join(os.path.dirname(found), "torpor"),), found
    return Account("user", entry.pw_uid, entry.pw_gid, USER, command, python)


def _second_venv(uid: int, gid: int) -> str:
    """The Python of a virtual environment that user `uid` can read; '!reason' if none can be made."""
    folder = os.path.join(STAGE, "user-venv")
    python = os.path.join(folder, "bin", "python")
    os.makedirs(STAGE, mode=0o755, exist_ok=True)
    with open(os.path.join(STAGE, "user-venv.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with open(os.path.join(ROOT, "pyproject.toml"), "rb") as f:
            needs = tomllib.load(f)["project"]["dependencies"]
        stamp = os.path.join(folder, "stamp")
        want = "\n".join([*needs, "numpy", "1"])
        try:
            with open(stamp) as f:
                have = f.read()
        except OSError:
            have = ""
        if have != want:
            shutil.rmtree(folder, ignore_errors=True)
            for candidate in _pythons():
                if _works(uid, gid, [candidate, "-c", "import sys; assert sys.version_info >= (3, 11)"]):
                    break
            else:
                return "!no Python >= 3.11 that an ordinary user could run"
            for command in (
                [candidate, "-m", "venv", folder],
                [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *needs, "numpy"],
            ):
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    return f"!no virtual environment for {USER}: {' '.join(command[:4])}: {done.stderr[-300:]}"
            with open(stamp, "w") as f:
                f.write(want)
        _install_source(folder, uid, gid)
    return python


def _pythons() -> list[str]:
    found = [os.path.realpath(sys.executable)]
    for name in ("python3", "python3.14", "python3.13", "python3.12", "python3.11"):
        for place in ("/usr/bin", "/usr/local/bin"):
            path = os.path.join(place, name)
            if os.path.exists(path):
                found.append(path)
    return found


def _install_source(folder: str, uid: int, gid: int) -> None:
    """Put torpor, as it is in this tree now, into the second environment."""
    source = os.path.join(ROOT, "src")
    python = os.path.join(folder, "bin", "python")
    packages = next(
        os.path.join(folder, "lib", name, "site-packages")
        for name in sorted(os.listdir(os.path.join(folder, "lib")))
        if name.startswith("python3")
    )
    assert os.path.isdir(packages), sysconfig.get_paths()
    pth = os.path.join(packages, "torpor.pth")
    if _works(uid, gid, [python, "-c", f"import os; os.listdir({source!r})"]):
        with open(pth, "w") as f:
            f.write(source + "\n")
    else:
        if os.path.exists(pth):
            os.unlink(pth)
        shutil.rmtree(os.path.join(packages, "torpor"), ignore_errors=True)
        shutil.copytree(os.path.join(source, "torpor"), os.path.join(packages, "torpor"))
    for target in (os.path.join(source, "torpor"), packages):
        subprocess.run([python, "-m", "compileall", "-q", target], env={"PATH": "/usr/bin:/bin"}, capture_output=True)
    script = os.path.join(folder, "bin", "torpor")
    with open(script, "w") as f:
        f.write(f"#!{python}\nimport sys\nfrom torpor.cli.main import main\nsys.exit(main())\n")
    os.chmod(script, 0o755)


def readable_copy(path: str) -> str:
    """A file or tree of this source, copied to where every user can read it."""
    target = os.path.join(STAGE, "copy", os.path.relpath(path, ROOT))
    os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
    if os.path.exists(target) and filecmp.cmp(path, target, shallow=False):
        return target  # not made anew under the feet of a program that runs it
    temporary = f"{target}.{os.getpid()}"
    shutil.copyfile(path, temporary)
    os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode) | 0o444)
    os.replace(temporary, target)
    return target
