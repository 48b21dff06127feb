"""A shuffle on a Spark cluster: numbers are squared by slow tasks and summed by their last digit; then new work.

    spark_shuffle.py MASTER FOLDER

Every run of a task is a line in FOLDER/ran."""

import os
import sys
import time
from operator import add

from pyspark.sql import SparkSession

COUNT, PARTS = 240, 60


def main() -> None:
    master, folder = sys.argv[1:3]
    session = (
        SparkSession.builder.master(master)
        .config("spark.driver.host", os.uname().nodename)
        .config("spark.ui.enabled", "false")
        .config("spark.executor.memory", "512m")
        .config("spark.driver.memory", "512m")
        .getOrCreate()
    )
    context = session.sparkContext

    def square(part: int, numbers: object) -> object:
        began = time.monotonic()
        found = [(number % 10, number * number) for number in numbers]  # type: ignore[attr-defined]
        while time.monotonic() - began < 0.5:
            sum(range(20000))
        with open(f"{folder}/ran", "a") as file:
            file.write(f"{part} {os.uname().nodename} {time.time()}\n")
        return iter(found)

    print("SUBMITTED", flush=True)
    numbers = context.parallelize(range(COUNT), PARTS)
    sums = numbers.mapPartitionsWithIndex(square).reduceByKey(add, 6).collect()
    print("SUMS", sorted(sums), flush=True)
    print("NEW", context.parallelize(range(1000), 4).map(lambda number: number + 1).sum(), flush=True)
    session.stop()
    print("DONE", flush=True)


if __name__ == "__main__":
    main()
