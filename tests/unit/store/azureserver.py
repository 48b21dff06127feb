"""An Azure Blob Storage server for the tests: Azurite, from the npm registry (npm install --global azurite). The tests
that want it are skipped where its command is not found."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from email.utils import formatdate

import pytest

ACCOUNT = "devstoreaccount1"
KEY = base64.b64encode(hashlib.sha512(b"torpor").digest()).decode()
CONTAINER = "torpor"
_VERSION = "2021-12-02"


@contextlib.contextmanager
def of_session(factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server for all tests of a session: the environment that a client needs."""
    pytest.importorskip("obstore")
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("needs Azurite (npm install --global azurite)")
    folder = str(factory.mktemp("azure"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        program, "--silent", "--location", folder, "--blobHost", "127.0.0.1", "--blobPort", str(port),
        "--disableTelemetry", "--skipApiVersionCheck",
    ]  # fmt: skip
    with open(f"{folder}/log", "wb") as log:
        process = subprocess.Popen(
            words,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"},
        )
    try:
        _await(process, port, f"{folder}/log")
        yield {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{port}/{ACCOUNT}",
        }
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _await(process: subprocess.Popen[bytes], port: int, log: str) -> None:
    """Until it has made the container."""
    end = time.monotonic() + 60
    while True:
        try:
            assert _make_container(port) == 201
            return
        except ConnectionRefusedError:
            if process.poll() is not None or time.monotonic() > end:
                with open(log, errors="replace") as file:
                    raise AssertionError(f"Azurite does not start:\n{file.read()[-3000:]}") from None
        time.sleep(0.1)


def _make_container(port: int) -> int:
    """The status of the answer. obstore makes no containers."""
    date = formatdate(usegmt=True)
    signed = "PUT" + 12 * "\n" + f"x-ms-date:{date}\nx-ms-version:{_VERSION}\n"
    signed += f"/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
    signature = base64.b64encode(hmac.digest(base64.b64decode(KEY), signed.encode(), "sha256")).decode()
    headers = {"x-ms-date": date, "x-ms-version": _VERSION, "Authorization": f"SharedKey {ACCOUNT}:{signature}"}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as link:
        link.request("PUT", f"/{ACCOUNT}/{CONTAINER}?restype=container", b"", headers)
        return link.getresponse().status
