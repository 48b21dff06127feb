"""The store: checkpoints by name, kept in a place that a back end knows."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from torpor.model.errors import Damaged, NotFound, TorporError, UsageError
from torpor.store import envelope, locations, names, numbers, parts, root
from torpor.store.backend import Backend
from torpor.store.load import Load, open_load
from torpor.store.parts import Part
from torpor.store.root import RootInfo

if TYPE_CHECKING:
    from torpor.store.save import Save
    from torpor.store.sealing import Opener, Sealer, Signature

CONFIG = "store"
MAGIC = b"torporC\0"
VERSION = 1
FOLDERS = {"packs", "index", "roots", "claims", "leases", "warrants", "holds", "pools", "tmp"}


# Inside the class, `list` is a method.
RootInfos: TypeAlias = list[RootInfo]
Strings: TypeAlias = list[str]


class Config(msgspec.Struct, frozen=True):
    """What holds for the whole store; the object `store`, made once and never changed."""

    key: bytes
    """32 random bytes: the key of chunk names."""


def open_store(location: str | None = None, apart: bool = False) -> Store:
    """The store at `location` (see locations.py), or the default one. Nothing is made before the first save.

    apart: this process is going to fork, see locations.open_backend.
    Raises UsageError if what is there cannot be used, Damaged if its configuration is.
    """
    where = locations.absolute(location or locations.default())
    return Store(locations.open_backend(where, apart), required=bool(location), location=where)


class Store:
    """Saved checkpoints. Safe to use from several threads and processes, on several hosts, at once."""

    def __init__(self, backend: Backend, required: bool = False, location: str = "") -> None:
        """required: it is an error if there is no store and something is looked up in it. location: what `open_store`
        takes to open it again, where that is not the back end's place."""
        self.location = location or backend.place
        self.backend = backend
        self._required = required
        self._config = self._read_config()

    def begin(self, job: str, sealer: Sealer, compression: str = "") -> Save:
        """Begin to save a checkpoint of `job`, which will be sealed so. The store is made if there is none yet.

        compression: one of settings.COMPRESSION, '' for the default. Raises UsageError for an impossible name or a
        place that cannot be a store, CheckpointFailed if it cannot be written to.
        """
        from torpor.store import settings
        from torpor.store.save import Save  # a restart does without

        names.check_job(job)
        try:
            return Save(self.backend, self._make().key, job, sealer, settings.compression(compression))
        except OSError as error:
            raise _cannot(error, f"cannot write to {self.location}") from error

    def begin_part(self, job: str, number: int, part: str, sealer: Sealer, compression: str = "") -> Save:
        """Begin to save one part of a checkpoint whose number somebody else has claimed (`Save.number`) and whose root
        he will write. The store is there. Raises UsageError, CheckpointFailed."""
        from torpor.store import settings
        from torpor.store.save import Save

        series = parts.series(names.check_job(job), part)
        try:
            return Save(self.backend, self._make().key, series, sealer, settings.compression(compression), number)
        except OSError as error:
            raise _cannot(error, f"cannot write to {self.location}") from error

    def begin_whole(self, job: str, number: int, sealer: Sealer) -> Save:
        """Begin the root of a checkpoint of parts, with a number that nobody else will use: whoever gives the job's
        numbers has given it. Raises UsageError, CheckpointFailed."""
        from torpor.store.save import Save

        try:
            self._make()
            numbers.keep_claim(self.backend, names.check_job(job), number)
            return Save(self.backend, self._make().key, job, sealer, "none", number)
        except OSError as error:
            raise _cannot(error, f"cannot write to {self.location}") from error

    def load(self, job: str, number: int, opener: Opener, part: Part | None = None) -> Load:
        """Open a checkpoint, or a part of one: nothing of it is used before its signature was verified and found
        acceptable, and a part before it was found to be the one that the root names.

        Raises NotFound, Damaged, and what `opener` raises."""
        names.check_job(job)
        if part is not None:
            job = parts.series(job, part.name)
        _, found, what = self.read(job, number, part)
        opener.accept(found.signature, what)
        config = self._config
        assert config is not None
        return open_load(self.backend, config.key, self._info(found.header, found.signature), found, opener, what)

    def read(self, job: str, number: int, part: Part | None = None) -> tuple[bytes, root.Root, str]:
        """A root as it is stored, the same taken apart, and what to call it in an error. Its signature is not verified.

        job: or the series of a part (parts.py).  part: it has to be this one. Raises NotFound, Damaged."""
        where = root.object_name(job, number)
        what = f"checkpoint {job}@{number} ({self.location}/{where})"
        try:
            if self._config_or_none() is None:
                raise FileNotFoundError
            data = self.backend.get(where)
        except FileNotFoundError:
            raise NotFound(f"no checkpoint {job}@{number} in {self.location}") from None
        except OSError as error:
            raise Damaged(f"{what} cannot be read: {error.strerror or error}") from None
        if part is not None and parts.digest([data]) != part.digest:
            raise Damaged(f"{what} is not the part that belongs there")
        found = root.decode(data, what)
        if (found.header.job, found.header.number) != (job, number):
            raise Damaged(f"{what} is really {found.header.job}@{found.header.number}")
        return data, found, what

    def list(self, job: str | None = None) -> RootInfos:
        """The checkpoints there are, of one job or of all, by job and number. Only headers are read; a root
        that is damaged is listed as such."""
        return [self._look(name, n) for name in self._jobs(job) for n in numbers.existing(self.backend, name)]

    def remove(self, job: str, number: int) -> None:
        """Remove a checkpoint. What only it used is deleted by `collect`. Raises NotFound."""
        where = root.object_name(names.check_job(job), number)
        try:
            self.backend.stat(where)
            numbers.keep_claim(self.backend, job, number)
            self.backend.delete(where)
            self.backend.sync(f"roots/{job}")
            self._remove_parts(job, number)
        except FileNotFoundError:
            raise NotFound(f"no checkpoint {job}@{number} in {self.location}") from None
        except OSError as error:
            raise _cannot(error, f"cannot remove {job}@{number} from {self.location}", TorporError) from error

    def _remove_parts(self, job: str, number: int) -> None:
        """Of a checkpoint whose root is gone. Raises OSError."""
        for series in self.backend.list("roots"):
            if parts.is_part(series) and parts.whole(series) == job:
                self.backend.delete(root.object_name(series, number))

    def resolve(self, name: str | None) -> RootInfo:
        """The checkpoint that is meant by NAME (the newest), NAME@3, NAME@-1 (the newest but one), or by
        nothing at all where there is only one job. Raises NotFound, UsageError. It may be one that is
        damaged."""
        wanted = names.parse(name)
        found = {job: had for job in self._jobs(None) if (had := numbers.existing(self.backend, job))}
        job = names.pick_job(wanted, list(found), self.location)
        return self._look(job, names.pick_number(job, wanted.number, found[job]))

    def collect(self) -> tuple[int, int]:
        """Delete packs that no checkpoint refers to: how many, how many bytes. Raises TorporError.

        Packs that a running save might rely on stay until a later collection.
        """
        from torpor.store.collect import collect

        if self._config_or_none() is None:
            return 0, 0
        try:
            return collect(self.backend)
        except OSError as error:
            raise TorporError(f"cannot clean up {self.location}: {error.strerror or error}") from error

    def damage_beside(self, packs: bool) -> Strings:
        """What is damaged of that which no checkpoint needs: the index, and (packs) what packs say of themselves. One
        line for each. Raises UsageError, Damaged."""
        from torpor.store import index, pack

        if self._config_or_none() is None:
            return []
        try:
            found = index.damage(self.backend)
            return [*found, *(pack.damage(self.backend) if packs else ())]
        except OSError as error:
            raise _cannot(error, f"cannot read {self.location}", UsageError) from error

    def waiting(self) -> set[tuple[str, int]] | None:
        """The checkpoints (job, number) of a tier that are only in the fast place yet; None where this is no tier.
        Raises UsageError."""
        from torpor.store.tier import find

        tier = find(self.backend)
        try:
            return None if tier is None else set(tier.waiting())
        except OSError as error:
            raise _cannot(error, f"cannot read {self.location}", UsageError) from error

    def close(self) -> None:
        """Let go of connections and helpers."""
        self.backend.close()

    # -- inside

    def _jobs(self, job: str | None) -> Strings:
        if self._config_or_none() is None:
            return []
        try:
            if job is not None:
                return [names.check_job(job)]
            return sorted(each for each in self.backend.list("roots") if not parts.is_part(each))
        except OSError as error:
            raise _cannot(error, f"cannot read {self.location}", UsageError) from error

    def _look(self, job: str, number: int) -> RootInfo:
        where = root.object_name(job, number)
        what = f"checkpoint {job}@{number}"
        try:
            data = self.backend.get(where, 0, root.HEADER_GUESS)
            size = envelope.size(root.MAGIC, root.VERSION, data, what, root.SEALS)
            if size > len(data):
                data = self.backend.get(where, 0, size)
            header, opened = root.decode_header(data, what)
            if self.backend.stat(where).size != root.total_size(header, opened):
                raise Damaged(f"{what} is truncated")
            if (header.job, header.number) != (job, number):
                raise Damaged(f"{what} is really {header.job}@{header.number}")
            return self._info(header, opened.signature)
        except Damaged as error:
            damage = str(error)
        except OSError as error:
            damage = f"{what} cannot be read: {error.strerror or error}"
        return RootInfo(job, number, 0.0, 0, 0, self._path(where), {}, damage)

    def _info(self, header: root.Header, signature: Signature | None) -> RootInfo:
        return RootInfo(
            header.job,
            header.number,
            header.time,
            header.bytes_total,
            header.bytes_new,
            self._path(root.object_name(header.job, header.number)),
            header.label,
            "",
            signature.key.hex() if signature else "",
            tuple(recipient.key.hex() for recipient in header.recipients),
            header.parts,
            header.identity,
        )

    def _path(self, where: str) -> str:
        return self.backend.path(where) or f"{self.location}/{where}"

    def _config_or_none(self) -> Config | None:
        """The configuration, or None if there is no store and none is required. Raises Damaged."""
        if self._config is None:
            self._config = self._read_config()
        if self._config is None:
            self._refuse_lost()
        if self._config is None and self._required:
            self.refuse_others()
            local = self.backend.path(CONFIG)
            if not (os.path.isdir(os.path.dirname(local)) if local else self.backend.list("")):
                raise NotFound(f"there is no store at {self.location}")
        return self._config

    def refuse_others(self) -> None:
        """Raise UsageError if there are things that are not of a store, in a place without a configuration, and Damaged
        if that is gone."""
        if others := sorted(set(self.backend.list("")) - FOLDERS - {CONFIG}):
            found = f"not a store and not empty (it has {others[0]!r})"
            raise UsageError(f"{self.location} is {found}; use another folder")
        self._refuse_lost()

    def _refuse_lost(self) -> None:
        """Raise Damaged if there are checkpoints, which were made with a configuration: with a new one nobody could
        ever read them. (It may have been made in between.)"""
        if self.backend.list("roots") and self._read_config() is None:
            lost = f"has checkpoints, but its file {CONFIG!r} is missing, without which they cannot be read"
            raise Damaged(f"store {self.location} {lost}; put it back from a copy, or use another place")

    def _read_config(self) -> Config | None:
        what = f"store {self.location}"
        try:
            data = self.backend.get(CONFIG)
            return msgspec.msgpack.decode(envelope.unwrap(MAGIC, VERSION, data, what), type=Config)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _cannot(error, f"cannot open {what}", UsageError) from error
        except msgspec.MsgspecError as error:
            raise Damaged(f"{what} is damaged: {error}") from None

    def _make(self) -> Config:
        """The configuration, made if there is none. Raises OSError, UsageError."""
        self.backend.prepare()
        if self._config is None:
            self.refuse_others()
            config = msgspec.msgpack.encode(Config(os.urandom(32)))
            self.backend.put(CONFIG, [envelope.wrap(MAGIC, VERSION, config)])
            self._config = self._read_config()
            if self._config is None:
                raise OSError(f"{self.location} vanished")
        return self._config


def _cannot(error: OSError, what: str, kind: type[TorporError] | None = None) -> TorporError:
    from torpor.model.errors import CheckpointFailed

    return (kind or CheckpointFailed)(f"{what}: {error.strerror or error}")
