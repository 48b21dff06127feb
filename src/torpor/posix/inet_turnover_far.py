"""Looking into TCP connections that wait to be accepted on another host of the job (inet_turnover.py does it on one).

Two batches work together: that of the listener's host, which accepts the oldest connection, and one in a process of
each host that has clients in that line. Who that one is, is known only when it is accepted; so all of these hosts stand
ready each time. They speak to each other over a connection between the hosts (a *side*), which is passed to both, so
that neither needs us any more once it has begun:

    listener's host -> clients' hosts   ?                              are you there?
    clients' hosts -> listener's host   !                              from here on that host waits for what comes
    listener's host -> clients' hosts   the address that accept has told (32 bytes)
    (the client's host: its client says that it has sent everything)
    listener's host -> client's host    64 bytes (`inet_again.tell`), what was read, an urgent byte
    (the client's host: disconnects its client, connects it again, sends that again)
    client's host -> listener's host    .

**If one of us is killed**: a batch that was not given what it needs yet comes to its end, the side is closed with it,
and the other one ends as well; nothing has happened. Two that have begun go on to their end. **If the network between
the hosts breaks, or a host dies, between the ! and the point**: the other one waits for as long as the kernels try
(some 25 s); then this one connection, which is in nobody's line any more, is reset. Nobody waits with a time of its own
in between (SO_RCVTIMEO): a host that only stands still goes on in the end, and a call with a time would fail if its
task is stopped (socket(7), signal(7)). Data never reaches the program in any way but its own connection.
"""

from __future__ import annotations

import _socket
import os
import struct
from collections.abc import Callable, Mapping, Sequence

from torpor.linux import uio
from torpor.linux.arch.x86_64 import NR
from torpor.model.errors import CheckpointFailed, NotNow
from torpor.named_tuple import NamedTuple
from torpor.posix import inet_again, turnover
from torpor.posix.inet_again import TOLD, Client, Found, Memory, Steps
from torpor.posix.service import Job
from torpor.posix.socket_options import SOL_SOCKET, TCP
from torpor.posix.turnover import NOSIGNAL, WAITALL, Meeting, Numbers, Run, Script, argument, result
from torpor.tracee.call import In, Word
from torpor.tracee.process import LivingProcess

_BEFORE = 20
"""Seconds for which a batch waits for the other one as long as it has not begun."""
_ADDRESS = 32
_SO_RCVTIMEO = 20
# SO_KEEPALIVE; TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT; TCP_USER_TIMEOUT, which is in milliseconds.
_NOTICE = ((SOL_SOCKET, 9, 1), (TCP, 4, 5), (TCP, 5, 5), (TCP, 6, 4), (TCP, 18, 25_000))


def prepare(side: _socket.socket) -> None:
    """A side, before it is passed on: it notices when the other host is gone."""
    side.setblocking(True)
    for level, option, value in _NOTICE:
        side.setsockopt(level, option, value)
    side.setsockopt(SOL_SOCKET, _SO_RCVTIMEO, struct.pack("qq", _BEFORE, 0))


# The calls of the listener's host.


def ask_whether_ready(side: int, memory: Memory, script: Script, otherwise: str) -> None:
    """Add: ask the other host's batch whether it is there."""
    script.add(NR.sendto, side, In(b"?"), 1, NOSIGNAL, 0, 0, otherwise=otherwise)
    _receive(side, memory.scratch, 1, script, otherwise)
    script.add(NR.setsockopt, side, SOL_SOCKET, _SO_RCVTIMEO, In(bytes(16)), 16)


def wait_for_all(end: int, script: Script) -> None:
    """Add: reading from the accepted end waits until all is there, or the other host is gone."""
    for level, option, value in _NOTICE:
        script.add(NR.setsockopt, end, level, option, In(struct.pack("i", value)), 4)


def tell_which(side: int, memory: Memory, script: Script) -> None:
    """Add: tell which connection was accepted."""
    script.add(NR.sendto, side, memory.told, _ADDRESS, NOSIGNAL, 0, 0)


def hand_over(side: int, memory: Memory, vtid: int, script: Script, otherwise: str) -> list[int]:
    """Add: hand over what was read, and wait until it is sent again. The places of the calls that must not fail."""
    first, second = memory.buffers
    here = len(script)
    moves: list[tuple[Word | int, Word | int, int]] = [
        (argument(here + 2, 2), memory.told + 32, 8), (argument(here + 3, 2), memory.told + 40, 8),
    ]  # fmt: skip
    turnover.copy(vtid, moves, script, otherwise)
    script.add(NR.sendto, side, memory.told, TOLD, NOSIGNAL, 0, 0, otherwise=otherwise)
    script.add(NR.sendto, side, first, 0, NOSIGNAL, 0, 0, otherwise=otherwise)
    script.add(NR.sendto, side, second, 0, NOSIGNAL, 0, 0, otherwise=otherwise)
    script.add(NR.sendto, side, memory.urgent, 1, NOSIGNAL, 0, 0, otherwise=otherwise)
    return [_receive(side, memory.scratch, 1, script, otherwise)]


def _receive(side: int, where: int, size: int, script: Script, otherwise: str) -> int:
    """Add: receive so many bytes, not one less. The place of the call."""
    received = script.add(NR.recvfrom, side, where, size, WAITALL, 0, 0, otherwise=otherwise)
    turnover.compare(result(received), size, script, otherwise)
    return received


# The clients' host.


class Away(NamedTuple):
    """The clients of this host in a line of another one. family: of the listener.  actor, gates: processes (host
    pids)."""

    clients: tuple[Client, ...]
    family: int
    actor: int
    gates: tuple[int, ...]


def plan(clients: Sequence[Client], family: int, job: Job) -> Away:
    """How they are made ready. clients: they are all there. Raises NotNow for what is in the way."""
    who: dict[int, None] = {}
    for one in clients:
        assert one.seen is not None
        who.update(dict.fromkeys(turnover.holders(one.seen.ino, job.descriptors)))
    pids = list(who)
    first = clients[0].seen
    assert first is not None
    if os.getpid() in who or turnover.share_descriptors(pids):
        how = "on its way through a socket" if os.getpid() in who else "shared by processes that share all descriptors"
        thing = f"a TCP socket that waits to be accepted at {clients[0].remote} and is {how}"
        raise NotNow([first.refuse(thing, "try again when the program has accepted it")])
    return Away(tuple(clients), family, pids[0], tuple(pids[1:]))


def carry_out(
    away: Away, side: _socket.socket, processes: Mapping[int, LivingProcess], job: Job, ready: Callable[[], None]
) -> Found | None:
    """Have our clients stand ready while the oldest one of the line is turned over: what was in it, if it was one of
    ours. ready: called when they do. Raises CheckpointFailed, OSError."""
    actor = processes[away.actor]
    meeting = Meeting(_socket.SOCK_STREAM)
    run = Run(meeting)
    try:
        memory = Memory.find(actor, max(one.size for one in away.clients), len(away.clients))
        script, told_at, rows = _script(away, actor, meeting, memory)
        run.hold(turnover.bystander(processes[pid], meeting) for pid in away.gates)
        talk = run.start(actor, script)
        uio.write(actor.pid, memory.records, b"".join(inet_again.record(one, job) for one in away.clients))
        with inet_again.room_to_send(away.clients, job):
            run.commit([side.fileno(), *(job.hold(one.seen.pid, one.seen.number) for one in away.clients if one.seen)])
            ready()
            told = b""
            while data := talk.recv(1 << 18):
                told += data
            answers = run.finish()
        if answers[told_at].value != _ADDRESS:
            raise CheckpointFailed("the other host has given up looking into what waits to be accepted there")
        if answers[rows[0]].error:
            return None
        if len(told) < TOLD or any(answers[row].error for row in rows):
            raise CheckpointFailed(f"a connection to {away.clients[0].remote} cannot be looked into; try again")
        return inet_again.what_was_found(told)
    except BaseException:
        try:
            side.shutdown(_socket.SHUT_RDWR)  # nobody is to wait for it
        except OSError:
            pass
        raise
    finally:
        run.close()


def _script(away: Away, actor: LivingProcess, meeting: Meeting, memory: Memory) -> tuple[Script, int, list[int]]:
    """The batch, the place of the call that is told which connection it is, and those of the calls that must not fail
    if it is one of ours; the first of them tells whether it is."""
    script, numbers = Script(), Numbers(actor.pid)
    restore = turnover.more_descriptors(actor.pid, script)
    script.add(NR.mmap, memory.at, memory.whole, 3, turnover.MAP_FLAGS, -1, 0, otherwise="over")
    talk = meeting.connect(numbers, script, "unmap")
    turnover.receive_descriptors(talk, 1 + len(away.clients) + len(away.gates), script, "unmap")
    side, *fds = [numbers.take() for _ in range(1 + len(away.clients))]
    for _ in away.gates:
        numbers.take()
    client = numbers.take()
    _receive(side, memory.scratch, 1, script, "unmap")
    script.add(NR.setsockopt, side, SOL_SOCKET, _SO_RCVTIMEO, In(bytes(16)), 16)
    script.add(NR.sendto, side, In(b"!"), 1, NOSIGNAL, 0, 0, otherwise="unmap")
    told = _receive(side, memory.told, _ADDRESS, script, "unmap")
    vtid = actor.leader.vtid
    inet_again.which_client(script, away.clients, fds, client, away.family, memory, vtid,
                            lambda main: _again(main, side, client, memory, 0)[0])  # fmt: skip
    _, rows = _again(script, side, client, memory, vtid)
    inet_again.tell(script, talk, memory, vtid)
    script.label("unmap")
    script.add(NR.munmap, memory.at, memory.whole)
    script.label("over")
    turnover.close_all(numbers, script)
    restore()
    return script, told, rows


def _again(script: Script, side: int, client: int, memory: Memory, vtid: int) -> tuple[Steps, list[int]]:
    """Add: if it is one of ours, connect it again with what comes from the side. The places of the calls that must not
    fail; the first fails where it is not."""
    first, second = memory.buffers
    ours = script.add(NR.fcntl, client, 1, 0, otherwise="unmap")  # F_GETFD
    blocking = inet_again.finish_sending(script, client)
    header = _receive(side, memory.told, TOLD, script, "lost")
    here = len(script)
    moves: list[tuple[Word | int, Word | int, int]] = [
        (argument(here + 1, 2), memory.told + 32, 8), (argument(here + 2, 5), memory.told + 32, 8),
        (argument(here + 3, 2), memory.told + 40, 8), (argument(here + 4, 5), memory.told + 40, 8),
    ]  # fmt: skip
    turnover.copy(vtid, moves, script, "lost")
    _receive(side, first, 0, script, "lost")  # as many as the header says
    _receive(side, second, 0, script, "lost")
    byte = _receive(side, memory.urgent, 1, script, "lost")
    script.add(NR.connect, client, In(bytes(16)), 16)  # AF_UNSPEC
    steps = inet_again.connect_again(script, client, memory, vtid, "lost")
    script.add(NR.sendto, side, In(b"."), 1, NOSIGNAL, 0, 0)
    return steps._replace(blocking=blocking), [ours, header, byte, steps.connect, steps.send]
