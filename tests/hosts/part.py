"""One host's part of a checkpoint or a restart, in a process of its own, steered by a test: JSON lines to and fro.

    part.py save PID STORE JOB PART NUMBER [stop]
    part.py restart STORE JOB NUMBER PART OUTPUT

It says what it is through with, {"did": "freeze", "part": "<hexadecimal>"}, and goes on when it is told the part of the
next phase, as hexadecimal.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence

import msgspec

from torpor.checkpoint.reunion import ORIGINAL, SPARE6
from torpor.checkpoint.together import GivenUp, Place, Reached
from torpor.coordinate import conversations
from torpor.image.whole import Face, PartRecord
from torpor.model.errors import TorporError
from torpor.posix.far import End, Told


def turn(did: str, part: bytes = b"", **more: object) -> bytes:
    print(json.dumps({"did": did, "part": part.hex(), **more}), flush=True)
    line = sys.stdin.readline().strip()
    if line == "undo" or not line:
        raise GivenUp("the test has given up")
    return bytes.fromhex(line) if line != "-" else b""


class Saved:
    address = "127.0.0.1"
    face = Face()
    others = ()

    def __init__(self, part: str, number: int, stop: bool) -> None:
        self.part, self.number, self.stop = part, number, stop

    def surveyed(self) -> None:
        turn("survey")

    def check(self) -> None:
        pass

    def code(self, words: bytes) -> bytes:
        return hashlib.blake2b(words, key=b"the test's", digest_size=32).digest()

    def frozen(self, ends: Sequence[End], addresses: Sequence[bytes], door: int) -> Sequence[Told]:
        part = turn("freeze", conversations.ends(ends, addresses, door), ends=len(ends))
        return conversations.told(ends, part) if part else []

    def settled(self) -> None:
        turn("settle")

    def captured(self) -> None:
        turn("capture")

    def resumed(self) -> None:
        turn("resume")

    def decided(self) -> str:
        return ""

    def stored(self, record: PartRecord) -> None:
        turn("store", msgspec.msgpack.encode(record))


class Restarted:
    def __init__(self, address: str) -> None:
        self.address = address

    def code(self, words: bytes) -> bytes:
        return hashlib.blake2b(words, key=b"the test's", digest_size=32).digest()

    def recreated(
        self, ports: tuple[int, int], waits: Sequence[tuple[bytes, int]], calls: Sequence[bytes],
        shift: Mapping[int, int],
    ) -> Reached:  # fmt: skip
        part = turn("recreate", conversations.places(f"{self.address} {ports[0]} {ports[1]}", waits, calls))
        if not part:
            return Reached({})
        out = {}
        for met in conversations.met(part):
            host, at, at6 = met.address.rsplit(" ", 2)
            there = host, int(at6 if met.where == SPARE6 else at)
            out[met.name] = Place(met.host, None if met.where == ORIGINAL else there)
        return Reached(out)

    def connected(self) -> None:
        turn("connect")

    def filled(self) -> None:
        turn("fill")


def save(pid: str, store: str, job: str, part: str, number: str, stop: str = "") -> None:
    from torpor.checkpoint import tree
    from torpor.checkpoint.save import SaveRequest
    from torpor.checkpoint.save import save as run
    from torpor.image import seal
    from torpor.posix.service import Stream
    from torpor.store import open_store

    run(
        SaveRequest(
            name=job, tree=tree.of_pid(int(pid)), store=open_store(store), sealer=seal.sealing(None),
            together=Saved(part, int(number), bool(stop)), stop=bool(stop),
            streams=[Stream(n, -1) for n in (0, 1, 2)],
        )
    )  # fmt: skip
    print(json.dumps({"did": "all"}), flush=True)


def restart(store: str, job: str, number: str, part: str, output: str, address: str = "127.0.0.1") -> None:
    from torpor.checkpoint.restart import RestartRequest
    from torpor.checkpoint.restart import restart as run
    from torpor.image.seal import Opening
    from torpor.store import open_store
    from torpor.supervise.parent import become_subreaper

    opened = open_store(store, apart=True)
    whole = opened.resolve(f"{job}@{number}")
    mine = next(each for each in whole.parts if each.name == part)
    out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    become_subreaper()
    done = run(
        RestartRequest(
            load=opened.load(job, int(number), Opening(False), mine), together=Restarted(address),
            standard=(os.open("/dev/null", os.O_RDONLY), out, out),
        )
    )  # fmt: skip
    print(json.dumps({"did": "all", "pid": done.root, "notes": done.notes}), flush=True)
    sys.stdin.read()


try:
    {"save": save, "restart": restart}[sys.argv[1]](*sys.argv[2:])
except TorporError as error:
    print(json.dumps({"did": "failed", "why": str(error)}), flush=True)
    sys.exit(1)
