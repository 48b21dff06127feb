"""A name server on 127.0.0.1 that knows a few names; prints READY. The same in tests/jobs/test_watch_names.py."""

import socket
import struct

ALIASES = {"licence.test": "really.test"}
ADDRESSES = {
    "really.test": ["127.53.0.1"],
    "other.test": ["127.53.0.1"],
    "two.test": ["127.53.0.2", "127.53.0.3"],
    "before.test": ["127.53.0.4"],
    "later.test": ["127.53.0.5"],
    "after.test": ["127.53.0.6"],
}


def name_at(message, at):
    words = []
    while message[at]:
        words.append(message[at + 1 : at + 1 + message[at]].decode())
        at += 1 + message[at]
    return ".".join(words).lower(), at + 1


def encoded(name):
    return b"".join(bytes([len(word)]) + word.encode() for word in name.split(".")) + b"\0"


def reply(message):
    number, _, _, _, _, _ = struct.unpack_from(">HHHHHH", message)
    name, at = name_at(message, 12)
    (kind,) = struct.unpack_from(">H", message, at)
    question = message[12 : at + 4]
    records = []
    owner = b"\xc0\x0c"
    known = name in ALIASES or name in ADDRESSES
    if name in ALIASES:
        name = ALIASES[name]
        records.append(owner + struct.pack(">HHIH", 5, 1, 60, len(encoded(name))) + encoded(name))
        owner = encoded(name)
    if kind == 1:
        for host in ADDRESSES.get(name, []):
            records.append(owner + struct.pack(">HHIH", 1, 1, 60, 4) + socket.inet_aton(host))
    flags = 0x8580 if known else 0x8583
    return struct.pack(">HHHHHH", number, flags, 1, len(records), 0, 0) + question + b"".join(records)


with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(("127.0.0.1", 53))
    print("READY", flush=True)
    while True:
        message, sender = sock.recvfrom(4096)
        sock.sendto(reply(message), sender)
