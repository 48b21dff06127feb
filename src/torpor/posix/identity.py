"""Credentials: uids, gids, supplementary groups, capabilities, securebits, no_new_privs; and dumpable.

The kernel keeps credentials per thread (the C library sets those of all threads alike, but need not), so each
thread has a record of its own. They stand in /proc/PID/task/TID/status; securebits and dumpable are asked for
with prctl(2).

They come back last of all (stage LAST), in an order in which no step takes away what a later one needs:

    1. NO_SETUID_FIXUP, so that giving up uid 0 leaves the capabilities alone
    2. groups, gids, uids
    3. inheritable capabilities; then ambient ones, which have to be permitted and inheritable;
       then the bounding set is cut (it limits what may be made inheritable)
    4. securebits, then effective and permitted capabilities
    5. no_new_privs
    6. dumpable, which changing credentials resets (commit_creds in kernel/cred.c). It belongs to the whole
       process, but is set by each thread: whichever comes last, it is right.

Only what differs is set, so that an ordinary user's job needs no privilege to come back under the same user.
In a user namespace made for the restart the stub has every capability until then, but only the user's own uid
and gid exist, and setgroups is denied. What cannot be brought back is said in one line, and the restart ends.

One difference is let pass: a bounding set that is smaller here (a container's), as long as the thread has
none of the missing capabilities in another set: nothing that it has is lost. dumpable 2
(/proc/sys/fs/suid_dumpable) becomes 0: prctl does not set it; both keep other users out.

Ids are the restarter's view of them: a user namespace is expected to map ids to themselves, or as its uid_map
says.

Source: credentials(7), capabilities(7), user_namespaces(7).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from torpor.linux import capability, prctl, proc
from torpor.linux.arch.x86_64 import NR
from torpor.linux.capability import SECBIT_KEEP_CAPS, SECBIT_NO_SETUID_FIXUP, SETGID, SETPCAP, SETUID
from torpor.model.errors import RestartFailed
from torpor.named_tuple import NamedTuple
from torpor.posix.service import Stage, Steps, ThreadBase
from torpor.tracee.call import Answer, Call, In, call
from torpor.tracee.task import Owner, Task

_SETFSUID = 122
_SETFSGID = 123


class Identity(msgspec.Struct, frozen=True):
    """Ids are (real, effective, saved, file system); capabilities are bit masks."""

    uids: tuple[int, int, int, int]
    gids: tuple[int, int, int, int]
    groups: tuple[int, ...]
    inheritable: int
    permitted: int
    effective: int
    bounding: int
    ambient: int
    no_new_privs: bool
    securebits: int = 0
    dumpable: int = 1


class Room(NamedTuple):
    """What the user namespace of a recreated thread allows.

    uid, gid: from our number of a user or group to the namespace's, None if it has none. groups: may
    setgroups be called?
    """

    uid: Callable[[int], int | None]
    gid: Callable[[int], int | None]
    groups: bool


def from_status(fields: Mapping[str, str], securebits: int = 0, dumpable: int = 1) -> Identity:
    """The identity that /proc/PID/status shows."""

    def ids(key: str) -> tuple[int, int, int, int]:
        a, b, c, d = (int(word) for word in fields[key].split())
        return a, b, c, d

    def mask(key: str) -> int:
        return int(fields.get(key, "0"), 16)

    return Identity(
        ids("Uid"),
        ids("Gid"),
        tuple(sorted(int(word) for word in fields["Groups"].split())),
        mask("CapInh"),
        mask("CapPrm"),
        mask("CapEff"),
        mask("CapBnd"),
        mask("CapAmb"),
        fields.get("NoNewPrivs") == "1",
        securebits,
        dumpable,
    )


class _Change:
    """Turns one identity into another, call by call, keeping track of what holds after each."""

    def __init__(self, saved: Identity, now: Identity, room: Room, who: str) -> None:
        self.saved, self.now, self.room, self.who = saved, now, room, who
        self.calls: list[Call] = []
        self.effective, self.inheritable, self.securebits = now.effective, now.inheritable, now.securebits
        self.ambient = now.ambient

    def fail(self, why: str) -> RestartFailed:
        return RestartFailed(f"{self.who} {why}")

    def may(self, number: int) -> bool:
        """Can the thread use a capability (all that are permitted are made effective first)?"""
        return bool(self.now.permitted >> number & 1)

    def prctl(self, option: int, value: int, third: int = 0) -> None:
        self.calls.append(call(NR.prctl, option, value, third, 0, 0))

    def capset(self, effective: int, permitted: int, inheritable: int) -> None:
        if (effective, permitted, inheritable) == (self.effective, self.now.permitted, self.inheritable):
            return
        header, data = In(capability.header()), In(capability.data(effective, permitted, inheritable))
        self.calls.append(call(NR.capset, header, data))
        self.effective, self.inheritable = effective, inheritable

    def check(self) -> None:
        """Raise where it cannot be done."""
        saved, now = self.saved, self.now
        if now.no_new_privs and not saved.no_new_privs:
            raise self.fail(
                "ran without no_new_privs, which is set here and cannot be cleared; restart from outside it"
            )
        inheritable = now.inheritable | now.permitted | (now.bounding if self.may(SETPCAP) else 0)
        missing = saved.permitted & ~now.permitted | saved.inheritable & ~inheritable
        if missing:
            raise self.fail(
                f"had capabilities that are not to be had here: {capability.names(missing)}; restart as root"
            )
        if now.bounding & ~saved.bounding and not self.may(SETPCAP):
            extra = capability.names(now.bounding & ~saved.bounding)
            raise self.fail(f"was barred from {extra}, which only root can do again; restart as root")

    def ids(self) -> None:
        saved, now = self.saved, self.now
        if saved.groups != now.groups:
            if not self.room.groups or not self.may(SETGID):
                raise self.fail(
                    f"had the supplementary groups {_listed(saved.groups)}, and here it has "
                    f"{_listed(now.groups)}; restart as root, or as a user with these groups"
                )
            groups = [self.inner(self.room.gid, group, "group") for group in saved.groups]
            self.calls.append(call(NR.setgroups, len(groups), In(struct.pack(f"<{len(groups)}I", *groups) or bytes(4))))
        if saved.gids != now.gids:
            self.change(saved.gids, now.gids, SETGID, "group", self.room.gid, NR.setresgid, _SETFSGID)
        if saved.uids != now.uids:
            self.change(saved.uids, now.uids, SETUID, "user", self.room.uid, NR.setresuid, _SETFSUID)

    def change(
        self,
        wanted: tuple[int, ...],
        present: tuple[int, ...],
        right: int,
        what: str,
        inner: Callable[[int], int | None],
        set_three: int,
        set_fs: int,
    ) -> None:
        if not self.may(right) and not set(wanted) <= set(present):
            raise self.fail(
                f"ran as {what} {_listed(wanted)}, and here it is {_listed(present)}; restart as that user or as root"
            )
        real, effective, saved, fs = (self.inner(inner, number, what) for number in wanted)
        self.calls.append(call(set_three, real, effective, saved))
        if fs != effective:
            self.calls.append(call(set_fs, fs))

    def inner(self, translate: Callable[[int], int | None], number: int, what: str) -> int:
        found = translate(number)
        if found is None:
            raise self.fail(f"ran as {what} {number}, which does not exist in a user namespace; restart as root")
        return found

    def run(self) -> list[Call]:
        saved, now = self.saved, self.now
        self.check()
        cut = now.bounding & ~saved.bounding
        if cut or _privileged(saved) != _privileged(now):
            self.capset(now.permitted, now.permitted, now.inheritable)
            if saved.uids != now.uids and self.may(SETPCAP):
                self.set_securebits(self.securebits | SECBIT_NO_SETUID_FIXUP)
            self.ids()
            self.capset(now.permitted, now.permitted, saved.inheritable)
            if saved.ambient != now.ambient & saved.inheritable or saved.uids != now.uids:
                self.prctl(prctl.CAP_AMBIENT, prctl.AMBIENT_CLEAR_ALL)
                for number in capability.numbers(saved.ambient):
                    self.prctl(prctl.CAP_AMBIENT, prctl.AMBIENT_RAISE, number)
            for number in capability.numbers(cut):
                self.prctl(prctl.CAPBSET_DROP, number)
            self.set_securebits(saved.securebits)
            self.capset(saved.effective, saved.permitted, saved.inheritable)
        if saved.no_new_privs and not now.no_new_privs:
            self.prctl(prctl.SET_NO_NEW_PRIVS, 1)
        self.prctl(prctl.SET_DUMPABLE, 1 if saved.dumpable == 1 else 0)
        return self.calls

    def set_securebits(self, bits: int) -> None:
        if bits == self.securebits:
            return
        if not self.may(SETPCAP):
            if bits ^ self.securebits != SECBIT_KEEP_CAPS:
                raise self.fail(f"had the securebits {bits:#x}, which need CAP_SETPCAP; restart as root")
            self.prctl(prctl.SET_KEEPCAPS, int(bool(bits & SECBIT_KEEP_CAPS)))
        else:
            self.prctl(prctl.SET_SECUREBITS, bits)
        self.securebits = bits


def _privileged(identity: Identity) -> tuple[object, ...]:
    """What takes a privilege to change (the bounding set is compared by itself: it can only be cut)."""
    i = identity
    return i.uids, i.gids, i.groups, i.inheritable, i.permitted, i.effective, i.ambient, i.securebits


def plan(saved: Identity, now: Identity, room: Room, who: str) -> list[Call]:
    """The calls by which a thread with the identity `now` takes on the saved one. Pure.

    who: what error messages begin with. Raises RestartFailed where that is impossible.
    """
    return _Change(saved, now, room, who).run()


def _listed(numbers: Sequence[int]) -> str:
    return " ".join(str(number) for number in sorted(set(numbers))) or "none"


_ASK = (call(NR.prctl, prctl.GET_SECUREBITS, 0, 0, 0, 0), call(NR.prctl, prctl.GET_DUMPABLE, 0, 0, 0, 0))


class IdentityService(ThreadBase):
    name = "identity"
    afterwards = True
    record: type[msgspec.Struct] = Identity
    questions = _ASK

    def __init__(self) -> None:
        self._looked: tuple[Owner | None, Room | None, Identity | None] = None, None, None
        """What came of `_room` for the process that was asked for last, and what its threads are as yet: they come one
        after the other, the one that made the others first."""

    def capture(self, task: Task, answers: Sequence[Answer]) -> Identity:
        return from_status(task.status, answers[0].value, answers[1].value)

    def restore(self, record: Any, task: Task) -> Steps:
        owner, room, now = self._looked
        if room is None or now is None or owner is not task.owner:
            room, fresh = _room(task.tgid)
            # The stub was forked by us: it has our securebits, unless entering a user namespace has reset them.
            securebits = 0 if fresh else prctl.get_securebits()
            # All its threads are as yet what the one that made them is.
            now = from_status(proc.status(task.tgid, task.tid), securebits)
            self._looked = task.owner, room, now
        calls = plan(record, now, room, f"thread {task.vtid}")
        # The last one sets what is kept with the memory: the first thread does that, after all others.
        return {Stage.LAST: calls if len(calls) > 1 or task.tid == task.owner.pid else []}


def _room(pid: int) -> tuple[Room, bool]:
    """What the user namespace of a process allows, and whether it is another one than ours."""
    if os.readlink(f"/proc/{pid}/ns/user") == os.readlink("/proc/self/ns/user"):
        groups = proc.text("/proc/self/setgroups").strip() == "allow"
        return Room(lambda number: number, lambda number: number, groups), False
    groups = proc.text(f"/proc/{pid}/setgroups").strip() == "allow"
    return Room(mapping(proc.text(f"/proc/{pid}/uid_map")), mapping(proc.text(f"/proc/{pid}/gid_map")), groups), True


def mapping(text: str) -> Callable[[int], int | None]:
    """The translation that a uid_map or gid_map stands for: from the reader's number to the namespace's."""
    rows = [tuple(int(word) for word in line.split()) for line in text.splitlines()]

    def inner(number: int) -> int | None:
        for inside, outside, count in rows:
            if outside <= number < outside + count:
                return number - outside + inside
        return None

    return inner
