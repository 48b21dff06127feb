"""Answers of name servers: which name was asked for, and which addresses it has. Pure.

Whatever a message holds, it is read within its bounds and in bounded time; what is not whole, or makes no sense, is
passed over. Imports next to nothing: the holder is to stay small.

Source: RFC 1035 (4.1: messages, 4.1.4: compression), RFC 3596 (AAAA).
"""

from __future__ import annotations

import struct
from _socket import AF_INET, AF_INET6, inet_ntop

from torpor.named_tuple import NamedTuple

_HEADER = struct.Struct(">HHHHHH")
_QUESTION = struct.Struct(">HH")
_RECORD = struct.Struct(">HHIH")
_ANSWER, _OPCODE = 0x8000, 0x7800
_INTERNET = 1
_A, _CNAME, _AAAA = 1, 5, 28
_FAMILIES = {(_A, 4): AF_INET, (_AAAA, 16): AF_INET6}
"""What an address record with so many bytes holds."""
_NAME_MOST = 255
_RECORDS_MOST = 64
"""Records of an answer that are looked at: the program waits meanwhile."""
_PLAIN = frozenset(range(0x21, 0x7F)) - frozenset(b".\\")


class Answer(NamedTuple):
    """name: what was asked for, in small letters. addresses: numeric, in the order of the answer."""

    name: str
    addresses: tuple[str, ...]


def answer(message: bytes) -> Answer | None:
    """Of a message, which may be cut off. None if it is not an answer to one question, or has no address for it."""
    try:
        _, flags, questions, records, _, _ = _HEADER.unpack_from(message)
        if not flags & _ANSWER or flags & _OPCODE or questions != 1:
            return None
        asked, at = _name(message, _HEADER.size)
        _QUESTION.unpack_from(message, at)
    except (ValueError, IndexError, struct.error):
        return None
    aliases: dict[str, str] = {}
    found: list[tuple[str, str]] = []
    at += _QUESTION.size
    try:
        for _ in range(min(records, _RECORDS_MOST)):
            owner, at = _name(message, at)
            kind, net, _, size = _RECORD.unpack_from(message, at)
            at += _RECORD.size
            data = message[at : at + size]
            if len(data) < size:
                break
            family = _FAMILIES.get((kind, size))
            if net == _INTERNET and kind == _CNAME:
                aliases.setdefault(owner, _name(message, at)[0])
            elif net == _INTERNET and family is not None:
                found.append((owner, inet_ntop(family, data)))
            at += size
    except (ValueError, IndexError, struct.error):
        pass  # what was whole before counts
    meant, name = {asked}, asked
    while (name := aliases.get(name, "")) and name not in meant:
        meant.add(name)
    addresses = tuple(dict.fromkeys(host for owner, host in found if owner in meant))
    return Answer(asked, addresses) if asked and addresses else None


def _name(message: bytes, at: int) -> tuple[str, int]:
    """The name at a place, and the place behind it. Raises ValueError, IndexError where there is none.

    A pointer leads to an earlier place than the one before it, or it is not followed: so there are no loops.
    """
    labels: list[str] = []
    behind, least, length = 0, at, 0
    while size := message[at]:
        if size >= 0xC0:
            behind = behind or at + 2
            at = (size & 0x3F) << 8 | message[at + 1]
            if at >= least:
                raise ValueError("a pointer that does not lead back")
            least = at
            continue
        length += size + 1
        if size > 63 or length >= _NAME_MOST:
            raise ValueError("not a name")
        label = message[at + 1 : at + 1 + size]
        if len(label) < size:
            raise IndexError
        labels.append("".join(chr(each) if each in _PLAIN else f"\\{each:03d}" for each in label.lower()))
        at += 1 + size
    return ".".join(labels), behind or at + 1
