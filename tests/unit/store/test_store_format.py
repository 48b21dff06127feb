"""A reader written from docs/format.md alone: nothing of torpor is imported by it."""

from __future__ import annotations

import os
import struct
import sys
from typing import Any

import msgspec
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

zstd = pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")


def envelope(data: bytes, magic: bytes, expected: tuple[int, int] = (1, 0)) -> tuple[Any, int]:
    found, version, seal, zero, length = struct.unpack_from("<8sHHIQ", data)
    assert (found, version, seal, zero) == (magic, *expected, 0)
    end = 24 + length
    if seal & 1:
        signer = Ed25519PublicKey.from_public_bytes(data[end : end + 32])
        signer.verify(data[end + 32 : end + 96], b"torpor signature\0" + data[:end])
        end += 96
    assert blake3(data[:end]).digest() == data[end : end + 32]
    return data[24 : 24 + length], end + 32


def table(data: bytes) -> list[tuple[bytes, str, int, int, int, int]]:
    packs, count = struct.unpack_from("<II", data)
    at = 8
    ids = [data[at + 16 * i : at + 16 * i + 16].hex() for i in range(packs)]
    at += 16 * packs
    names = [data[at + 32 * i : at + 32 * i + 32] for i in range(count)]
    at += 32 * count
    columns = []
    for _ in range(4):
        columns.append(struct.unpack_from(f"<{count}I", data, at))
        at += 4 * count
    encodings = data[at : at + count]
    assert at + count == len(data)
    where = ["" if pack == 0xFFFFFFFF else ids[pack] for pack in columns[0]]
    return list(zip(names, where, *columns[1:], encodings))


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def checkpoint(place: str, job: str, number: int) -> tuple[dict[str, Any], list[bytes], bytes]:
    key = msgspec.msgpack.decode(envelope(read(f"{place}/store"), b"torporC\0")[0])["key"]
    data = read(f"{place}/roots/{job}/{number}")
    payload, at = envelope(data, b"torporR\0", (2, 1))
    header = msgspec.msgpack.decode(payload)
    assert (header["job"], header["number"]) == (job, number)
    body_at = at + header["table"]
    assert body_at + header["body"] == len(data)
    assert blake3(data[at:body_at]).digest() == header["table_hash"]
    assert blake3(data[body_at:]).digest() == header["body_hash"]
    assert blake3(key).digest() == header["names"]
    chunks = []
    for name, pack, offset, stored, length, encoding in table(data[at : at + header["table"]]):
        if encoding == 2:
            chunk = bytes(length)
        else:
            chunk = read(f"{place}/packs/{pack}")[offset : offset + stored]
            if encoding == 1:
                chunk = zstd.decompress(chunk)
        assert len(chunk) == length and blake3(chunk, key=key).digest() == name
        chunks.append(chunk)
    return header, chunks, data[body_at:]


CHUNKS = [os.urandom(4096), b"text" * 3000, bytes(777), b"x", os.urandom(70_000), os.urandom(8192)]


def test_a_checkpoint_is_what_the_document_says(store: Any, save: Any) -> None:
    save(store, "j", CHUNKS[:3], b"")
    save(store, "j", CHUNKS, b"the body", note="n", size=2)
    header, chunks, body = checkpoint(store.location, "j", 2)
    assert chunks == CHUNKS and body == b"the body"
    assert header["label"] == {"note": "n", "size": 2}
    assert header["bytes_total"] == sum(map(len, CHUNKS))


def test_packs_and_index_are_what_the_document_says(store: Any, save: Any) -> None:
    save(store, "j", CHUNKS)
    place = store.location
    listed = []
    for pack in os.listdir(f"{place}/packs"):
        data = read(f"{place}/packs/{pack}")
        assert data[:16] == b"torporP\0" + struct.pack("<H6x", 1)
        start, magic = struct.unpack("<Q8s", data[-16:])
        payload, size = envelope(data[start:], b"torporT\0")
        assert magic == b"torporP\0" and start + size + 16 == len(data)
        rows = table(payload)
        for _, where, offset, stored, _, _ in rows:
            assert where == pack and offset % (8 if stored % 4096 else 4096) == 0
        listed += rows
    (segment,) = os.listdir(f"{place}/index")
    payload, _ = envelope(read(f"{place}/index/{segment}"), b"torporI\0")
    (bits,) = struct.unpack_from("<I", payload)
    sizes = struct.unpack_from(f"<{2**bits + 1}I", payload, 4)
    rows = table(payload[4 + 4 * len(sizes) :])
    assert rows == sorted(listed)
    assert sizes == tuple(
        sum(int.from_bytes(row[0][:4], "big") >> (32 - bits) < b for row in rows) for b in range(2**bits + 1)
    )
