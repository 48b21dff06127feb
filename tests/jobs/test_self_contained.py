"""Jobs whose program, library and data are gone (`--with-files`) or elsewhere (`--map-path`) at the restart."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator

import harness
import pytest
from harness import PROGRAMS, Bench, Failed, Running

KEPT = "kept"


class Place:
    """A folder with the program, its library and its data, as one would carry it to another machine."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.folder = f"{bench.folder}/place"
        for name in ("", "/bin", "/lib", "/data"):
            os.mkdir(self.folder + name, 0o755)
            os.chown(self.folder + name, bench.account.uid, bench.account.gid)
        self.program = f"{self.folder}/bin/carried"
        library = f"{self.folder}/lib/libcarried.so"
        flags = ["-O1", "-g", "-Wall"]
        for command in (
            ["gcc", *flags, "-shared", "-fPIC", "-o", library, f"{PROGRAMS}/carried_library.c"],
            ["gcc", *flags, "-pthread", "-o", self.program, f"{PROGRAMS}/carried.c", f"-L{self.folder}/lib",
             "-lcarried", "-Wl,--enable-new-dtags,-rpath,$ORIGIN/../lib"],
        ):  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        with open(f"{self.folder}/data/data", "wb") as file:
            file.write(bytes((i * 7 + i // 4096) & 255 for i in range(1 << 20)))
        with open(f"{self.folder}/data/{KEPT}", "w") as file:
            file.write("ab")

    def command(self, *more: str, wrong: int = 0) -> list[str]:
        return [self.program, self.bench.go, str(wrong), f"{self.folder}/data", *more]

    def start(self, *more: str, wrong: int = 0) -> Running:
        job = self.bench.run(self.command(*more, wrong=wrong), cwd="/")
        job.ready()
        return job

    def remove(self) -> None:
        """All that is only read, with its folders, but for the one that the job works in."""
        os.unlink(f"{self.folder}/data/{KEPT}")
        shutil.rmtree(f"{self.folder}/bin")
        shutil.rmtree(f"{self.folder}/lib")
        os.unlink(f"{self.folder}/data/data")


@pytest.fixture
def place(bench: Bench) -> Iterator[Place]:
    yield Place(bench)


def state(bench: Bench) -> str:
    return f"{bench.home}/.local/state/torpor/jobs"


def provided(bench: Bench, job: Running) -> list[str]:
    """The files that were made for a job."""
    where = f"{state(bench)}/{job.name}/provided"
    return sorted(os.path.join(at, name) for at, _, names in os.walk(where) for name in names)


def root_of(bench: Bench, job: Running) -> int:
    """The first process of a job that runs."""
    return next(int(one["pid"]) for one in bench.must("jobs", "--json").json() if one["name"] == job.name)


def refused(bench: Bench, name: str, *words: str) -> str:
    """What a restart says that has to be refused."""
    said = bench.torpor("restart", name, "--store", bench.store, *words)
    assert said.status == 1 and len(said.err.splitlines()) == 1, said
    bench.gone("after a refusal")
    return said.err


def lives_without(place: Place, *how: str) -> None:
    """Restarts, each after all files are gone, those that the last restart made as well."""
    bench = place.bench
    job = place.start(KEPT, "data")
    first = f"{job.name}@{bench.checkpoint(job, '--with-files')['number']}"
    needs = bench.must("inspect", first, "--store", bench.store, "--json").json()["needs"]
    assert place.program in needs["carried"] and not needs["files"]
    bench.kill()
    place.remove()
    again = bench.restart(first, *how, detach=True)
    made = sorted(provided(bench, again), key=os.path.basename)
    assert sorted(os.path.basename(path) for path in made) == ["carried", "data", KEPT, "libcarried.so"]
    for path in made:
        assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    assert os.access(made[0], os.X_OK) and not os.access(made[1], os.X_OK)
    assert os.readlink(f"/proc/{root_of(bench, again)}/exe") == made[0]
    # What was made for one job goes with it, and so every checkpoint of it has copies, asked for or not.
    second = f"{job.name}@{bench.checkpoint(again)['number']}"
    bench.kill()
    shutil.rmtree(state(bench))
    third_job = bench.restart(second, *how, detach=True)
    assert provided(bench, third_job)
    third = f"{job.name}@{bench.checkpoint(third_job, '--stop')['number']}"
    harness.until(lambda: not provided(bench, third_job), "the files that were made are removed with the job")
    bench.gone("after a stop")
    last = bench.restart(third, *how)
    last.verified()
    bench.gone("after the end")
    assert not os.path.exists(f"{state(bench)}/{job.name}/provided")


def test_a_job_without_its_files(place: Place) -> None:
    lives_without(place)


def test_a_job_without_its_files_in_place(root_bench: Bench) -> None:
    """There the program is executed, for the sake of /proc/PID/exe. (As root: pids are to be had at once.)"""
    lives_without(Place(root_bench), "--in-place")


def test_saved_by_its_pid(user_bench: Bench) -> None:
    place = Place(user_bench)
    job = user_bench.run(place.command(KEPT), "pid", cwd="/")
    job.ready()
    name = f"{job.name}@{user_bench.checkpoint(job, '--with-files')['number']}"
    user_bench.kill()
    place.remove()
    user_bench.restart(name).verified()


def test_nothing_can_be_run_where_they_are_made(root_bench: Bench) -> None:
    bench = root_bench
    place = Place(bench)
    job = place.start()
    name = f"{job.name}@{bench.checkpoint(job, '--with-files')['number']}"
    bench.kill()
    place.remove()
    other = f"{bench.folder}/noexec"
    os.mkdir(other)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec", "none", other], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs to mount: {mounted.stderr.strip()}")
    try:
        bench.env["XDG_STATE_HOME"] = other
        said = refused(bench, name)
        assert "is mounted noexec; set XDG_STATE_HOME" in said
        assert os.listdir(f"{other}/torpor") == ["log.jsonl"]
    finally:
        subprocess.run(["umount", other], check=True)
    del bench.env["XDG_STATE_HOME"]
    bench.restart(name).verified()


def test_the_second_time_they_are_there(place: Place, bench: Bench) -> None:
    """A copy is not used where there is a file; one that is there and different is refused."""
    job = place.start()
    name = f"{job.name}@{bench.checkpoint(job, '--with-files')['number']}"
    bench.kill()
    with open(f"{place.folder}/data/data", "ab") as file:
        file.write(b"more")
    assert "data/data has changed since the checkpoint" in refused(bench, name)
    os.truncate(f"{place.folder}/data/data", 1 << 20)
    again = bench.restart(name, "--changed-files=accept")
    again.verified()
    assert not provided(bench, again)


def test_what_is_missing_is_named(place: Place, bench: Bench) -> None:
    job = place.start()
    name = f"{job.name}@{bench.checkpoint(job)['number']}"
    bench.kill()
    os.unlink(f"{place.folder}/lib/libcarried.so")
    said = refused(bench, name)
    assert "lib/libcarried.so is gone" in said and "--with-files" in said and "--map-path" in said


def test_a_failure_leaves_nothing(place: Place, bench: Bench) -> None:
    """A working directory is missing, which is found out after the files have been made."""
    job = place.start()
    name = f"{job.name}@{bench.checkpoint(job, '--with-files')['number']}"
    bench.kill()
    place.remove()
    os.rename(f"{place.folder}/data", f"{place.folder}/elsewhere")
    said = bench.torpor("restart", name, "--store", bench.store)
    assert said.status == 1 and "place/data, is missing" in said.err, said
    bench.gone("after a failure")
    assert not os.path.exists(state(bench))
    bench.restart(name, f"--map-path={place.folder}/data={place.folder}/elsewhere").verified()


@pytest.mark.parametrize("wrong", [1, 2])
def test_the_program_can_fail(wrong: int, place: Place, bench: Bench) -> None:
    job = place.start(wrong=wrong)
    bench.checkpoint(job, "--with-files")
    with pytest.raises(Failed, match="FAIL"):
        job.verified()


def test_a_folder_with_another_name(place: Place, bench: Bench) -> None:
    job = place.start(KEPT)
    first = f"{job.name}@{bench.checkpoint(job)['number']}"
    bench.kill()
    moved = f"{bench.folder}/place2"
    os.rename(place.folder, moved)
    assert "is gone" in refused(bench, first)
    assert "is gone" in refused(bench, first, f"--map-path={place.folder[:-1]}={moved}")
    said = bench.torpor("restart", first, "--store", bench.store, "--map-path", "place=place2")
    assert said.status == 2 and "--map-path place=place2" in said.err, said
    again = bench.restart(first, f"--map-path={place.folder}={moved}", detach=True)
    root = root_of(bench, again)
    assert os.readlink(f"/proc/{root}/exe") == f"{moved}/bin/carried"
    assert os.readlink(f"/proc/{root}/cwd") == f"{moved}/data"
    second = f"{job.name}@{bench.checkpoint(again)['number']}"
    bench.kill()
    bench.restart(second).verified()
