"""What a server counts, over all its workers, in Prometheus' text format. `FAMILIES` is the list; docs/metrics.md tells it.

Each worker counts in its own memory (`Metrics`), and puts what it has on the board once a second. Whoever is asked for
/metrics adds up what is there. When a worker has ended, the supervisor adds its counters to slot 0 (`fold`), so no counter
ever goes back; a worker that is killed takes the last second with it. Nothing heavy is imported.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import sys
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import msgspec

from sereno import __version__
from sereno.serve.processes.board import ROOM, Board, State
from sereno.status import Status

LOG = logging.getLogger("sereno.serve")

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

Ended = Literal["died", "hung", "drained"]
Cells = dict[tuple[str, ...], list[float]]  # label values → one number, or of a histogram: its buckets and its sum


class Family(NamedTuple):
    """A metric: one row of docs/metrics.md."""

    kind: Literal["counter", "gauge", "histogram"]
    about: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()  # of a histogram
    worst: bool = False  # a gauge of which the greatest of all workers counts, in place of their sum


FAMILIES: Mapping[str, Family] = {
    "sereno_requests_total": Family("counter", "Requests that were answered.", ("model", "protocol", "status")),
    "sereno_request_duration_seconds": Family(
        "histogram",
        "Time from a whole request to its answer, where that was a prediction (status 2xx).",
        ("model", "protocol"),
        _SECONDS,
    ),
    "sereno_errors_total": Family(
        "counter", "Answers that are the server's fault: status 5xx but 503.", ("model", "protocol")
    ),
    "sereno_shed_requests_total": Family(
        "counter", "Requests turned away with 503: too many rows waiting, or not ready.", ("model", "protocol")
    ),
    "sereno_refused_requests_total": Family(
        "counter", "Requests that were not let in: unknown host, page of another site, no valid key.", ("reason",)
    ),
    "sereno_requests_in_flight": Family("gauge", "Requests that wait for their answer."),
    "sereno_connections": Family("gauge", "Open connections."),
    "sereno_rows_total": Family("counter", "Rows given to predict.", ("model",)),
    "sereno_rejected_rows_total": Family("counter", "Rows that do not fit the row type (422).", ("model",)),
    "sereno_failed_rows_total": Family(
        "counter", "Rows on which predict raised, or answered otherwise than declared.", ("model",)
    ),
    "sereno_batch_rows": Family("histogram", "Rows that predict got at once.", ("model",), _ROWS),
    "sereno_queue_duration_seconds": Family(
        "histogram", "How long the first row of a batch waited for predict.", ("model",), _SECONDS
    ),
    "sereno_predict_duration_seconds": Family("histogram", "How long predict took for a batch.", ("model",), _SECONDS),
    "sereno_queued_rows": Family("gauge", "Rows that wait for predict.", ("model",)),
    "sereno_predict_in_thread": Family(
        "gauge", "Workers in which predict has a thread of its own, as it is slow.", ("model",)
    ),
    "sereno_fetch_duration_seconds": Family("histogram", "How long fetch took for a batch.", ("model",), _SECONDS),
    "sereno_fetch_errors_total": Family("counter", "Calls of fetch that raised or took too long.", ("model",)),
    "sereno_lookup_keys_total": Family(
        "counter",
        "Keys that were looked up: found, found but stale, unknown, handed on to be asked live, or lost with the store.",
        ("model", "result"),
    ),
    "sereno_lookup_version": Family("gauge", "The version that a worker's lookups answer from.", ("model", "worker")),
    "sereno_lookup_age_seconds": Family(
        "gauge", "Age of the predictions that lookups find, of the worker that is last.", ("model",), worst=True
    ),
    "sereno_lookup_stale": Family("gauge", "1 where they are older than max_age_seconds.", ("model",), worst=True),
    "sereno_lookup_behind_seconds": Family(
        "gauge",
        "For how long the table has been ahead of the lookups, of the worker that is last.",
        ("model",),
        worst=True,
    ),
    "sereno_lookup_failures_total": Family(
        "counter",
        "Indexes of lookups that were damaged or missing, or could not be built; and when their bucket could not be read.",
        ("model",),
    ),
    "sereno_last_success_timestamp": Family(
        "gauge", "When a run of the model last ended well, in Unix time.", ("model",), worst=True
    ),
    "sereno_freshness_seconds": Family(
        "gauge", "Age of what is published: now minus its data time.", ("model",), worst=True
    ),
    "sereno_log_lag_seconds": Family(
        "gauge", "Age of the oldest answer that is not on disk yet, of the worker that is last.", ("model",), worst=True
    ),
    "sereno_log_dropped_rows_total": Family(
        "counter", "Answers that the log lost: it could not keep up, or the disk failed.", ("model",)
    ),
    "sereno_access_log_dropped_lines_total": Family(
        "counter", "Lines that the access log left out, as nobody read as fast."
    ),
    "sereno_workers": Family("gauge", "Worker processes.", ("state",)),
    "sereno_worker_restarts_total": Family(
        "counter", "Workers that were replaced because they died or hung.", ("reason",)
    ),
    "sereno_worker_resident_memory_bytes": Family("gauge", "Memory of a worker, shared pages included.", ("worker",)),
    "sereno_worker_cpu_seconds_total": Family("counter", "Processor time of a worker.", ("worker",)),
    "sereno_worker_start_time_seconds": Family(
        "gauge", "When a worker started, in Unix time.", ("worker",), worst=True
    ),
    "sereno_build_info": Family("gauge", "1; its labels tell the versions.", ("version", "python"), worst=True),
    "sereno_model_info": Family(
        "gauge", "1; its labels tell the models in service.", ("model", "fingerprint"), worst=True
    ),
}


class Kept(msgspec.Struct, array_like=True):
    """What a slot of the board keeps: everything that one worker counted, or of slot 0, all that have ended."""

    worker: str  # unlike that of any other worker, before or after; of slot 0: empty
    cells: dict[str, list[tuple[list[str], list[float]]]]  # family → label values, numbers
    folded: list[str] = []  # of slot 0: the last workers that were added to it


class _OfModel:
    """What one worker counts of one model."""

    __slots__ = (
        "batch_rows",
        "failed_indexes",
        "failed_rows",
        "fetch",
        "fetch_errors",
        "lookups",
        "predict",
        "queue",
        "rejected_rows",
    )

    def __init__(self) -> None:
        self.batch_rows, self.queue = _histogram(_ROWS)(), _histogram(_SECONDS)()
        self.predict, self.fetch = _histogram(_SECONDS)(), _histogram(_SECONDS)()
        self.rejected_rows = self.failed_rows = self.fetch_errors = 0
        self.failed_indexes = 0
        self.lookups: dict[str, int] = {}  # result → keys; empty where nobody can look anything up


class Metrics:
    """What one worker counts. All is called on the event loop; nothing can fail or wait.

    Names of models and protocols are ours, never the caller's: each new one is a new series, kept for ever.
    """

    def __init__(self) -> None:
        self.worker_id = f"{os.getpid()}-{os.urandom(6).hex()}"
        self._requests: dict[tuple[str, str, int], list[float]] = defaultdict(_histogram(_SECONDS))
        self._models: dict[str, _OfModel] = defaultdict(_OfModel)
        self._watched: list[tuple[str, tuple[str, ...], Callable[[], float | None]]] = []
        self._started = time.time()
        self._memory: int | None = None  # a descriptor, opened now: later there may be none left
        with contextlib.suppress(OSError):  # no /proc: no such series
            self._memory = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._is_too_large = False

    def close(self) -> None:
        if self._memory is not None:
            os.close(self._memory)
            self._memory = None

    # What happens

    def done(self, model: str, protocol: str, status: int, seconds: float, count: int = 1) -> None:
        """So many answers were sent, each after that time. `model` is empty where the request was for none."""
        cell = self._requests[model, protocol, status]
        cell[bisect_left(_SECONDS, seconds)] += count
        cell[-1] += seconds * count

    def batch(self, model: str, rows: int, queue_seconds: float, predict_seconds: float) -> None:
        """predict was called once; `queue_seconds`: how long the first of the rows had waited."""
        counted = self._models[model]
        cell = counted.batch_rows
        cell[bisect_left(_ROWS, rows)] += 1
        cell[-1] += rows
        cell = counted.queue
        cell[bisect_left(_SECONDS, queue_seconds)] += 1
        cell[-1] += queue_seconds
        cell = counted.predict
        cell[bisect_left(_SECONDS, predict_seconds)] += 1
        cell[-1] += predict_seconds

    def fetched(self, model: str, seconds: float, *, failed: bool = False) -> None:
        """fetch was called once."""
        counted = self._models[model]
        counted.fetch[bisect_left(_SECONDS, seconds)] += 1
        counted.fetch[-1] += seconds
        counted.fetch_errors += failed

    def rejected(self, model: str, rows: int) -> None:
        """Rows do not fit the row type."""
        self._models[model].rejected_rows += rows

    def failed(self, model: str, rows: int) -> None:
        """predict raised on rows, or answered otherwise than declared."""
        self._models[model].failed_rows += rows

    def lookups(self, model: str) -> dict[str, int]:
        """Keys that were looked up, by result. Whoever answers them counts there, with nothing in between: it is hot."""
        counts = self._models[model].lookups
        for result in ("found", "unknown", "stale", "live", "lost"):
            counts.setdefault(result, 0)
        return counts

    def failed_index(self, model: str) -> None:
        """An index of lookups could not be built, or was missing; of a process that has no supervisor."""
        self._models[model].failed_indexes += 1

    def serve(self, model: str, fingerprint: str) -> None:
        """A model is in service in this worker. Its series are there from now on, at 0."""
        self._models[model]
        self.watch("sereno_model_info", lambda: 1, model, fingerprint)

    def watch(self, name: str, number: Callable[[], float | None], *labels: str) -> None:
        """Ask `number()` for the value of a gauge, or of a counter that somebody else keeps, whenever it is needed.

        There is no such series as long as it answers None.
        """
        if len(labels) != len(FAMILIES[name].labels):
            raise ValueError(f"{name} has the labels {FAMILIES[name].labels}, not {labels}")
        self._watched.append((name, labels, number))

    # What came together

    def flush(self, board: Board, slot: int) -> None:
        """Put everything on the board; once a second, before the worker ends, and before it answers /metrics."""
        content = _encode(self.kept(slot))
        if len(content) <= ROOM:
            board.write(slot, content)
        elif not self._is_too_large:
            self._is_too_large = True
            LOG.error("the metrics of so many models have no room on the board; /metrics stands still")

    def kept(self, slot: int = 1) -> Kept:
        cells: dict[str, Cells] = defaultdict(dict)
        for (model, protocol, status), cell in self._requests.items():
            count = sum(cell[:-1])
            cells["sereno_requests_total"][model, protocol, str(status)] = [count]
            errors = cells["sereno_errors_total"].setdefault((model, protocol), [0])
            shed = cells["sereno_shed_requests_total"].setdefault((model, protocol), [0])
            if status == 503:
                shed[0] += count
            elif status >= 500:
                errors[0] += count
            elif 200 <= status < 300 and model:
                _add(cells["sereno_request_duration_seconds"], (model, protocol), cell)
        for model, counted in self._models.items():
            series: tuple[tuple[str, list[float]], ...] = (
                ("sereno_rows_total", [counted.batch_rows[-1]]),
                ("sereno_rejected_rows_total", [counted.rejected_rows]),
                ("sereno_failed_rows_total", [counted.failed_rows]),
                ("sereno_batch_rows", counted.batch_rows),
                ("sereno_queue_duration_seconds", counted.queue),
                ("sereno_predict_duration_seconds", counted.predict),
            )
            if any(counted.fetch):  # few models have a fetch
                series += (
                    ("sereno_fetch_duration_seconds", counted.fetch),
                    ("sereno_fetch_errors_total", [counted.fetch_errors]),
                )
            for name, numbers in series:
                cells[name][(model,)] = numbers
            if counted.lookups:
                cells["sereno_lookup_failures_total"][(model,)] = [counted.failed_indexes]
            for result, keys in counted.lookups.items():
                cells["sereno_lookup_keys_total"][model, result] = [keys]
        for name, labels, ask in self._watched:
            if (number := ask()) is not None:
                _add(cells[name], labels, [float(number)], worst=FAMILIES[name].worst)
        worker = (str(slot),)
        if self._memory is not None:
            pages = int(os.pread(self._memory, 100, 0).split()[1])
            cells["sereno_worker_resident_memory_bytes"][worker] = [pages * mmap.PAGESIZE]
        cells["sereno_worker_cpu_seconds_total"][worker] = [time.process_time()]
        cells["sereno_worker_start_time_seconds"][worker] = [self._started]
        return _kept(self.worker_id, cells)


def fold(board: Board, slot: int, ended: Ended) -> None:
    """Add the counters of a worker that has ended to slot 0, and make its slot EMPTY. Only the supervisor does that.

    Readers count the worker once at any moment: slot 0 names it from the same write on that has its counters.
    """
    total = _decode(board.read(0)) or Kept("", {})
    worker = _decode(board.read(slot))
    cells = _merged([total] if worker is None else [total, _lasting(worker)])
    if ended != "drained":
        _add(cells["sereno_worker_restarts_total"], (ended,), [1])
    kept = _kept("", cells)
    kept.folded = total.folded if worker is None else [*total.folded[-board.slots :], worker.worker]
    board.write(0, _encode(kept))
    board.clear(slot)


def count_failed_index(board: Board, model: str) -> None:
    """Count an index of lookups that could not be built, or was missing. Only the supervisor does that."""
    total = _decode(board.read(0)) or Kept("", {})
    cells = _merged([total])
    _add(cells["sereno_lookup_failures_total"], (model,), [1])
    kept = _kept("", cells)
    kept.folded = total.folded
    board.write(0, _encode(kept))


def _lasting(kept: Kept) -> Kept:
    """What outlives a worker: its counters, but for those of the process itself, which the next one begins again."""
    families = {name: FAMILIES[name] for name in kept.cells}
    return Kept(
        kept.worker,
        {n: kept.cells[n] for n, f in families.items() if f.kind != "gauge" and "worker" not in f.labels},
    )


def render(board: Board, besides: Mapping[str, Cells] = MappingProxyType({})) -> bytes:
    """The text of /metrics, over all that is on the board, and `besides`, of families that no worker counts."""
    # slot 0 last: a worker that is folded meanwhile is then in both, and left out of one
    workers = [kept for slot in range(1, board.slots) if (kept := _decode(board.read(slot))) is not None]
    total = _decode(board.read(0)) or Kept("", {})
    cells = _merged([total, *(one for one in workers if one.worker not in total.folded)])
    states = [board.state(slot) for slot in range(1, board.slots)]
    for state in State:
        if state is not State.EMPTY:
            cells["sereno_workers"][(state.name.lower(),)] = [states.count(state)]
    for reason in ("died", "hung"):
        _add(cells["sereno_worker_restarts_total"], (reason,), [0])
    return _text({**cells, **besides})


def render_alone(metrics: Metrics, besides: Mapping[str, Cells] = MappingProxyType({})) -> bytes:
    """The same of one process that has no board."""
    return _text({**_merged([metrics.kept()]), **besides})


def of_statuses(statuses: Iterable[Status]) -> dict[str, Cells]:
    """What status files tell of each model, whether or not it is served here."""
    now = time.time()
    success: Cells = {}
    freshness: Cells = {}
    for one in statuses:
        success[(one.model,)] = [one.last_success_at.timestamp()]
        if one.data_time is not None:
            freshness[(one.model,)] = [round(now - one.data_time.timestamp(), 3)]
    return {"sereno_last_success_timestamp": success, "sereno_freshness_seconds": freshness}


def _text(cells: Mapping[str, Cells]) -> bytes:
    version = (__version__, ".".join(map(str, sys.version_info[:3])))
    everything: dict[str, Cells] = {**cells, "sereno_build_info": {version: [1.0]}}
    return "".join(line for name in FAMILIES for line in _lines(name, everything.get(name, {}))).encode()


def _lines(name: str, cells: Cells) -> Iterator[str]:
    if not cells:
        return
    family = FAMILIES[name]
    yield f"# HELP {name} {family.about}\n# TYPE {name} {family.kind}\n"
    for values, numbers in sorted(cells.items()):
        labels = [f'{label}="{_escaped(value)}"' for label, value in zip(family.labels, values, strict=True)]
        if family.kind != "histogram":
            yield f"{name}{_braced(labels)} {_number(numbers[0])}\n"
            continue
        count = 0.0
        for bound, number in zip((*family.bounds, float("inf")), numbers[:-1], strict=True):
            count += number
            le = "+Inf" if bound == float("inf") else _number(bound)
            bucket = _braced([*labels, f'le="{le}"'])
            yield f"{name}_bucket{bucket} {_number(count)}\n"
        yield f"{name}_sum{_braced(labels)} {_number(numbers[-1])}\n{name}_count{_braced(labels)} {_number(count)}\n"


def _braced(labels: list[str]) -> str:
    return f"{{{','.join(labels)}}}" if labels else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(number: float) -> str:
    return str(int(number)) if number == int(number) else repr(number)


def _histogram(bounds: tuple[float, ...]) -> Callable[[], list[float]]:
    size = len(bounds) + 1  # the last bucket is for what is above all bounds
    return lambda: [0] * size + [0.0]


def _merged(all_kept: Iterable[Kept]) -> dict[str, Cells]:
    cells: dict[str, Cells] = defaultdict(dict)
    for kept in all_kept:
        for name, series in kept.cells.items():
            for labels, numbers in series:
                _add(cells[name], tuple(labels), numbers, worst=FAMILIES[name].worst)
    return cells


def _add(cells: Cells, labels: tuple[str, ...], numbers: list[float], *, worst: bool = False) -> None:
    before = cells.get(labels)
    if before is None:
        cells[labels] = list(numbers)
    elif worst:
        cells[labels] = [max(before[0], numbers[0])]
    else:
        cells[labels] = [a + b for a, b in zip(before, numbers, strict=True)]


def _kept(worker: str, cells: Mapping[str, Cells]) -> Kept:
    return Kept(worker, {name: [(list(k), v) for k, v in series.items()] for name, series in cells.items()})


def _encode(kept: Kept) -> bytes:
    return msgspec.msgpack.encode(kept)


def _decode(content: bytes) -> Kept | None:
    return msgspec.msgpack.decode(content, type=Kept) if content else None
