"""Policy files: what is understood, and what is said about what is not."""

from __future__ import annotations

import pytest

from torpor.model.errors import UsageError
from torpor.model.terms import Rule, SeatTerms
from torpor.policy import files, known, read

GOOD = """
[[service]]
address = ["10.1.2.0/24", "fd00::1"]
port = "27000-27009"
name = "licence*"
program = "/opt/vendor/*"
action = "seat"
seat = "sim"

[[service]]
port = [80, 443]
action = "reconnect"
to = "[fd00::2]:8443"
wait = "2m"
otherwise = "refuse"

[seats.sim]
provider = "pool"
pool = "sims"
wait = "10m"
grace = 60
on_loss = "warn"
at_start = false

[seats.other]
provider = "of-a-package"
whatever = 3
"""


def test_a_whole_file() -> None:
    layer = read.parse(GOOD, "p.toml")
    assert layer.rules == (
        Rule(
            action="seat", seat="sim", addresses=("10.1.2.0/24", "fd00::1"), ports=((27000, 27009),),
            names=("licence*",), programs=("/opt/vendor/*",),
        ),
        Rule(action="reconnect", ports=((80, 80), (443, 443)), to="[fd00::2]:8443", wait=120.0, otherwise="refuse"),
    )  # fmt: skip
    assert layer.seats == (
        SeatTerms(
            name="sim", provider="pool", options={"pool": "sims"}, wait=600.0, grace=60.0, on_loss="warn",
            at_start=False,
        ),
        SeatTerms(name="other", provider="of-a-package", options={"whatever": 3}),
    )  # fmt: skip


SERVICE = "[[service]]\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[service]\n", "line 1"),
        ("servce = 1", "'servce' is nothing that a policy has"),
        ("service = 1", "services are tables"),
        ("[seats]\nx = 1", "seats are tables"),
        (SERVICE, "line 1, service 1: what is to be done?"),
        (f"\n{SERVICE}action = 'reset'\n{SERVICE}action='drop'", "line 4, service 2: action = 'drop': one of reset"),
        (SERVICE + "action = 'reset'\nadress = '10.0.0.1'", "service 1: 'adress' is not known there (action, address"),
        (SERVICE + "action = 'reset'\naddress = 'lic1'", "'lic1' is not a numeric address"),
        (SERVICE + "action = 'reset'\naddress = '10.1.2.3/8'", "10.1.2.3/8 has bits behind its first 8"),
        (SERVICE + "action = 'reset'\naddress = '10.0.0.0/33'", "/33 is not a number of bits"),
        (SERVICE + "action = 'reset'\naddress = []", "an empty list matches nothing"),
        (SERVICE + "action = 'reset'\nport = 0", "ports are 1 to 65535"),
        (SERVICE + "action = 'reset'\nport = '9-8'", "ports are 1 to 65535"),
        (SERVICE + "action = 'reset'\nport = true", "port = True: a string"),
        (SERVICE + "action = 'reset'\nport = 'http'", "a port, or"),
        (SERVICE + "action = 'reset'\nseat = 'x'", "go together"),
        (SERVICE + "action = 'seat'", "go together"),
        (SERVICE + "action = 'reset'\nwait = '1m'", "wait is for action"),
        (SERVICE + "action = 'reconnect'\nwait = 'soon'", "a length of time"),
        (SERVICE + "action = 'reconnect'\nto = 'db:80'", "'db' is not a numeric address"),
        (SERVICE + "action = 'reconnect'\notherwise = 'seat'", "one of reset, refuse"),
        ("[seats.x]\n", "seats.x: who gives it?"),
        ("[seats.x]\nprovider = 'pool'", "needs pool"),
        ("[seats.x]\nprovider = 'pool'\npool = 'a/b'", "the name of a pool"),
        ("[seats.x]\nprovider = 'pool'\npool = 'a'\nurl = 'b'", "'url' is not known there"),
        ("[seats.x]\nprovider = 'command'\ncommand = 'lmcheckout'", "the program and its arguments"),
        ("[seats.x]\nprovider = 'http'\nurl = 'ftp://x'", "http:// or https://"),
        ("[seats.x]\nprovider = 'pool'\npool = 'a'\non_loss = 'kill'", "one of pause, warn"),
        ("[seats.x]\nprovider = 'pool'\npool = 'a'\nat_start = 1", "true or false"),
        ('[[service]]\naction = "reconnect"\nwait = inf', "a length of time"),
        ("x = " + "[" * 100_000, "too many brackets"),
        ("[seats.'a b']\nprovider = 'pool'\npool = 'a'", "cannot be named 'a b'"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        read.parse(text, "p.toml")
    assert str(caught.value).startswith("p.toml: ") and says in str(caught.value), str(caught.value)


def test_a_file_that_never_ends() -> None:
    with pytest.raises(UsageError, match="/dev/zero is no policy"):
        files.given("/dev/zero")


def test_what_is_known_of_licences() -> None:
    table = known.known()
    assert table.licence("tcp", 27000) and table.licence("tcp", 27009) and not table.licence("tcp", 27010)
    assert table.licence("udp", 5093) and not table.licence("udp", 27000)
    assert table.ordinary("udp", 53) and not table.ordinary("tcp", 80)
    # Open MPI looks at its start whether there is a display, and getaddrinfo asks by a UDP socket which way that is.
    assert table.ordinary("tcp", 6000) and table.ordinary("udp", 6000)
    assert table.variable("LM_LICENSE_FILE") and table.variable("MGLS_LICENSE_FILE")
    assert not table.variable("LM_LICENSE_FILES") and not table.variable("HOME")
    environment = b"A=b\0LM_LICENSE_FILE=27000@lic\0X_LICENSE_FILE=\0RLM_LICENSE=1@x\0"
    assert table.told(environment) == [("LM_LICENSE_FILE", "27000@lic"), ("RLM_LICENSE", "1@x")]


def test_where_a_variable_says_licences_come_from() -> None:
    assert known.servers("27000@a,@b:/opt/x.lic:27001@c") == [("a", 27000), ("b", 0), ("/opt/x.lic", 0), ("c", 27001)]
    assert known.servers("") == []
