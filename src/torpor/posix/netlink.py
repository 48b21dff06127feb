"""Netlink sockets: questions to the kernel, and its news.

The kernel keeps for one: its address (a number), the groups it listens to, options, and messages not yet read. The
messages are the kernel's own and cannot be sent again by anybody else: a socket that has any is refused; a question
is answered at once, so that is over in a moment. What has happened to devices and addresses between checkpoint and
restart is not told to a socket that listens for it.
"""

from __future__ import annotations

import _socket
import errno
import select
import struct

import msgspec

from torpor.model.errors import NotNow, RestartFailed
from torpor.posix import socket_kinds, socket_options
from torpor.posix.descriptors import set_status, status_flags
from torpor.posix.service import Descriptor, DescriptorBase, Job, Restart
from torpor.posix.socket_address import link, own_name, peer_name
from torpor.posix.socket_options import NETLINK, SO_PROTOCOL, SO_TYPE, SOL_SOCKET, Options
from torpor.posix.socket_peek import readable
from torpor.posix.socket_works import options_later

_ADD_MEMBERSHIP, _LIST_MEMBERSHIPS = 1, 9


class NetlinkSocket(msgspec.Struct, frozen=True, kw_only=True):
    """A netlink socket. port: its address (nl_pid), 0 if it has none yet. groups: numbers of groups, from 1."""

    type: int
    protocol: int
    flags: int
    port: int
    groups: tuple[int, ...] = ()
    peer: tuple[int, int] = (0, 0)
    options: Options = Options()


def groups(fd: int) -> tuple[int, ...]:
    """The groups that a netlink socket listens to, from 1."""
    bitmap = socket_options.get(fd, NETLINK, _LIST_MEMBERSHIPS) or b""
    words = struct.unpack(f"={len(bitmap) // 4}I", bitmap)
    return tuple(32 * i + bit + 1 for i, word in enumerate(words) for bit in range(32) if word >> bit & 1)


class NetlinkService(DescriptorBase):
    name = "netlink"
    record = NetlinkSocket

    def claims(self, seen: Descriptor) -> bool:
        return socket_kinds.kind(seen) == "NETLINK"

    def capture(self, fd: int, seen: Descriptor, job: Job) -> NetlinkSocket:
        socket_kinds.refuse_unusual(fd, seen)
        if readable(fd) & select.POLLIN:
            thing = "a netlink socket with messages of the kernel that were not read yet"
            raise NotNow(
                [seen.refuse(thing, "try again, or let it read them first")], socket_kinds.holders(seen.ino, job)
            )
        return NetlinkSocket(
            type=socket_options.number(fd, SOL_SOCKET, SO_TYPE),
            protocol=socket_options.number(fd, SOL_SOCKET, SO_PROTOCOL),
            flags=status_flags(fd),
            port=own_name(fd)[0],
            groups=groups(fd),
            peer=peer_name(fd) or (0, 0),
            options=socket_options.save(fd, _socket.AF_NETLINK, 0),
        )

    def create(self, record: NetlinkSocket, restart: Restart) -> int:
        try:
            fd = _socket.socket(_socket.AF_NETLINK, record.type | _socket.SOCK_CLOEXEC, record.protocol).detach()
        except OSError as error:
            raise RestartFailed(f"a netlink socket of protocol {record.protocol}: {error.strerror}") from None
        one = link(fd)
        try:
            if record.port:
                try:
                    one.bind((record.port, 0))
                except OSError as error:
                    if error.errno != errno.EADDRINUSE:
                        raise
                    one.bind((0, 0))
                    restart.say(f"a netlink socket has the address {one.getsockname()[0]} now, {record.port} is in use")
            for group in record.groups:
                try:
                    one.setsockopt(NETLINK, _ADD_MEMBERSHIP, group)
                except OSError as error:
                    restart.say(f"a netlink socket does not hear of group {group} any more: {error.strerror}")
            if record.peer != (0, 0):
                one.connect(record.peer)
        except OSError as error:
            raise RestartFailed(f"a netlink socket: {error.strerror}") from None
        finally:
            one.detach()
        set_status(fd, record.flags)
        options_later(fd, record.options, restart)
        return fd


SERVICE = NetlinkService()
