"""One model in service in this process: from checked rows to answers."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from sereno.exceptions import ModelFileError
from sereno.lookup.keys import Key
from sereno.rows import JSON_TEXT, UNSET, AnswerEncoder, NotJsonError, Row, RowDecoder, json_value, live_row
from sereno.schema import ABSENT
from sereno.scoring import RowScorer, Scorer
from sereno.serve.batcher import Batcher, Recorder, Waiting
from sereno.serve.fetching import Fetcher
from sereno.serve.wire import Answer, Mistake, RequestError
from sereno.values import Door, Refused, admit, admit_row

if TYPE_CHECKING:
    from sereno.fetching import Fetch
    from sereno.serve.lookup import Lookups
    from sereno.serve.metrics import Metrics
    from sereno.settings import ModelSettings, ServeSettings

TEXTS = re.compile(JSON_TEXT, re.DOTALL)
NO_BRACKETS = bytes(b for b in range(256) if b not in b"[]{}")
STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # one deeper, or one less deep


class _Asking(Waiting):
    """A coroutine that waits."""

    __slots__ = ("future",)

    def __init__(self, rows: Sequence[Row], request_id: bytes, since: float) -> None:
        super().__init__(rows, request_id, since)
        self.future: asyncio.Future[Sequence[Any]] = asyncio.get_running_loop().create_future()

    def tell(self, answers: Sequence[Any]) -> None:
        if not self.future.done():  # the caller may have gone
            self.future.set_result(answers)


class Live:
    """A loaded model with its decoder, its queue and its log. One per model and worker; used on the event loop."""

    def __init__(
        self,
        scorer: Scorer,
        fingerprint: str,
        settings: ModelSettings,
        limits: ServeSettings,
        *,
        metrics: Metrics,
        recorder: Recorder | None = None,
        fetch: Fetch | None = None,
    ) -> None:
        model = scorer.model
        self.model, self.name = model, model.name
        self.fingerprint, self.model_version = fingerprint, fingerprint[:12]
        self.inputs, self.outputs = model.inputs, model.outputs
        self.limits = limits
        self._max_text, self._max_depth = limits.max_text_bytes, limits.max_depth
        self.fetched = [i for i, c in enumerate(model.inputs.columns) if c.role == "fetched"]
        if self.fetched and fetch is None:
            raise ModelFileError(
                f"{model.place}: {model.inputs.name} has a Fetched column, but model {model.name!r} has no fetch function. "
                "Write one under `@model.fetch`, or leave Fetched out: then requests must bring the column."
            )
        self.recorder = recorder
        self.settings = settings
        self.lookup: Lookups | None = None  # None: what is published cannot be asked for here
        # a model whose predict asks for keys was never asked about a row without one
        self.row = live_row(model.inputs, keys_needed=bool(self.fetched) or model.keys_form is not None)
        self.decoder = RowDecoder(self.row)
        self._answers = RowDecoder(model.outputs)
        self._metrics = metrics
        self._names = [c.name for c in model.outputs.columns]
        answers = AnswerEncoder(self._names)
        self.encode = answers.encode  # an answer as a JSON object
        self.encode_many = answers.encode_many  # several as a JSON list
        self.batcher = Batcher(
            self.name,
            RowScorer(scorer).score,
            max_batch_rows=settings.max_batch_rows,
            queue_rows=settings.queue_rows,
            queue_seconds=settings.queue_seconds,
            timeout_seconds=limits.request_timeout_seconds,
            watcher=metrics,
            recorder=recorder,
            clock=time.time,
        )
        self.fetcher: Fetcher | None = None
        if fetch is not None:
            self.fetcher = Fetcher(
                self.name,
                fetch,
                model.inputs,
                then=self.batcher.submit,
                queue_rows=settings.queue_rows,
                timeout_seconds=settings.fetch_timeout_seconds,
                request_timeout_seconds=limits.request_timeout_seconds,
                watcher=metrics,
            )
        metrics.serve(self.name, fingerprint)
        metrics.watch("sereno_queued_rows", lambda: self.batcher.queued_rows, self.name)
        metrics.watch("sereno_predict_in_thread", lambda: not self.batcher.is_on_loop, self.name)

    # Rows in

    def decode(self, body: bytes) -> Row:
        """The one row of a JSON object. Raises RequestError: 400 no JSON, 422 does not fit."""
        if len(body) > self._max_text or body.count(b"{") + body.count(b"[") > self._max_depth:
            self.check_json(body)
        try:
            return self.decoder.decode(body)
        except Refused as refused:
            raise self._told(refused) from None

    def decode_many(self, body: bytes) -> list[Row]:
        """The rows of a JSON list of objects. Raises RequestError: 400, 413 too many rows, 422 with their mistakes."""
        self.check_json(body)
        if body.count(b"{") <= self.limits.max_rows and (rows := self.decoder.decode_list(body)) is not None:
            self.check_count(len(rows))
            return rows
        try:
            values = json_value(body)
        except NotJsonError as refused:
            raise self._told(refused) from None
        if not isinstance(values, list):
            raise RequestError(422, "A request holds one row (a JSON object) or a list of them.")
        return self.rows_of(values)

    def rows_of(self, values: Sequence[Any], door: Door = "json", *, collect: list[Mistake] | None = None) -> list[Row]:
        """The rows of mappings, whose values came by that door. Raises RequestError: 413 too many, 422 with their mistakes.

        With `collect`, mistakes are added to it, and the rows that have some are left out.
        """
        self.check_count(len(values))
        rows: list[Row] = []
        mistakes: list[Mistake] = [] if collect is None else collect
        for position, value in enumerate(values):
            try:
                if door == "json":
                    rows.append(self.decoder.convert(value))
                else:
                    rows.append(tuple(admit_row(self.row, value, door).values()))
            except Refused as refused:
                mistakes += [Mistake(position, column, expected) for column, expected in refused.mistakes]
        if mistakes and collect is None:
            raise self.unfit(mistakes)
        return rows

    def check_json(self, body: bytes) -> None:
        """Refuse what nests too deep (400) or holds too long a text (413), before it is decoded."""
        limits = self.limits
        is_deep = body.count(b"[") + body.count(b"{") > limits.max_depth
        is_long = len(body) > limits.max_text_bytes
        if not is_deep and not is_long:
            return
        if is_long and max(map(len, TEXTS.findall(body)), default=0) > limits.max_text_bytes + 2:
            raise RequestError(413, f"A text in the request is longer than {limits.max_text_bytes:,} bytes.")
        if is_deep and _depth_exceeds(body, limits.max_depth):
            raise RequestError(400, f"The JSON nests deeper than {limits.max_depth} levels.")

    def check_count(self, rows: int, what: str = "rows") -> None:
        """Refuse more rows than a request may have (413)."""
        if rows > self.limits.max_rows:
            raise RequestError(413, f"The request has {rows:,} {what}; at most {self.limits.max_rows:,} may be.")

    def _told(self, refused: Refused) -> RequestError:
        if isinstance(refused, NotJsonError):
            return RequestError(400, "The body is not JSON.")
        return self.unfit([Mistake(0, column, expected) for column, expected in refused.mistakes])

    def unfit(self, mistakes: Sequence[Mistake]) -> RequestError:
        """The 422 of rows that do not fit, counted."""
        self._metrics.rejected(self.name, len({m.row for m in mistakes}))
        return unfit(mistakes)

    @property
    def needs_keys_alone(self) -> bool:
        """Whether a row is complete with nothing but its keys: fetch has the rest."""
        return self.fetcher is not None and all(c.role == "key" or c.default is not ABSENT for c in self.row.columns)

    def row_of_key(self, key: Key) -> Row | None:
        """The row of a key alone, for a model that needs no more; None where the row type refuses such a key."""
        values = iter(key)
        try:
            return tuple(admit(c, next(values)) if c.role == "key" else c.default for c in self.row.columns)
        except Refused:
            return None

    # Answers out

    def submit(self, waiting: Waiting) -> None:
        """Have rows answered: `waiting.tell` is called on the loop, later. Raises RequestError (503)."""
        if self.fetcher is not None and any(row[i] is UNSET for row in waiting.rows for i in self.fetched):
            self.fetcher.submit(waiting)
        elif waiting.rows:
            self.batcher.submit(waiting)
        else:
            asyncio.get_running_loop().call_soon(waiting.tell, ())

    async def ask(self, rows: list[Row], request_id: bytes, *, one_by_one: bool = False) -> Sequence[Any]:
        """An Answer or a RequestError for each row, in order. Raises RequestError (503).

        What fetch does not know of one row is an error of all, unless they are asked `one_by_one`.
        """
        waiting = _Asking(rows, request_id, perf_counter())
        waiting.one_by_one = one_by_one
        self.submit(waiting)
        return await waiting.future

    def answer_dict(self, answer: Answer) -> dict[str, Any]:
        """An answer as JSON has it: dates and decimals are texts."""
        out: dict[str, Any] = msgspec.to_builtins(dict(zip(self._names, answer, strict=True)))
        return out

    def answer_of(self, prediction: bytes) -> Answer:
        """The answer that such an object, published before, stands for. Raises RequestError (503)."""
        try:
            return self._answers.decode(prediction)
        except Refused as refused:
            raise RequestError(
                503, "What is published does not fit the outputs of this model as it is now. The next run mends that."
            ) from refused

    # State

    @property
    def is_hung(self) -> bool:
        """Whether predict, or fetch, has been at one call for longer than predict may."""
        starts = (self.batcher.predicting_since, self.fetcher.fetching_since if self.fetcher is not None else None)
        now = perf_counter()
        return any(start is not None and now - start > self.settings.predict_timeout_seconds for start in starts)

    @property
    def is_ready(self) -> bool:
        return not self.is_hung and (self.lookup is None or not self.lookup.why_not_ready)

    def expire(self) -> None:
        """Answer what has waited too long; called every now and then."""
        now = perf_counter()
        self.batcher.expire(now)
        if self.fetcher is not None:
            self.fetcher.expire(now)

    def close(self) -> None:
        """End the threads, once every request is answered; what is to be kept is on the disk then."""
        self.batcher.close()
        if self.recorder is not None:
            self.recorder.close()
        if self.fetcher is not None:
            self.fetcher.close()
        if self.lookup is not None:
            self.lookup.close()


def unfit(mistakes: Sequence[Mistake]) -> RequestError:
    """The 422 of rows that do not fit the row type."""
    rows = len({m.row for m in mistakes})
    what = "A row does" if rows == 1 else f"{rows:,} rows do"
    return RequestError(422, f"{what} not fit the row type of this model.", mistakes=mistakes)


def _depth_exceeds(body: bytes, most: int) -> bool:
    """Whether brackets nest deeper than that, of which those in texts do not count."""
    steps = np.frombuffer(TEXTS.sub(b"", body).translate(STEPS, NO_BRACKETS), np.int8)
    return bool(steps.cumsum(dtype=np.int32).max(initial=0) > most)
