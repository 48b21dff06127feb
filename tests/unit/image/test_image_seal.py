"""Who signed, who is trusted, who can read."""

from __future__ import annotations

import os
import stat
from typing import Any

import pytest

from torpor.image import crypto, keys, seal
from torpor.model.errors import Damaged, Sealed, Untrusted, UsageError
from torpor.store import Store, open_store

CHUNKS = [os.urandom(5000), b"text " * 4000, bytes(7000), b"x"]


class Home:
    """Somebody with a folder of keys."""

    def __init__(self, folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._patch = str(folder), monkeypatch

    def __enter__(self) -> keys.Key:
        self._patch.setenv("XDG_CONFIG_HOME", self.folder)
        self._patch.delenv("TORPOR_KEY_FILE", raising=False)
        found = keys.own(make=True)
        assert found is not None
        return found

    def __exit__(self, *exc: object) -> None:
        self._patch.setenv("XDG_CONFIG_HOME", "/nobody")


@pytest.fixture
def home(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv("TORPOR_ENCRYPT_TO", raising=False)
    return lambda name: Home(tmp_path / name, monkeypatch)


@pytest.fixture
def store(tmp_path: Any) -> Store:
    return open_store(str(tmp_path / "st"))


def save(store: Store, readers: list[str] | None = None, chunks: list[bytes] = CHUNKS) -> Any:
    saving = store.begin("j", seal.sealing(readers))
    for chunk in chunks:
        saving.put(chunk)
    return saving.commit(b"the body", {"command": "secret-name"})


def load(store: Store, number: int = 1, untrusted: bool = False) -> tuple[list[bytes], bytes]:
    opened = store.load("j", number, seal.Opening(untrusted))
    return [bytes(opened.get(ref)) for ref in opened.refs], bytes(opened.body)


def test_a_key_is_made_on_first_use_and_is_nobody_elses(home: Any, store: Store, tmp_path: Any) -> None:
    before = os.umask(0)
    try:
        with home("a") as key:
            save(store)
    finally:
        os.umask(before)
    for folder, _, names in os.walk(tmp_path):
        assert folder == str(tmp_path) or stat.S_IMODE(os.stat(folder).st_mode) == 0o700, folder
        for name in names:
            assert stat.S_IMODE(os.stat(f"{folder}/{name}").st_mode) == 0o600, name
    with home("a") as again:
        assert again == key
        assert load(store) == (CHUNKS, b"the body")
    assert store.list()[0].signer == key.public.signer.hex()


def test_strangers_are_refused_until_they_are_trusted(home: Any, store: Store) -> None:
    with home("a") as key:
        save(store)
    with home("b"):
        with pytest.raises(Untrusted) as error:
            load(store)
        assert key.public.id in str(error.value) and "\n" not in str(error.value)
        assert load(store, untrusted=True) == (CHUNKS, b"the body")
        keys.write(f"{keys.folder()}/a.pub", f"# alice\n{key.public}\n")
        assert load(store) == (CHUNKS, b"the body")
        assert keys.known()["a"] == key.public


def test_a_key_file_carries_the_key(home: Any, store: Store, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with home("a") as key:
        save(store, ["self"])
    path = tmp_path / "carried"
    path.write_text(keys.text_of(key))
    path.chmod(0o600)
    with home("b"):
        with pytest.raises(Untrusted):
            load(store)
        with pytest.raises(Sealed):
            load(store, untrusted=True)
        monkeypatch.setenv("TORPOR_KEY_FILE", str(path))
        assert load(store) == (CHUNKS, b"the body")
        for name, mode, what in ((str(path), 0o644, "chmod"), ("carried", 0o600, "begin with"), ("/no", 0, "no such")):
            monkeypatch.setenv("TORPOR_KEY_FILE", name)
            path.chmod(mode or 0o600)
            with pytest.raises(UsageError, match=what):
                keys.own()


def test_a_forged_signature_is_refused_whatever_is_trusted(home: Any, store: Store, tmp_path: Any) -> None:
    with home("a"):
        save(store)
    root = f"{store.location}/roots/j/1"
    with open(root, "rb") as file:
        whole = bytearray(file.read())
    from blake3 import blake3

    (length,) = (int.from_bytes(whole[16:24], "little"),)
    digest = 24 + length + 96
    for at in (24 + length + 40, whole.index(b"time") + 8, 24 + length + 3):
        forged = bytearray(whole)
        forged[at] ^= 4
        forged[digest : digest + 32] = blake3(bytes(forged[:digest])).digest()  # who can write can do that
        with open(root, "wb") as file:
            file.write(forged)
        with home("a"):
            for untrusted in (False, True):
                with pytest.raises(Damaged, match="altered"):
                    load(store, untrusted=untrusted)


def test_an_unsigned_checkpoint_of_format_1_is_refused(home: Any, store: Store) -> None:
    """As torpor wrote them before there were signatures; and as somebody could write who has no key."""
    with home("a"):
        save(store)
        _as_format_1(store)
        with pytest.raises(Untrusted, match="not signed"):
            load(store)
        assert load(store, untrusted=True) == (CHUNKS, b"the body")
    assert store.list()[0].signer == ""


def _as_format_1(store: Store) -> None:
    import msgspec
    from blake3 import blake3

    from torpor.store import envelope, root

    path = f"{store.location}/roots/j/1"
    with open(path, "rb") as file:
        whole = file.read()
    found = root.decode(whole, "it")
    end = root.decode_header(whole, "it")[1].size
    fields = msgspec.structs.asdict(found.header)
    for name in ("table_hash", "body_hash", "names", "recipients", "sealed_label"):
        del fields[name]
    old = envelope.wrap(root.MAGIC, 1, msgspec.msgpack.encode(fields)) + whole[end:]
    with open(path, "wb") as file:
        file.write(old + blake3(old).digest())


def test_a_store_with_another_key_of_names_is_noticed(home: Any, store: Store, tmp_path: Any) -> None:
    with home("a"):
        save(store)
        other = open_store(str(tmp_path / "other"))
        save(other)
        os.replace(f"{other.location}/store", f"{store.location}/store")
        with pytest.raises(Damaged, match="another key"):
            load(open_store(store.location))


def test_only_recipients_can_read(home: Any, store: Store) -> None:
    with home("b") as b:
        pass
    with home("c") as c:
        pass
    with home("a"):
        save(store, [str(b.public), str(c.public)])
        with pytest.raises(Sealed) as error:
            load(store)
        assert "2 keys" in str(error.value) and "\n" not in str(error.value)
    for name in "bc":
        with home(name):
            assert load(store, untrusted=True) == (CHUNKS, b"the body")
    (info,) = store.list()
    assert set(info.recipients) == {b.public.box.hex(), c.public.box.hex()} and not info.label
    for folder, _, names in os.walk(store.location):
        for name in names:
            with open(f"{folder}/{name}", "rb") as file:
                data = file.read()
            assert b"secret-name" not in data and b"text text" not in data and b"the body" not in data


def test_what_is_ours_to_read_shares_its_chunks_and_nothing_else_does(home: Any, store: Store) -> None:
    with home("b") as b:
        pass
    with home("a"):
        first = save(store, ["self"])
        assert save(store, ["self"]).bytes_new == 0
        for readers in ([str(b.public)], [str(b.public)], ["self", str(b.public)], []):
            assert save(store, readers).bytes_new > 0
        assert save(store, [str(b.public), "self", "self"]).bytes_new == 0
        assert first.bytes_new > 0
        names = [set(bytes(store.load("j", n, seal.Opening())._table.name(0))) for n in (1, 5, 6)]
        assert names[0] != names[1] != names[2] != names[0]
    with home("b"):
        for number in (3, 4, 5, 6, 7):
            assert load(store, number, untrusted=True) == (CHUNKS, b"the body")


def test_pieces_are_bound_to_their_purpose_and_never_sealed_alike() -> None:
    cipher = crypto.Cipher(bytes(32), [])
    one, two = cipher.seal(b"data", b"a"), cipher.seal(b"data", b"a")
    assert one[:24] != two[:24] and one[24:] != two[24:]
    assert cipher.open(one, b"a") == cipher.open(memoryview(two), b"a") == b"data"
    assert cipher.open(one, b"b") is None and cipher.open(one[:-1], b"a") is None and cipher.open(b"", b"a") is None
    assert crypto.Cipher(bytes(31) + b"x", []).open(one, b"a") is None


def test_recipients_are_named_in_every_way(home: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with home("a") as a:
        (tmp_path / "b.pub").write_text(f"{a.public}\n")
        for name in ("self", "default", str(a.public), str(a.public).split()[1], str(tmp_path / "b.pub")):
            assert seal.reader(name) == a.public
        for name in ("nobody", "/no/such", "torpor-key AAAA"):
            with pytest.raises(UsageError):
                seal.reader(name)
        monkeypatch.setenv("TORPOR_ENCRYPT_TO", "self,default")
        assert seal.default_readers() == [a.public, a.public]


def test_recipients_of_the_configuration(home: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with home("b") as b:
        pass
    with home("a") as a:
        config = f"{os.environ['XDG_CONFIG_HOME']}/torpor/config.toml"

        def write(text: str) -> None:
            with open(config, "w") as file:
                file.write(text)

        write("encrypt_to = ['self']\n")
        assert seal.default_readers() == [a.public]
        monkeypatch.setenv("TORPOR_ENCRYPT_TO", str(b.public))
        assert seal.default_readers() == [b.public]
        monkeypatch.setenv("TORPOR_ENCRYPT_TO", "")  # switches it off
        assert seal.default_readers() == []
        monkeypatch.delenv("TORPOR_ENCRYPT_TO")
        write("encrypt_to = ['self', 'nobody']\n")
        with pytest.raises(UsageError, match=f"^{config}: encrypt_to: 'nobody' is no key"):
            seal.default_readers()
        write("encrypt_to = 'self'\n")
        with pytest.raises(UsageError, match=f"^{config}: encrypt_to has to be a list of keys"):
            seal.default_readers()
        assert seal.sealing([str(b.public)])  # what is asked for goes first


def test_a_folder_that_others_can_write_to_is_not_believed(home: Any) -> None:
    with home("a"):
        os.chmod(keys.folder(), 0o777)
        with pytest.raises(UsageError, match="chmod"):
            keys.known()
