"""Whether another machine's CPU will do (checkpoint/machine.py, linux/xsave.py)."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from torpor.checkpoint import machine
from torpor.image.manifest import MachineRecord
from torpor.linux import cpuid, xsave
from torpor.linux.xsave import Layout

HERE = MachineRecord("a", "6.1", "x86_64", "", ("fpu", "sse2", "avx2", "erms", "avx512f"), 2432, 0, 0)
X87, SSE, AVX, PKRU = 1, 2, 4, 1 << 9
AVX512 = 7 << 5


def changed(**fields: object) -> MachineRecord:
    return msgspec.structs.replace(HERE, **fields)


def test_the_same_machine_lacks_nothing() -> None:
    assert machine.missing(HERE, HERE) == []
    look = machine.look(xsave.look().size)
    assert machine.missing(look, look) == []


def test_features_are_named() -> None:
    assert machine.missing(HERE, changed(cpu=("fpu", "sse2"))) == ["the CPU features avx2 avx512f"]


def test_hints_and_more_features_do_no_harm() -> None:
    assert machine.missing(HERE, changed(cpu=("fpu", "sse2", "avx2", "avx512f", "amx_tile"))) == []


def test_another_architecture_is_all_that_is_said() -> None:
    found = machine.missing(HERE, changed(arch="aarch64", cpu=(), xsave=0))
    assert found == ["the architecture x86_64 (this is aarch64)"]


def test_another_size_is_another_layout() -> None:
    # Zen 3, whose protection keys stand at 832; Zen 4 with them at 2432; Intel.
    for saved, here in ((840, 2440), (2440, 840), (2440, 2696), (2696, 11008)):
        found = machine.missing(changed(xsave=saved), changed(xsave=here))
        assert found == [f"the layout of the extended CPU state: {saved} bytes there, {here} here"]


def test_an_unknown_size_does_not_refuse() -> None:
    assert machine.missing(changed(xsave=0), HERE) == []
    assert machine.missing(HERE, changed(xsave=0)) == []


def test_states_are_named() -> None:
    base = X87 | SSE | AVX
    assert machine.missing_states(Layout(2432, base | AVX512), Layout(2432, base)) == ["CPU state of AVX-512"]
    assert machine.missing_states(Layout(2696, base | PKRU | 1 << 19), Layout(2696, base | PKRU)) == [
        "CPU state of APX"
    ]
    assert machine.missing_states(Layout(2432, base), Layout(2432, base | AVX512)) == []
    assert machine.missing_states(Layout(2432, base), Layout(0, 0)) == []


def test_unlisted_features_count_unless_nobody_can_tell() -> None:
    saved = changed(cpu=(*HERE.cpu, "avx_ifma"))
    assert machine.missing(saved, HERE) == ["the CPU features avx_ifma"]
    assert machine.missing(saved, HERE, blind=True) == []


def test_layout_of_an_area() -> None:
    area = bytes(464) + (0xE7).to_bytes(8, "little") + bytes(2432 - 472)
    assert xsave.of_area(area) == Layout(2432, 0xE7)
    assert xsave.of_area(b"") == Layout(0, 0)


def test_layout_of_a_processor() -> None:
    leaves = {(0xD, 0): cpuid.Leaf(0xE7, 2432, 2432, 0)}
    assert xsave.of_processor(cpuid.Answers(leaves, 0xE7)) == Layout(2432, 0xE7)


def test_names_of_states() -> None:
    assert xsave.names(0xE7) == "x87, SSE, AVX, AVX-512"
    assert xsave.names(1 << 40) == "component 40"
    assert xsave.names(0) == ""


def test_unlisted_bits() -> None:
    assert cpuid.in_leaf(cpuid.Leaf(eax=1 << 23, edx=1 << 5)) == ("avx_ifma", "avx_ne_convert")
    assert cpuid.in_leaf(cpuid.Leaf()) == ()


def test_used_are_names_as_the_kernel_writes_them() -> None:
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in machine.USED)
    flags = set(machine.cpu_flags())
    assert {"fpu", "sse2", "syscall", "tsc"} <= flags & machine.USED


def test_docs_name_the_rule() -> None:
    text = (Path(__file__).parents[3] / "docs" / "facilities.md").read_text()
    assert "checkpoint/machine.py" in text
