"""How a ledger is written down while the job runs: one line for each address and program, in a file in memory.

The file begins with a page in which the holder receives calls (linux/seccomp_notify.py). The lines follow. What changes
at every call, the time of the last one and their number, stands at the beginning of the line with a fixed width and is
written over in place. So the file is right at every moment, whoever dies.

Pure, and imports next to nothing: the holder is to stay small.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop  # the module `socket` brings four others along

START = 4096
"""Where the lines begin."""
MOST_LINES = 20_000
"""A job that asks for more addresses than this is a scanner; the rest is only counted."""

HEAD = "{:17.6f} {:12d}"
MOVED, CALLED, LISTENER = "=", "@", "!"
"""The protocol in lines of `move`, `called` and `listener`."""
MOST_NAMES = 20_000
MOST_NAMES_OF_ONE = 16
"""Names that are kept: in all, and for one address."""
MOST_LISTENERS = 64
V4_IN_V6 = bytes(10) + b"\xff\xff"


def head(last: float, calls: int) -> bytes:
    """What is written over at each call."""
    return HEAD.format(last, calls).encode()


def line(
    last: float, calls: int, first: float, protocol: str, host: str, port: int, pid: int, program: str, name: str
) -> bytes:
    """A whole line. Nothing in it can break it: what is not plain text is written as an escape."""
    fields = (f"{first:.6f}", protocol, host, str(port), str(pid), program, name)
    rest = "\t".join(field.encode("unicode_escape", "surrogatepass").decode("ascii") for field in fields)
    return head(last, calls) + b"\t" + rest.encode("ascii") + b"\n"


def parse(text: bytes) -> list[tuple[float, int, float, str, str, int, int, str, str]]:
    """The arguments of `line`, of every whole line."""
    found = []
    for each in text.split(b"\n")[:-1]:
        front, *fields = each.decode("ascii").split("\t")
        last, calls = front.split()
        words = [field.encode("ascii").decode("unicode_escape") for field in fields]
        first, protocol, host, port, pid, program, name = words
        found.append((float(last), int(calls), float(first), protocol, host, int(port), int(pid), program, name))
    return found


def host_and_port(address: bytes) -> tuple[str, int] | None:
    """Of a struct sockaddr of the Internet; None for any other. An IPv4 address in IPv6 clothes is shown as IPv4."""
    family = int.from_bytes(address[:2], "little")
    port = int.from_bytes(address[2:4], "big")
    if family == AF_INET and len(address) >= 8:
        return inet_ntop(AF_INET, address[4:8]), port
    if family == AF_INET6 and len(address) >= 24:
        if address[8:20] == V4_IN_V6:
            return inet_ntop(AF_INET, address[20:24]), port
        return inet_ntop(AF_INET6, address[8:24]), port
    return None


def called(host: str, name: str) -> bytes:
    """A line that says that this name was looked up, and has that address."""
    return line(0, 0, 0, CALLED, host, 0, 0, "", name)


def listener(program: str) -> bytes:
    """A line that says that a program wanted to see system calls itself."""
    return line(0, 0, 0, LISTENER, "", 0, 0, program, "")


def move(word: str) -> bytes:
    """A line that says where an address is now, `OLD=NEW`."""
    return line(0, 0, 0, MOVED, word, 0, 0, "", "")


def names(hosts_file: str) -> dict[str, str]:
    """What a hosts file calls addresses: the first name of each (hosts(5))."""
    found: dict[str, str] = {}
    for each in hosts_file.splitlines():
        words = each.partition("#")[0].split()
        if len(words) > 1:
            found.setdefault(words[0], words[1])
    return found
