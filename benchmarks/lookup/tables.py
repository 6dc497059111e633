"""What is looked up: one prediction for each key from 0, the same from the same seed everywhere; and it in each peer's store.

Sources and stores lie under .data/lookup-KEYS, each made once, when somebody needs it.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import lmdb
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.environments import variables
from benchmarks.lookup import redis
from benchmarks.workload import DATA, FOLDER, KEY, band_of

FILES = 16
ROW_GROUP = 131_072
CHUNK = 100_000  # keys that are put into a store at a time
SEGMENTS = ("low", "middle", "high")
ORDERS = ("shuffled", "sorted")  # of the keys in the source


class Outputs(NamedTuple):
    probability: float
    band: int
    segment: str


class Prediction(msgspec.Struct):
    probability: float
    band: int
    segment: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns by key."""

    balance: np.ndarray
    credit_left: np.ndarray
    probability: np.ndarray
    band: np.ndarray

    def __len__(self) -> int:
        return len(self.probability)

    def outputs(self, key: int) -> Outputs:
        """What is to be answered for a key."""
        return next(self.of(slice(key, key + 1)))

    def of(self, keys: slice | np.ndarray) -> Iterator[Outputs]:
        """What is to be answered for these keys."""
        bands = self.band[keys].tolist()
        segments = [SEGMENTS[band // 4] for band in bands]
        return map(Outputs, self.probability[keys].tolist(), bands, segments)

    def chunks(self, at_once: int = CHUNK) -> Iterator[tuple[range, Iterator[Outputs]]]:
        """All keys with what is to be answered for them, so many at a time."""
        for start in range(0, len(self), at_once):
            end = min(start + at_once, len(self))
            yield range(start, end), self.of(slice(start, end))


@lru_cache(1)
def table(keys: int) -> Table:
    random = np.random.default_rng((4, keys))
    balance, credit_left = random.exponential(20_000, keys), random.exponential(60_000, keys)
    probability = balance / (balance + credit_left)
    return Table(balance=balance, credit_left=credit_left, probability=probability, band=band_of(probability))


def source(keys: int, order: str = "shuffled") -> Path:
    """A folder of Parquet files with what the model computes predictions from; the keys in one of ORDERS."""

    def write(folder: Path) -> None:
        its = table(keys)
        place = np.arange(keys) if order == "sorted" else np.random.default_rng(5).permutation(keys)
        for number in range(FILES):
            here = place[keys * number // FILES : keys * (number + 1) // FILES]
            columns = {KEY: here, "balance": its.balance[here], "credit_left": its.credit_left[here]}
            file = folder / f"customers-{number:02d}.parquet"
            pq.write_table(pa.table(columns), file, compression="zstd", row_group_size=ROW_GROUP)

    return _made(keys, f"source-{order}", write)


def store(keys: int, kind: str) -> Path:
    """The folder in which one of STORES has all predictions."""
    return _made(keys, kind, lambda folder: STORES[kind](table(keys), folder))


def _made(keys: int, name: str, write: Callable[[Path], None]) -> Path:
    folder = DATA / f"lookup-{keys}" / name
    if not folder.exists():
        print(f"making {folder}", flush=True)
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write(unfinished)
        unfinished.replace(folder)
    return folder


def _ready(chunk: Iterator[Outputs]) -> list[bytes]:
    """As JSON."""
    encode = msgspec.json.Encoder().encode
    return [encode(Prediction(*outputs)) for outputs in chunk]


def _fill_lmdb(its: Table, folder: Path) -> None:
    """Keys as a URL has them, so that whoever answers from it need not understand them; in their order, so that it is dense."""
    names = sorted(b"%d" % key for key in range(len(its)))
    with lmdb.open(str(folder / "data.lmdb"), subdir=False, lock=False, map_size=1 << 38, sync=False) as environment:
        for start in range(0, len(names), CHUNK):
            here = names[start : start + CHUNK]
            values = _ready(its.of(np.array(here).astype(np.int64)))
            with environment.begin(write=True) as writing, writing.cursor() as cursor:
                cursor.putmulti(zip(here, values, strict=True), append=True)
        environment.sync(True)


def _fill_sqlite(its: Table, folder: Path) -> None:
    connection = sqlite3.connect(folder / "data.sqlite")
    connection.execute(
        f"create table predictions ({KEY} integer primary key, probability real, band integer, segment text)"
    )
    for keys, chunk in its.chunks():
        rows = ((key, *outputs) for key, outputs in zip(keys, chunk, strict=True))
        connection.executemany("insert into predictions values (?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()


def _fill_redis(its: Table, folder: Path) -> None:
    with redis.running(folder) as client:
        for keys, chunk in its.chunks():
            client.put(zip(map(redis.name_of, keys), _ready(chunk), strict=True))
        client.save()


def _fill_feast(kind: str) -> Callable[[Table, Path], None]:
    def fill(its: Table, folder: Path) -> None:
        from benchmarks.peers_lookup.known import FEAST_PACKAGES, environment

        columns = {KEY: np.arange(len(its)), "probability": its.probability, "band": its.band}
        segments = pa.array(SEGMENTS).take(pa.array(its.band // 4))
        pq.write_table(pa.table(columns | {"segment": segments}), folder / "predictions.parquet")
        command = [environment("feast", FEAST_PACKAGES), "-m", "benchmarks.peers_lookup.feast_fill", kind, folder]
        if kind == "redis":
            with redis.running(folder) as client:
                _run([*command, str(client.port)])
                client.save()
        else:
            _run(command)

    return fill


def _run(command: list[str | Path]) -> None:
    """Raise CalledProcessError, with what it said in front."""
    done = subprocess.run(
        command, env=variables(None), cwd=FOLDER.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        sys.stderr.write(done.stdout.decode(errors="replace")[-2_000:])
        done.check_returncode()


STORES: dict[str, Callable[[Table, Path], None]] = {
    "lmdb": _fill_lmdb,
    "sqlite": _fill_sqlite,
    "redis": _fill_redis,
    "feast-sqlite": _fill_feast("sqlite"),
    "feast-redis": _fill_feast("redis"),
}
