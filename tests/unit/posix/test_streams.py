"""Inherited streams, and what is refused by name."""

from __future__ import annotations

import os
import pty
import socket
import stat
from pathlib import Path

import pytest
from descriptor_bench import FakeJob, FakeRestart, look

from torpor.posix import inherited, refusal
from torpor.posix.descriptor_services import role, service_for, service_named
from torpor.posix.service import Descriptor, Stream


def names(job: FakeJob) -> list[str]:
    return [service_for(seen, job).name for seen in job.descriptors]


def test_terminal_duplicated_and_opened_again() -> None:
    master, slave = pty.openpty()
    again = os.open(os.ttyname(slave), os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    copy = os.dup(slave)
    streams = [Stream(0, slave), Stream(1, slave), Stream(2, slave)]
    job = FakeJob([slave, copy, again], streams=streams)
    assert names(job) == ["stream"] * 3
    assert role(look(copy), job) == 1, "a copy put aside counts as output"
    saved = job.save()
    new_master, new_slave = pty.openpty()
    made = FakeRestart(job.sink, standard=[new_slave] * 3).make(saved)
    assert [os.ttyname(fd) for fd in made] == [os.ttyname(new_slave)] * len(made)
    assert not os.get_blocking(made[-1])
    assert os.get_blocking(new_slave), "the one opened again has flags of its own"
    os.write(made[0], b"out\n")
    assert os.read(new_master, 10).startswith(b"out")
    os.close(master)


def test_streams_that_share_a_description_have_roles_of_their_own() -> None:
    _, slave = pty.openpty()
    streams = [Stream(n, slave) for n in range(3)]
    job = FakeJob([slave], streams=streams)

    def at(number: int) -> Descriptor:
        import msgspec

        return msgspec.structs.replace(look(slave), number=number)

    # kcmp needs the real number; the choice among equals is what counts here.
    assert inherited.role(look(slave), job) == 1
    old = [os.dup(n) for n in range(3)]
    try:
        for n in range(3):
            os.dup2(slave, n)
        assert [inherited.role(at(n), job) for n in range(3)] == [0, 1, 2]
    finally:
        for n in range(3):
            os.dup2(old[n], n)


def test_pipe_from_outside() -> None:
    r, w = os.pipe()
    again = os.open(f"/proc/self/fd/{w}", os.O_WRONLY)
    job = FakeJob([w, again], streams=[Stream(1, w)])
    assert names(job) == ["stream", "stream"]
    saved = job.save()
    nr, nw = os.pipe()
    made = FakeRestart(job.sink, standard=[0, nw, 2]).make(saved)
    os.write(made[0], b"a")
    os.write(made[1], b"b")
    assert os.read(nr, 10) == b"ab"
    os.close(r)


def test_what_is_left_in_an_abandoned_pipe() -> None:
    r, w = os.pipe()
    os.write(w, b"rest of the input")
    os.close(w)
    job = FakeJob([r], streams=[Stream(0, r)])
    assert names(job) == ["stream"]
    (new,) = FakeRestart(job.sink, standard=[os.open("/dev/null", 0)] * 3).make(job.save())
    assert os.read(new, 100) == b"rest of the input"
    assert os.read(new, 100) == b""


def test_socket_from_outside() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    fd = theirs.fileno()
    job = FakeJob([fd], streams=[Stream(0, fd)])
    assert names(job) == ["stream"]
    other, _keep = socket.socketpair()
    restart = FakeRestart(job.sink, standard=[other.fileno()] * 3)
    (new,) = restart.make(job.save())
    assert not os.get_blocking(new), "O_NONBLOCK is set again"
    restart.undo()
    assert os.get_blocking(new)
    ours.close()


def test_attached_by_pid() -> None:
    r, w = os.pipe()
    saved = os.dup(0)
    try:
        os.dup2(r, 0)
        job = FakeJob([0], streams=[Stream(n, -1) for n in range(3)])
        assert names(job) == ["stream"]
        job = FakeJob([0, w], streams=[Stream(n, -1) for n in range(3)])
        assert names(job) == ["pipe", "pipe"], "both ends are in the job"
    finally:
        os.dup2(saved, 0)


def test_file_given_again_is_cut_back(tmp_path: Path) -> None:
    path = tmp_path / "out"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, b"saved")
    job = FakeJob([fd], streams=[Stream(1, fd)])
    assert names(job) == ["stream"]
    saved = job.save()
    os.write(fd, b" more")
    given = os.open(path, os.O_WRONLY)
    restart = FakeRestart(job.sink, standard=[0, given, 2])
    (new,) = restart.make(saved)
    os.write(new, b"!")
    assert path.read_bytes() == b"saved!"
    assert (tmp_path / "out.after-train@3").read_bytes() == b" more"


def test_file_given_again_for_reading(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"0123456789")
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 4)
    job = FakeJob([fd], streams=[Stream(0, fd)])
    saved = job.save()
    given = os.open(path, os.O_RDONLY)
    (new,) = FakeRestart(job.sink, standard=[given, 1, 2]).make(saved)
    assert os.read(new, 100) == b"456789"
    (new,) = FakeRestart(job.sink, standard=[os.open("/dev/null", 0), 1, 2]).make(saved)
    assert os.read(new, 100) == b""


def test_file_emptied_by_the_shell(tmp_path: Path) -> None:
    path = tmp_path / "out"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(fd, b"saved")
    job = FakeJob([fd], streams=[Stream(1, fd)])
    saved = job.save()
    given = os.open(path, os.O_WRONLY | os.O_TRUNC)
    restart = FakeRestart(job.sink, standard=[0, given, 2])
    (new,) = restart.make(saved)
    os.write(new, b"on")
    assert path.read_bytes() == b"on"
    assert "shorter" in restart.said[0]


@pytest.mark.parametrize("flags", [0, os.O_DIRECT | os.O_NONBLOCK], ids=["plain", "in packets"])
def test_stream_at_a_higher_number(flags: int) -> None:
    r, w = os.pipe2(flags)
    job = FakeJob([w], streams=[Stream(7, w)])
    assert names(job) == ["stream"]
    restart = FakeRestart(job.sink)
    (new,) = restart.make(job.save())
    assert os.readlink(f"/proc/self/fd/{new}") == "/dev/null"
    assert os.get_blocking(new) == (not flags)
    assert "descriptor 7 (pipe)" in restart.said[0]
    os.close(r)


def test_file_inherited_at_a_higher_number_is_a_file(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT, 0o600)
    assert names(FakeJob([fd], streams=[Stream(7, fd)])) == ["file"]


def test_path_of_a_stream_is_no_stream(tmp_path: Path) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    only = os.open("/dev/null", os.O_PATH)
    assert names(FakeJob([fd, only], streams=[Stream(0, fd)])) == ["stream", "path"]


def refused(fd: int) -> str:
    job = FakeJob([fd])
    seen = job.descriptors[0]
    service = service_for(seen, job)
    assert service.name == "refused"
    return str(service.survey(seen, job))


def test_kinds_of_sockets_that_cannot_be_saved_are_named() -> None:
    try:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    except PermissionError:
        pytest.skip("needs the right to have raw sockets")
    assert "a raw socket, a kind that cannot be saved" in refused(raw.fileno())


def test_kernel_objects_are_named() -> None:
    assert "a namespace (net:[" in refused(os.open("/proc/self/ns/net", os.O_RDONLY))


def seen_as(target: str, mode: int = 0, rdev: int = 0) -> Descriptor:
    return Descriptor(1, "prog", 5, target, mode, 0, 0, rdev, 0, 0, 0, ())


CHR = stat.S_IFCHR | 0o600


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (seen_as("/dev/nvidia0", CHR, os.makedev(195, 0)), "a GPU (/dev/nvidia0)"),
        (seen_as("/dev/kvm", CHR, os.makedev(10, 232)), "virtual machine"),
        (seen_as("/dev/fuse", CHR, os.makedev(10, 229)), "user-space filesystem"),
        (seen_as("/dev/odd", CHR, os.makedev(250, 1)), "a device (/dev/odd) whose state cannot be saved"),
        (seen_as("/dev/sda", stat.S_IFBLK), "a block device (/dev/sda)"),
        (seen_as("anon_inode:[io_uring]"), "an io_uring instance"),
        (seen_as("anon_inode:[userfaultfd]"), "a userfaultfd"),
        (seen_as("anon_inode:kvm-vcpu:3"), "a virtual processor"),
        (seen_as("anon_inode:bpf_token"), "a BPF object"),
        (seen_as("anon_inode:[new-thing]"), "a kernel object of the kind [new-thing]"),
        (seen_as("/secretmem (deleted)", stat.S_IFREG), "secret memory"),
        (seen_as("who-knows"), "something that torpor does not know: who-knows"),
    ],
)
def test_names(seen: Descriptor, words: str) -> None:
    said = str(refusal.refuse(seen))
    assert said.startswith("process 1 (prog): descriptor 5 is ")
    assert words in said
    assert ";" in said, "there is a way out"


def test_table() -> None:
    assert service_named("no such service") is None
    for name in ("file", "pipe", "stream", "refused"):
        service = service_named(name)
        assert service is not None
        assert service.name == name
