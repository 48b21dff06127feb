"""The seal of a checkpoint: signed by whom, trusted or not, encrypted to whom.

Every checkpoint is signed with our key when it is saved, and the signature is verified, always, before anything of it
is used. With recipients it is encrypted as well. This module decides; `crypto` computes, `keys` knows the files,
`store` has the places where it goes (store/sealing.py).

The data key. Where our own key is among the recipients, it is derived from ours, the store and the list of recipients:
so all our checkpoints in a store for the same readers share their chunks, nothing has to be remembered, and nobody can
slip us a data key that he knows. Where our own key is not among them, every checkpoint has a random data key that is
forgotten once it is saved; checkpoints share nothing then.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from torpor.image import keys
from torpor.image.keys import Key, Public
from torpor.model.errors import Damaged, Sealed, Untrusted, UsageError
from torpor.store.sealing import Cipher, Recipient, Signature

SELF = "self"
"""What our own key is called where recipients are named."""


class Sealing:
    """How we seal what we save; see store.sealing.Sealer."""

    def __init__(self, mine: Key, readers: Sequence[Public] = ()) -> None:
        self.key = mine.public.signer
        self._mine = mine
        self._readers = sorted({public.box: public for public in readers}.values(), key=lambda public: public.box)

    def sign(self, message: bytes) -> bytes:
        from torpor.image import crypto

        return crypto.sign(self._mine.seed, message)

    def cipher(self, store: bytes) -> Cipher | None:
        if not self._readers:
            return None
        from torpor.image import crypto

        boxes = [public.box for public in self._readers]
        if self._mine.public.box in boxes:
            data_key = crypto.derive(crypto.DERIVE_DATA, b"".join((self._mine.seed, store, *boxes)))
        else:
            data_key = os.urandom(32)
        return crypto.Cipher(data_key, [crypto.wrap(data_key, box) for box in boxes])


class Opening:
    """How we open what was saved; see store.sealing.Opener. untrusted: also if nobody whom we trust has signed it."""

    def __init__(self, untrusted: bool = False) -> None:
        self._untrusted = untrusted

    def accept(self, signature: Signature | None, what: str) -> None:
        if signature is None:
            if not self._untrusted:
                raise Untrusted(f"{what} is not signed; if you know where it is from, say --untrusted")
            return
        from torpor.image import crypto

        if not crypto.verify(signature.key, signature.value, signature.message):
            raise Damaged(f"{what} was altered: its signature is wrong")
        if not self._untrusted and not keys.trusted(signature.key):
            raise Untrusted(
                f"{what} is signed by {keys.short(signature.key)}, whom you do not trust; "
                "torpor key trust with that key, or --untrusted for once"
            )

    def cipher(self, recipients: list[Recipient], what: str) -> Cipher:
        from torpor.image import crypto

        mine = keys.own()
        wrapped = [one for one in recipients if mine is not None and one.key == mine.public.box]
        if mine is None or not wrapped:
            have = f"yours ({mine.path}) is none of them" if mine is not None else "you have none"
            count = f"{len(recipients)} keys" if len(recipients) > 1 else "a key"
            raise Sealed(f"{what} is encrypted to {count}, and {have}; {keys.FILE} names another one")
        data_key = crypto.unwrap(wrapped[0], mine.seed)
        if data_key is None:
            raise Damaged(f"{what} is damaged: its data key cannot be unwrapped")
        return crypto.Cipher(data_key, recipients)


def sealing(recipients: Sequence[str] | None = None) -> Sealing:
    """How to seal what is to be saved now, readable by `recipients` ('self', a name, a key written out, a file), by
    default `default_readers`. Makes our key if there is none. Raises UsageError."""
    mine = keys.own(make=True)
    assert mine is not None
    return Sealing(mine, default_readers() if recipients is None else readers(recipients))


def default_readers() -> list[Public]:
    """The keys of those named in $TORPOR_ENCRYPT_TO, separated by commas, or where that is not set by `encrypt_to` in
    the configuration; none: checkpoints are not encrypted. Raises UsageError."""
    given = os.environ.get("TORPOR_ENCRYPT_TO")
    if given is not None:
        return readers([name for name in given.split(",") if name])
    from torpor.store import settings

    try:
        return readers(settings.read().encrypt_to)
    except UsageError as error:
        where = settings.path()
        raise error if str(error).startswith(where) else UsageError(f"{where}: encrypt_to: {error}") from None


def readers(names: Sequence[str]) -> list[Public]:
    """The keys that recipients are named by. Raises UsageError."""
    return [reader(name) for name in names]


def reader(name: str) -> Public:
    """The key that a recipient is named by. Raises UsageError."""
    if name == SELF:
        mine = keys.own(make=True)
        assert mine is not None
        return mine.public
    found = keys.parse_public(name)
    if found is None and "/" not in name:
        found = keys.known().get(name)
    if found is None:
        found = keys.read_public(name)
    if found is None:
        raise UsageError(f"{name!r} is no key: not the name of one (torpor key list), nor a file, nor one written out")
    return found
