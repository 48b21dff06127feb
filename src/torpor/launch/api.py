"""The public Python API, as `import torpor` offers it.

`run` and `restart` start a job that is detached from the calling program, with a supervisor of its own: an
embedding program may have threads, so it is not forked; a fresh `torpor` is started instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from torpor.model.errors import TorporError, UsageError
from torpor.supervise import registry
from torpor.supervise.job import Job
from torpor.supervise.report import Checked, Saved
from torpor.supervise.saving import Progress

if TYPE_CHECKING:
    from torpor.launch.checkpoint import Checkpoint
    from torpor.launch.drill import Drilled
    from torpor.store import RootInfo


class Unasked(TypedDict, total=False):
    """What is done for a job without anybody asking at the moment, as the options of `torpor run` (docs/batch.md):
    every='10m', on_signal={'TERM': 'checkpoint-stop'}, on_crash='restart:3', on=[('pre-checkpoint', 'sync')]."""

    every: str | None
    keep: int | None
    on_signal: Mapping[str, str] | None
    deadline: str | None
    on_crash: str | None
    stopped_status: int | None
    with_files: bool | None
    track: bool | None
    compress: str | None
    on: Sequence[tuple[str, str]] | None
    forget: Sequence[str] | None
    service: Sequence[str] | None


def run(
    argv: Sequence[str],
    *,
    name: str | None = None,
    store: str | None = None,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    resume_or_start: bool = False,
    untrusted: bool = False,
    watch: str | None = None,
    inside: bool = False,
    policy: str | None = None,
    wait: str | None = None,
    **unasked: Unpack[Unasked],
) -> Job:
    """Start a program as a job without a terminal; its output goes to `job.log`.

    name: by default made of the program's name.  store: folder for its checkpoints.  cwd, env: as for
    subprocess.  resume_or_start: restart the newest checkpoint of that name instead, if there is one; untrusted: see
    `restart`.  watch: 'names', 'connect' or 'sendmsg': write down which outside addresses it asks for (docs/watch.md;
    `Job.ledger`).  inside: it may speak with torpor (`torpor.inside`).  policy, wait: a file, and
    how long to wait for seats, as `--policy` and `--wait` (docs/policy.md).  unasked: see `Unasked`. Returns once the
    program has really been started. Raises UsageError (a job of that name runs), TorporError.
    """
    if not argv or isinstance(argv, str):
        raise UsageError("argv: a sequence of at least one string, the program")
    words = ["run", "--detach", *_options(name=name, store=store)]
    words += ["--resume-or-start"] if resume_or_start else []
    words += ["--untrusted"] if untrusted else []
    words += [f"--watch={watch}"] if watch is not None else []
    words += _options(policy=policy, wait=wait)
    words += ["--inside"] if inside else []
    words += _unasked(unasked)
    return _started([*words, "--", *argv], cwd, env)


def restart(
    checkpoint: str | None = None,
    *,
    store: str | None = None,
    name: str | None = None,
    clone: bool = False,
    stdin: str | None = None,
    stdout: str | None = None,
    stderr: str | None = None,
    files: str = "auto",
    changed_files: str = "refuse",
    untrusted: bool = False,
    map_path: Mapping[str, str] | None = None,
    map_host: Mapping[str, str] | None = None,
    pid_budget: float | None = None,
    in_place: bool | None = None,
    stopped: bool = False,
    lazy: bool = False,
    policy: str | None = None,
    new_policy: str | None = None,
    wait: str | None = None,
    **unasked: Unpack[Unasked],
) -> Job:
    """Start a saved job again, without a terminal; what it says goes to `job.log`.

    checkpoint: 'NAME' (the newest), 'NAME@3', 'NAME@-1'; None where there is only one job.  clone: also if
    the job is still running.  stdin, stdout, stderr: files in place of /dev/null and the log.  files: 'auto'
    or 'keep'. changed_files='accept': go on although a file that the job had open for reading has changed.
    untrusted: also if it is not signed, or by nobody whose key is trusted here.
    map_path: files and folders by the path they had, and where they are now.  map_host: the same for addresses.
    pid_budget: seconds that finding the old pids may take in place.  in_place: without a namespace.  stopped: before
    its first instruction; SIGCONT to its supervisor lets it go on.  lazy: its memory arrives while it runs
    (docs/lazy.md).  policy, new_policy, wait: as `--policy`, `--new-policy` and `--wait` (docs/policy.md).  unasked:
    see `Unasked`; in place of what the job was started with. Raises NotFound, Damaged, Untrusted, Sealed, Refused,
    RestartFailed.
    """
    words = [
        "restart",
        "--detach",
        *_options(store=store, name=name, stdin=stdin, stdout=stdout, stderr=stderr),
    ]
    words += [f"--files={files}", f"--changed-files={changed_files}"]
    words += [f"--map-path={old}={new}" for old, new in (map_path or {}).items()]
    words += [f"--map-host={old}={new}" for old, new in (map_host or {}).items()]
    words += ["--clone"] if clone else []
    words += ["--untrusted"] if untrusted else []
    words += ["--in-place"] if in_place else []
    words += ["--stopped"] if stopped else []
    words += ["--lazy"] if lazy else []
    words += _options(policy=policy, wait=wait, **{"new-policy": new_policy})
    words += [f"--pid-budget={pid_budget}"] if pid_budget is not None else []
    words += _unasked(unasked)
    return _started([*words, *([checkpoint] if checkpoint else [])], None, None)


def attach(name: str | None = None) -> Job:
    """The running job of that name, or the only one. Raises NotFound, UsageError."""
    return Job(registry.find(name))


def jobs() -> list[Job]:
    """All running jobs."""
    return [Job(entry) for entry in registry.jobs()]


def checkpoint(
    job: str | int | None = None,
    *,
    stop: bool = False,
    files: str = "auto",
    with_files: bool = False,
    compress: str | None = None,
    store: str | None = None,
    name: str | None = None,
    encrypt_to: Sequence[str] | None = None,
    on: Sequence[tuple[str, str]] | None = None,
    forget: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Saved:
    """Save a job by its name (None: the only one), or the tree of a process by its pid. See
    `Job.checkpoint`."""
    if isinstance(job, int):
        from torpor.supervise.foreign import checkpoint_pid

        return checkpoint_pid(
            job, stop=stop, files=files, with_files=with_files, compress=compress, store=store, name=name,
            encrypt_to=encrypt_to, on=on, forget=forget, progress=progress,
        )  # fmt: skip
    return attach(job).checkpoint(
        stop=stop, files=files, with_files=with_files, compress=compress, store=store, name=name,
        encrypt_to=encrypt_to, on=on, forget=forget, progress=progress,
    )  # fmt: skip


def check(job: str | int | None = None) -> Checked:
    """Could a job (by name), or a tree (by pid), be saved, how large would it be, what stands in the way?"""
    if isinstance(job, int):
        from torpor.supervise.foreign import check_pid

        return check_pid(job)
    return attach(job).check()


def drill(
    checkpoint: str | None = None,
    *,
    store: str | None = None,
    changed_files: str = "refuse",
    untrusted: bool = False,
    map_path: Mapping[str, str] | None = None,
) -> Drilled:
    """Would a checkpoint start, here and now? Its restart is rehearsed up to the moment before the first instruction
    and thrown away (docs/batch.md); `ok` and `failures` tell. The job may be running. The options are those of
    `restart`. Raises NotFound, UsageError; Refused where no rehearsal can be held."""
    from torpor.launch.drill import Drilled

    words = ["drill", f"--changed-files={changed_files}", *_options(store=store)]
    words += [f"--map-path={old}={new}" for old, new in (map_path or {}).items()]
    words += ["--untrusted"] if untrusted else []
    found = _said([*words, *([checkpoint] if checkpoint else [])], None, None)
    del found["ok"]
    found.update(failures=tuple(found["failures"]), notes=tuple(found["notes"]))
    return Drilled(**found)


def list_checkpoints(job: str | None = None, *, store: str | None = None) -> list[RootInfo]:
    """The checkpoints in a store, of one job or of all."""
    from torpor.store import open_store

    return open_store(store).list(job)


def open_checkpoint(
    name: str | None = None, *, store: str | None = None, untrusted: bool = False, part: str = ""
) -> Checkpoint:
    """A saved checkpoint, to be looked at. untrusted: see `restart`.  part: of a job over hosts, one part. Raises
    NotFound, Damaged, Untrusted, Sealed, UsageError."""
    from torpor.launch.checkpoint import open_checkpoint as opened

    return opened(name, store, untrusted, part)


def _unasked(given: Unasked) -> list[str]:
    """The options of cli/upkeep.py."""
    if unknown := given.keys() - Unasked.__annotations__:
        raise TypeError(f"there is no argument {', '.join(sorted(unknown))}")
    words: list[str] = []
    for key, value in given.items():
        option = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif key == "on":
            words += [word for event, command in given["on"] or () for word in ("--on", event, command)]
        elif key == "on_signal":
            words += [f"--on-signal={name}={action}" for name, action in (given["on_signal"] or {}).items()]
        elif isinstance(value, str | int):
            words.append(f"--{option}={value}")
        elif isinstance(value, Sequence):
            words += [f"--{option}={word}" for word in value]
    return words


def _options(**given: str | None) -> list[str]:
    return [f"--{key}={value}" for key, value in given.items() if value is not None]


def _started(words: list[str], cwd: str | None, env: Mapping[str, str] | None) -> Job:
    """Run a `torpor` command that starts a job; the job."""
    plain = _said(words, cwd, env)
    entry = registry.running(plain["name"])
    if entry is None:
        # Over already: its entry is gone, what is known of it is not.
        from torpor.supervise.registry import Entry, Pid

        entry = Entry(plain["name"], root=Pid(plain["pid"], 0), root_vpid=plain["pid_inside"], log=plain["log"])
    return Job(entry)


def _said(words: list[str], cwd: str | None, env: Mapping[str, str] | None) -> dict[str, Any]:
    """Run a `torpor` command in a process of its own; what it says as JSON. Raises what it raised."""
    import json
    import subprocess

    from torpor.model import ourselves

    done = subprocess.run(
        [*ourselves.command(ourselves.COMMAND_LINE), words[0], "--json", *words[1:]],
        cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        plain: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise TorporError(done.stderr.strip().rpartition("\n")[2] or "torpor did not start") from None
    if "error" in plain:
        from torpor.supervise.protocol import raised

        raise raised(plain["error"])
    return plain
