"""Capabilities: their numbers, names, and the layout capset(2) wants.

A set is an int, bit N for capability N, as the Cap* fields of /proc/PID/status show it.
Source: include/uapi/linux/capability.h, capabilities(7).
"""

from __future__ import annotations

import os
import struct

from torpor.linux import proc

SETGID = 6
SETUID = 7
SETPCAP = 8
NET_BIND_SERVICE = 10
SYS_PTRACE = 19
SYS_ADMIN = 21
SYS_NICE = 23
SYS_RESOURCE = 24
WAKE_ALARM = 35
CHECKPOINT_RESTORE = 40

NAMES = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid",
    "setpcap", "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw",
    "ipc_lock", "ipc_owner", "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct",
    "sys_admin", "sys_boot", "sys_nice", "sys_resource", "sys_time", "sys_tty_config", "mknod",
    "lease", "audit_write", "audit_control", "setfcap", "mac_override", "mac_admin", "syslog",
    "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf", "checkpoint_restore",
)  # fmt: skip
"""By number, without their `cap_`."""

SECBIT_NO_SETUID_FIXUP = 1 << 2
SECBIT_KEEP_CAPS = 1 << 4

_VERSION_3 = 0x20080522


def numbers(mask: int) -> list[int]:
    """The capabilities of a set, ascending."""
    return [n for n in range(mask.bit_length()) if mask >> n & 1]


def names(mask: int) -> str:
    """The capabilities of a set as words: 'cap_chown, cap_kill'."""
    return ", ".join(f"cap_{NAMES[n]}" if n < len(NAMES) else f"capability {n}" for n in numbers(mask))


def header() -> bytes:
    """struct __user_cap_header_struct for the calling thread."""
    return struct.pack("<Ii", _VERSION_3, 0)


def data(effective: int, permitted: int, inheritable: int) -> bytes:
    """struct __user_cap_data_struct[2]."""
    low = [mask & 0xFFFFFFFF for mask in (effective, permitted, inheritable)]
    high = [mask >> 32 for mask in (effective, permitted, inheritable)]
    return struct.pack("<6I", *low, *high)


def effective() -> int:
    """The effective set of the calling thread."""
    for line in proc.text("/proc/thread-self/status").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def have(number: int) -> bool:
    """Is it in our effective set?"""
    return bool(effective() >> number & 1)


def probe(number: int = SYS_ADMIN) -> tuple[bool, str]:
    """Have we got it?"""
    if have(number):
        return True, ""
    if number == CHECKPOINT_RESTORE and have(SYS_ADMIN):
        return True, "implied by cap_sys_admin"
    if os.geteuid():
        return False, "as root"
    return False, f"in a container: --cap-add {NAMES[number].upper()}"
