"""What no service can save: every kind of descriptor there is, by name, and what can be done about it.

This service claims whatever is left over, and refuses it. Sources of the names: fs/anon_inodes.c users,
proc(5).
"""

from __future__ import annotations

import os
import stat

import msgspec

from torpor.linux import proc
from torpor.model.errors import Refusal, Refused, RestartFailed
from torpor.posix.descriptors import O_PATH
from torpor.posix.inherited import is_terminal
from torpor.posix.service import Descriptor, DescriptorBase, Job, Restart

CLOSE = "close it before the checkpoint"

ANONYMOUS = {
    "inotify": "an inotify instance",
    "[fanotify]": "a fanotify group",
    "[io_uring]": "an io_uring instance",
    "[io_uring_ctx]": "an io_uring instance",
    "[userfaultfd]": "a userfaultfd",
    "[pidfd]": "a pidfd",
    "[perf_event]": "a perf event",
    "[aio]": "an asynchronous I/O context",
    "[fscontext]": "a filesystem that is being configured",
    "[landlock-ruleset]": "a landlock ruleset",
    "[secretmem]": "secret memory",
    "[gpio-event]": "a GPIO line",
    "seccomp notify": "a seccomp listener",
    "bpf-map": "a BPF map",
    "bpf-prog": "a BPF program",
    "bpf_link": "a BPF link",
    "bpf-link": "a BPF link",
    "bpf_iter": "a BPF iterator",
    "btf": "BPF type information",
    "kvm-vm": "a virtual machine (KVM)",
    "kvm-stats": "a virtual machine's statistics (KVM)",
    "kvm-device": "a virtual machine's device (KVM)",
    "sync_file": "a GPU fence",
    "[drm_syncobj]": "a GPU fence",
}

WAYS_OUT = {
    "[io_uring]": f"{CLOSE}, or have the program use epoll instead",
    "[fanotify]": f"{CLOSE}, or use inotify, which is saved",
    "[userfaultfd]": f"{CLOSE}; its memory is filled by the program itself, in ways that only it knows",
    "[perf_event]": "end the measurement before the checkpoint",
}
"""What helps, where there is more to say than CLOSE."""

DEVICES = (
    (
        "/dev/nvidia",
        "a GPU",
        "end the GPU work first, or install a service for it (entry points torpor.services)",
    ),
    (
        "/dev/dri/",
        "a GPU",
        "end the GPU work first, or install a service for it (entry points torpor.services)",
    ),
    (
        "/dev/kfd",
        "a GPU",
        "end the GPU work first, or install a service for it (entry points torpor.services)",
    ),
    (
        "/dev/accel",
        "an accelerator",
        "end its work first, or install a service for it (entry points torpor.services)",
    ),
    (
        "/dev/infiniband/",
        "an RDMA adapter",
        "let MPI use TCP (Open MPI: --mca btl tcp,self --mca pml ob1; UCX_TLS=tcp; I_MPI_FABRICS=shm:ofi with "
        "FI_PROVIDER=tcp), or close it before the checkpoint",
    ),
    ("/dev/kvm", "the virtual machine device", "stop the virtual machine first"),
    ("/dev/vhost", "a virtual machine's network", "stop the virtual machine first"),
    ("/dev/vfio/", "a device of a virtual machine", "stop the virtual machine first"),
    ("/dev/fuse", "a user-space filesystem that the job itself serves", "unmount it before the checkpoint"),
    ("/dev/net/tun", "a network tunnel", CLOSE),
    ("/dev/snd/", "a sound device", CLOSE),
    ("/dev/input/", "an input device", CLOSE),
    ("/dev/video", "a camera", CLOSE),
    ("/dev/mem", "physical memory", CLOSE),
    ("/dev/kmsg", "the kernel's log", CLOSE),
    ("/dev/userfaultfd", "the userfaultfd device", CLOSE),
    ("/dev/loop", "a loop device", CLOSE),
    ("/dev/mapper/", "a device mapper volume", CLOSE),
    ("/dev/watchdog", "a watchdog: the machine would restart", CLOSE),
    ("/dev/rtc", "the real-time clock device", CLOSE),
)

NAMESPACES = ("mnt:[", "net:[", "pid:[", "user:[", "uts:[", "ipc:[", "cgroup:[", "time:[")

_SOCKETS = (
    # file in /proc/PID/net, what is in it, column of the inode
    ("unix", "a UNIX socket", 6),
    ("tcp", "a TCP socket", 9),
    ("tcp6", "a TCP socket (IPv6)", 9),
    ("udp", "a UDP socket", 9),
    ("udp6", "a UDP socket (IPv6)", 9),
    ("udplite", "a UDP-Lite socket", 9),
    ("udplite6", "a UDP-Lite socket (IPv6)", 9),
    ("raw", "a raw socket", 9),
    ("raw6", "a raw socket (IPv6)", 9),
    ("icmp", "an ICMP socket", 9),
    ("icmp6", "an ICMP socket (IPv6)", 9),
    ("netlink", "a netlink socket", 9),
    ("packet", "a packet socket", 8),
)


class Nothing(msgspec.Struct, frozen=True):
    """There is no record of what is refused."""


class RefusalService(DescriptorBase):
    name = "refused"
    record = Nothing

    def claims(self, seen: Descriptor) -> bool:
        return True

    def survey(self, seen: Descriptor, job: Job) -> Refusal | None:
        try:
            # No service claims what a running job has closed meanwhile; to find words for it may take long.
            if os.readlink(f"/proc/{seen.pid}/fd/{seen.number}") != seen.target:
                return None
        except FileNotFoundError:
            return None
        return refuse(seen)

    def capture(self, fd: int, seen: Descriptor, job: Job) -> Nothing:
        raise Refused([refuse(seen)])

    def create(self, record: Nothing, restart: Restart) -> int:
        raise RestartFailed("this checkpoint holds a descriptor that cannot be made again")


def refuse(seen: Descriptor) -> Refusal:
    """Name the thing."""
    kind = stat.S_IFMT(seen.mode)
    target = seen.target
    if target.startswith("anon_inode:"):
        name = target.removeprefix("anon_inode:")
        return seen.refuse(anonymous(name), WAYS_OUT.get(name, CLOSE))
    if target.startswith("pidfd:"):
        return seen.refuse(ANONYMOUS["[pidfd]"], CLOSE)
    if target.startswith(NAMESPACES):
        return seen.refuse(f"a namespace ({target})", CLOSE)
    if kind == stat.S_IFSOCK and not seen.flags & O_PATH:
        return seen.refuse(
            f"{socket_name(seen)}, a kind that cannot be saved",
            "close it before the checkpoint (one inherited as standard input, output or error may stay)",
        )
    if kind == stat.S_IFIFO:
        return seen.refuse(f"a named pipe ({target}), which is not supported yet", f"use an anonymous one, or {CLOSE}")
    if kind == stat.S_IFBLK:
        return seen.refuse(f"a block device ({target})", CLOSE)
    if kind == stat.S_IFCHR:
        return _device(seen)
    if target.startswith("/secretmem"):
        return seen.refuse(ANONYMOUS["[secretmem]"], CLOSE)
    if target.startswith("/dmabuf:"):
        return seen.refuse("a buffer shared with a device (dma-buf)", CLOSE)
    return seen.refuse(f"something that torpor does not know: {target}", f"{CLOSE}, and please report it")


def anonymous(name: str) -> str:
    """What an anonymous inode of this name is, in words."""
    words = ANONYMOUS.get(name)
    if words:
        return words
    if name.startswith("kvm-vcpu"):
        return "a virtual processor (KVM)"
    if name.startswith(("drm", "i915", "amdgpu", "[nvidia")):
        return f"a GPU object ({name})"
    if name.startswith(("bpf", "[bpf")):
        return f"a BPF object ({name})"
    return f"a kernel object of the kind {name}"


def socket_name(seen: Descriptor) -> str:
    """What socket it is.

    Family and, where there is one, the address. Read from /proc/PID/net: touches nothing.
    """
    ino = str(seen.ino)
    for file, words, column in _SOCKETS:
        try:
            lines = proc.text(f"/proc/{seen.pid}/net/{file}").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if len(fields) > column and fields[column] == ino:
                address = f" ({' '.join(fields[7:])})" if file == "unix" and len(fields) > 7 else ""
                return f"{words}{address}"
    return "a socket that is not bound or connected, or of another family"


def _device(seen: Descriptor) -> Refusal:
    target = seen.target
    if is_terminal(seen.mode, seen.rdev):
        return seen.refuse(f"a terminal ({target}) that is not the one the job inherited", CLOSE)
    for start, words, way_out in DEVICES:
        if target.startswith(start):
            return seen.refuse(f"{words} ({target})", way_out)
    return seen.refuse(f"a device ({target}) whose state cannot be saved", CLOSE)


SERVICE = RefusalService()
