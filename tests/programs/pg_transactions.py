"""PostgreSQL with pgbench running: no transaction is lost or doubled.

Usage: pg_transactions.py GO FOLDER [TRANSACTIONS]. A new cluster is made in FOLDER, four clients make TRANSACTIONS
each, prepared and over TCP. READY once a tenth of them is in the history. At the end: what pgbench has counted, the
rows of the history and every balance agree; pg_amcheck finds nothing; the same after the server was shut down, started
again and has read its log.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import serving
from serving import fail

GO, FOLDER = sys.argv[1:3]
EACH = int(sys.argv[3]) if len(sys.argv) > 3 else 1000
CLIENTS = 4
DATA = os.path.join(FOLDER, "data")
ENV = {**os.environ, "PGHOST": FOLDER, "PGUSER": "postgres", "PGDATABASE": "postgres"}

SUMS = """
select (select count(*) from pgbench_history), (select coalesce(sum(delta), 0) from pgbench_history),
       (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers),
       (select sum(bbalance) from pgbench_branches)
"""
# Not only in total: every account, teller and branch has what its own history says.
ODD = """
select (select count(*) from pgbench_accounts a left join (select aid, sum(delta) d from pgbench_history group by aid) h
          using (aid) where abalance <> coalesce(d, 0))
     + (select count(*) from pgbench_tellers left join (select tid, sum(delta) d from pgbench_history group by tid) h
          using (tid) where tbalance <> coalesce(d, 0))
     + (select count(*) from pgbench_branches left join (select bid, sum(delta) d from pgbench_history group by bid) h
          using (bid) where bbalance <> coalesce(d, 0))
"""


def run(*command: str) -> str:
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        fail(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def query(text: str) -> list[str]:
    return run("psql", "-X", "-A", "-t", "-q", "-c", text).strip().split("|")


def history() -> int:
    return int(query("select count(*) from pgbench_history")[0])


def server(port: int) -> subprocess.Popen[bytes]:
    options = {
        "port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": FOLDER, "shared_buffers": "16MB",
        "autovacuum_naptime": "1s", "checkpoint_timeout": "30s", "max_parallel_workers": 2, "logging_collector": "on",
        "log_directory": "log",
    }  # fmt: skip
    words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    child = serving.start("postgres", "-D", DATA, *words, env=ENV)
    env = {**ENV, "PGPORT": str(port)}
    serving.until(lambda: subprocess.run(["pg_isready", "-q"], env=env).returncode == 0, "a server that is ready")
    serving.well(child)
    return child


def check(want: int, when: str) -> None:
    sums = query(SUMS)
    if sums[0] != str(want) or len(set(sums[1:])) != 1:
        fail(f"{when}: history, deltas, accounts, tellers, branches are {sums}; pgbench has counted {want}")
    if query(ODD) != ["0"]:
        fail(f"{when}: {query(ODD)[0]} balances are not what the history says")


def make(port: int) -> None:
    run("initdb", "-D", DATA, "-U", "postgres", "-A", "trust", "-N", "--no-locale", "-E", "UTF8")
    child = server(port)
    run("pgbench", "-i", "-q", "-s", "2")
    serving.end(child, signal.SIGINT)


def main() -> None:
    port = serving.free_port()
    ENV["PGPORT"] = str(port)
    make(port)
    child = server(port)
    # The clients speak TCP, the questions come over the UNIX socket.
    bench = serving.start(
        "pgbench", "-h", "127.0.0.1", "-n", "-c", str(CLIENTS), "-j", "2", "-M", "prepared", "-t", str(EACH),
        env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    serving.until(lambda: serving.well(bench) or history() > EACH * CLIENTS // 10, "transactions")
    serving.say("READY")
    out, _ = bench.communicate()
    said = out.decode()
    done = re.search(r"actually processed: (\d+)/(\d+)", said)
    if bench.returncode or not done or done.group(1) != done.group(2) or "failed transactions: 0" not in said:
        fail(f"pgbench: {bench.returncode}\n{said}")
    serving.until(lambda: serving.told(GO), "the word to end")
    check(int(done.group(1)), "at the end")
    serving.well(child)
    if serving.end(child, signal.SIGINT):
        fail(f"the server ends with {child.returncode}")
    child = server(port)
    check(int(done.group(1)), "after a new start")
    if said := run("pg_amcheck", "--heapallindexed", "--parent-check", "--install-missing", "postgres").strip():
        fail(f"pg_amcheck: {said}")
    serving.end(child, signal.SIGINT)
    serving.say(f"TOTAL {done.group(1)}")
    serving.ok()


main()
