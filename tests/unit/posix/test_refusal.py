"""Things that this machine may not have are recognised by what /proc calls them."""

from __future__ import annotations

import os
import stat

import pytest

from torpor.posix import refusal
from torpor.posix.memory import obstacles
from torpor.posix.service import Descriptor


def descriptor(target: str, mode: int, rdev: int = 0) -> Descriptor:
    return Descriptor(7, "solver", 3, target, mode, 1, 2, rdev, os.O_RDWR, 0, 0, ())


@pytest.mark.parametrize(
    ("name", "thing", "way_out"),
    [
        ("/dev/nvidia0", "a GPU", "torpor.services"),
        ("/dev/nvidiactl", "a GPU", "torpor.services"),
        ("/dev/nvidia-uvm", "a GPU", "torpor.services"),
        ("/dev/dri/renderD128", "a GPU", "torpor.services"),
        ("/dev/kfd", "a GPU", "torpor.services"),
        ("/dev/infiniband/uverbs0", "an RDMA adapter", "TCP"),
        ("/dev/kvm", "virtual machine", "stop the virtual machine"),
        ("/dev/fuse", "user-space filesystem", "unmount it"),
        ("/dev/net/tun", "network tunnel", "close it"),
        ("/dev/something_new", "a device", "close it"),
    ],
)
def test_devices(name: str, thing: str, way_out: str) -> None:
    seen = refusal.refuse(descriptor(name, stat.S_IFCHR, os.makedev(195, 0)))
    assert (seen.pid, seen.process) == (7, "solver")
    assert "descriptor 3" in seen.thing and thing in seen.thing and name in seen.thing
    assert way_out in seen.way_out


@pytest.mark.parametrize(
    ("name", "thing"),
    [
        ("[io_uring]", "an io_uring instance"),
        ("[fanotify]", "a fanotify group"),
        ("[userfaultfd]", "a userfaultfd"),
        ("[perf_event]", "a perf event"),
        ("bpf-map", "a BPF map"),
        ("bpf-prog", "a BPF program"),
        ("bpf_token", "a BPF object"),
        ("[landlock-ruleset]", "a landlock ruleset"),
        ("kvm-vm", "a virtual machine"),
        ("kvm-vcpu:3", "a virtual processor"),
        ("sync_file", "a GPU fence"),
        ("amdgpu_fence", "a GPU object"),
        ("seccomp notify", "a seccomp listener"),
        ("[something_new]", "a kernel object of the kind [something_new]"),
    ],
)
def test_anonymous_inodes(name: str, thing: str) -> None:
    seen = refusal.refuse(descriptor(f"anon_inode:{name}", 0o600))
    assert thing in seen.thing and seen.way_out


@pytest.mark.parametrize(
    ("path", "thing"),
    [
        ("/[aio] (deleted)", "asynchronous I/O"),
        ("/secretmem (deleted)", "secret memory"),
        ("anon_inode:[io_uring]", "io_uring"),
        ("anon_inode:[perf_event]", "perf_event"),
        ("[uprobes]", "uprobes"),
        ("[shstk]", "shadow stack"),
        ("[heap]", ""),
        ("", ""),
        ("/usr/lib/libc.so.6", ""),
    ],
)
def test_special_memory(path: str, thing: str) -> None:
    found = obstacles.special(path)
    assert (found is not None) == bool(thing)
    if found is not None:
        assert thing in found[0] and found[1]
