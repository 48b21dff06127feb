"""Which service has a descriptor, and which service a record of a checkpoint belongs to.

The table is in order: the first that claims a descriptor has it. Services of others (entry points in the
group `torpor.services`, each naming an object with the interface `DescriptorService`) come after the
built-in ones and are only looked for where no built-in one claims a descriptor, or a record names one
that is not built in: looking for them takes longer than everything else here. For the same reason a
restart imports only the services that its records name.

Adding a built-in service: one module with `SERVICE`, one line in `_TABLE`.
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

from torpor.posix.service import Descriptor, DescriptorService, Job

_TABLE = (
    # name (as in the manifest), module
    ("path", "pathonly"),
    ("memfd", "memfd"),
    ("process_file", "process_file"),
    ("mqueue", "mqueue"),
    ("file", "regular"),
    ("directory", "directory"),
    ("pty_master", "pty_master"),
    ("pty_slave", "pty_slave"),
    ("device", "device"),
    ("pipe", "pipe"),
    ("fifo", "fifo"),
    ("eventfd", "eventfd"),
    ("timerfd", "timerfd"),
    ("signalfd", "signalfd"),
    ("epoll", "epoll"),
    ("pidfd", "pidfd"),
    ("inotify", "inotify"),
    ("unix", "unix_socket"),
    ("tcp", "inet_stream"),
    ("udp", "inet_datagram"),
    ("netlink", "netlink"),
    ("stream", "stream"),
    ("refused", "refusal"),
)
_MODULES = dict(_TABLE)

_built_in: list[DescriptorService] = []
_others: dict[str, DescriptorService] | None = None


def service_for(seen: Descriptor, job: Job) -> DescriptorService:
    """The service for a descriptor of a job.

    `refused` where there is none. The same at survey and at capture.
    """
    if role(seen, job) >= 0:
        return _own("stream")
    for service in built_in():
        if service.claims(seen):
            return service
    for service in others().values():
        if service.claims(seen):
            return service
    return _own("refused")


def role(seen: Descriptor, job: Job) -> int:
    """The number of the inherited stream that a descriptor is, -1 if it is none.

    Two descriptors are one object if kcmp finds one open file description *and* their roles are equal:
    the streams 0, 1 and 2 may share a description, and still be given different ones at the restart.
    """
    from torpor.posix import inherited

    return inherited.role(seen, job)


def built_in() -> list[DescriptorService]:
    """All built-in services that claim descriptors by themselves, in order."""
    if not _built_in:
        _built_in.extend(_own(name) for name, _ in _TABLE if name not in ("stream", "refused"))
    return _built_in


def service_named(name: str) -> DescriptorService | None:
    """The service of a record, None where it is neither built in nor installed."""
    module = _MODULES.get(name)
    if module is not None:
        return cast(DescriptorService, import_module(f"torpor.posix.{module}").SERVICE)
    return others().get(name)


def _own(name: str) -> DescriptorService:
    service = service_named(name)
    assert service is not None
    return service


def others() -> dict[str, DescriptorService]:
    """Services that other packages have registered, by the name that stands in manifests."""
    global _others
    if _others is None:
        from importlib.metadata import entry_points

        found = [entry.load() for entry in entry_points(group="torpor.services")]
        _others = {service.name: service for service in found if hasattr(service, "claims")}
    return _others
