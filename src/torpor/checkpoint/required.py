"""What a restart requires of this machine, and of the files that the job mapped or ran."""

from __future__ import annotations

from torpor.checkpoint import copies, machine
from torpor.image.manifest import FileRecord, Manifest
from torpor.linux import cpuid, xsave
from torpor.model.errors import Refusal
from torpor.posix import paths


def check(manifest: Manifest, changed_files: str, files: str = "auto") -> list[Refusal]:
    """What keeps this machine from restarting a job; nothing is touched."""
    layout = xsave.look()
    lacks = machine.missing(manifest.machine, machine.look(layout.size), blind=cpuid.unlisted() is None)
    area = next((thread.cpu.xstate for process in manifest.processes for thread in process.threads), b"")
    lacks += machine.missing_states(xsave.of_area(area), layout)
    found = [
        Refusal(0, "", f"this machine lacks {what}", "restart it on a machine like the one it ran on") for what in lacks
    ]
    for file in manifest.files:
        reason = None
        if (file.restored and files != "keep") or copies.needed(file):
            continue
        if file.written:
            reason = paths.replaced(file.identity)
        elif changed_files != "accept":
            reason = paths.changed(file.identity)
        if reason:
            found.append(
                Refusal(
                    0, "", f"{file.identity.path} {reason}",
                    _way_out(file, reason),
                )
            )  # fmt: skip
    return found


def _way_out(file: FileRecord, reason: str) -> str:
    if reason == paths.GONE:
        return "put it back, or say where it is with --map-path" + (
            "" if file.written else "; torpor checkpoint --with-files saves such files too"
        )
    return "put it back" + ("" if file.written else ", or say --changed-files=accept if you know better")
