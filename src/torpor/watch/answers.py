"""Answers of name servers that a task is about to receive, looked at before it takes them (recvfrom(2)).

glibc's resolver, and most others, wait until an answer is there, and take it with a call that asks for the sender's
address. So when that call is made the answer can be seen in the socket's queue, without being taken (MSG_PEEK). Nothing
is waited for. Only sockets that speak with port 53 are touched.

Source: udp(7), socket(7), recv(2); glibc, resolv/res_send.c; __skb_recv_udp in net/ipv4/udp.c.
"""

from __future__ import annotations

import ctypes
import errno

from torpor.linux.libc import libc
from torpor.watch import dns, lines
from torpor.watch.dns import Answer

PORT = 53
_SOL_SOCKET, _SO_TYPE, _SO_PEEK_OFF, _SO_COOKIE = 1, 3, 42, 57
_SOCK_DGRAM = 2
_MSG_PEEK, _MSG_DONTWAIT, _MSG_ERRQUEUE = 0x2, 0x40, 0x2000
_MESSAGE_MOST = 4096
"""Bytes of an answer that are looked at; they may be longer, which is rare by UDP."""
_SOCKETS_MOST = 256
_ADDRESS_MOST = 128


class Answers:
    """What is known of the sockets that a job asks name servers with."""

    def __init__(self) -> None:
        self._asked: dict[int, None] = {}
        """Cookies of the latest sockets that have sent something to a name server without being connected to it; no
        socket ever gets the cookie of another."""
        self._message = ctypes.create_string_buffer(_MESSAGE_MOST)
        self._address = ctypes.create_string_buffer(_ADDRESS_MOST)
        self._size = ctypes.c_uint()
        self._number = ctypes.c_int()
        self._cookie = ctypes.c_uint64()

    def sent(self, socket: int, port: int) -> None:
        """Something is being sent to that port, by our copy of a socket."""
        if port == PORT and (cookie := self._cookie_of(socket)):
            if len(self._asked) >= _SOCKETS_MOST:
                del self._asked[next(iter(self._asked))]
            self._asked[cookie] = None

    def expected(self, socket: int, flags: int) -> bool:
        """May what is received next, with these flags, be an answer, and can be looked at unnoticed?"""
        self._size.value = _ADDRESS_MOST
        if flags & _MSG_ERRQUEUE:
            return False
        if libc.getpeername(socket, self._address, ctypes.byref(self._size)):
            if not self._asked or self._cookie_of(socket) not in self._asked:
                return False
        elif not self._of_server():
            return False
        # With SO_PEEK_OFF a look moves the place of the next one.
        return self._option(socket, _SO_TYPE) == _SOCK_DGRAM and self._option(socket, _SO_PEEK_OFF) in (-1, None)

    def next(self, socket: int) -> tuple[Answer | None, int]:
        """The answer that is received next, None if there is none (yet); and the errno that has to be given to the task
        instead, 0 for none: an error that waits in a socket is told once, and now we have been told."""
        self._size.value = _ADDRESS_MOST
        size = libc.recvfrom(
            socket, self._message, _MESSAGE_MOST, _MSG_PEEK | _MSG_DONTWAIT, self._address, ctypes.byref(self._size)
        )
        if size < 0:
            error = ctypes.get_errno()
            return None, 0 if error in (errno.EAGAIN, errno.EINTR) else error
        return dns.answer(self._message.raw[:size]) if self._of_server() else None, 0

    def _of_server(self) -> bool:
        """Is the address that we were told last that of a name server?"""
        place = lines.host_and_port(self._address.raw[: self._size.value])
        return place is not None and place[1] == PORT

    def _cookie_of(self, socket: int) -> int:
        self._size.value = 8
        if libc.getsockopt(socket, _SOL_SOCKET, _SO_COOKIE, ctypes.byref(self._cookie), ctypes.byref(self._size)):
            return 0
        return self._cookie.value

    def _option(self, socket: int, name: int) -> int | None:
        self._size.value = 4
        if libc.getsockopt(socket, _SOL_SOCKET, name, ctypes.byref(self._number), ctypes.byref(self._size)):
            return None
        return self._number.value
