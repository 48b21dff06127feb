"""`torpor scan`: finds what a job knows, says where, and never what."""

from __future__ import annotations

import harness
import pytest


@pytest.mark.diagonal
def test_what_a_job_knows(bench: harness.Bench) -> None:
    bench.env["SERVICE_PASSWORD"] = "tr0ub4dor&3"
    job = bench.run([bench.account.python, harness.script("secretive.py"), bench.go])
    job.ready()
    keys = int(job.wait_for("^PID .*$").split()[3])
    name = f"{job.name}@{bench.checkpoint(job)['number']}"
    bench.kill()
    again = bench.restart(name, detach=True)
    name = f"{job.name}@{bench.checkpoint(again)['number']}"
    said = bench.torpor("scan", name, "--store", bench.store)
    assert said.status == 3, said.err
    for secret in ("MIIEA1b2", "ghp_A1", "xoxb-1", "AKIAQ", "hunter22", "glpat-A1", "npm_A1", "QQQQ", "tr0ub4dor"):
        assert secret not in said.out + said.err
    for kind in ("private key (PEM)", "GitHub token", "Slack token", "AWS access key", "password in a URL", "npm token",
                 "private key (age)", "GitLab token", "variable SERVICE_PASSWORD"):  # fmt: skip
        assert kind in said.out, (kind, said.out)
    found = bench.torpor("scan", name, "--store", bench.store, "--json").json()["found"]
    big = max((each for each in found if each["kind"] == "GitLab token"), key=lambda each: each["times"])
    assert big["times"] == keys > 10000  # each once, wherever the chunks end
    assert {each["region"] for each in found if not each["pid"]} == {"files, pipes, queues"}
    again.verified()


@pytest.mark.exam
def test_nothing_is_found_where_nothing_is(user: object, bench: harness.Bench) -> None:
    """Programs and libraries do not count as secrets."""
    bench.env = {key: value for key, value in bench.env.items() if key in ("HOME", "TORPOR_TEST", "PATH", "LANG")}
    for command in (
        [harness.build("tree.c"), bench.go, "0"],
        [bench.account.python, harness.script("busy.py"), bench.go, "0"],
    ):
        job = bench.run(command)
        job.ready()
        bench.checkpoint(job)
        said = bench.torpor("scan", job.name, "--store", bench.store)
        assert said.status == 0 and "nothing was found" in said.out, said.out
