"""Reads a checkpoint by docs/format.md alone: no code of torpor's."""

from __future__ import annotations

import struct
import sys
from typing import Any

import msgspec
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PAGE = 4096


def derive(context: str, material: bytes) -> bytes:
    return blake3(material, derive_key_context=context).digest()


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def envelope(data: bytes, magic: bytes, version: int) -> tuple[bytes, int, bytes, int]:
    """Payload, seal, signer, length."""
    found, number, seal, zero, length = struct.unpack_from("<8sHHIQ", data)
    assert (found, number, zero) == (magic, version, 0)
    end = 24 + length
    signer = b""
    if seal & 1:
        signer = data[end : end + 32]
        signed = b"torpor signature\0" + data[:end]
        Ed25519PublicKey.from_public_bytes(signer).verify(data[end + 32 : end + 96], signed)
        end += 96
    assert data[end : end + 32] == blake3(data[:end]).digest()
    return data[24 : 24 + length], seal, signer, end + 32


class Checkpoint:
    """A checkpoint of a store in a folder; secret: the reader's secret key, if it is encrypted."""

    def __init__(self, place: str, job: str, number: int, secret: bytes = b"") -> None:
        self.place = place
        names = msgspec.msgpack.decode(envelope(read(f"{place}/store"), b"torporC\0", 1)[0])["key"]
        data = read(f"{place}/roots/{job}/{number}")
        payload, self.seal, self.signer, at = envelope(data, b"torporR\0", 2)
        self.header = header = msgspec.msgpack.decode(payload)
        assert (header["job"], header["number"]) == (job, number)
        table, body = data[at : at + header["table"]], data[at + header["table"] :]
        assert len(body) == header["body"]
        assert blake3(table).digest() == header["table_hash"] and blake3(body).digest() == header["body_hash"]
        self._pieces = b""
        if self.seal & 2:
            data_key = self._data_key(secret)
            names = derive("torpor 2026 data key: names of chunks", data_key)
            self._pieces = derive("torpor 2026 data key: pieces", data_key)
            body = self._open(body, b"body")
        else:
            assert blake3(names).digest() == header["names"]
        self._names = names
        self._rows = self._table(table)
        self.encodings = {row[-1] for row in self._rows}
        self.manifest = msgspec.msgpack.decode(envelope(body, b"torporM\0", 1)[0])

    def _data_key(self, secret: bytes) -> bytes:
        private = X25519PrivateKey.from_private_bytes(derive("torpor 2026 key: opening", secret))
        mine = private.public_key().public_bytes_raw()
        recipient, ephemeral, wrapped = next(one for one in self.header["recipients"] if one[0] == mine)
        shared = private.exchange(X25519PublicKey.from_public_bytes(ephemeral))
        key = derive("torpor 2026 data key: wrapped", shared + ephemeral + recipient)
        return AESGCM(key).decrypt(bytes(12), wrapped, None)

    def _open(self, piece: bytes, purpose: bytes) -> bytes:
        key = blake3(piece[:12], key=self._pieces).digest()
        return AESGCM(key).decrypt(piece[12:24], piece[24:], purpose)

    @staticmethod
    def _table(data: bytes) -> list[tuple[bytes, str, int, int, int, int]]:
        packs, count = struct.unpack_from("<II", data)
        at = 8 + 16 * packs
        ids = [data[8 + 16 * i : 24 + 16 * i].hex() for i in range(packs)]
        names = [data[at + 32 * i : at + 32 * i + 32] for i in range(count)]
        at += 32 * count
        columns = [struct.unpack_from(f"<{count}I", data, at + 4 * count * i) for i in range(4)]
        encodings = data[at + 16 * count :]
        assert len(encodings) == count
        where = ["" if pack == 0xFFFFFFFF else ids[pack] for pack in columns[0]]
        return list(zip(names, where, *columns[1:], encodings))

    def chunk(self, row: int) -> bytes:
        name, pack, offset, stored, length, encoding = self._rows[row]
        if encoding == 2:
            data = bytes(length)
        else:
            with open(f"{self.place}/packs/{pack}", "rb") as file:
                file.seek(offset)
                data = file.read(stored)
            if self._pieces:
                data = self._open(data, b"chunk" + name)
            if encoding == 1:
                data = zstd.decompress(data)
        assert len(data) == length, (encoding, length)
        assert blake3(data, key=self._names).digest() == name
        return data

    def memory(self, process: dict[str, Any], start: int, size: int) -> bytes:
        """What a process had in its memory."""
        out = bytearray(size)

        def place(address: int, data: bytes) -> None:
            first, last = max(address, start), min(address + len(data), start + size)
            if first < last:
                out[first - start : last - start] = data[first - address : last - address]

        for area in process["areas"]:
            if area["kind"] == "object" and area.get("descriptor", -1) < 0:
                shift = area["start"] - area.get("offset", 0)
                for offset, length, ref in self.manifest["memory"][area["what"]]["chunks"]:
                    if area["start"] <= shift + offset < area["end"]:
                        place(shift + offset, self.chunk(ref)[:length])
        pages = process["pages"]
        count = len(pages["windows"]) // 4
        windows = struct.unpack(f"<{count}I", pages["windows"])
        bitmaps = struct.unpack(f"<{count}Q", pages["bitmaps"])
        for window, bitmap, ref in zip(windows, bitmaps, struct.unpack(f"<{count}I", pages["refs"])):
            address = window * 64 * PAGE
            if address >= start + size or address + 64 * PAGE <= start:
                continue
            data = self.chunk(ref)
            at = 0
            for bit in range(64):
                if bitmap >> bit & 1:
                    place(address + bit * PAGE, data[at : at + PAGE])
                    at += PAGE
            assert at == len(data)
        return bytes(out)


def secret_key(path: str) -> bytes:
    """The secret key in a key file."""
    import base64

    with open(path) as file:
        words = dict(line.split() for line in file if line.strip() and not line.startswith("#"))
    return base64.b64decode(words["torpor-secret-key"])
