"""The system's OpenSSL says yes to what `cryptography` says yes to, and to nothing else."""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys

import pytest

from torpor.image import crypto, libcrypto


def there() -> bool:
    try:
        ctypes.CDLL("libcrypto.so.3")
    except OSError:
        return False
    return True


needs = pytest.mark.skipif(not there(), reason="this system has no libcrypto.so.3")

EXAMPLES = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe2"
        "4655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302ae"
        "eb00d291612bb0c00",
    ),
]
"""Key, message, signature: RFC 8032, 7.1, TEST 1 and 2."""


@needs
@pytest.mark.parametrize(("key", "message", "signature"), EXAMPLES)
def test_examples_of_the_standard(key: str, message: str, signature: str) -> None:
    assert libcrypto.verified(bytes.fromhex(key), bytes.fromhex(signature), bytes.fromhex(message))


@needs
def test_a_bit_more_or_less_is_no_signature() -> None:
    chance = random.Random(7)
    for size in (0, 1, 100, 5000):
        seed, message = os.urandom(32), os.urandom(size)
        key, signature = crypto.public_of(seed)[0], crypto.sign(seed, message)
        for kind in (bytes, bytearray, memoryview):
            assert libcrypto.verified(key, signature, kind(message))
        for _ in range(20):
            parts = [bytearray(key), bytearray(signature), bytearray(message)]
            part = chance.choice([each for each in parts if each])
            part[chance.randrange(len(part))] ^= 1 << chance.randrange(8)
            assert not libcrypto.verified(*map(bytes, parts))
        assert not libcrypto.verified(key, signature, message + b"\0")
        assert not libcrypto.verified(key[:-1], signature, message)
        assert not libcrypto.verified(key, signature[:-1], message)
        assert not libcrypto.verified(key, signature + b"\0", message)


def test_a_system_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", none)
    key, message, signature = map(bytes.fromhex, EXAMPLES[0])
    assert not libcrypto.verified(key, signature, message)
    monkeypatch.delitem(sys.modules, "cryptography.exceptions", raising=False)
    assert crypto.verify(key, signature, message)


@pytest.mark.parametrize("good", [True, False])
def test_without_the_package_as_long_as_the_answer_is_yes(good: bool) -> None:
    key, message, signature = EXAMPLES[0]
    program = f"""
import ctypes, sys
from torpor.image import crypto
message = bytes.fromhex({message!r}) + {b"" if good else b"x"!r}
print(crypto.verify(bytes.fromhex({key!r}), bytes.fromhex({signature!r}), message))
print("cryptography.exceptions" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(good), str(not (good and there()))]
