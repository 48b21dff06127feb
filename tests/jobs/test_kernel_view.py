"""The kernel's own answers about a process are the same before a checkpoint, after it and after restarts.

What may differ stands in a closed list, with the reason; everything else is compared, field by field.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

import harness

VOLATILE_STATUS = {
    "State": "running or sleeping at the moment of looking",
    "voluntary_ctxt_switches": "counts since the task was made",
    "nonvoluntary_ctxt_switches": "counts since the task was made",
    "VmRSS": "which pages are resident is the kernel's affair",
    "VmHWM": "peak of resident pages, counted since the process was made",
    "VmPeak": "peak of the address space, counted since the process was made",
    "RssAnon": "resident pages",
    "RssFile": "resident pages",
    "RssShmem": "resident pages",
    "VmPTE": "page tables",
    "VmSwap": "resident pages",
    "HugetlbPages": "resident pages",
    "Speculation_Store_Bypass": "set by exec of the restarter, not settable afterwards",
    "SpeculationIndirectBranch": "set by exec of the restarter, not settable afterwards",
    "FDSize": "slots of the descriptor table: the kernel grows it and never shrinks it",
    "NStgid": "a restarted job has a PID namespace of its own; the innermost value is compared",
    "NSpid": "as NStgid",
    "NSpgid": "as NStgid",
    "NSsid": "as NStgid",
    "Cpus_allowed_list": "the same as Cpus_allowed",
    "x86_Thread_features": "shadow stacks: shown, not used",
}
VOLATILE_STAT = {
    3: "state",
    8: "foreground group of the terminal: the restarter's terminal",
    7: "terminal: the restarter's",
    9: "kernel flags (PF_*): whether it was forked or has execed, is being randomised",
    10: "page faults since it was made",
    11: "page faults of children",
    12: "major faults",
    13: "major faults of children",
    14: "CPU clocks start at 0 again",
    15: "CPU clocks start at 0 again",
    16: "CPU clocks of children",
    17: "CPU clocks of children",
    22: "start time: when it was made",
    24: "resident pages",
    29: "address it stands at while looking",
    30: "address it stands at while looking",
    35: "where it waits",
    37: "unused",
    39: "CPU it ran on last",
    42: "delays counted since it was made",
    43: "guest time",
}
VOLATILE_SMAPS = {
    "Rss": "resident pages", "Pss": "resident pages", "Pss_Dirty": "resident pages", "Pss_Anon": "resident pages",
    "Pss_File": "resident pages", "Pss_Shmem": "resident pages", "Shared_Clean": "resident pages",
    "Shared_Dirty": "resident pages", "Private_Clean": "resident pages", "Private_Dirty": "resident pages",
    "Referenced": "resident pages", "Anonymous": "resident pages", "KSM": "resident pages",
    "LazyFree": "resident pages", "AnonHugePages": "which pages are huge is the kernel's affair",
    "ShmemPmdMapped": "as AnonHugePages", "FilePmdMapped": "as AnonHugePages", "Shared_Hugetlb": "resident pages",
    "Private_Hugetlb": "resident pages", "Swap": "resident pages",
    "SwapPss": "resident pages", "Locked": "resident pages",
    "THPeligible": "depends on what is resident",
}  # fmt: skip
VOLATILE_FLAGS = {"sd": "soft-dirty: the kernel's mark of what was written", "uw": "write tracking of torpor's own"}
STREAMS = {0, 1, 2}
"""Standard streams become the restarter's own: only number, flags that matter and being open are compared."""


def fields(text: str) -> dict[str, str]:
    return {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in text.splitlines() if ":" in line)}


def status(text: str) -> dict[str, str]:
    out = {}
    for key, value in fields(text).items():
        if key in ("NStgid", "NSpid", "NSpgid", "NSsid"):
            out[f"{key} (innermost)"] = value.split()[-1]
        elif key not in VOLATILE_STATUS:
            out[key] = re.sub(r"\s+", " ", value)
    # Seen from inside the job: pids as the job sees them, so they are compared, too.
    if "SigQ" in out:
        # queued signals of this user (all of the user's processes: not this job's) / limit
        out["SigQ"] = out["SigQ"].partition("/")[2]
    return out


def stat(text: str) -> dict[int, str]:
    head, _, tail = text.rpartition(")")
    values = {1: head.partition(" ")[0], 2: head.partition("(")[2]}
    values.update(dict(enumerate(tail.split(), 3)))
    return {n: v for n, v in values.items() if n not in VOLATILE_STAT}


def areas(text: str, rename: dict[str, str]) -> dict[str, dict[str, str]]:
    """smaps: address range -> what it is. `rename`: device and inode of what is made again (memfd) differ."""
    out: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in text.splitlines():
        head = re.match(r"([0-9a-f]+-[0-9a-f]+) (\S+) (\S+) (\S+) (\d+)\s*(.*)", line)
        if head:
            span, rights, offset, device, inode, path = head.groups()
            current = out[span] = {"rights": rights, "offset": offset, "path": path}
            if not path.startswith(("/memfd:", "/dev/zero (deleted)", "/SYSV")):
                current["device"], current["inode"] = device, inode
        elif ":" in line:
            key, _, value = line.partition(":")
            if key == "VmFlags":
                current[key] = " ".join(sorted(f for f in value.split() if f not in VOLATILE_FLAGS))
            elif key not in VOLATILE_SMAPS:
                current[key] = value.strip()
    return out


def target(number: str, path: str) -> str:
    if int(number) in STREAMS:
        return "a stream"
    return re.sub(r"(pipe|socket|anon_inode:\[eventfd\]|anon_inode:\[eventpoll\]):\[\d+\]", r"\1:[...]", path)


def fdinfo(number: str, text: str) -> Any:
    found = fields(text)
    found.pop("mnt_id", None)  # a mount namespace of its own numbers its mounts anew
    if int(number) in STREAMS:
        return "a stream"
    found.pop("ino", None)  # files are compared through link and maps; pipes and memfds are made again
    found.pop("eventfd-id", None)  # numbered by the kernel as made
    if "tfd" in found:  # 'tfd: 5 events: 19 data: 5 pos:0 ino:123 sdev:e': the inode of a pipe made again
        found["tfd"] = re.sub(r"\s+", " ", re.sub(r"(ino|sdev):\S+", "", found["tfd"]))
    return found


def simplify(view: dict[str, Any]) -> dict[str, Any]:
    """The part of a view that must not change."""
    return {
        "status": status(view["status"]),
        "stat": stat(view["stat"]),
        "smaps": areas(view["smaps"], {}),
        "maps": sorted(line.split()[0] + " " + line.split()[1] for line in view["maps"].splitlines()),
        "limits": view["limits"],
        "cmdline": view["cmdline"],
        "comm": view["comm"],
        "environ": view["environ"],
        "auxv": view["auxv"],
        "exe": view["exe"],
        "cwd": view["cwd"],
        "root": view["root"],
        "personality": view.get("personality"),
        "oom_score_adj": view["oom_score_adj"],
        "coredump_filter": view["coredump_filter"],
        "timerslack_ns": view["timerslack_ns"],
        "fd": {n: target(n, path) for n, path in view["fd"].items()},
        "fdinfo": {n: fdinfo(n, text) for n, text in view["fdinfo"].items()},
        "task": {
            tid: {
                "status": status(task["status"]),
                "stat": stat(task["stat"]),
                "comm": task["comm"],
                "children": task["children"],
            }
            for tid, task in view["task"].items()
        },
        "calls": view["calls"],
    }


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        out = []
        for key in [*a, *(k for k in b if k not in a)]:
            if key not in a or key not in b:
                out.append(f"{where}/{key}: {'only before' if key in a else 'only after'}: {a.get(key, b.get(key))}")
            else:
                out += differences(a[key], b[key], f"{where}/{key}")
        return out
    if isinstance(a, list) and isinstance(b, list) and a != b:
        return [f"{where}: only before {[x for x in a if x not in b]}, only after {[x for x in b if x not in a]}"]
    return [] if a == b else [f"{where}: {a!r} became {b!r}"]


def same(before: dict[str, Any], after: dict[str, Any], when: str) -> None:
    found = differences(before, after)
    assert not found, f"{when}:\n" + "\n".join(line[:600] for line in found)


class View:
    """The running kernel_view.py and its views."""

    def __init__(self, bench: harness.Bench, *wrong: str) -> None:
        self.bench = bench
        self.out = os.path.join(bench.home, "view")
        self.turn = 0
        self.command = [bench.account.python, "-u", harness.script("kernel_view.py"), bench.go, self.out, *wrong]

    def first(self) -> dict[str, Any]:
        with open(f"{self.out}.0") as f:
            return simplify(json.load(f))

    def next(self) -> dict[str, Any]:
        self.turn += 1
        with open(f"{self.bench.go}.{self.turn}", "w"):
            pass
        return self.taken()

    def taken(self) -> dict[str, Any]:
        path = f"{self.out}.{self.turn}"
        harness.until(lambda: os.path.exists(path), f"view {self.turn}; processes: "
                      + harness.describe(harness.tagged(self.bench.tag)), 30)  # fmt: skip
        with open(path) as f:
            return simplify(json.load(f))


def test_looking_twice_gives_the_same(user_bench: harness.Bench) -> None:
    """Without any checkpoint: the list of what may differ is long enough."""
    view = View(user_bench)
    job = user_bench.run(view.command, "pid")
    job.ready()
    same(view.first(), view.next(), "undisturbed")
    same(view.first(), view.next(), "undisturbed")
    job.verified()


def test_the_comparison_sees_differences(user_bench: harness.Bench) -> None:
    """And not too long: a changed umask and a changed advice are seen."""
    view = View(user_bench, "wrong")
    job = user_bench.run(view.command, "pid")
    job.ready()
    view.next()
    view.turn += 1
    found = differences(view.first(), view.taken())
    assert any("umask" in line.lower() for line in found), found
    assert any("VmFlags" in line for line in found), found
    job.verified()


def test_the_kernel_says_the_same(via: str, bench: harness.Bench) -> None:
    view = View(bench)
    job = bench.run(view.command, via)
    job.ready()
    before = view.first()
    same(before, view.next(), "undisturbed")
    saved = bench.checkpoint(job)
    same(before, view.next(), "after going on")
    bench.kill()
    for turn in range(1, view.turn + 1):
        os.unlink(f"{bench.go}.{turn}")
    # The restarted program counts on from where it was: one view had been taken.
    view.turn = 1
    for path in (f"{view.out}.2",):
        os.unlink(path)
    again = bench.restart(f"{job.name}@{saved['number']}", detach=True)
    same(before, view.next(), "after the first restart")
    saved = bench.checkpoint(again)
    bench.kill()
    last = bench.restart(f"{job.name}@{saved['number']}")
    same(before, view.next(), "after the second restart")
    last.verified()
