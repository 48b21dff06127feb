"""What of ssh's command line is understood, ignored and refused; whose door is meant; which variables travel."""

from __future__ import annotations

import pytest

from torpor.launch.door import find
from torpor.launch.ssh_words import Call, parse
from torpor.launch.travel import arrived
from torpor.model.errors import UsageError


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("h2 hostname", Call("h2", "hostname")),
        ("-x h2 proxy --port h1:5 --id 1", Call("h2", "proxy --port h1:5 --id 1")),
        ("-xqn me@h2 a;b", Call("h2", "a;b", no_input=True)),
        ("-oStrictHostKeyChecking=no -o BatchMode=yes -p22 -i key h2 -l me ls -l", Call("h2", "ls -l")),
        ("-f -- h2 ls", Call("h2", "ls", no_input=True, background=True)),
        ("-tt -4 -o User=me ssh://me@[fe80::1] ls", Call("fe80::1", "ls")),
    ],
)
def test_understood(words: str, call: Call) -> None:
    assert parse(words.split(" "), "me") == call


@pytest.mark.parametrize("words", ["", "h2", "-x", "you@h2 ls", "-l you h2 ls", "-o User=you h2 ls", "h2 -l you ls",
                                   "-N h2", "-L 1:h:2 h2 ls", "-p", "-% h2 ls"])  # fmt: skip
def test_refused(words: str) -> None:
    with pytest.raises(UsageError, match=r"^rsh: "):
        parse(words.split(), "me")


def test_which_host_is_meant() -> None:
    hosts = {"n1": ("10.0.0.1", 5), "n2.site": ("10.0.0.2", 5), "10.0.0.3": ("10.0.0.3", 5), "a.x": ("10.0.0.4", 5),
             "a.y": ("10.0.0.5", 5)}  # fmt: skip
    meant = {
        "n1": "n1", "N1": "n1", "n1.site": "n1", "n2": "n2.site", "10.0.0.2": "n2.site", "localhost": "n1", "a": "",
        "n3": "", "10.0.0.9": "", "10.0.0.3": "10.0.0.3",
    }  # fmt: skip
    assert {asked: find(asked, "n1", hosts) for asked in meant} == meant


def test_a_host_keeps_its_own_variables() -> None:
    theirs = {b"PATH": b"p", b"HOSTNAME": b"h1", b"PWD": b"/x", b"X": b"\xff", b"TORPOR_DOOR": b"1"}
    here = {b"HOSTNAME": b"h2", b"PATH": b"q", b"TORPOR_DOOR": b"2", b"Y": b"y"}
    assert arrived(theirs, here) == {b"PATH": b"p", b"HOSTNAME": b"h2", b"X": b"\xff", b"TORPOR_DOOR": b"2"}
