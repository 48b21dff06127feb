"""Batches that look into connections: the pure parts. What they do is tested with whole jobs (jobs/test_backlog.py)."""

from __future__ import annotations

import os
import struct

import pytest

from torpor.linux.arch.x86_64 import NR
from torpor.linux.arch.x86_64_code import SIZE, assemble, assemble_gate
from torpor.linux.ptrace import Regs
from torpor.posix import inet_again, turnover
from torpor.posix.socket_address import Address
from torpor.tracee.batch import Batch
from torpor.tracee.call import In


def test_a_call_that_fails_goes_on_at_its_label() -> None:
    script = turnover.Script()
    script.add(NR.read, 0, otherwise="end")
    script.add(NR.close, 1, otherwise="next")
    script.label("next")
    script.add(NR.close, 2)
    script.label("end")
    script.add(NR.close, 3)
    rows = Batch(0x1000, script.calls).image
    assert [struct.unpack_from("<I", rows, 64 * i + 4)[0] for i in range(4)] == [2, 0, 0, 0] and len(script) == 4


def test_pointers_into_the_table() -> None:
    script = turnover.Script()
    script.add(NR.getpid)
    script.add(NR.close, In(bytes(16), ((0, turnover.result(0)), (8, turnover.argument(1, 2)))))
    batch = Batch(0x1000, script.calls)
    assert struct.unpack_from("<QQ", batch.image, 128) == (0x1000 + 56, 0x1000 + 64 + 8 + 16)
    assert batch.address(turnover.result(1)) == 0x1000 + 64 + 56


def test_code_fits_its_place() -> None:
    regs = Regs()
    regs.eflags = 0xFFF
    for guest in (True, False):
        assert len(assemble(1 << 46, 1, 1, 23, regs, 0, 65536, guest).blob) <= SIZE
    assert len(assemble_gate(1 << 46, regs, 0, 1 << 46)[0]) <= SIZE


def test_numbers_are_those_the_kernel_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [os.dup(0) for _ in range(3)]
    os.close(kept.pop(1))
    seen = [fd for fd in turnover.proc.descriptors(os.getpid()) if os.path.exists(f"/proc/self/fd/{fd}")]
    monkeypatch.setattr(turnover.proc, "descriptors", lambda pid: seen)  # without the one for looking
    numbers = turnover.Numbers(os.getpid())
    expected = [numbers.take() for _ in range(3)]
    gaps = numbers.gaps()
    got = [os.dup(0) for _ in range(3)]
    for fd in (*kept, *got):
        os.close(fd)
    assert got == expected
    assert all(any(first <= fd <= last for first, last in gaps) for fd in expected)
    assert not any(first <= fd <= last for first, last in gaps for fd in kept)


@pytest.mark.parametrize(
    ("lengths", "data", "messages"),
    [
        ((3, 0, 0, 0), b"one?", [(b"one", False)]),
        ((0, 0, 0, 0), b"?", []),
        ((-11, 0, 0, 0), b"?", []),
        ((3, 5, 0, 1), b"onethree!", [(b"one!", True), (b"three", False)]),
        ((5, 0, 1, 0), b"three!", [(b"!", True), (b"three", False)]),
    ],
)
def test_what_a_batch_tells(lengths: tuple[int, ...], data: bytes, messages: list[tuple[bytes, bool]]) -> None:
    address = struct.pack("=H", 2) + struct.pack(">H", 80) + b"\x7f\0\0\1"
    found = inet_again.what_was_found(address.ljust(32, b"\0") + struct.pack("<qqqq", *lengths) + data)
    assert found.client == Address(b"\x7f\0\0\1", 80)
    assert [(one.data, one.urgent) for one in found.messages] == messages
