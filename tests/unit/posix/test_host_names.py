"""The file in which names of hosts are looked up: pure."""

from __future__ import annotations

import os

from torpor.posix import host_names

TEXT = """127.0.0.1 localhost
127.0.1.1\th3.site h3   # this one
10.0.0.1 h1.site H1 gate
::1 localhost ip6-localhost

# 10.0.0.9 old
10.0.0.2 h2
"""


def test_names_of_a_host() -> None:
    assert host_names.names_of(TEXT, "10.0.0.1", "h1", "10.0.0.1", "fd00::1") == ("h1", "h1.site", "H1", "gate")
    assert host_names.names_of(TEXT, "127.0.0.1", "h7") == ("h7",)


def test_other_addresses_for_some_names() -> None:
    lines = host_names.with_names(TEXT, {"h1": "10.9.0.1", "h1.site": "10.9.0.1", "h2": "10.9.0.2"}).splitlines()
    assert lines[1:3] == ["10.9.0.1 h1 h1.site", "10.9.0.2 h2"]
    assert lines[3:] == ["127.0.0.1 localhost", "127.0.1.1\th3.site h3   # this one", "10.0.0.1 gate",
                         "::1 localhost ip6-localhost", "", "# 10.0.0.9 old"]  # fmt: skip


def test_it_is_for_everybody_to_read(tmp_path: str) -> None:
    path = f"{tmp_path}/hosts"
    before = os.umask(0o077)
    try:
        host_names.write(path, {"h1": "10.0.0.1"})
    finally:
        os.umask(before)
    assert os.stat(path).st_mode & 0o777 == 0o644
    with open(path) as file:
        assert "10.0.0.1 h1\n" in file.read()
