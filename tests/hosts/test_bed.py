"""The hosts that the tests of this folder use are apart from each other and from this machine."""

from __future__ import annotations

import os

import pytest
from bed import NEEDED, bed

pytestmark = NEEDED


def test_hosts_are_apart() -> None:
    with bed(["h1", "h2"]) as made:
        one, two = made.hosts.values()
        assert one.run(["hostname"]) == "h1\n"
        assert one.run(["ssh", "h2", "hostname; cat /proc/sys/kernel/hostname; pwd"]) == "h2\nh2\n/run/home\n"
        for folder in ("/tmp", "/dev/shm", "/run", "/scratch"):
            one.run(["touch", f"{folder}/mine"])
            assert "mine" not in two.run(["ls", folder])
        assert int(one.run(["sh", "-c", "ls -d /proc/[0-9]* | wc -l"])) < 10
        assert "10.77.0.1" in one.network("addr") and "10.77.0.2" not in one.network("addr")
        made.cut("h2")
        with pytest.raises(AssertionError):
            one.run(["ssh", "-o", "ConnectTimeout=2", "h2", "true"])
        made.cut("h2", on=False)
        one.run(["ssh", "-o", "ConnectTimeout=20", "h2", "true"])
        folder = made.folder
    assert not os.path.exists(folder)
