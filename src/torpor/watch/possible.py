"""Whether a job can be watched on this machine at all."""

from __future__ import annotations

from torpor.linux import capability, proc, seccomp_notify


def impossible() -> str:
    """Why it cannot be, and what helps; '' if it can."""
    works, why = seccomp_notify.probe()
    if not works:
        return why
    if not capability.have(capability.SYS_PTRACE) and _scope():
        # Only ancestors may look into a process then, and the holder is none.
        return f"kernel.yama.ptrace_scope is {_scope()}; set it to 0, or run torpor as root"
    return ""


def _scope() -> int:
    try:
        return int(proc.text("/proc/sys/kernel/yama/ptrace_scope"))
    except (OSError, ValueError):
        return 0
