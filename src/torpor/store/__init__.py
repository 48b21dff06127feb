"""Where checkpoints live: chunks, packs, roots; back ends behind one small interface.

What is kept how is written down in docs/format.md.
"""

from torpor.store.root import RootInfo
from torpor.store.store import Store, open_store

__all__ = ["RootInfo", "Store", "open_store"]
