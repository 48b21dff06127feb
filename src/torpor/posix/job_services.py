"""The services of a whole job: what the kernel keeps for an IPC namespace and not for a process.

They are captured first. At the restart their objects are made after the tree has been forked and before memory is
mapped; a job that has any is restarted in an IPC namespace of its own.
"""

from __future__ import annotations

from torpor.posix.mqueue_notify import NotifyService
from torpor.posix.service import JobService
from torpor.posix.sysv_messages import MessageService
from torpor.posix.sysv_semaphores import SemaphoreService
from torpor.posix.sysv_shm import SharedMemoryService

JOB_SERVICES: tuple[JobService, ...] = (SharedMemoryService(), SemaphoreService(), MessageService(), NotifyService())
