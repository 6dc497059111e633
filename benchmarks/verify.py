"""Is an output, or an answer, right? Only then does its time count."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.workload import KEY, band_of

BATCH_ROWS = 262_144


class WrongOutput(Exception):
    """The output is not what direct prediction gives."""


def check_output(files: list[Path], expected: dict[str, Any], model: str, *, keys_only: bool = False) -> None:
    """Raise WrongOutput unless every key is there once, with the right probabilities and bands."""
    count = expected["rows"]
    seen, total, rows, matched = np.zeros(count, dtype=bool), 0.0, 0, 0
    sampled, right = np.array(expected["sampled"]), np.array(expected["probability"][model])
    for batch in _batches(files):
        key, probability, band = (batch[name].to_numpy() for name in (KEY, "probability", "band"))
        if len(key) and (key.min() < 0 or key.max() >= count):
            raise WrongOutput("there are keys that the input does not have")
        rows, total = rows + len(key), total + float(probability.sum())
        seen[key] = True
        if keys_only:
            continue
        place = np.minimum(np.searchsorted(sampled, key), len(sampled) - 1)
        here = sampled[place] == key
        matched += int(here.sum())
        if not np.allclose(probability[here], right[place[here]], rtol=0, atol=1e-9):
            raise WrongOutput("a sampled row differs from direct prediction by more than 1e-9")
        if not np.array_equal(band, band_of(probability)):
            raise WrongOutput("a band does not fit its probability")
    if rows != count or not seen.all():
        raise WrongOutput(f"{rows:,} rows with {int(seen.sum()):,} different keys, expected {count:,} of both")
    if not keys_only and (matched != len(sampled) or not np.isclose(total, expected["sum"][model], rtol=1e-9, atol=0)):
        raise WrongOutput(f"the probabilities sum to {total!r}, expected {expected['sum'][model]!r}")


def _batches(files: list[Path]) -> Iterator[pa.RecordBatch]:
    for file in files:
        yield from pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=[KEY, "probability", "band"])


def parquet_files(output: Path) -> list[Path]:
    """What a peer wrote."""
    return sorted(output.rglob("*.parquet"))


def published_files(home: Path, model: str) -> list[Path]:
    """What Sereno published, as any other reader of the Delta table sees it."""
    from deltalake import DeltaTable

    return [Path(uri.removeprefix("file://")) for uri in DeltaTable(home / "predictions" / model).file_uris()]


def check_answers(
    port: int, path: str, bodies: Sequence[bytes], right: Sequence[float], answer: Callable[[Any], float]
) -> None:
    """Raise WrongOutput unless 16 requests in turn, and 256 by 32 callers at once, get the right probabilities."""
    with ThreadPoolExecutor(32) as callers:
        for at_once, count in ((1, 16), (32, 256)):
            shares = [range(first, count, at_once) for first in range(at_once)]
            list(callers.map(lambda share: _ask_in_turn(port, path, bodies, right, answer, share), shares))


def _ask_in_turn(
    port: int,
    path: str,
    bodies: Sequence[bytes],
    right: Sequence[float],
    answer: Callable[[Any], float],
    numbers: range,
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for number in numbers:
        try:
            response = _ask(connection, path, bodies[number])
        except ConnectionError:  # some close a connection that is idle for a moment, as they may
            connection.close()
            response = _ask(connection, path, bodies[number])
        body = response.read()
        if response.status != 200:
            raise WrongOutput(f"status {response.status} for row {number}: {body[:300]!r}")
        if not abs(answer(json.loads(body)) - right[number]) <= 1e-9:
            raise WrongOutput(f"row {number} differs from direct prediction by more than 1e-9: {body[:300]!r}")
    connection.close()


def _ask(connection: http.client.HTTPConnection, path: str, body: bytes) -> http.client.HTTPResponse:
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    return connection.getresponse()
