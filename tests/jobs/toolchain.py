"""What tests of real programs need of the machine: commands, and things that are expensive to make and made once."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable

import harness
import pytest
from accounts import STAGE

SIMPLE_PATH = "/usr/local/bin:/usr/bin:/bin"


def needs(*commands: str, path: str = SIMPLE_PATH) -> None:
    """Skip the test where a command is missing."""
    for command in commands:
        if not shutil.which(command, path=path):
            pytest.skip(f"needs {command}")


def once(name: str, make: Callable[[str], None]) -> str:
    """Something expensive that is made once, also by tests that run side by side; its path."""
    os.makedirs(STAGE, mode=0o755, exist_ok=True)
    target = os.path.join(STAGE, name)
    with open(target + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(target):
            temporary = target + ".tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            make(temporary)
            os.rename(temporary, target)
    return target


def source_digest(name: str) -> str:
    """Tells versions of a program of tests/programs apart."""
    with open(os.path.join(harness.PROGRAMS, name), "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()[:12]


def go(source: str) -> str:
    """A Go program of tests/programs, compiled; its path."""
    needs("go")

    def make(target: str) -> None:
        env = {**os.environ, "GOCACHE": os.path.join(STAGE, "go-cache"), "GOFLAGS": "-mod=mod", "CGO_ENABLED": "0"}
        path = os.path.join(harness.PROGRAMS, source)
        subprocess.run(["go", "build", "-o", target, path], env=env, check=True, capture_output=True)
        os.chmod(target, 0o755)

    return once(f"{os.path.splitext(source)[0]}-go-{source_digest(source)}", make)


def java(source: str) -> list[str]:
    """The command that runs a Java program of tests/programs, compiled."""
    needs("java", "javac")
    name = os.path.splitext(source)[0]

    def make(target: str) -> None:
        os.makedirs(target, mode=0o755)
        subprocess.run(["javac", "-d", target, os.path.join(harness.PROGRAMS, source)], check=True, capture_output=True)

    return ["java", "-Xmx256m", "-cp", once(f"{name.lower()}-java-{source_digest(source)}", make), name]
