"""What bounds a build of the index, on one core: bounds encode|append KEYS FILE

encode: Arrow columns become Python values, and msgspec makes JSON of every prediction, one by one.
append: LMDB takes ready keys and values in the order of the keys, 50,000 a transaction, and has them on disk at the end.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import lmdb
import msgspec
import pyarrow as pa

from benchmarks.lookup.tables import Prediction, table

AT_ONCE = 50_000


class Clock:
    """Sums up what is in its blocks."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        cpu, start = time.process_time(), time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start
        self.cpu_seconds += time.process_time() - cpu


def encode(keys: int, file: str, clock: Clock) -> None:
    to_json = msgspec.json.Encoder(decimal_format="string").encode
    for _, chunk in table(keys).chunks():
        columns = [pa.array(column) for column in zip(*chunk, strict=True)]
        with clock():
            for row in zip(*(column.to_pylist() for column in columns), strict=True):
                to_json(Prediction(*row))


def append(keys: int, file: str, clock: Clock) -> None:
    to_json = msgspec.json.Encoder().encode
    with lmdb.open(file, subdir=False, lock=False, map_size=1 << 38, sync=False) as environment:
        for names, chunk in table(keys).chunks(AT_ONCE):
            values = [to_json(Prediction(*row)) for row in chunk]
            entries = [(key.to_bytes(8, "big"), value) for key, value in zip(names, values, strict=True)]
            with clock(), environment.begin(write=True) as writing, writing.cursor() as cursor:
                cursor.putmulti(entries, append=True)
        with clock():
            environment.sync(True)


if __name__ == "__main__":
    its_clock = Clock()
    bound: Callable[[int, str, Clock], None] = {"encode": encode, "append": append}[sys.argv[1]]
    bound(int(sys.argv[2]), sys.argv[3], its_clock)
    print(json.dumps({"seconds": its_clock.seconds, "cpu_seconds": its_clock.cpu_seconds}))
