"""The services of processes and of threads, in the order in which they are captured and restored.

The order matters in a few places, said here and in the modules: pending signals are captured before the
timers that might send more of them; credentials are set before the parent-death signal, which they clear.
"""

from __future__ import annotations

from torpor.posix.dispositions import DispositionService
from torpor.posix.identity import IdentityService
from torpor.posix.itimers import ItimerService
from torpor.posix.limits import LimitService
from torpor.posix.locks import LockService
from torpor.posix.membarrier import MembarrierService
from torpor.posix.memory_policy import MemoryPolicyService
from torpor.posix.modes import ModeService
from torpor.posix.name import NameService
from torpor.posix.oom import OomService
from torpor.posix.pdeath import ParentDeathService
from torpor.posix.pending import PendingService
from torpor.posix.personality import PersonalityService
from torpor.posix.posix_timers import PosixTimerService
from torpor.posix.prctls import PrctlService
from torpor.posix.scheduling import SchedulingService
from torpor.posix.seccomp_filters import SeccompService
from torpor.posix.service import ProcessService, ThreadService
from torpor.posix.thread_signals import ThreadSignalService
from torpor.posix.tid_address import TidAddressService
from torpor.posix.workdir import WorkdirService

PROCESS_SERVICES: tuple[ProcessService, ...] = (
    DispositionService(),
    PersonalityService(),
    WorkdirService(),
    LimitService(),
    OomService(),
    PrctlService(),
    MembarrierService(),
    PendingService(),
    ItimerService(),
    PosixTimerService(),
    LockService(),
)

THREAD_SERVICES: tuple[ThreadService, ...] = (
    NameService(),
    TidAddressService(),
    ThreadSignalService(),
    MemoryPolicyService(),
    ModeService(),
    SchedulingService(),
    SeccompService(),
    IdentityService(),
    ParentDeathService(),
)
