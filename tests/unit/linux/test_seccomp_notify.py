"""Filters with a listener: which calls they pick, and what an answer does."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import struct
import threading

import pytest

from torpor.linux import pidfd, seccomp_notify
from torpor.linux.arch.x86_64 import AUDIT_ARCH, NR
from torpor.linux.libc import syscall

ALLOW, PICK = 0x7FFF0000, 0x7FC00000


def verdict(program: bytes, nr: int, arch: int = AUDIT_ARCH, fifth: int = 0, second: int = 2) -> int:
    """Run a filter as the kernel would."""
    data = struct.pack("<iIQ6Q", nr, arch, 0, 1, second, 3, 4, fifth, 6)
    accumulator, at = 0, 0
    while True:
        code, yes, no, operand = struct.unpack_from("<HBBI", program, at * 8)
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, operand)
        elif code == 0x54:
            accumulator &= operand
        elif code == 0x15:
            at += yes if accumulator == operand else no
        else:
            assert code == 0x06
            return int(operand)


@pytest.mark.parametrize("plain", [(), (NR.connect,), (NR.connect, NR.sendmsg, NR.sendmmsg, NR.bind)])
@pytest.mark.parametrize("fifth", [(), (NR.sendto,), (NR.sendto, NR.recvmsg)])
def test_which_calls_are_picked(plain: tuple[int, ...], fifth: tuple[int, ...]) -> None:
    program = seccomp_notify.program(plain, fifth)
    assert seccomp_notify.ours(program)
    for nr in range(500):
        assert verdict(program, nr, fifth=0) == (PICK if nr in plain else ALLOW)
        for address in (1, 1 << 32, 0x7FFF12345678):
            assert verdict(program, nr, fifth=address) == (PICK if nr in (*plain, *fifth) else ALLOW)
        assert verdict(program, nr, arch=0x40000003, fifth=1) == ALLOW
        assert verdict(program, nr | 0x40000000, fifth=1) == ALLOW


@pytest.mark.parametrize("fifth", [(), (NR.sendto, NR.recvfrom)])
def test_calls_for_another_listener_are_picked(fifth: tuple[int, ...]) -> None:
    program = seccomp_notify.program((NR.connect,), fifth, listeners=True)
    for nr in range(500):
        assert verdict(program, nr, second=8 | 1) == (PICK if nr in (NR.connect, NR.seccomp) else ALLOW)
        assert verdict(program, nr, second=~8 & 0xFF) == (PICK if nr == NR.connect else ALLOW)
        assert verdict(program, nr, fifth=1, second=0) == (PICK if nr in (NR.connect, *fifth) else ALLOW)
    assert verdict(seccomp_notify.program((NR.connect,), fifth), NR.seccomp, second=8) == ALLOW


def test_other_filters_are_not_ours() -> None:
    assert not seccomp_notify.ours(struct.pack("<HBBI", 6, 0, 0, ALLOW))
    assert not seccomp_notify.ours(b"")


class Wrapped:
    """A child that makes one call under a filter, and tells how it ended."""

    def __init__(self, nr: int, *args: int) -> None:
        up, self.result, self._go = os.pipe(), os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                listener = seccomp_notify.install(seccomp_notify.program((nr,)))
                os.write(up[1], struct.pack("<i", listener))
                os.read(self._go[0], 1)
                os.close(listener)
                try:
                    told = syscall(nr, *args)
                except OSError as error:
                    told = -(error.errno or 0)
                os.write(self.result[1], struct.pack("<q", told))
            finally:
                os._exit(0)
        (number,) = struct.unpack("<i", os.read(up[0], 4))
        process = os.pidfd_open(self.pid)
        self.listener = pidfd.copy(process, number)
        os.close(process)
        os.write(self._go[1], b"!")
        self.room = memoryview(mmap.mmap(-1, seccomp_notify.ROOM))

    def end(self) -> int:
        (told,) = struct.unpack("<q", os.read(self.result[0], 8))
        os.waitpid(self.pid, 0)
        os.close(self.listener)
        return int(told)


@pytest.fixture(autouse=True)
def _works() -> None:
    works, why = seccomp_notify.probe()
    if not works:
        pytest.skip(why)


def test_a_call_that_goes_on() -> None:
    wrapped = Wrapped(NR.getppid)
    notice = seccomp_notify.receive(wrapped.listener, wrapped.room)
    assert (notice.task, notice.nr) == (wrapped.pid, NR.getppid)
    assert seccomp_notify.received(wrapped.room) == notice.id
    assert seccomp_notify.waits(wrapped.listener, notice.id)
    assert not seccomp_notify.waits(wrapped.listener, notice.id + 1)
    seccomp_notify.proceed(wrapped.listener, notice.id)
    assert wrapped.end() == os.getpid()


@pytest.mark.parametrize(("value", "error", "wanted"), [(77, 0, 77), (0, errno.ECONNREFUSED, -errno.ECONNREFUSED)])
def test_a_call_that_is_made_for_the_task(value: int, error: int, wanted: int) -> None:
    wrapped = Wrapped(NR.connect, 5, 0x1234, 16)
    notice = seccomp_notify.receive(wrapped.listener, wrapped.room)
    assert notice.args[:3] == (5, 0x1234, 16)
    seccomp_notify.answer(wrapped.listener, notice.id, value, error)
    assert wrapped.end() == wanted


def test_a_task_that_was_killed_waits_no_more() -> None:
    wrapped = Wrapped(NR.getppid)
    notice = seccomp_notify.receive(wrapped.listener, wrapped.room)
    os.kill(wrapped.pid, 9)
    os.waitpid(wrapped.pid, 0)
    assert not seccomp_notify.waits(wrapped.listener, notice.id)
    with pytest.raises(OSError) as caught:
        seccomp_notify.proceed(wrapped.listener, notice.id)
    assert caught.value.errno == errno.ENOENT


def test_a_descriptor_by_way_of_a_thread() -> None:
    """Not only of a process' first one."""
    near, far = socket.socketpair()
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        process = pidfd.of_thread(thread.native_id or 0)
        copy = pidfd.copy(process, near.fileno())
        os.write(copy, b"x")
        assert far.recv(1) == b"x"
        os.close(copy)
        os.close(process)
    finally:
        done.set()
        thread.join()
        near.close()
        far.close()
