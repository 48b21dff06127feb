"""Ranks that compute a sum of all their numbers again and again, over every collective that takes Python objects.

    mpi4py_work.py STEPS WAIT

Rank 1 comes late to the collective in the middle: not before the file WAIT is there, and it writes WAIT.there first.
The last line of rank 0 is the result."""

import os
import sys
import time

from mpi4py import MPI

world = MPI.COMM_WORLD
steps, wait = int(sys.argv[1]), sys.argv[2]
rank, size = world.Get_rank(), world.Get_size()
value = rank + 1
for step in range(steps):
    if step == steps // 2 and rank == 1:
        open(wait + ".there", "w").close()
        while not os.path.exists(wait):
            time.sleep(0.01)
    total = world.allreduce(value)
    around = world.alltoall([(value * (other + 1) + total) % 1000003 for other in range(size)])
    every = world.allgather({"rank": rank, "value": sum(around)})
    assert [each["rank"] for each in every] == list(range(size)), every
    best = world.bcast(max(each["value"] for each in every) if rank == step % size else None, root=step % size)
    value = (value * 31 + best + sum(each["value"] for each in every)) % 1000003
    if rank == 0 and step % 100 == 0:
        print("step", step, value, flush=True)
result = world.gather((rank, value))
if rank == 0:
    print("RESULT", result, flush=True)
