"""The worked example of a service of somebody else's, examples/service-kmsg: with it a job is saved and restarted,
without it refused by name. It is found through its entry point, as an installed package would be."""

from __future__ import annotations

import os
import shutil
import tomllib

import harness
from accounts import ROOT
from test_refused import refused

EXAMPLE = os.path.join(ROOT, "examples", "service-kmsg")


def installed(folder: str) -> str:
    """The package as an installer would lay it down: the module, and a dist-info that tells its entry points."""
    with open(os.path.join(EXAMPLE, "pyproject.toml"), "rb") as f:
        project = tomllib.load(f)["project"]
    info = os.path.join(folder, f"{project['name'].replace('-', '_')}-{project['version']}.dist-info")
    os.makedirs(info)
    shutil.copy(os.path.join(EXAMPLE, "torpor_service_kmsg.py"), folder)
    with open(os.path.join(info, "METADATA"), "w") as f:
        f.write(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    with open(os.path.join(info, "entry_points.txt"), "w") as f:
        for group, entries in project["entry-points"].items():
            f.write(f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items()))
    return folder


def test_without_it(root_bench: harness.Bench) -> None:
    job = root_bench.run([root_bench.account.python, harness.script("follow_kmsg.py"), root_bench.go])
    job.ready()
    refused(job, "/dev/kmsg")


def test_with_it(root_bench: harness.Bench) -> None:
    """Twice, and it is named by `torpor inspect`; where it is missing, the restart says which service is needed."""
    bench = root_bench
    bench.env["PYTHONPATH"] = installed(os.path.join(bench.folder, "site"))
    command = [bench.account.python, harness.script("follow_kmsg.py"), bench.go]
    bench.cycle(command, "run", name="follower")
    assert "kmsg" in bench.must("inspect", "follower@2", "--store", bench.store, "--json").out
    bench.untell()
    del bench.env["PYTHONPATH"]
    again = bench.restart("follower@2")
    assert again.finish() == 1, again.trace()
    assert "needs the service 'kmsg'" in harness.text(again.out + ".err"), again.trace()
    bench.gone("after a restart without the service")
