"""Start a program as a shell would: same descriptors, environment, signals, group and session."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from torpor.model.errors import TorporError

if TYPE_CHECKING:
    from torpor.supervise.joined import Program
    from torpor.watch.wrapper import Wrapper


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
    wrapper: Wrapper | None = None,
    prepare: Callable[[], None] = lambda: None,
) -> int:
    """Start `argv` as our child and return its pid, once it has really been executed.

    mask: the signal mask it gets. What Python ignores on its own account is at its default in the program;
    what was ignored when we were started is ignored in it too.  wrapper: what is to be put around it.  prepare: what it
    does first. Raises
    CannotStart, Unwatched.
    """
    program = argv[0]
    if not program:
        raise CannotStart("''", FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
    given = environment() if env is None else env
    blocked = set(mask)
    # Not posix_spawn(3): the C library's leaves two of its own signals ignored in the program.
    reading, writing = os.pipe()  # closed by a successful exec
    pid = os.fork()
    if pid == 0:
        _become(argv, blocked, new_session, given, writing, wrapper, prepare)
    os.close(writing)
    try:
        if wrapper is not None:
            wrapper.outside(pid)
        trouble = os.read(reading, 16)
    finally:
        os.close(reading)
    if trouble:
        os.waitpid(pid, 0)
        number = int(trouble)
        raise CannotStart(program, OSError(number, os.strerror(number)))
    return pid


def start_joined(asked: Program, streams: Sequence[int]) -> int:
    """Start a program for somebody else, with three streams of theirs; its pid. Raises CannotStart."""
    import resource

    def prepare() -> None:
        for number, fd in enumerate(streams):
            os.dup2(fd, number)
        os.umask(asked.umask)
        for which, soft in asked.limits:
            try:
                resource.setrlimit(which, (soft, resource.getrlimit(which)[1]))
            except (OSError, ValueError):
                continue
        for sent in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(sent, signal.SIG_IGN if sent in asked.ignored else signal.SIG_DFL)
        os.chdir(asked.cwd)

    env = {os.fsencode(name): os.fsencode(value) for name, value in asked.env.items()}
    return start(asked.argv, asked.mask, new_session=True, env=env, prepare=prepare)


def _become(
    argv: Sequence[str], mask: Iterable[int], new_session: bool, env: Mapping[bytes, bytes], writing: int,
    wrapper: Wrapper | None, prepare: Callable[[], None],
) -> NoReturn:  # fmt: skip
    """In the new process: become the program, or write down the errno and exit."""
    number = errno.ENOEXEC
    try:
        if new_session:
            os.setsid()
        prepare()
        for number_of_ours in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number_of_ours, signal.SIG_DFL)
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # exec would do that, but one may be pending now
        if _child_signal_ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if wrapper is not None:
            wrapper.inside()
        try:
            os.execvpe(argv[0], list(argv), env)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            # A script without a first line that names its interpreter: as execvp(3) does.
            os.execve("/bin/sh", ["/bin/sh", found(argv[0]), *argv[1:]], env)
    except OSError as error:
        number = error.errno or number
    finally:
        os.write(writing, b"%d" % number)
        os._exit(127)


_child_signal_ignored = signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
"""Were we started with SIGCHLD ignored? We cannot leave it so: the kernel would keep no status for us."""
if _child_signal_ignored:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def found(program: str) -> str:
    """Where a program is; its name where it is nowhere."""
    if "/" in program:
        return program
    for folder in os.get_exec_path():
        path = os.path.join(folder or ".", program)
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return program


def check(name: str) -> None:
    """Is there such a program? For whoever has much to do before it is started. Raises CannotStart."""
    path = found(name)
    if not os.path.isfile(path):
        raise CannotStart(name, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
    if not os.access(path, os.X_OK):
        raise CannotStart(name, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


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
