"""Names of UNIX sockets: found as files when they are saved, bound again in the right folder.

A path is kept by the kernel as the bytes that the program gave to bind, relative to where it was then. Which
folder that was is found by comparing the file there with the one that the kernel says the socket is bound to.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable

import msgspec

from torpor.linux.sock_diag import LISTEN, UnixSeen
from torpor.model.errors import RestartFailed
from torpor.posix import socket_user
from torpor.posix.service import Descriptor, Job, Restart
from torpor.posix.socket_address import DATAGRAM, SEQPACKET, STREAM, in_folder, link
from torpor.posix.socket_user import NOBODY, Who
from torpor.posix.socket_works import Step, works


class Name(msgspec.Struct, frozen=True):
    """A name as it was bound.

    raw: b'' none; with a leading zero abstract; else a path. folder: what a relative path is relative to. mode,
    user, group: of the socket's file; mode is 0 if the path does not name the socket any more.
    """

    raw: bytes = b""
    folder: str = ""
    mode: int = 0
    user: int = 0
    group: int = 0

    @property
    def is_path(self) -> bool:
        return bool(self.raw) and self.raw[0] != 0

    @property
    def place(self) -> str:
        """The folder in which it has to be looked up; '' where that does not matter."""
        return self.folder if self.is_path and not self.raw.startswith(b"/") else ""

    def __str__(self) -> str:
        if not self.raw:
            return "without a name"
        if not self.is_path:
            return "@" + os.fsdecode(self.raw[1:])
        return os.path.join(self.folder, os.fsdecode(self.raw))


def find_file(name: bytes, file: tuple[int, int] | None, seen: Descriptor, job: Job) -> Name:
    """The name of a socket that was seen in a process; file: (dev, ino) as sock_diag tells it."""
    if not name or name[0] == 0:
        return Name(name)
    folders = [""]
    if not name.startswith(b"/"):
        folders = []
        for pid in dict.fromkeys((seen.pid, *job.processes())):
            try:
                folders.append(os.readlink(f"/proc/{pid}/cwd"))
            except OSError:
                continue
    for folder in folders:
        try:
            st = os.lstat(os.path.join(os.fsencode(folder), name))
        except OSError:
            continue
        if not stat.S_ISSOCK(st.st_mode):
            continue
        # The kernel's own device numbers: 20 bits of minor number.
        if file is None or (st.st_ino & 0xFFFFFFFF == file[1] and _same_device(st.st_dev, file[0])):
            return Name(name, folder, stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid)
    return Name(name, folders[0] if folders else "/")


def _same_device(dev: int, kernel: int) -> bool:
    return (os.major(dev), os.minor(dev)) == (kernel >> 20, kernel & 0xFFFFF)


def answering(name: Name, world: Iterable[UnixSeen]) -> list[int]:
    """The inode numbers of the sockets that answer to a name now, among those that sock_diag tells of. Connects to
    nothing. Raises OSError where the file of the name cannot be looked at."""
    there = [one for one in world if one.name and (one.state == LISTEN or one.type == DATAGRAM)]
    if not name.is_path:
        return [one.ino for one in there if one.name == name.raw]
    try:
        st = os.lstat(str(name))
    except FileNotFoundError:
        return []
    return [
        one.ino
        for one in there
        if one.file is not None and one.file[1] == st.st_ino & 0xFFFFFFFF and _same_device(st.st_dev, one.file[0])
    ]


def names(restart: Restart) -> Names:
    """The names of this restart."""
    found: Names = restart.shared(("unix names", 0), lambda: Names(restart), lambda _: None)
    return found


class Names:
    """Binds and connects, in the right folder; knows what is only borrowed."""

    def __init__(self, restart: Restart) -> None:
        self._restart = restart
        self._aside: dict[str, str] = {}
        self._deleted: dict[str, int] = {}
        self._instead: dict[bytes, bytes] = {}
        self._listeners: dict[int, tuple[Who, int]] = {}
        """Who listens, and the backlog, by the socket's inode number."""
        works(restart).add(Step.NAMES, self._delete)

    def bind(self, fd: int, name: Name) -> None:
        """Give a socket its name. Raises RestartFailed where somebody else has it."""
        if not name.mode and name.is_path:
            try:
                self.borrow(fd, name)
                self._deleted[str(name)] = 1
            except (RestartFailed, OSError):
                # Its folder is gone as well: nobody can find it by this name any more.
                one = link(fd)
                try:
                    one.bind(b"")
                    self._instead[name.raw] = one.getsockname()
                finally:
                    one.detach()
                self._restart.say(f"a socket that was {name} (deleted) has another name now")
            return
        with in_folder(name.place):
            if name.is_path:
                self._clear(fd, name)
            _bind(fd, name)
            if name.is_path:
                path = str(name)
                self._restart.on_failure(lambda: os.unlink(path))
                os.chmod(name.raw, name.mode)
                try:
                    os.chown(name.raw, name.user, name.group)
                except OSError:
                    pass  # an ordinary user's files are their own

    def _clear(self, fd: int, name: Name) -> None:
        """Take away the file of a socket that is dead."""
        try:
            st = os.lstat(name.raw)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(st.st_mode):
            raise RestartFailed(f"{name}, a socket's name, is something else now: move it away")
        if _alive(name):
            raise RestartFailed(f"{name} is in use by another program")
        os.unlink(name.raw)

    def borrow(self, fd: int, name: Name) -> None:
        """Give a socket a name for a moment; what is in that place is put aside until `give_back`."""
        with in_folder(name.place):
            if name.is_path:
                path = str(name)
                beside = f"{path}.{os.getpid()}.torpor"
                try:
                    os.rename(path, beside)
                    self._aside[path] = beside
                    self._restart.on_failure(lambda: self._put_back(path))
                except FileNotFoundError:
                    pass
            _bind(fd, name)

    def give_back(self, name: Name) -> None:
        """The name is not needed any more."""
        if not name.is_path:
            return
        try:
            os.unlink(str(name))
        except FileNotFoundError:
            pass
        self._put_back(str(name))

    def _put_back(self, path: str) -> None:
        beside = self._aside.pop(path, "")
        if beside:
            os.rename(beside, path)

    def _delete(self) -> None:
        for path in self._deleted:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            self._put_back(path)

    def connect(self, fd: int, name: Name, who: Who = NOBODY) -> None:
        """Have a socket connected to a name by somebody. Raises OSError."""
        if name.raw in self._instead:
            socket_user.connect(who, fd, "", self._instead[name.raw], self._restart)
        else:
            socket_user.connect(who, fd, name.place, name.raw, self._restart)

    def listen(self, fd: int, backlog: int, who: Who) -> None:
        """Have a socket listen, for somebody: that is what those who connect will be told."""
        socket_user.listen(who, fd, backlog, self._restart)
        self._listeners[os.fstat(fd).st_ino] = who, backlog

    def connect_to(self, listener: int, fd: int, name: Name, who: Who, told: Who) -> None:
        """Have a socket connected by somebody to a listener, which was another process' when they did so if `told`
        says so. Raises OSError."""
        now, backlog = self._listeners.get(os.fstat(listener).st_ino, (told, 0))
        other = told.user >= 0 and told != now
        if other:
            socket_user.listen(told, listener, backlog, self._restart)
        self.connect(fd, name, who)
        if other:
            socket_user.listen(now, listener, backlog, self._restart)


def _bind(fd: int, name: Name) -> None:
    one = link(fd)
    try:
        one.bind(name.raw)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise RestartFailed(f"{name} is in use by another program") from None
        raise RestartFailed(f"the socket's name {name}: {error.strerror}") from None
    finally:
        one.detach()


def _alive(name: Name) -> bool:
    """Does a socket answer at this path?"""
    import _socket

    for kind in (STREAM, DATAGRAM, SEQPACKET):
        probe = _socket.socket(_socket.AF_UNIX, kind | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
        try:
            probe.connect(name.raw)
            return True
        except OSError as error:
            if error.errno == errno.EPROTOTYPE:
                continue
            return error.errno == errno.EAGAIN
        finally:
            probe.close()
    return False
