"""What is parsed without argparse means what it means with it."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from torpor.cli import parser, quick, restart

PLAIN = [
    [],
    ["job"],
    ["job@3", "--clone"],
    ["--clone", "--count", "5", "job", "--store=/a b/c"],
    ["--name=", "x"],
    ["--map-path", "/a=/b", "--map-path=/c=/d"],
    ["--on", "pre-restart", "echo 1", "--on", "post-restart", ""],
    ["--track", "--no-with-files", "--pid-budget", "2.5"],
    ["--no-track", "--track"],
    ["--changed-files", "accept", "--every", "0", "job"],
    ["--keep", " 7 "],
]
UNCLEAR = [
    ["--help"],
    ["-h"],
    ["--"],
    ["a", "b"],
    ["--clon"],
    ["--nothing"],
    ["--name"],
    ["--name", "--clone"],
    ["--name", "-x"],
    ["--clone=1"],
    ["--no-clone"],
    ["--on", "pre-restart"],
    ["--on=pre-restart", "x"],
    ["--count", "many"],
    ["--changed-files", "perhaps"],
    ["-5"],
]


@pytest.mark.parametrize("words", PLAIN, ids=" ".join)
def test_what_is_plain_is_understood_as_by_argparse(words: list[str]) -> None:
    found = quick.parse(restart, words)
    assert found is not None
    assert vars(found) == vars(parser.parse("restart", restart, words))


@pytest.mark.parametrize("words", UNCLEAR, ids=" ".join)
def test_what_is_not_plain_is_left_to_argparse(words: list[str]) -> None:
    assert quick.parse(restart, words) is None


def test_whatever_it_understands_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    dice = random.Random(7)
    pool = sorted({word for words in (*PLAIN, *UNCLEAR) for word in words} - {"--help", "-h"})
    understood = 0
    for _ in range(300):
        words = [dice.choice(pool) for _ in range(dice.randrange(1, 5))]
        found = quick.parse(restart, words)
        if found is not None:
            understood += 1
            assert vars(found) == vars(parser.parse("restart", restart, words)), words
    assert understood > 20


def test_argparse_is_not_loaded_for_a_restart() -> None:
    program = (
        "import sys; from torpor.cli.main import main; main(['restart', 'nothing', '--store', '/nowhere/at/all']);"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "torpor.launch.restart" in loaded and not {"argparse", "gettext", "locale"} & set(loaded)
