"""A database written to in transactions, one row each; the program knows how many it has committed.

Usage: transactions.py GO DATABASE MODE. Ends when GO appears, prints TOTAL n, verifies every row.
"""

import os
import sqlite3
import sys

GO, PATH, MODE = sys.argv[1:4]
base = sqlite3.connect(PATH, isolation_level=None)
base.execute(f"pragma journal_mode = {MODE}")
base.execute("create table numbers (n integer primary key, square integer)")
n = 0
while not os.path.exists(GO) or n < 60:
    base.execute("begin immediate")
    base.execute("insert into numbers values (?, ?)", (n, n * n))
    base.execute("commit")
    n += 1
    if n == 20:
        sys.stdout.write("READY\n")
        sys.stdout.flush()
    with open(PATH + ".count", "w") as f:
        f.write(str(n))
    if base.execute("select count(*) from numbers").fetchone() != (n,):
        sys.exit(f"FAIL: {n} transactions were made")
if base.execute("pragma integrity_check").fetchall() != [("ok",)]:
    sys.exit("FAIL: integrity")
print("TOTAL", n)
print("OK")
