"""What this machine can do at best, measured in the same run: the yardsticks beside torpor's figures."""

from __future__ import annotations

import os
import subprocess
import sys
import time

BUFFER = 256 << 20
FILE = 1 << 30


class Limits:
    """Measures a limit once whenever asked; buffers and files are made at the first use."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._from = b""
        self._to = bytearray()

    def memcpy(self, size: int) -> float:
        """Seconds to copy `size` bytes with one memcpy, from memory that is there to memory that is there."""
        if not self._from:
            self._from = os.urandom(BUFFER)
            self._to = bytearray(BUFFER)
            self._to[:] = self._from
        part = min(BUFFER, max(size, 1 << 20))
        source, target = memoryview(self._from)[:part], memoryview(self._to)[:part]
        began = time.perf_counter()
        target[:] = source
        return (time.perf_counter() - began) * size / part

    def dd(self, size: int) -> float:
        """Seconds that `dd conv=fsync` takes for `size` bytes of random data that are in the page cache."""
        part = min(FILE, max(size, 1 << 20))
        source, target = f"{self._folder}/random-{part}", f"{self._folder}/dd"
        if not os.path.exists(source):
            with open(source, "wb") as file:
                for at in range(0, part, 1 << 20):
                    file.write(os.urandom(min(1 << 20, part - at)))
                os.fsync(file.fileno())
        began = time.perf_counter()
        subprocess.run(
            ["dd", f"if={source}", f"of={target}", "bs=1M", "conv=fsync"], stderr=subprocess.DEVNULL, check=True
        )
        took = time.perf_counter() - began
        os.unlink(target)
        return took * size / part

    def python(self) -> float:
        """Seconds from the start of a Python that does nothing to its end."""
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        return time.perf_counter() - began
