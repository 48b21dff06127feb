"""Regular files: positions, flags, cutting back, putting back, files without a name, locks."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

import pytest
from descriptor_bench import FakeJob, FakeRestart, flags_of, look

from torpor.model.errors import Refused, RestartFailed
from torpor.posix.descriptor_services import service_for


def again(job: FakeJob, **how: object) -> tuple[list[int], FakeRestart]:
    saved = job.save()
    restart = FakeRestart(job.sink, **how)  # type: ignore[arg-type]
    return restart.make(saved), restart


def test_offset_and_flags(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"x" * 1000)
    fds = [
        os.open(path, os.O_RDONLY),
        os.open(path, os.O_RDWR | os.O_APPEND),
        os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_DSYNC),
    ]
    os.lseek(fds[0], 333, os.SEEK_SET)
    os.lseek(fds[2], 5000, os.SEEK_SET)
    job = FakeJob(fds)
    made, restart = again(job)
    assert not restart.said
    for old, new in zip(fds, made):
        assert flags_of(old) == flags_of(new)
        assert os.lseek(new, 0, os.SEEK_CUR) == os.lseek(old, 0, os.SEEK_CUR)
    assert os.lseek(fds[0], 0, os.SEEK_CUR) == 333


def test_one_description_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"abc")
    fd = os.open(path, os.O_RDONLY)
    assert len(FakeJob([fd, os.dup(fd)]).save()) == 1


def test_cut_back(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o640)
    second = os.open(path, os.O_RDWR)
    os.write(fd, b"saved")
    job = FakeJob([fd, second])
    saved = job.save()
    os.write(fd, b" and more")
    kept = tmp_path / "out.txt.after-train@3"
    kept.write_bytes(b"of an earlier restart")
    restart = FakeRestart(job.sink)
    made = restart.make(saved, finish=False)
    assert path.read_bytes() == b"saved and more", "nothing is changed before finish"
    for n, (service, record) in enumerate(saved):
        service.finish(record, made[n], restart)
    assert path.read_bytes() == b"saved"
    assert kept.read_bytes() == b"of an earlier restart"
    second_kept = tmp_path / "out.txt.after-train@3.2"
    assert second_kept.read_bytes() == b" and more"
    assert stat.S_IMODE(second_kept.stat().st_mode) == stat.S_IMODE(path.stat().st_mode)
    assert len(restart.said) == 1
    assert str(second_kept) in restart.said[0]
    assert os.lseek(made[0], 0, os.SEEK_CUR) == 5
    restart.undo()
    assert path.read_bytes() == b"saved and more"
    assert not second_kept.exists()


def test_cut_back_keeps_holes(tmp_path: Path) -> None:
    path = tmp_path / "out"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, b"saved")
    job = FakeJob([fd])
    saved = job.save()
    os.pwrite(fd, b"far", 1 << 30)
    restart = FakeRestart(job.sink)
    restart.make(saved)
    kept = tmp_path / "out.after-train@3"
    assert kept.stat().st_size == (1 << 30) + 3 - 5
    assert kept.stat().st_blocks * 512 < 1 << 20
    assert path.stat().st_size == 5


def test_keep_touches_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(fd, b"saved")
    for at_save, at_restart in (("auto", "keep"), ("keep", "auto"), ("save", "keep")):
        job = FakeJob([fd], at_save)
        saved = job.save()
        size = path.stat().st_size
        os.write(fd, b" and more")
        FakeRestart(job.sink, files=at_restart).make(saved)
        assert path.stat().st_size == size + 9


def test_shorter_or_replaced_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(fd, b"saved")
    job = FakeJob([fd])
    saved = job.save()
    os.truncate(path, 3)
    with pytest.raises(Refused, match=r"shorter.*--files=keep"):
        FakeRestart(job.sink).make(saved)
    other = tmp_path / "other"
    other.write_bytes(b"something else")
    other.rename(path)
    with pytest.raises(Refused, match="replaced"):
        FakeRestart(job.sink).make(saved)
    FakeRestart(job.sink, files="keep").make(saved)
    path.unlink()
    with pytest.raises(Refused, match="is gone"):
        FakeRestart(job.sink, files="keep").make(saved)
    with pytest.raises(Refused, match=r"is gone; .*put another in its place and restart with --files=keep"):
        FakeRestart(job.sink).make(saved)
    path.touch()
    FakeRestart(job.sink, files="keep").make(saved)


def test_an_empty_file_that_is_gone_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "temporary"
    first = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
    second = os.open(path, os.O_WRONLY | os.O_APPEND)
    job = FakeJob([first, second])
    saved, before = job.save(), os.stat(path)
    os.write(first, b"written since")
    path.unlink()
    with pytest.raises(Refused, match="is gone"):
        FakeRestart(job.sink, files="keep").make(saved)
    restart = FakeRestart(job.sink)
    made = restart.make(saved)
    after = os.stat(path)
    assert (after.st_size, after.st_mode, after.st_mtime_ns) == (0, before.st_mode, before.st_mtime_ns)
    os.write(made[0], b"both are ")
    os.write(made[1], b"the same file")
    assert path.read_bytes() == b"both are the same file"
    (said,) = restart.said
    assert said == f"{path} was empty, and has been removed since: it is made again"
    restart.undo()
    assert not path.exists()
    with pytest.raises(Refused, match="and so is its folder"):
        tmp_path.rename(tmp_path.parent / "elsewhere")
        FakeRestart(job.sink).make(saved)


def test_read_file_must_be_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"input")
    fd = os.open(path, os.O_RDONLY)
    job = FakeJob([fd])
    saved = job.save()
    FakeRestart(job.sink).make(saved)
    os.utime(path, ns=(0, 12345))
    with pytest.raises(Refused, match="--changed-files=accept"):
        FakeRestart(job.sink).make(saved)
    FakeRestart(job.sink, changed_files="accept").make(saved)


def test_read_by_one_written_by_another(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writer = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    reader = os.open(path, os.O_RDONLY)
    os.write(writer, b"line\n")
    job = FakeJob([reader, writer])
    saved = job.save()
    os.write(writer, b"later\n")
    FakeRestart(job.sink).make(saved)
    assert path.read_bytes() == b"line\n"


def test_never_created_or_truncated_again(tmp_path: Path) -> None:
    path = tmp_path / "new"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_TRUNC, 0o600)
    os.write(fd, b"contents")
    made, _ = again(FakeJob([fd]))
    assert path.read_bytes() == b"contents"
    assert os.lseek(made[0], 0, os.SEEK_CUR) == 8


@pytest.mark.parametrize("policy", ["save", "save:{path}"])
def test_save_puts_back_in_place(tmp_path: Path, policy: str) -> None:
    path = tmp_path / "db"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    before = bytearray(os.urandom(600_000))
    os.pwrite(fd, before, 0)
    os.ftruncate(fd, 5_000_000)
    os.pwrite(fd, b"end", 4_999_000)
    whole = path.read_bytes()
    mtime = path.stat().st_mtime_ns
    job = FakeJob([fd, os.open(path, os.O_RDONLY)], policy.format(path=path))
    saved = job.save()
    assert sum(map(len, job.sink.kept)) < 700_000, "holes are not saved, and the contents once"
    os.pwrite(fd, b"overwritten", 1000)
    os.pwrite(fd, b"in the hole", 2_000_000)
    os.pwrite(fd, b"beyond", 5_000_000)
    changed = path.read_bytes()
    ino = path.stat().st_ino
    restart = FakeRestart(job.sink)
    restart.make(saved)
    assert path.read_bytes() == whole
    assert path.stat().st_ino == ino
    assert path.stat().st_mtime_ns == mtime
    assert (tmp_path / "db.after-train@3").read_bytes() == b"beyond"
    restart.undo()
    assert path.read_bytes() == changed


def test_save_of_a_file_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "db"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, b"saved contents")
    job = FakeJob([fd], "save")
    saved = job.save()
    os.ftruncate(fd, 3)
    restart = FakeRestart(job.sink)
    restart.make(saved)
    assert path.read_bytes() == b"saved contents"
    restart.undo()
    assert path.read_bytes() == b"sav"


def test_save_creates_what_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "db"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
    os.fchmod(fd, 0o640)
    os.write(fd, b"saved contents")
    job = FakeJob([os.open(path, os.O_RDONLY), fd], "save")
    saved = job.save()
    path.unlink()
    restart = FakeRestart(job.sink)
    made = restart.make(saved)
    assert path.read_bytes() == b"saved contents"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.fstat(made[0]).st_ino == os.fstat(made[1]).st_ino
    restart.undo()
    assert not path.exists()


def test_bare_save_leaves_data_that_is_only_read(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"input")
    job = FakeJob([os.open(path, os.O_RDONLY)], "save")
    job.save()
    assert not job.sink.kept


def test_deleted(tmp_path: Path) -> None:
    path = tmp_path / "scratch"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, b"scratch data")
    os.pwrite(fd, b"far", 3_000_000)
    reader = os.open(path, os.O_RDONLY)
    path.unlink()
    saved = (job := FakeJob([reader, fd])).save()
    restart = FakeRestart(job.sink)
    path.write_bytes(b"somebody else's")
    made = restart.make(saved)
    assert path.read_bytes() == b"somebody else's"
    assert [p.name for p in tmp_path.iterdir()] == ["scratch"]
    for old, new in zip((reader, fd), made):
        assert flags_of(old) == flags_of(new)
        assert os.lseek(new, 0, os.SEEK_CUR) == os.lseek(old, 0, os.SEEK_CUR)
        assert os.pread(new, 12, 0) == b"scratch data"
        assert os.fstat(new).st_size == 3_000_003
        assert os.fstat(new).st_nlink == 0
    os.pwrite(made[1], b"S", 0)
    assert os.pread(made[0], 1, 0) == b"S", "one file behind both"
    path.unlink()
    (made,) = [FakeRestart(job.sink).make(saved)]
    assert os.readlink(f"/proc/self/fd/{made[0]}") == f"{path} (deleted)"


def test_deleted_only_writable(tmp_path: Path) -> None:
    path = tmp_path / "scratch"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o200)
    os.write(fd, b"x")
    os.fchmod(fd, 0o600)
    path.unlink()
    made, _ = again(FakeJob([fd]))
    assert flags_of(made[0]) == flags_of(fd)


def test_unnamed_from_the_start(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"data")
    made, _ = again(FakeJob([fd]))
    assert flags_of(made[0]) == flags_of(fd)
    assert os.pread(made[0], 10, 0) == b"data"


def test_removed_but_linked_elsewhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_bytes(b"x")
    fd = os.open(path, os.O_RDONLY)
    os.mkdir(tmp_path / "elsewhere")
    os.link(path, tmp_path / "elsewhere" / "two")
    path.unlink()
    seen = look(fd)
    job = FakeJob([fd])
    refusal = service_for(seen, job).survey(seen, job)
    assert refusal is not None
    assert "another name" in str(refusal)


def test_name_that_ends_like_a_deleted_one(tmp_path: Path) -> None:
    path = tmp_path / "x (deleted)"
    path.write_bytes(b"here")
    made, _ = again(FakeJob([os.open(path, os.O_RDONLY)]))
    assert os.readlink(f"/proc/self/fd/{made[0]}") == str(path)


def test_name_that_is_not_text(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    made, _ = again(FakeJob([fd]))
    assert os.readlink(f"/proc/self/fd/{made[0]}".encode()) == path


def test_made_up_files_are_just_opened() -> None:
    fd = os.open("/proc/meminfo", os.O_RDONLY)
    os.read(fd, 100)
    made, _ = again(FakeJob([fd]))
    assert os.lseek(made[0], 0, os.SEEK_CUR) == 100


def test_locks_of_a_description(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    other = os.open(path, os.O_RDWR)
    from torpor.posix.locks import OFD, Lock

    fcntl.fcntl(other, 37, Lock(OFD, True, 10, 5).flock())
    job = FakeJob([fd, other])
    saved = job.save()
    with pytest.raises(RestartFailed, match="another process holds a lock"):
        FakeRestart(job.sink).make(saved)
    os.close(fd)
    os.close(other)
    made = FakeRestart(job.sink).make(saved)
    kinds = [[line.split()[2:5] + line.split()[-2:] for line in look(fd).info if "lock:" in line] for fd in made]
    assert kinds == [
        [["FLOCK", "ADVISORY", "WRITE", "0", "EOF"]],
        [["OFDLCK", "ADVISORY", "WRITE", "10", "14"]],
    ]


def test_directory(tmp_path: Path) -> None:
    for n in range(50):
        (tmp_path / str(n)).touch()
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    plain = os.open(tmp_path, os.O_RDONLY)
    import ctypes

    room = ctypes.create_string_buffer(200)
    libc = ctypes.CDLL(None)
    assert libc.syscall(217, fd, room, 200) > 0  # getdents64: a few of them
    position = os.lseek(fd, 0, os.SEEK_CUR)
    assert position
    made, _ = again(FakeJob([fd, plain]))
    assert os.lseek(made[0], 0, os.SEEK_CUR) == position
    assert [flags_of(fd) for fd in made] == [flags_of(fd), flags_of(plain)]
    rest = ctypes.create_string_buffer(4096)
    size = libc.syscall(217, made[0], rest, 4096)
    assert libc.syscall(217, fd, room := ctypes.create_string_buffer(4096), 4096) == size
    assert room.raw == rest.raw


def test_path_only(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x")
    link = tmp_path / "link"
    link.symlink_to(path)
    fds = [
        os.open(path, os.O_PATH),
        os.open(link, os.O_PATH | os.O_NOFOLLOW),
        os.open(tmp_path, os.O_PATH | os.O_DIRECTORY),
    ]
    made, _ = again(FakeJob(fds))
    for old, new in zip(fds, made):
        assert flags_of(old) == flags_of(new)
        assert os.path.sameopenfile(old, new)


def test_devices() -> None:
    fds = [os.open("/dev/null", os.O_RDWR), os.open("/dev/urandom", os.O_RDONLY | os.O_NONBLOCK)]
    made, _ = again(FakeJob(fds))
    for old, new in zip(fds, made):
        assert flags_of(old) == flags_of(new)
        assert os.fstat(old).st_rdev == os.fstat(new).st_rdev


def test_memfd() -> None:
    fd = os.memfd_create("shared", os.MFD_ALLOW_SEALING)
    os.write(fd, b"data")
    os.ftruncate(fd, 10_000_000)
    os.pwrite(fd, b"end", 9_000_000)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE)
    reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    plain = os.memfd_create("plain")
    job = FakeJob([reader, fd, plain])
    made, _ = again(job)
    assert sum(map(len, job.sink.kept)) <= 8192
    for old, new in zip((reader, fd, plain), made):
        assert flags_of(old) == flags_of(new)
        assert os.readlink(f"/proc/self/fd/{old}") == os.readlink(f"/proc/self/fd/{new}")
        assert fcntl.fcntl(old, fcntl.F_GET_SEALS) == fcntl.fcntl(new, fcntl.F_GET_SEALS)
        assert os.fstat(old).st_size == os.fstat(new).st_size
        assert stat.S_IMODE(os.fstat(old).st_mode) == stat.S_IMODE(os.fstat(new).st_mode)
        assert os.lseek(new, 0, os.SEEK_CUR) == os.lseek(old, 0, os.SEEK_CUR)
    assert os.pread(made[0], 3, 9_000_000) == b"end"
    assert os.fstat(made[0]).st_ino == os.fstat(made[1]).st_ino


def test_posix_locks_come_back_late(tmp_path: Path) -> None:
    from test_events import run_here

    from torpor.posix.locks import SERVICE
    from torpor.posix.service import Stage

    class Here:
        pid = os.getpid()

        @property
        def fdinfo(self) -> dict[int, tuple[str, ...]]:
            return {fd: look(fd).info}

    path = tmp_path / "db"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.lockf(fd, fcntl.LOCK_SH, 10, 100)
    fcntl.lockf(fd, fcntl.LOCK_EX, 1, 500)
    before = [line.split()[2:] for line in look(fd).info if line.startswith("lock:")]
    record = SERVICE.capture(Here(), ())  # type: ignore[arg-type]
    assert record is not None
    assert [(lock.write, lock.start, lock.length) for _, lock in record.locks] == [
        (False, 100, 10),
        (True, 500, 1),
    ]
    fcntl.lockf(fd, fcntl.LOCK_UN)
    steps = SERVICE.restore(record, Here())  # type: ignore[arg-type]
    run_here(steps[Stage.CLOCKS], [])
    assert [line.split()[2:] for line in look(fd).info if line.startswith("lock:")] == before
    fcntl.lockf(fd, fcntl.LOCK_UN)
    assert SERVICE.capture(Here(), ()) is None  # type: ignore[arg-type]
    os.close(fd)
