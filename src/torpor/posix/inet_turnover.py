"""Looking into TCP connections that wait to be accepted (posix/turnover.py says how and why).

The client's end stays what it is: a TCP socket can be connected again once it was disconnected (connect(2) with
AF_UNSPEC), so its descriptors, options, epoll watches and all processes that share it are left alone. In one
batch: accept; let the client's end say that it has sent everything (shutdown), so that reading to the end gets all
of it, also what did not fit the window; disconnect, which resets the accepted end (no TIME_WAIT stays behind, and the
addresses are free); connect again from the same port, which is left to connect(2) to choose out of a range of one
(IP_LOCAL_PORT_RANGE, Linux 6.3), unless the program had chosen it with bind(2), which is kept; send again.

In which order connections wait is not told by anybody. So the batch has all clients at hand, compares the address that
accept told with theirs (FUTEX_CMP_REQUEUE of nothing: EAGAIN if a word is not what was expected), and goes on with
the one it is.

A client that is gone is played by a socket of ours, bound to its address, that is closed when it has sent all.

A client on another host of the job is connected again there (inet_turnover_far.py, which says how the two batches work
together): here it is only accepted and read.

The batch runs in a process that has the listener. All others that have a client's end stand still meanwhile.

Different afterwards, also for a job that goes on: the numbers in TCP_INFO; one more edge for edge-triggered epoll
watches of a client's end (it can be written to once more).

Source: tcp_disconnect and tcp_recvmsg in net/ipv4/tcp.c, net/ipv4/inet_hashtables.c, tcp(7), ip(7).
"""

from __future__ import annotations

import _socket
import os
import struct
from collections.abc import Mapping, Sequence

from torpor.linux import proc, uio
from torpor.linux.arch.x86_64 import NR
from torpor.model.errors import CheckpointFailed, NotNow, Refusal
from torpor.named_tuple import NamedTuple
from torpor.posix import inet_turnover_far, owner, socket_options, turnover
from torpor.posix.descriptors import status_flags
from torpor.posix.inet_again import (
    MOST,
    TOLD,
    Client,
    Found,
    Memory,
    Steps,
    compare_address,
    connect_again,
    finish_sending,
    leave,
    record,
    room_to_send,
    takes_all,
    tell,
    what_was_found,
    which_client,
)
from torpor.posix.service import Descriptor, Job
from torpor.posix.socket_address import AF_INET, AF_INET6, STREAM, Address
from torpor.posix.socket_options import (
    IP,
    IP_BIND_ADDRESS_NO_PORT,
    IP_LOCAL_PORT_RANGE,
    SO_REUSEADDR,
    SOL_SOCKET,
)
from torpor.posix.turnover import WAITALL, Meeting, Numbers, Run, Script, result
from torpor.tracee.call import In
from torpor.tracee.process import LivingProcess

_SO_OOBINLINE, _SO_RCVTIMEO = 10, 20
_SIOCATMARK = 0x8905
_GONE_MOST = 1 << 20
"""Bytes of a client that is gone: what a socket with default settings is sure to take."""


class Line(NamedTuple):
    """All that waits at a listener, in no order."""

    listener: Descriptor
    family: int
    holders: tuple[int, ...]
    gates: tuple[int, ...]
    clients: tuple[Client, ...]

    @property
    def processes(self) -> set[int]:
        """All that take part (host pids)."""
        return {self.holders[0], *self.gates}

    @property
    def hosts(self) -> tuple[str, ...]:
        """The other hosts that clients are on."""
        return tuple(sorted({one.host for one in self.clients} - {""}))


def plan(listener: Descriptor, family: int, waiting: int, clients: Sequence[Client], job: Job) -> Line:
    """How a line is turned over. Raises NotNow for what is in the way. waiting: how many the kernel says there are."""
    if waiting != len(clients):
        thing = f"at which {waiting} connections wait, of which {len(clients)} can be seen"
        raise NotNow([_refusal(listener, thing)], turnover.holders(listener.ino, job.descriptors))
    low, high = (int(word) for word in proc.text("/proc/sys/net/ipv4/ip_local_port_range").split())
    others: dict[int, None] = {}
    out = []
    for one in clients:
        if one.host:
            out.append(one)
            continue
        if one.seen is None:
            if not low <= one.local.port <= high or one.size > _GONE_MOST:
                thing = f"at which {one.local} waits to be accepted, which is closed, "
                thing += "with a port outside of net.ipv4.ip_local_port_range or much data"
                raise NotNow([_refusal(listener, thing)], turnover.holders(listener.ino, job.descriptors))
            out.append(one)
            continue
        refuse_odd(one, listener.ino, job)
        others.update(dict.fromkeys(turnover.holders(one.seen.ino, job.descriptors)))
        out.append(one._replace(flags=status_flags(job.hold(one.seen.pid, one.seen.number))))
    who = tuple(turnover.holders(listener.ino, job.descriptors))
    gates = tuple(pid for pid in others if pid != who[0])
    if len(out) > MOST or os.getpid() in (who[0], *gates):
        raise NotNow([_refusal(listener, f"at which {len(out)} connections wait to be accepted")], who)
    if turnover.share_descriptors([who[0], *gates]):
        thing = "at which a connection waits, of processes that share their descriptors (CLONE_FILES)"
        raise NotNow([_refusal(listener, thing)], who)
    return Line(listener, family, who, gates, tuple(out))


def refuse_odd(one: Client, listener: int, job: Job) -> None:
    """Raises NotNow for a client that cannot be connected again. listener: the inode number of the listener it waits
    at, 0 if that is on another host."""
    assert one.seen is not None
    fd = job.hold(one.seen.pid, one.seen.number)
    signals = owner.capture(fd, job)
    thing = ""
    if signals is not None and signals.sending:
        thing = "with O_ASYNC set"
    elif not takes_all(one, job):
        thing = "with a full send buffer"
    elif job.backlogs.leads_elsewhere(one.remote):
        thing = "an address that leads elsewhere for this job"
    elif socket_options.get(fd, IP, IP_LOCAL_PORT_RANGE, 4) is None:
        thing = "which before Linux 6.3 cannot be connected anew from the same port"
    if thing:
        thing = f"that waits to be accepted at {one.remote}, {thing}"
        raise NotNow([_refusal(one.seen, thing)], turnover.holders(listener, job.descriptors))


def _refusal(seen: Descriptor, thing: str) -> Refusal:
    return seen.refuse(f"a TCP socket {thing}", "try again when the program has accepted what waits there")


def carry_out(line: Line, processes: Mapping[int, LivingProcess], job: Job, sides: Mapping[str, int] = {}) -> Found:
    """Turn the oldest one of a line over; what was in it. sides: our connections to the other hosts of the line, where
    batches stand ready that will speak to ours. Raises CheckpointFailed."""
    actor = processes[line.holders[0]]
    fds = [job.hold(line.listener.pid, line.listener.number)]
    played: list[_socket.socket] = []
    meeting = Meeting(_socket.SOCK_STREAM)
    run = Run(meeting)
    try:
        near = [one for one in line.clients if not one.host]
        for one in near:
            if one.seen is not None:
                fds.append(job.hold(one.seen.pid, one.seen.number))
            else:
                played.append(_play(one))
                fds.append(played[-1].fileno())
        fds += [sides[host] for host in line.hosts]
        memory = Memory.find(actor, max(one.size for one in line.clients), len(near))
        script, rows, far_rows = _script(line, actor, meeting, memory)
        run.hold(turnover.bystander(processes[pid], meeting) for pid in line.gates)
        link = run.start(actor, script)
        uio.write(actor.pid, memory.records, b"".join(record(one, job) for one in near))
        with room_to_send(near, job):
            run.commit(fds)
            told = b""
            while data := link.recv(1 << 18):
                told += data
            answers = run.finish()
        by_far = bool(far_rows) and not answers[far_rows[0]].error
        if len(told) < TOLD or any(answers[row].error for row in (far_rows if by_far else rows)):
            raise CheckpointFailed(f"a connection to {line.listener.target} cannot be looked into; try again")
        return what_was_found(told)
    finally:
        for link in played:
            link.close()
        run.close()


def is_here(address: Address) -> bool:
    """Is it an address of this machine?"""
    family = AF_INET if len(address.ip) == 4 else AF_INET6
    one = _socket.socket(family, STREAM | _socket.SOCK_CLOEXEC)
    try:
        one.bind(Address(address.ip, 0, address.scope).of_family(family))
    except OSError:
        return False
    finally:
        one.close()
    return True


def _play(client: Client) -> _socket.socket:
    """A socket with the address of a client that is gone; its port is chosen when it is connected."""
    one = _socket.socket(client.family, STREAM | _socket.SOCK_CLOEXEC)
    one.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    one.setsockopt(IP, IP_BIND_ADDRESS_NO_PORT, 1)
    one.bind(Address(client.local.ip, 0, client.local.scope).of_family(client.family))
    return one


def _script(line: Line, actor: LivingProcess, meeting: Meeting, memory: Memory) -> tuple[Script, list[int], list[int]]:
    """The batch, and the places of the calls that must not fail: for a client of this host, and for one of another
    (none in a line without such; the first of them is made for nobody else)."""
    script, numbers = Script(), Numbers(actor.pid)
    near = [one for one in line.clients if not one.host]
    restore = turnover.more_descriptors(actor.pid, script)
    script.add(NR.mmap, memory.at, memory.whole, 3, turnover.MAP_FLAGS, -1, 0, otherwise="over")
    link = meeting.connect(numbers, script, "unmap")
    turnover.receive_descriptors(link, 1 + len(near) + len(line.hosts) + len(line.gates), script, "unmap")
    listener, *given = [numbers.take() for _ in range(1 + len(near) + len(line.hosts))]
    clients, sides = given[: len(near)], dict(zip(line.hosts, given[len(near) :]))
    for _ in line.gates:
        numbers.take()
    for side in sides.values():
        inet_turnover_far.ask_whether_ready(side, memory, script, "unmap")
    end, client, chosen = numbers.take(), numbers.take(), numbers.take()
    length = In(struct.pack("=I", 28))
    accepted = script.add(NR.accept4, listener, memory.told, length, _socket.SOCK_CLOEXEC, otherwise="unmap")
    for one in (one for one in line.clients if one.host):
        label = f"not {one.local}"
        compare_address(one.local, line.family, memory, script, label)
        script.add(NR.dup3, sides[one.host], chosen, os.O_CLOEXEC)
        script.label(label)
    for side in sides.values():
        inet_turnover_far.tell_which(side, memory, script)

    far_rows: list[int] = []
    if sides:
        # F_GETFD: is it one of another host?
        there = script.add(NR.fcntl, chosen, 1, 0, otherwise="near")
        far_rows = [there, accepted, *_read_far(script, end, chosen, memory, actor.leader.vtid)]
        script.add(NR.fcntl, chosen, 1, 0, then="tell", otherwise="tell")
        script.label("near")
    which_client(script, near, clients, client, line.family, memory, actor.leader.vtid,
                 lambda main: _turn(main, end, client, memory, 0))  # fmt: skip
    steps = _turn(script, end, client, memory, actor.leader.vtid)
    script.label("tell")
    tell(script, link, memory, actor.leader.vtid)
    script.label("unmap")
    script.add(NR.munmap, memory.at, memory.whole)
    script.label("over")
    turnover.close_all(numbers, script)
    restore()
    return script, [accepted, steps.first, steps.connect, steps.send], far_rows


def _turn(script: Script, end: int, client: int, memory: Memory, vtid: int) -> Steps:
    """Add: read what the accepted end has, connect the client anew, send it again."""
    blocking = finish_sending(script, client)
    read = _read(script, end, memory, vtid, 2)
    script.add(NR.connect, client, In(bytes(16)), 16)  # AF_UNSPEC
    leave(script, end)
    return connect_again(script, client, memory, vtid)._replace(blocking=blocking, first=read)


def _read(script: Script, end: int, memory: Memory, vtid: int, seconds: int) -> int:
    """Add: read what the accepted end has, up to the end. The place of the first call that does. seconds: for how long
    that waits; 0 for as long as it takes."""
    told, (first, second) = memory.told, memory.buffers
    if seconds:
        script.add(NR.setsockopt, end, SOL_SOCKET, _SO_RCVTIMEO, In(struct.pack("qq", seconds, 0)), 16)
    script.add(NR.setsockopt, end, SOL_SOCKET, _SO_OOBINLINE, In(bytes(4)), 4)
    # Urgent data: the byte may be first, or in between; reading stops in front of it.
    script.add(NR.ioctl, end, _SIOCATMARK, told + 48)
    script.add(NR.recvfrom, end, memory.urgent, 1, _socket.MSG_OOB | turnover.DONTWAIT, 0, 0)
    prefix = f"{len(script)} "
    read = script.add(NR.recvfrom, end, first, memory.size, WAITALL, 0, 0, otherwise=f"{prefix}nothing")
    turnover.copy(vtid, [(told + 32, result(read), 8)], script)
    script.label(f"{prefix}nothing")
    script.add(NR.ioctl, end, _SIOCATMARK, told + 56)
    script.add(NR.recvfrom, end, memory.urgent, 1, _socket.MSG_OOB | turnover.DONTWAIT, 0, 0)
    rest = script.add(NR.recvfrom, end, second, memory.size, WAITALL, 0, 0, otherwise=f"{prefix}nothing more")
    turnover.copy(vtid, [(told + 40, result(rest), 8)], script)
    script.label(f"{prefix}nothing more")
    return read


def _read_far(script: Script, end: int, side: int, memory: Memory, vtid: int) -> list[int]:
    """Add: read what a client of another host has sent, and hand it to that. The places of the calls that must not
    fail."""
    inet_turnover_far.wait_for_all(end, script)
    read = _read(script, end, memory, vtid, 0)
    # Is that all? Otherwise this would have to wait.
    whole = script.add(NR.recvfrom, end, memory.scratch, 1, turnover.DONTWAIT, 0, 0, otherwise="lost")
    turnover.compare(result(whole), 0, script, "lost")
    rows = inet_turnover_far.hand_over(side, memory, vtid, script, "lost")
    script.label("lost")
    leave(script, end)
    return [read, whole, *rows]
