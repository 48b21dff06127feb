"""Start a program as a shell would: same descriptors, environment, signals, group and session."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterable, Mapping, Sequence

from torpor.model.errors import TorporError


class CannotStart(TorporError):
    """The program could not be started; `status` is what a shell returns then: 127 not found, 126 not
    executable."""

    def __init__(self, program: str, error: OSError) -> None:
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        self.status = 127 if missing else 126
        reason = "command not found" if missing and "/" not in program else error.strerror or str(error)
        super().__init__(f"{program}: {reason}")


def environment() -> dict[bytes, bytes]:
    """The environment we were given. Python itself adds LC_CTYPE to it in the C locale (PEP 538): that is
    taken out."""
    out = dict(os.environb)
    if b"LC_CTYPE" in out:
        try:
            with open("/proc/self/environ", "rb") as file:
                given = file.read().split(b"\0")
        except OSError:
            return out
        if not any(line.startswith(b"LC_CTYPE=") for line in given):
            del out[b"LC_CTYPE"]
    return out


def start(
    argv: Sequence[str],
    mask: Iterable[int],
    new_session: bool = False,
    env: Mapping[bytes, bytes] | None = None,
) -> int:
    """Start `argv` as our child and return its pid, once it has really been executed.

    mask: the signal mask it gets. What Python ignores on its own account is at its default in the program;
    what was ignored when we were started is ignored in it too. Raises CannotStart.
    """
    program = argv[0]
    if not program:
        raise CannotStart("''", FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
    given = environment() if env is None else env
    defaults = (signal.SIGPIPE, signal.SIGXFSZ)
    try:
        try:
            pid = _spawn(program, argv, given, mask, defaults, new_session)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            # A script without a first line that names its interpreter: as execvp(3) does.
            script = _found(program)
            pid = _spawn("/bin/sh", ["/bin/sh", script, *argv[1:]], given, mask, defaults, new_session)
    except OSError as error:
        raise CannotStart(program, error) from None
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, the kernel would keep no status for us
    return pid


def _spawn(
    program: str,
    argv: Sequence[str],
    env: Mapping[bytes, bytes],
    mask: Iterable[int],
    defaults: Sequence[int],
    new_session: bool,
) -> int:
    return os.posix_spawnp(program, list(argv), env, setsigmask=mask, setsigdef=defaults, setsid=new_session)


def _found(program: str) -> str:
    if "/" in program:
        return program
    for folder in os.get_exec_path():
        path = os.path.join(folder or ".", program)
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return program


def hold_standard() -> None:
    """Put /dev/null where standard input, output or error are closed, with close-on-exec.

    The next file we open would otherwise become our standard output; the program still finds the number
    closed.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
