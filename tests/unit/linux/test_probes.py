"""Probes: each gives a verdict, harms nobody, and obeys TORPOR_WITHOUT."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from torpor.cli import doctor
from torpor.linux import cpuid, eventfd, kernel, masks, namespaces, proc, ptrace, trial, xsave

ROOT = Path(__file__).parents[3]


def torpor(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torpor", *words],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **env},
    )  # fmt: skip


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """A probe leaves neither descriptors nor children behind."""
    before = os.listdir("/proc/self/fd"), proc.children(os.getpid())
    yield
    assert (os.listdir("/proc/self/fd"), proc.children(os.getpid())) == before


@pytest.mark.parametrize("name", [facility.name for facility in doctor.facilities(None)])
def test_a_probe_answers(name: str, nothing_left: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    facility = next(one for one in doctor.facilities(str(tmp_path / "store")) if one.name == name)
    began = time.monotonic()
    finding = doctor.examine(facility)
    assert time.monotonic() - began < 5
    assert finding.ok or finding.detail, "why it is missing has to be said"
    assert "\n" not in finding.detail
    if facility.needed:
        assert finding.ok, finding.detail


def test_masks_are_obeyed() -> None:
    said = torpor("doctor", "--json", TORPOR_WITHOUT=",".join(masks.NAMES))
    found = {one["mask"]: one for one in json.loads(said.stdout) if one["mask"]}
    assert set(found) == set(masks.NAMES)
    for one in found.values():
        assert not one["ok"] and masks.REASON in one["detail"], one
    assert said.returncode == 0, "optional means that torpor can do without"


def test_unknown_mask_is_named() -> None:
    assert "no facility pagemap" in torpor("doctor", TORPOR_WITHOUT="pagemap,cpuid").stderr


def test_doctor_prints_a_line_each() -> None:
    said = torpor("doctor", TORPOR_WITHOUT="cpuid")
    assert said.returncode == 0, said.stdout + said.stderr
    *lines, verdict = said.stdout.splitlines()
    assert len(lines) == len(doctor.facilities(None))
    assert verdict.startswith("torpor can work here")
    for line in lines:
        assert re.match(r"(ok     |missing|MISSING)  \w+ +\S", line), line


def test_a_needed_facility_decides_the_status(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = torpor("doctor", "--store", str(tmp_path / "file" / "store"))
    assert said.returncode == 1
    assert "MISSING  store" in said.stdout
    assert said.stdout.splitlines()[-1] == "torpor cannot work here without: store"


def test_every_mask_is_documented() -> None:
    text = (ROOT / "docs" / "facilities.md").read_text()
    for name in masks.NAMES:
        assert f"| `{name}` |" in text, name
    used = {
        word
        for path in (ROOT / "src").rglob("*.py")
        for word in re.findall(r'masked\("(\w+)"\)', path.read_text())
    }  # fmt: skip
    assert used <= set(masks.NAMES)


def test_trial(nothing_left: None) -> None:
    assert trial.trial(lambda: (True, "fine")) == (True, "fine")
    assert trial.trial(lambda: (False, "")) == (False, "")
    assert trial.trial(lambda: (os.getpid() == me, "")) == (False, "")
    assert trial.trial(lambda: (True, str(os.open("/nowhere", 0)))) == (False, "No such file or directory")
    assert trial.trial(lambda: (True, str(os.kill(os.getpid(), 15)))) == (False, "the attempt died of SIGTERM")
    assert trial.trial(lambda: (True, str(time.sleep(60))), seconds=0.1) == (False, "the attempt did not end")


me = os.getpid()


def test_of_child_gives_the_error_on(nothing_left: None) -> None:
    with pytest.raises(ZeroDivisionError):
        ptrace.of_child(lambda tid: 1 // 0)


def test_version() -> None:
    assert kernel.version("5.14.0-503.el9.x86_64") == (5, 14)
    assert kernel.version("6.18-rc1") == (6, 18)
    assert kernel.version("7") == (7, 0)
    assert kernel.version("6.1+") == (6, 1)
    assert kernel.version() >= (4, 0)


def test_overmounts() -> None:
    mounted = (
        "22 28 0:21 / /proc rw,nosuid - proc proc rw\n"
        "90 22 0:52 / /proc/acpi ro,relatime - tmpfs tmpfs ro\n"
        "91 22 0:53 / /proc/kcore rw - tmpfs tmpfs rw\n"
        "92 28 0:54 / /process rw - tmpfs tmpfs rw\n"
    )
    assert namespaces.overmounts(mounted) == ["/proc/acpi", "/proc/kcore"]


def test_sysctl() -> None:
    assert int(proc.sysctl("kernel/pid_max")) > 300
    assert proc.sysctl("kernel/no_such_thing") == ""


needs_cpuid = pytest.mark.skipif(not cpuid.probe()[0], reason="CPUID may not be asked here")


@needs_cpuid
def test_cpuid_and_a_tracee_agree(nothing_left: None) -> None:
    assert xsave.of_processor(cpuid.ask([(0xD, 0)])) == xsave.of_tracee()


@needs_cpuid
def test_cpuid_leaves_nothing_mapped() -> None:
    cpuid.ask([(0, 0)])
    before = [area for area in proc.maps(os.getpid()) if "cpuid" in area.path]
    assert not before


@needs_cpuid
def test_unknown_leaf_is_zero() -> None:
    assert cpuid.ask([(0x7FFF, 0)]).leaves[0x7FFF, 0] == cpuid.Leaf(0, 0, 0, 0)


@needs_cpuid
def test_cpuid_under_deny_write_execute(nothing_left: None) -> None:
    def attempt() -> trial.Verdict:
        from torpor.linux import prctl
        from torpor.linux.arch.x86_64 import NR
        from torpor.linux.libc import syscall

        try:
            syscall(NR.prctl, prctl.SET_MDWE, 1, 0, 0, 0)
        except OSError:
            return True, "not on this kernel"
        return cpuid.probe()

    assert trial.trial(attempt)[0]


def test_masked_cpuid_falls_back() -> None:
    said = subprocess.run(
        [sys.executable, "-c", "from torpor.linux import xsave; print(*xsave.look())"],
        capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "TORPOR_WITHOUT": "cpuid"},
    )  # fmt: skip
    assert tuple(map(int, said.stdout.split())) == tuple(xsave.look())


def test_masked_namespaces() -> None:
    script = (
        "from torpor.linux import clone\n"
        "for flags in (clone.NEWUSER, clone.NEWPID):\n"
        "    try: clone.fork(0, flags)\n"
        "    except PermissionError as error: print(error.strerror)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "TORPOR_WITHOUT": "user_namespace,pid_namespace"},
    )  # fmt: skip
    assert said.stdout.splitlines() == [masks.REASON] * 2


@pytest.mark.parametrize("count", [0, 1, 2, 5, 1 << 40])
@pytest.mark.parametrize("semaphore", [0, os.EFD_SEMAPHORE])
def test_a_semaphore_is_found_out(count: int, semaphore: int) -> None:
    fd = eventfd.create(count, semaphore)
    try:
        assert eventfd.is_semaphore(fd, count) == bool(semaphore)
        with open(f"/proc/self/fdinfo/{fd}") as info:
            assert f"eventfd-count: {count:16x}" in info.read()
    finally:
        os.close(fd)
