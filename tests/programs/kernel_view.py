"""Writes down what the kernel says of a process: once before READY, and again each time `GO.N` appears.

Usage: kernel_view.py GO OUT. The views are OUT.0, OUT.1, ... as JSON; it ends when GO appears.
The process has something of everything: threads, mappings, descriptors, settings; nothing of it changes in between, so
the views have to be equal. A child of it does the looking, so that looking changes nothing.
"""

import ctypes
import fcntl
import json
import mmap
import os
import resource
import select
import signal
import sys
import threading
import time

GO, OUT = sys.argv[1:3]
SUBJECT = os.getpid()


def text(path: str) -> str:
    try:
        with open(path, errors="replace") as f:
            return f.read()
    except OSError as error:
        return f"!{error.errno}"


def link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError as error:
        return f"!{error.errno}"


def look() -> dict[str, object]:
    out: dict[str, object] = {}
    for name in [
        "maps",
        "smaps",
        "status",
        "stat",
        "limits",
        "cmdline",
        "comm",
        "environ",
        "auxv",
        "personality",
        "oom_score_adj",
        "coredump_filter",
        "timerslack_ns",
        "loginuid",
        "cgroup",
        "mountinfo",
        "uid_map",
        "gid_map",
        "timens_offsets",
        "sched",
        "io",
        "numa_maps",
        "wchan",
        "syscall",
        "autogroup",
        "timers",
    ]:
        path = f"/proc/{SUBJECT}/{name}"
        if name == "auxv":
            with open(path, "rb") as f:
                out[name] = f.read().hex()
        elif os.path.exists(path):
            out[name] = text(path)
    for name in ("exe", "cwd", "root"):
        out[name] = link(f"/proc/{SUBJECT}/{name}")
    numbers = sorted(int(n) for n in os.listdir(f"/proc/{SUBJECT}/fd"))
    out["fd"] = {str(n): link(f"/proc/{SUBJECT}/fd/{n}") for n in numbers}
    out["fdinfo"] = {str(n): text(f"/proc/{SUBJECT}/fdinfo/{n}") for n in numbers}
    tasks: dict[str, object] = {}
    for tid in sorted(os.listdir(f"/proc/{SUBJECT}/task"), key=int):
        place = f"/proc/{SUBJECT}/task/{tid}"
        tasks[tid] = {name: text(f"{place}/{name}") for name in ("status", "stat", "comm", "children")}
    out["task"] = tasks
    out["calls"] = {
        "getsid": os.getsid(SUBJECT),
        "getpgid": os.getpgid(SUBJECT),
        "getppid": os.getppid(),
        "affinity": sorted(os.sched_getaffinity(SUBJECT)),
        "priority": os.getpriority(os.PRIO_PROCESS, SUBJECT),
        "policy": os.sched_getscheduler(SUBJECT),
        "limits": [list(resource.prlimit(SUBJECT, n)) for n in range(16)],
        "uname": list(os.uname()),
    }
    return out


def sit() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGHUP})
    over.wait()


over = threading.Event()
libc = ctypes.CDLL(None, use_errno=True)
held = []
area = mmap.mmap(-1, 1 << 20)
area[:] = b"x" * (1 << 20)
held.append(area)
quiet = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
quiet.madvise(mmap.MADV_DONTDUMP)
held.append(quiet)
memfd = os.memfd_create("of the view", 0)
os.ftruncate(memfd, 8192)
held.append(mmap.mmap(memfd, 8192))
program = open(sys.argv[0], "rb")
held.append(mmap.mmap(program.fileno(), 0, prot=mmap.PROT_READ))
held.append(program)
pipe = os.pipe()
os.write(pipe[1], b"inside")
eventfd = os.eventfd(3, os.EFD_NONBLOCK)
epoll = select.epoll()
epoll.register(pipe[0], select.EPOLLIN)
directory = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
written = os.open(OUT + ".written", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
os.write(written, b"something")
null = os.open("/dev/null", os.O_RDWR)
high = fcntl.fcntl(null, fcntl.F_DUPFD_CLOEXEC, 77)
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
os.kill(os.getpid(), signal.SIGUSR2)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
libc.prctl(15, b"the view", 0, 0, 0)
threads = [threading.Thread(target=sit) for _ in range(3)]
for t in threads:
    t.start()


def write(number: int) -> None:
    temporary = f"{OUT}.{number}.tmp"
    data = json.dumps(look())
    with open(temporary, "w") as f:
        f.write(data)
    os.rename(temporary, f"{OUT}.{number}")


child = os.fork()
if child == 0:
    turn = 0
    write(0)
    os.write(1, b"READY\n")
    while not os.path.exists(GO):
        if os.path.exists(f"{GO}.{turn + 1}"):
            turn += 1
            write(turn)
        time.sleep(0.005)
    os._exit(0)
if len(sys.argv) > 3:  # wrong on purpose, to be seen by the comparison
    while not os.path.exists(f"{OUT}.1"):
        time.sleep(0.005)
    os.umask(0o77)
    quiet.madvise(16 + 1)  # MADV_DODUMP
    with open(f"{GO}.2", "w"):
        pass
assert os.waitpid(child, 0)[1] == 0
over.set()
for t in threads:
    t.join()
assert os.read(pipe[0], 100) == b"inside"
os.write(1, b"OK\n")
