"""What is under way on a TCP connection of this machine arrives: the receiver is given room, and it is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable

from torpor.linux import sock_diag
from torpor.posix import socket_options
from torpor.posix.socket_address import link
from torpor.posix.socket_options import SO_RCVBUF, SOL_SOCKET
from torpor.posix.socket_peek import peek_bytes

PATIENCE = 3.0
"""Seconds to wait for what is under way between two sockets of this machine."""


def open_window(fd: int, size: int) -> Callable[[], None]:
    """Let a TCP socket receive `size` bytes more than are in its queue, as far as that can be had. What puts the
    buffer back; where the kernel tunes it itself it stays as large.

    SO_RCVLOWAT makes the kernel enlarge a buffer that nobody has set, up to net.ipv4.tcp_rmem; that needs no privilege.
    """
    lock = socket_options.number(fd, SOL_SOCKET, socket_options.SO_BUF_LOCK)
    if not lock & 2:
        before = socket_options.number(fd, SOL_SOCKET, socket_options.SO_RCVLOWAT) or 1
        socket_options.try_put(fd, SOL_SOCKET, socket_options.SO_RCVLOWAT, min(size, 1 << 30))
        socket_options.put(fd, SOL_SOCKET, socket_options.SO_RCVLOWAT, before)
        if socket_options.number(fd, SOL_SOCKET, SO_RCVBUF) >= size:
            return lambda: None
    room = socket_options.Room(fd)
    clamp = socket_options.number(fd, socket_options.TCP, socket_options.TCP_WINDOW_CLAMP)
    room.grow(SO_RCVBUF, 2 * size)
    if 0 < clamp < size:
        socket_options.try_put(fd, socket_options.TCP, socket_options.TCP_WINDOW_CLAMP, size)

    def back() -> None:
        room.back()
        if clamp:
            socket_options.try_put(fd, socket_options.TCP, socket_options.TCP_WINDOW_CLAMP, clamp)

    return back


def arrive(sender: int, receiver: int, patience: float = PATIENCE) -> bool:
    """Wait until all that was sent on a TCP connection of this machine has arrived; False if it does not.

    Peeking makes the receiver tell the sender that there is room again (tcp_cleanup_rbuf).
    """
    end = time.monotonic() + patience
    pause = 0.0
    one = link(receiver)
    try:
        while sock_diag.to_send(sender):
            peek_bytes(one, 1)
            if time.monotonic() > end:
                return False
            time.sleep(pause)
            pause = min(pause + 0.0002, 0.005)
        return True
    finally:
        one.detach()
