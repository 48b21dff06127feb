"""One part of a checkpoint of several hosts, as its restart needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from torpor.model.errors import UsageError
from torpor.named_tuple import NamedTuple

if TYPE_CHECKING:
    from torpor.checkpoint.together import RestartedTogether
    from torpor.checkpoint.whereabouts import Whereabouts
    from torpor.image.seal import Opening
    from torpor.store import RootInfo, Store
    from torpor.store.load import Load


class Among(NamedTuple):
    """One part of a checkpoint of several hosts is restarted. part: its name.  hosts: where each part is now, numeric
    addresses by name.  together: see RestartRequest.  learnt: called when it is known where all are.  first: the job
    began in this part."""

    part: str
    hosts: Mapping[str, str]
    together: RestartedTogether
    learnt: Callable[[Whereabouts], None]
    first: bool = True

    def open(self, store: Store, info: RootInfo, opening: Opening) -> tuple[Load, Whereabouts]:
        """The part, and where all are. Raises what `Store.load` does, UsageError."""
        from torpor.checkpoint.whereabouts import Whereabouts
        from torpor.image import codec
        from torpor.image.whole import Whole

        load = store.load(info.job, info.number, opening)
        try:
            whole = codec.decode(load.body, Whole, f"checkpoint {info.job}@{info.number}")
        finally:
            load.close()
        wanted = next((part for part in load.info.parts if part.name == self.part), None)
        if wanted is None:
            raise UsageError(f"{info.job}@{info.number} has no part of {self.part}")
        found = Whereabouts.of(self.part, whole.parts, self.hosts)
        self.learnt(found)
        return store.load(info.job, info.number, opening, wanted), found
