"""Keys: files in a folder. Who we are, and whom we trust.

The folder is `$XDG_CONFIG_HOME/torpor/keys`, by default `~/.config/torpor/keys` (0700). In it:

    NAME.key    a secret key (0600): it signs what we save and opens what is encrypted to us. `default.key` is ours
                and is made when it is needed first
    NAME.pub    the public key of somebody whose checkpoints we restart

$TORPOR_KEY_FILE names a file to take as our secret key in place of `default.key`. A secret key is 32 random bytes, of
which an Ed25519 and an X25519 key are derived. Both kinds of file are text: lines that begin with # are comments; a
line `torpor-secret-key BASE64` (32 bytes), a line `torpor-key BASE64` (64 bytes: the public keys, for signatures and
for opening).

No cryptography is needed to read them: a restart knows whom it trusts without.
"""

from __future__ import annotations

import binascii
import os

from torpor.model.errors import TorporError, UsageError
from torpor.named_tuple import NamedTuple
from torpor.store.folder import make_folders

SECRET, PUBLIC = "torpor-secret-key", "torpor-key"
OWN = "default"
FILE = "TORPOR_KEY_FILE"
LIMIT = 16384
"""Bytes of a key file that are read."""


class Public(NamedTuple):
    """A public key. signer: Ed25519; box: X25519; 32 bytes each."""

    signer: bytes
    box: bytes

    @property
    def id(self) -> str:
        """How it is called in messages: 16 hexadecimal digits."""
        return short(self.signer)

    def __str__(self) -> str:
        return f"{PUBLIC} {_encode(self.signer + self.box)}"


class Key(NamedTuple):
    """A secret key (32 bytes), and where it is."""

    seed: bytes
    public: Public
    path: str


def short(signer: bytes) -> str:
    """A signer's public key as it is called in messages."""
    return signer[:8].hex()


def folder() -> str:
    """Where keys are kept; it need not exist. Raises UsageError where there is no home folder."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    if not base.startswith("/"):
        home = os.path.expanduser("~")
        if not home.startswith("/"):
            raise UsageError(f"there is no home folder to keep keys in; set XDG_CONFIG_HOME or {FILE}")
        base = f"{home}/.config"
    return f"{base}/torpor/keys"


def own(make: bool = False) -> Key | None:
    """Our secret key; None if there is none, unless it is to be made. Raises UsageError for one that cannot be used."""
    path = os.environ.get(FILE, "")
    if path:
        if not path.startswith("/"):
            raise UsageError(f"{FILE}={path}: the path has to begin with /, as torpor is in other folders later")
        found = read_secret(path)
        if found is None:
            raise UsageError(f"{FILE}={path}: there is no such file (torpor key export --secret makes one)")
        return found
    path = f"{folder()}/{OWN}.key"
    found = read_secret(path)
    if found is None and make:
        make_key(path)
        found = read_secret(path)
    return found


def read_secret(path: str) -> Key | None:
    """The secret key in a file; None if there is no such file. Raises UsageError."""
    words = _read(path, secret=True)
    if words is None:
        return None
    if SECRET not in words or PUBLIC not in words or len(words[SECRET]) != 32:
        raise UsageError(f"{path} is not a secret key of torpor's")
    return Key(words[SECRET], _public(words[PUBLIC], path), path)


def read_public(path: str) -> Public | None:
    """The public key in a file (also of a secret one); None if there is no such file. Raises UsageError."""
    words = _read(path, secret=False)
    if words is None:
        return None
    if PUBLIC not in words:
        raise UsageError(f"{path} is not a key of torpor's")
    return _public(words[PUBLIC], path)


def parse_public(text: str) -> Public | None:
    """A public key written out, with or without the word before it; None if it is none."""
    word = text.strip().removeprefix(PUBLIC).strip()
    data = _decode(word)
    return Public(data[:32], data[32:]) if len(data) == 64 else None


def known() -> dict[str, Public]:
    """All keys in the folder, ours first, by name. Raises UsageError for one that cannot be read."""
    found: dict[str, Public] = {}
    mine = own()
    if mine is not None:
        found[OWN if not os.environ.get(FILE) else mine.path] = mine.public
    where = folder()
    try:
        if os.stat(where).st_mode & 0o022:
            raise UsageError(f"{where} can be written to by others, who could add keys that you trust: chmod 700 it")
        names = sorted(os.listdir(where))
    except FileNotFoundError:
        return found
    except OSError as error:
        raise _cannot("read", where, error) from None
    for name in names:
        stem, dot, kind = name.rpartition(".")
        if dot and kind in ("key", "pub") and stem not in found:
            public = read_public(f"{where}/{name}")
            if public is not None:
                found[stem] = public
    return found


def trusted(signer: bytes) -> bool:
    """Do we restart what was signed with this key?"""
    return any(public.signer == signer for public in known().values())


def make_key(path: str) -> Key:
    """Make a secret key, durable; one that somebody else makes at the same moment under that path will do as well.
    Raises UsageError."""
    from torpor.image import crypto

    seed = os.urandom(32)
    made = Key(seed, Public(*crypto.public_of(seed)), path)
    write(path, text_of(made))
    return made


def text_of(key: Key) -> str:
    """The file of a secret key."""
    word = "# A secret key of torpor's. Whoever has it can sign as you, and read what is encrypted to you."
    return f"{word}\n{SECRET} {_encode(key.seed)}\n{key.public}\n"


def good_name(name: str) -> bool:
    """Can a key be called that?"""
    fits = all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
    return 0 < len(name) <= 100 and fits and not name.startswith(".") and name not in (OWN, "self")


def write(path: str, text: str) -> bool:
    """Put a file into the folder of keys, whole and durable, unless there is one. False if there was. Raises
    UsageError."""
    where, name = os.path.split(path)
    temporary = f"{where}/.{name}.{os.urandom(8).hex()}"
    try:
        make_folders(where)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, text.encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        try:
            os.link(temporary, path)
        finally:
            os.unlink(temporary)
        fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except FileExistsError:
        return False
    except OSError as error:
        raise _cannot("write", path, error) from None
    return True


def _read(path: str, secret: bool) -> dict[str, bytes] | None:
    """The lines of a key file: the decoded second word by the first."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            mode = os.fstat(fd).st_mode
            text = os.read(fd, LIMIT).decode("ascii", "replace")
        finally:
            os.close(fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _cannot("read", path, error) from None
    if mode & (0o027 if secret else 0o022):
        raise UsageError(f"{path} can be {'read or ' if secret else ''}written by others: chmod 600 it")
    lines = (line.split() for line in text.splitlines() if not line.startswith("#"))
    return {words[0]: _decode(words[1]) for words in lines if len(words) == 2}


def _public(data: bytes, path: str) -> Public:
    if len(data) != 64:
        raise UsageError(f"{path} is not a key of torpor's")
    return Public(data[:32], data[32:])


def _encode(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def _decode(word: str) -> bytes:
    try:
        return binascii.a2b_base64(word, strict_mode=True)
    except ValueError:
        return b""


def _cannot(what: str, path: str, error: OSError) -> TorporError:
    return UsageError(f"cannot {what} the key {path}: {error.strerror or error}; {FILE} names another one")
