"""How a command speaks to a supervisor: frames of JSON over a UNIX stream socket.

A frame is its length (4 bytes, big-endian) and a JSON object. The supervisor speaks first:

    {"torpor": 1, "name": "train", "pid": 4711}

then the command sends one request, `{"torpor": 1, "do": "checkpoint", ...}`, and gets any number of
`{"event": "progress", ...}` and at the end either `{"result": {...}}` or `{"error": {...}}`. Closing the
connection withdraws a question, but not a checkpoint that is under way.
"""

from __future__ import annotations

import json
import os
import struct
from typing import TYPE_CHECKING, Any, TypeAlias

from torpor.model import errors

if TYPE_CHECKING:
    import socket

VERSION = 1
FRAME_LIMIT = 64 << 20
REQUEST_LIMIT = 1 << 20
_LENGTH = struct.Struct(">I")

Message: TypeAlias = dict[str, Any]


def encode(message: Message) -> bytes:
    """One frame."""
    data = json.dumps(message).encode()
    return _LENGTH.pack(len(data)) + data


class Decoder:
    """Makes messages of bytes, however they are cut."""

    def __init__(self, limit: int = FRAME_LIMIT) -> None:
        self._data = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> list[Message]:
        """The messages complete with these bytes. Raises ValueError for what is not our protocol."""
        self._data += data
        out: list[Message] = []
        while len(self._data) >= 4:
            (length,) = _LENGTH.unpack_from(self._data)
            if length > self._limit:
                raise ValueError(f"frame of {length} bytes")
            if len(self._data) < 4 + length:
                break
            message = json.loads(bytes(self._data[4 : 4 + length]))
            if not isinstance(message, dict):
                raise ValueError("not an object")
            out.append(message)
            del self._data[: 4 + length]
        return out


def error_message(error: BaseException) -> Message:
    """An error as the other side is to raise it."""
    plain: Message = {"text": str(error), "kind": type(error).__name__, "status": getattr(error, "status", 1)}
    if isinstance(error, errors.Refused):
        plain["refusals"] = [list(refusal) for refusal in error.refusals]
    elif not isinstance(error, errors.TorporError):
        text = str(error) or type(error).__name__
        plain["text"] = text if isinstance(error, OSError) else f"{type(error).__name__}: {text}{_place(error)}"
    return {"error": plain}


def _place(error: BaseException) -> str:
    """Where a defect of torpor's own showed: whoever reports it has nothing else to tell."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return ""
    module = last.tb_frame.f_globals.get("__name__", "?")
    return f" (in {module}, line {last.tb_lineno}: a defect of torpor's, please report it)"


def raised(plain: Message) -> errors.TorporError:
    """The error to raise for what `error_message` made."""
    text = str(plain.get("text", "it failed"))
    if plain.get("refusals"):
        refusals = [errors.Refusal(*fields) for fields in plain["refusals"]]
        return errors.Refused(refusals, text.partition(": ")[0])
    kind = getattr(errors, str(plain.get("kind")), None)
    if not (isinstance(kind, type) and issubclass(kind, errors.TorporError)) or issubclass(kind, errors.Refused):
        kind = errors.TorporError
    error: errors.TorporError = kind(text)
    error.status = int(plain.get("status", 1))
    return error


class Address:
    """The path of a socket in a folder, also where it is too long for sun_path (108 bytes): then through
    /proc."""

    def __init__(self, folder: str) -> None:
        self.path = f"{folder}/socket"
        self._fd = -1
        if len(os.fsencode(self.path)) > 100:
            self._fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self.path = f"/proc/self/fd/{self._fd}/socket"

    def __enter__(self) -> str:
        return self.path

    def __exit__(self, *exc: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def peer_uid(connection: socket.socket) -> int:
    """The user at the other end, as the kernel knows it (SO_PEERCRED)."""
    import socket

    _, uid, _ = struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)
