"""The addresses by which other hosts may know this one, on whatever device: rtnetlink(7), unprivileged.

Read in the network namespace of the caller. Source: rtnetlink(7), include/uapi/linux/rtnetlink.h, if_addr.h.
"""

from __future__ import annotations

import _socket

from torpor.linux import netlink

_SCOPE_LINK = 253
"""RT_SCOPE_LINK; addresses of the host alone (127.0.0.1, ::1) have the number above."""
_NETLINK_ROUTE, _GETADDR = 0, 22
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_SIZES = {_socket.AF_INET: 4, _socket.AF_INET6: 16}


def addresses() -> frozenset[str]:
    """Numeric, IPv4 and IPv6, but for those that mean another host elsewhere (loopback, of one link). Raises
    OSError."""
    return frozenset(found for body in netlink.dump(_NETLINK_ROUTE, _GETADDR, bytes(8)) if (found := _address(body)))


def _address(body: bytes) -> str:
    """Of one answer (struct ifaddrmsg, then attributes); '' for none. A device that leads to one other host tells that
    host's address as IFA_ADDRESS, and its own as IFA_LOCAL; IPv6 has the former alone."""
    family, scope = body[0], body[3]
    told = dict(netlink.attributes(body, 8))
    ip = told.get(_IFA_LOCAL, told.get(_IFA_ADDRESS, b""))
    if scope >= _SCOPE_LINK or len(ip) != _SIZES.get(family):
        return ""
    return str(_socket.inet_ntop(family, ip))
