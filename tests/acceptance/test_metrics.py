"""What two workers count adds up, is the same whichever is asked, and outlives each of them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.acceptance.server import Server

MODEL = """
import time
from typing import TypedDict

import numpy as np

from sereno import Key, Model


class Row(TypedDict):
    id: Key[int]
    x: float


class Score(TypedDict):
    y: float


model = Model("total", inputs=Row, outputs=Score)


@model.load
def load():
    return 2.0


@model.predict
def predict(weight, rows: np.ndarray) -> np.ndarray:
    if (rows[:, 0] == -1).any():
        raise ValueError("no answer to -1")
    if (rows[:, 0] == -2).any():
        time.sleep(1000)
    return rows * weight
"""
SETTINGS = """
[serve]
request_timeout_seconds = 3

[models.total]
file = "total.py"
log = "off"
predict_timeout_seconds = 1
"""

Labels = tuple[tuple[str, str], ...]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "total.py").write_text(MODEL)
    (tmp_path / "sereno.toml").write_text(SETTINGS)
    with Server(tmp_path, "--workers", "2") as server:
        yield server


class Scrape:
    """One look at /metrics."""

    def __init__(self, server: Server) -> None:
        # a connection of its own each time, so that now one worker is asked, now the other
        text = httpx.get(f"{server.url}/metrics").raise_for_status().text
        self.samples: dict[tuple[str, Labels], float] = {}
        self.kinds: dict[str, str] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self.samples[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
                self.kinds[sample.name] = family.type

    def sum(self, name: str, **labels: str) -> float:
        """Over all series of that name that have these labels."""
        return sum(v for (n, ls), v in self.samples.items() if n == name and set(labels.items()) <= set(ls))

    def labels(self, name: str, label: str) -> set[str]:
        return {dict(ls)[label] for n, ls in self.samples if n == name}


def ask(server: Server, *rows: float, status: int = 200) -> None:
    """Each time on a new connection."""
    body = [{"id": n, "x": x} for n, x in enumerate(rows)]
    assert httpx.post(f"{server.url}/predict", json=body).status_code == status


def answered(server: Server) -> float:
    return Scrape(server).sum("sereno_requests_total", model="total", status="200")


def test_two_workers_are_counted_together(server: Server) -> None:
    for _ in range(40):
        ask(server, 1.0, 2.0, 3.0)
    for _ in range(5):
        assert httpx.post(f"{server.url}/predict", json={"id": 1}).status_code == 422
    ask(server, -1.0, status=500)
    server.until(lambda: answered(server) == 40, "count 40 answers")
    server.until(lambda: Scrape(server).sum("sereno_failed_rows_total") == 1, "count what failed")
    server.until(lambda: Scrape(server).sum("sereno_rejected_rows_total") == 5, "count what was refused")
    for _ in range(10):  # whichever worker is asked
        scrape = Scrape(server)
        assert scrape.sum("sereno_requests_total", protocol="native", status="200") == 40
        assert scrape.sum("sereno_requests_total", protocol="native", status="422") == 5
        assert scrape.sum("sereno_request_duration_seconds_count", protocol="native") == 40
        assert scrape.sum("sereno_errors_total", model="total") == 1
        assert (
            scrape.sum("sereno_batch_rows_sum", model="total") == scrape.sum("sereno_rows_total", model="total") == 121
        )
        assert scrape.sum("sereno_predict_duration_seconds_count") == scrape.sum("sereno_batch_rows_count")
        assert scrape.sum("sereno_queue_duration_seconds_count") == scrape.sum("sereno_batch_rows_count")
        assert scrape.sum("sereno_workers", state="ready") == 2
        assert scrape.sum("sereno_worker_restarts_total") == 0
        assert scrape.sum("sereno_requests_in_flight") >= 1  # this very one
        assert scrape.sum("sereno_connections") >= 1
        assert scrape.labels("sereno_worker_resident_memory_bytes", "worker") == {"1", "2"}
        assert scrape.sum("sereno_worker_resident_memory_bytes", worker="1") > 20e6
        assert scrape.labels("sereno_model_info", "model") == {"total"}
        assert scrape.labels("sereno_model_info", "fingerprint") == {server.told["models"][0]["fingerprint"]}
        assert scrape.sum("sereno_build_info") == 1


def test_what_a_killed_worker_had_counted_stays_and_goes_on(server: Server) -> None:
    for _ in range(30):
        ask(server, 1.0)
    server.until(lambda: answered(server) == 30, "count 30 answers")

    stop, wrong = threading.Event(), list[str]()
    watcher = threading.Thread(target=watch_counters, args=[server, stop, wrong])
    watcher.start()
    try:
        for killed in (1, 2):
            first = server.workers()[0]
            os.kill(first, signal.SIGKILL)
            server.until(lambda first=first: first not in server.workers() and len(server.workers()) == 2, "replace it")
            server.until(
                lambda killed=killed: Scrape(server).sum("sereno_worker_restarts_total", reason="died") == killed,
                "count the restart",
            )
            server.until(lambda: Scrape(server).sum("sereno_workers", state="ready") == 2, "have two workers again")
            assert answered(server) == 30
    finally:
        stop.set()
        watcher.join()
    assert wrong == []
    for _ in range(12):
        ask(server, 1.0)
    server.until(lambda: answered(server) == 42, "count 42 answers")


def watch_counters(server: Server, stop: threading.Event, wrong: list[str]) -> None:
    """Look again and again: no counter goes back, but those of a process that began anew."""
    before: Scrape | None = None
    while not stop.is_set():
        try:
            scrape = Scrape(server)
        except httpx.TransportError:
            continue  # the worker that was asked is the one that was killed
        for (name, labels), value in before.samples.items() if before is not None else ():
            if scrape.kinds.get(name) in ("counter", "histogram") and not name.startswith("sereno_worker_cpu"):
                now = scrape.samples.get((name, labels))
                if now is None or now < value:
                    wrong.append(f"{name}{labels}: {value} → {now}")
        before = scrape


def test_a_reload_and_a_hung_worker_lose_no_count(server: Server) -> None:
    for _ in range(20):
        ask(server, 1.0)
    server.until(lambda: answered(server) == 20, "count 20 answers")
    server.reload()
    server.until(lambda: len(server.workers()) == 2, "end the old workers")
    assert answered(server) == 20
    scrape = Scrape(server)
    assert scrape.sum("sereno_worker_restarts_total") == 0  # nothing went wrong
    assert scrape.sum("sereno_workers", state="ready") == 2

    caller = threading.Thread(target=hang, args=[server])
    caller.start()
    server.until(
        lambda: Scrape(server).sum("sereno_worker_restarts_total", reason="hung") == 1, "replace the worker that hangs"
    )
    caller.join()
    server.until(lambda: Scrape(server).sum("sereno_workers", state="ready") == 2, "have two workers again")
    assert answered(server) == 20


def hang(server: Server) -> None:
    with contextlib.suppress(httpx.TransportError):
        httpx.post(f"{server.url}/predict", json={"id": 1, "x": -2.0}, timeout=120)
