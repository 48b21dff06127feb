"""Signed and encrypted checkpoints of real jobs, and a reader that knows docs/format.md and nothing else."""

from __future__ import annotations

import glob
import os
import re
import stat
import zlib

import harness
import pytest
import reader


def start(bench: harness.Bench, *options: str) -> tuple[harness.Running, str]:
    job = bench.run([harness.build("digests.c"), bench.go], umask=0)
    job.ready()
    saved = bench.checkpoint(job, "--compress", "fast", *options)
    return job, f"{job.name}@{saved['number']}"


def key_of(bench: harness.Bench) -> str:
    return f"{bench.home}/.config/torpor/keys/default.key"


@pytest.mark.diagonal
@pytest.mark.parametrize("sealed", ["signed", "encrypted"])
def test_memory_is_read_by_the_document_alone(sealed: str, bench: harness.Bench) -> None:
    job, name = start(bench, *(["--encrypt-to", "self"] if sealed == "encrypted" else []))
    secret = reader.secret_key(key_of(bench))
    read = reader.Checkpoint(bench.store, job.name, int(name.partition("@")[2]), secret)
    assert read.seal == (3 if sealed == "encrypted" else 1)
    assert {0, 1} <= read.encodings
    (process,) = read.manifest["processes"]
    told = re.findall(r"^MEMORY (\w+) (\d+) (\d+) (\d+)$", job.output(), re.MULTILINE)
    assert len(told) == 6
    for kind, address, size, crc in told:
        assert zlib.crc32(read.memory(process, int(address), int(size))) == int(crc), kind
    job.verified()
    for folder, _, names in os.walk(bench.store):
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700, folder
        for file in names:
            assert stat.S_IMODE(os.stat(f"{folder}/{file}").st_mode) == 0o600, file
    assert stat.S_IMODE(os.stat(key_of(bench)).st_mode) == 0o600


@pytest.mark.diagonal
def test_an_encrypted_job_lives_on(bench: harness.Bench) -> None:
    bench.cycle([harness.build("digests.c"), bench.go], "run", save=("--encrypt-to", "self"))


@pytest.mark.diagonal
def test_who_is_trusted(bench: harness.Bench) -> None:
    """Saved by one, restarted by another."""
    _, name = start(bench, "--encrypt-to", "self")
    bench.kill()
    carried = bench.must("key", "export", "--secret").out
    public = bench.must("key", "export").out.strip()
    bench.env["XDG_CONFIG_HOME"] = f"{bench.home}/other"

    def refused(*words: str) -> str:
        said = bench.torpor("restart", name, "--store", bench.store, *words)
        assert said.status == 1 and len(said.err.splitlines()) == 1, said
        bench.gone("after a refusal")
        return said.err

    assert "whom you do not trust" in refused()
    assert "encrypted" in refused("--untrusted")
    assert "encrypted, not to you" in bench.must("list", "--store", bench.store).out
    bench.must("key", "trust", public, "--name", "somebody")
    assert "encrypted" in refused()
    assert bench.torpor("inspect", name, "--store", bench.store).status == 1
    path = f"{bench.home}/carried"
    with open(path, "w", opener=lambda p, flags: os.open(p, flags, 0o600)) as file:
        file.write(carried)
    os.chown(path, bench.account.uid, bench.account.gid)
    bench.env["TORPOR_KEY_FILE"] = path
    bench.restart(name).verified()


def flip(path: str, at: int) -> None:
    with open(path, "r+b", buffering=0) as file:
        byte = os.pread(file.fileno(), 1, at)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 16]), at)


@pytest.mark.parametrize("sealed", ["signed", "encrypted"])
def test_a_flipped_bit_stops_a_restart(sealed: str, user_bench: harness.Bench) -> None:
    """One of each kind of object; all bytes are tried in tests/unit/image/test_flips.py."""
    bench = user_bench
    job, name = start(bench, *(["--encrypt-to", "self"] if sealed == "encrypted" else []))
    bench.kill()
    root = f"{bench.store}/roots/{job.name}/1"
    (pack,) = glob.glob(f"{bench.store}/packs/*")
    size = os.stat(root).st_size
    for path, at in ((root, 40), (root, size // 2), (root, size - 10), (pack, 5000), (f"{bench.store}/store", 40)):
        flip(path, at)
        said = bench.torpor("restart", name, "--store", bench.store)
        assert said.status == 1 and len(said.err.splitlines()) == 1, said
        assert name in said.err or bench.store in said.err, said
        bench.gone("after a refusal")
        flip(path, at)
    bench.restart(name).verified()
