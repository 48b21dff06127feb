"""The environment of a process that is started for somebody on another host: theirs, but for what belongs to a host."""

from __future__ import annotations

import os
from collections.abc import Mapping

DOOR = "TORPOR_DOOR"
"""Names the socket of the door of this host (door.py)."""
INSIDE = "TORPOR_INSIDE"
"""By what the supervisor of this host's part is found (supervise/inside.py)."""
OF_THE_HOST = frozenset({
    DOOR, INSIDE,
    "HOME", "HOST", "HOSTNAME", "LOGNAME", "MAIL", "SHELL", "TMPDIR", "USER",
    "TORPOR_RUNTIME", "XDG_RUNTIME_DIR", "XDG_SEAT", "XDG_SESSION_ID", "XDG_VTNR", "DBUS_SESSION_BUS_ADDRESS",
    "SSH_AUTH_SOCK", "SSH_CLIENT", "SSH_CONNECTION", "SSH_TTY", "DISPLAY", "XAUTHORITY", "WINDOWID",
    "SLURMD_NODENAME", "SLURM_NODEID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_TASK_PID", "SLURM_GTIDS",
})  # fmt: skip
"""Variables that say something about one host, or about the user's login there: each host keeps its own."""
OF_THE_SHELL = frozenset({"PWD", "OLDPWD", "SHLVL", "_"})
"""Those that a shell sets for itself."""


def travelling(env: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """What goes along to another host."""
    return {name: value for name, value in env.items() if os.fsdecode(name) not in OF_THE_HOST | OF_THE_SHELL}


def arrived(env: Mapping[bytes, bytes], here: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """What a process gets there: what came along, and what is the host's own."""
    own = {name: value for name, value in here.items() if os.fsdecode(name) in OF_THE_HOST}
    return {**travelling(env), **own}
