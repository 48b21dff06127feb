"""seccomp(2): user notification, by which one process sees and answers system calls of another.

Nothing uses it yet but `probe`. Source: seccomp(2), seccomp_unotify(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from torpor.linux import prctl
from torpor.linux.arch.x86_64 import NR
from torpor.linux.libc import syscall
from torpor.linux.masks import REASON, masked
from torpor.linux.trial import trial

_SET_MODE_FILTER = 1
_FILTER_FLAG_NEW_LISTENER = 1 << 3
_RET_ALLOW = 0x7FFF0000
_BPF_RET_K = 6


def _listen() -> tuple[bool, str]:
    """In a child: install a filter that lets everything pass, with a listener."""
    syscall(NR.prctl, prctl.SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    program = ctypes.create_string_buffer(struct.pack("<HBBI", _BPF_RET_K, 0, 0, _RET_ALLOW), 8)
    filters = ctypes.create_string_buffer(struct.pack("<H6xQ", 1, ctypes.addressof(program)), 16)
    try:
        os.close(syscall(NR.seccomp, _SET_MODE_FILTER, _FILTER_FLAG_NEW_LISTENER, ctypes.addressof(filters)))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False, "somebody above us listens already (a container, a sandbox); run outside of it"
        return False, f"{error.strerror}; use a kernel with CONFIG_SECCOMP_FILTER"
    return True, ""


def probe() -> tuple[bool, str]:
    """Can a filter with a listener be installed?"""
    return (False, REASON) if masked("seccomp_notify") else trial(_listen)
