"""The metrics add up over workers, whoever ends, and are text that Prometheus reads."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sereno import __version__
from sereno.serve.metrics import FAMILIES, Metrics, fold, render, render_alone
from sereno.serve.processes.board import ROOM, Board, State

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every worker of a test gives its descriptor back."""
    made: list[Metrics] = []
    start = Metrics.__init__
    monkeypatch.setattr(Metrics, "__init__", lambda self: (start(self), made.append(self))[0])
    yield
    for metrics in made:
        metrics.close()


Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create(4)
    yield board
    board.close()


def read(text: bytes) -> Samples:
    """The text as Prometheus' own client reads it. Fails on a sample that is there twice."""
    samples: Samples = {}
    for family in text_string_to_metric_families(text.decode()):
        assert family.documentation
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in samples, key
            samples[key] = sample.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, tuple(sorted(labels.items()))))


def busy(metrics: Metrics, times: int = 1) -> None:
    for _ in range(times):
        metrics.done("churn", "native", 200, 0.0002)
        metrics.done("churn", "native", 503, 0.0001)
        metrics.done("churn", "v2", 500, 7)
        metrics.done("", "other", 404, 0.0001)
        metrics.batch("churn", 3, 0.00002, 0.003)
        metrics.rejected("churn", 2)
        metrics.failed("churn", 1)
        metrics.fetched("churn", 0.3, failed=True)


def check_busy(samples: Samples, times: int) -> None:
    assert value(samples, "sereno_requests_total", model="churn", protocol="native", status="200") == times
    assert value(samples, "sereno_requests_total", model="churn", protocol="native", status="503") == times
    assert value(samples, "sereno_requests_total", model="", protocol="other", status="404") == times
    assert value(samples, "sereno_errors_total", model="churn", protocol="v2") == times
    assert value(samples, "sereno_errors_total", model="churn", protocol="native") == 0
    assert value(samples, "sereno_shed_requests_total", model="churn", protocol="native") == times
    assert value(samples, "sereno_request_duration_seconds_count", model="churn", protocol="native") == times
    assert value(samples, "sereno_request_duration_seconds_count", model="churn", protocol="v2") is None
    assert value(samples, "sereno_rows_total", model="churn") == 3 * times
    assert value(samples, "sereno_batch_rows_sum", model="churn") == 3 * times
    assert value(samples, "sereno_queue_duration_seconds_count", model="churn") == times
    assert value(samples, "sereno_predict_duration_seconds_sum", model="churn") == pytest.approx(0.003 * times)
    assert value(samples, "sereno_fetch_duration_seconds_sum", model="churn") == pytest.approx(0.3 * times)
    assert value(samples, "sereno_fetch_errors_total", model="churn") == times
    assert value(samples, "sereno_rejected_rows_total", model="churn") == 2 * times
    assert value(samples, "sereno_failed_rows_total", model="churn") == times


def test_one_worker_alone() -> None:
    metrics = Metrics()
    busy(metrics, 2)
    check_busy(read(render_alone(metrics)), 2)


def test_workers_add_up(board: Board) -> None:
    workers = [Metrics(), Metrics()]
    for slot, metrics in enumerate(workers, start=1):
        metrics.watch("sereno_queued_rows", lambda: 5, "churn")
        metrics.watch("sereno_predict_in_thread", lambda: True, "churn")
        metrics.watch("sereno_log_lag_seconds", lambda slot=slot: 0.5 * slot, "churn")
        metrics.serve("churn", "abc" if slot == 1 else "def")
        busy(metrics, slot)
        metrics.flush(board, slot)
    samples = read(render(board))
    check_busy(samples, 3)
    assert value(samples, "sereno_queued_rows", model="churn") == 10
    assert value(samples, "sereno_predict_in_thread", model="churn") == 2
    assert value(samples, "sereno_log_lag_seconds", model="churn") == 1.0
    for fingerprint in ("abc", "def"):
        assert value(samples, "sereno_model_info", model="churn", fingerprint=fingerprint) == 1
    for name in ("resident_memory_bytes", "cpu_seconds_total", "start_time_seconds"):
        for worker in ("1", "2"):
            assert (value(samples, f"sereno_worker_{name}", worker=worker) or 0) > 0


def test_buckets_hold_what_is_at_most_their_bound() -> None:
    metrics = Metrics()
    for seconds in (0.0001, 0.00011, 0.00025, 9.9, 10.0, 10.1):
        metrics.done("churn", "native", 200, seconds)
    for rows in (1, 2, 3, 1024, 5000):
        metrics.batch("churn", rows, 0, 0)
    samples = read(render_alone(metrics))
    found = {
        le: value(samples, "sereno_request_duration_seconds_bucket", model="churn", protocol="native", le=le)
        for le in ("0.0001", "0.00025", "0.0005", "5", "10", "+Inf")
    }
    assert found == {"0.0001": 1, "0.00025": 3, "0.0005": 3, "5": 3, "10": 5, "+Inf": 6}
    rows_at = {
        le: value(samples, "sereno_batch_rows_bucket", model="churn", le=le) for le in ("1", "2", "4", "1024", "+Inf")
    }
    assert rows_at == {"1": 1, "2": 2, "4": 3, "1024": 4, "+Inf": 5}
    assert value(samples, "sereno_batch_rows_count", model="churn") == 5


def test_series_of_a_model_are_there_before_anything_happens() -> None:
    metrics = Metrics()
    metrics.serve("churn", "abc")
    samples = read(render_alone(metrics))
    for name in ("rows", "rejected_rows", "failed_rows"):
        assert value(samples, f"sereno_{name}_total", model="churn") == 0
    assert value(samples, "sereno_predict_duration_seconds_count", model="churn") == 0
    assert value(samples, "sereno_fetch_duration_seconds_count", model="churn") is None  # it may have no fetch


def test_a_worker_that_ended_still_counts(board: Board) -> None:
    metrics = [Metrics() for _ in range(3)]
    for slot in (1, 2):
        busy(metrics[slot - 1])
        metrics[slot - 1].watch("sereno_queued_rows", lambda: 5, "churn")
        metrics[slot - 1].flush(board, slot)
        board.set_state(slot, State.READY)
    fold(board, 1, "died")
    assert board.state(1) is State.EMPTY
    samples = read(render(board))
    check_busy(samples, 2)
    assert value(samples, "sereno_queued_rows", model="churn") == 5  # what waited there is gone
    assert value(samples, "sereno_worker_cpu_seconds_total", worker="1") is None
    assert value(samples, "sereno_worker_restarts_total", reason="died") == 1
    busy(metrics[2])  # the next one in its slot
    metrics[2].flush(board, 1)
    check_busy(read(render(board)), 3)
    fold(board, 1, "hung")
    fold(board, 2, "drained")
    fold(board, 3, "died")  # before it counted anything
    samples = read(render(board))
    check_busy(samples, 3)
    assert value(samples, "sereno_worker_restarts_total", reason="died") == 2
    assert value(samples, "sereno_worker_restarts_total", reason="hung") == 1


def test_it_counts_once_while_it_is_folded(board: Board) -> None:
    """At any moment between the supervisor's writes: counted in its slot or in slot 0, never in both or in none."""
    stop = threading.Event()
    seen: set[float | None] = set()

    def look() -> None:
        while not stop.is_set():
            seen.add(value(read(render(board)), "sereno_rows_total", model="churn"))

    one = Metrics()
    busy(one)
    one.flush(board, 1)
    looker = threading.Thread(target=look)
    looker.start()
    try:
        for _ in range(100):
            fold(board, 1, "drained")
            another = Metrics()  # which did nothing yet
            another.flush(board, 1)
    finally:
        stop.set()
        looker.join()
    assert seen == {3}


def test_what_slot_0_names_stays_bounded(board: Board) -> None:
    for _ in range(500):
        metrics = Metrics()
        metrics.done("churn", "native", 200, 0.1)
        metrics.flush(board, 1)
        fold(board, 1, "died")
    assert len(board.read(0)) < 2000
    samples = read(render(board))
    assert value(samples, "sereno_requests_total", model="churn", protocol="native", status="200") == 500


def test_states_of_workers(board: Board) -> None:
    board.set_state(1, State.READY)
    board.set_state(2, State.READY)
    board.set_state(3, State.HUNG)
    samples = read(render(board))
    found = {s: value(samples, "sereno_workers", state=s) for s in ("starting", "ready", "draining", "hung")}
    assert found == {"starting": 0, "ready": 2, "draining": 0, "hung": 1}
    assert value(samples, "sereno_worker_restarts_total", reason="died") == 0


def test_versions_are_labels() -> None:
    metrics = Metrics()
    python = ".".join(map(str, sys.version_info[:3]))
    assert value(read(render_alone(metrics)), "sereno_build_info", version=__version__, python=python) == 1


def test_values_of_labels_are_escaped() -> None:
    metrics = Metrics()
    metrics.watch("sereno_refused_requests_total", lambda: 1, 'a"b\\c\nd')
    assert value(read(render_alone(metrics)), "sereno_refused_requests_total", reason='a"b\\c\nd') == 1


def test_what_is_watched_must_have_its_labels() -> None:
    metrics = Metrics()
    with pytest.raises(ValueError, match=r"sereno_queued_rows has the labels \('model',\), not \(\)"):
        metrics.watch("sereno_queued_rows", lambda: 1)


def test_too_many_models_stop_the_metrics_and_nothing_else(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    metrics.flush(board, 1)
    before = board.read(1)
    for n in range(ROOM // 100):
        metrics.serve(f"model-{n}", "x" * 64)
    for _ in range(2):
        metrics.flush(board, 1)
    assert board.read(1) == before
    assert [r.message for r in caplog.records] == [
        "the metrics of so many models have no room on the board; /metrics stands still"
    ]


def test_names_follow_the_conventions() -> None:
    for name, family in FAMILIES.items():
        assert re.fullmatch(r"sereno_[a-z_]+", name)
        assert name.endswith("_total") == (family.kind == "counter"), name
        assert bool(family.bounds) == (family.kind == "histogram"), name
        assert not re.search(r"(milli|micro|minutes|kilo|mega|percent)", name), name
        assert family.about.endswith("."), name
        assert list(family.bounds) == sorted(set(family.bounds))


def test_the_supervisor_can_afford_it() -> None:
    show = "import sys, sereno.serve.metrics; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    assert {"numpy", "pyarrow", "uvicorn", "starlette", "asyncio"} & set(done.stdout.split()) == set()


# docs/metrics.md


def test_every_metric_has_its_row() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*) \|$", PAGE, re.MULTILINE)
    told = {name: (kind, tuple(re.findall(r"`(\w+)`", labels)), about) for name, kind, labels, about in rows}
    assert told == {name: (f.kind, f.labels, f.about) for name, f in FAMILIES.items()}
    assert list(told) == list(FAMILIES)


def selectors() -> list[tuple[str, set[str]]]:
    """Name and labels of every series that the page's queries name."""
    found = []
    for name, labels in re.findall(r"\b(sereno_\w+)(?:\{([^}]*)\})?", PAGE):
        found.append((name, set(re.findall(r"(\w+)\s*[=!]", labels))))
    return found


def test_queries_name_metrics_and_labels_that_exist() -> None:
    assert len(selectors()) > 30
    for name, labels in selectors():
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        family = FAMILIES.get(name) or FAMILIES[base]
        if name not in FAMILIES:
            assert family.kind == "histogram", name
        assert labels <= {*family.labels, "le", "job", "instance"}, (name, labels)


def test_grouped_labels_exist() -> None:
    """`sum by (model, le) (… metric …)`: each of these is a label of the metrics in the same expression."""
    for line in re.findall(r"^\s*expr: (.+(?:\n {10,}.+)*)", PAGE, re.MULTILINE):
        known = {
            label
            for name in re.findall(r"\bsereno_\w+", line)
            for label in (FAMILIES.get(name) or FAMILIES[re.sub(r"_(bucket|sum|count)$", "", name)]).labels
        }
        for labels in re.findall(r"\bby \(([^)]*)\)", line):
            assert set(re.split(r",\s*", labels)) <= {*known, "le", "job", "instance"}, line
