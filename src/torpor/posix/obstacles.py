"""What stands in the way of saving a process or a thread as a whole: nothing that could be recorded, only
refused.

One function per obstacle; each looks at /proc and yields a refusal, or nothing. (Obstacles in one service's
field are in its `survey`, those in memory in `memory/obstacles`.) A process that may not be looked at raises
PermissionError, which the survey turns into its own line.

Not looked at, since the kernel does not show them: Landlock rules, keyrings, the cookie of core scheduling.
"""

from __future__ import annotations

import ctypes
import os
import struct
from _thread import get_native_id
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

from torpor.linux import kcmp, proc, ptrace
from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall
from torpor.model.errors import Refusal

_PF_KTHREAD = 0x00200000


class Seen:
    """A process, or one of its threads, as the functions below look at it. face: tells by which number another process
    can be looked at (proc.face). namespace: what the link of a process to a namespace says (proc.namespace)."""

    def __init__(
        self,
        pid: int,
        tid: int,
        status: Mapping[str, str] | None = None,
        face: Callable[[int], int] = proc.face,
        namespace: Callable[[int, str], str] = proc.namespace,
    ) -> None:
        self.namespace = namespace
        self.pid, self.tid = pid, tid
        self.status = proc.status(pid, tid) if status is None else status
        self._face = face

    @cached_property
    def name(self) -> str:
        return self.status["Name"]

    @cached_property
    def parent(self) -> int:
        """By which its parent can be looked at."""
        return self._face(int(self.status["PPid"]))

    @cached_property
    def tracer(self) -> int:
        """The thread that traces it, 0 if none does."""
        return int(self.status.get("TracerPid", "0"))

    def refuse(self, thing: str, way_out: str) -> Refusal:
        if self.tid != self.pid:
            thing = f"thread {self.tid} {thing}"
        return Refusal(self.pid, self.name, thing, way_out)


def kernel_thread(seen: Seen) -> Iterator[Refusal]:
    """Field 9 of stat: flags (include/linux/sched.h). Whatever has memory is none."""
    if "VmSize" in seen.status:
        return
    flags = int(proc.text(f"/proc/{seen.pid}/stat").rpartition(")")[2].split()[6])
    if flags & _PF_KTHREAD:
        yield seen.refuse("is a thread of the kernel", "choose a process of your own")


def word_size(seen: Seen) -> Iterator[Refusal]:
    """The class of its program's ELF header: 1 for 32 bits (i386 and x32), 2 for 64. A file that is being executed
    cannot be written, so that its own is known as long as it is the same file."""
    path = f"/proc/{seen.pid}/exe"
    try:
        st = os.stat(path)
        file = st.st_dev, st.st_ino, st.st_ctime_ns
        if file not in _sixty_four:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if os.read(fd, 5) == b"\x7fELF\x01":
                    yield seen.refuse("is a 32-bit program", "only 64-bit programs are supported; use its 64-bit build")
                    return
            finally:
                os.close(fd)
            if len(_sixty_four) < _MOST:
                _sixty_four.add(file)
    except OSError:
        return


_sixty_four: set[tuple[int, int, int]] = set()
"""Programs (device, inode, time of change in nanoseconds) that were found to be of 64 bits."""
_MOST = 1000


def traced(seen: Seen) -> Iterator[Refusal]:
    """TracerPid names the thread that traces it; ourselves we do not count."""
    tracer = seen.tracer
    if tracer and tracer != get_native_id() and not os.path.exists(f"/proc/self/task/{tracer}"):
        yield seen.refuse(f"is being traced by process {tracer} ({proc.comm(tracer)})", "end that tracer first")


def shares_memory(seen: Seen) -> Iterator[Refusal]:
    """A process that has its parent's memory without being a thread (clone with CLONE_VM). Only told once both are
    stopped: a child of vfork has it too, for a moment, and a parent in vfork does not stop."""
    us = get_native_id()
    if seen.tid != seen.pid or seen.tracer != us:
        return
    parent = int(seen.status["PPid"])
    try:
        if syscall(NR.kcmp, seen.pid, parent, kcmp.VM, 0, 0) != 0 or Seen(parent, parent).tracer != us:
            return
    except OSError:
        return
    yield seen.refuse(
        f"shares its memory with process {parent} without being a thread of it (CLONE_VM)",
        "not supported; run the program in a mode that uses threads",
    )


def shares_tables(seen: Seen) -> Iterator[Refusal]:
    """A process that has its parent's descriptors, or its working directory and umask, without being a thread (clone
    with CLONE_FILES, CLONE_FS): what one of them opens, the other one has."""
    parent = seen.parent
    if seen.status["State"][0] in "ZX":
        return
    for kind, what in ((kcmp.FILES, "table of descriptors"), (kcmp.FS, "working directory")):
        try:
            same = syscall(NR.kcmp, seen.pid, parent, kind, 0, 0) == 0 and proc.stat(parent).state not in "ZX"
        except OSError:
            continue
        if same:
            flag = "CLONE_FILES" if kind == kcmp.FILES else "CLONE_FS"
            yield seen.refuse(
                f"shares its {what} with process {parent} without being a thread of it ({flag})",
                "not supported; run the program in a mode that uses threads",
            )


def tagged_addresses(seen: Seen) -> Iterator[Refusal]:
    """Linear address masking: pointers with tags in them."""
    if int(seen.status.get("untag_mask", "0xffffffffffffffff"), 16) != (1 << 64) - 1:
        yield seen.refuse("uses tagged addresses (LAM)", "not supported yet; run it without")


def shadow_stack(seen: Seen) -> Iterator[Refusal]:
    """arch/x86/kernel/cpu/proc.c prints the thread's features."""
    if "shstk" in seen.status.get("x86_Thread_features", "").split():
        yield seen.refuse("has a shadow stack", "run it with GLIBC_TUNABLES=glibc.cpu.hwcaps=-SHSTK")


def namespaces(seen: Seen) -> Iterator[Refusal]:
    """Namespaces that the job made for itself: other ones than its parent's and ours. (The parent of an orphan may be
    outside of the container that both of us are in.)"""
    for kind in ("user", "pid", "mnt", "net", "ipc", "uts", "time", "cgroup"):
        own = seen.namespace(seen.pid, kind)
        others = (seen.namespace(seen.parent, name) for name in (kind, f"{kind}_for_children"))
        # A process with a new namespace for its children only shows it there.
        # (A pid namespace without a process in it yet cannot be read.)
        split = kind in ("pid", "time") and seen.namespace(seen.pid, f"{kind}_for_children") != own
        if split and not seen.namespace(seen.pid, "mnt"):
            return  # it is just ending, and has lost all of them but this
        if own and (split or (own != proc.own_namespace(kind) and own not in others)):
            yield seen.refuse(
                f"is in a {kind} namespace of its own"
                if not split
                else f"has made a {kind} namespace for its children",
                "not supported yet; run torpor inside the container, or the program without one",
            )
            return


def unshared(seen: Seen) -> Iterator[Refusal]:
    """A thread that has made a descriptor table or a working directory of its own (unshare(2), clone(2))."""
    if seen.tid == seen.pid or seen.status["State"][0] in "ZX":
        return  # a first thread that has ended has none at all
    for kind, what in ((kcmp.FILES, "table of descriptors"), (kcmp.FS, "working directory")):
        try:
            differs = syscall(NR.kcmp, seen.pid, seen.tid, kind, 0, 0) != 0
        except OSError:
            continue
        if differs:
            yield seen.refuse(f"has a {what} of its own", "not supported yet")


def dispatch(seen: Seen) -> Iterator[Refusal]:
    """System calls handed to a signal handler (PR_SET_SYSCALL_USER_DISPATCH): only its tracer sees it (Linux
    6.4)."""
    if seen.tracer != get_native_id():
        return
    room = ctypes.create_string_buffer(32)
    try:
        ptrace.request(ptrace.GET_SYSCALL_USER_DISPATCH, seen.tid, 32, ctypes.addressof(room))
    except OSError:
        return
    if struct.unpack_from("<Q", room.raw)[0]:
        yield seen.refuse("handles its own system calls (syscall user dispatch)", "not supported yet; run it without")


PROCESS: tuple[Callable[[Seen], Iterator[Refusal]], ...] = (
    kernel_thread,
    word_size,
    namespaces,
    tagged_addresses,
    shares_memory,
    shares_tables,
)
_NOT_PLAIN: tuple[Callable[[Seen], Iterator[Refusal]], ...] = (unshared, dispatch)
"""What need not be looked for in a thread that is known to be `plain`."""
THREAD: tuple[Callable[[Seen], Iterator[Refusal]], ...] = (traced, shadow_stack)


def survey(seen: Seen, plain: bool = False) -> list[Refusal]:
    """The first thing that stands in the way of saving a thread. Those of the process are looked for with its first
    one. plain: see Task.plain."""
    of_thread = THREAD if plain else (*THREAD, *_NOT_PLAIN)
    for look in (*PROCESS, *of_thread) if seen.tid == seen.pid else of_thread:
        found = list(look(seen))
        if found:
            return found
    return []
