"""The sample over HTTP: requests as callers send them, to the model in service, each answer held against batch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pyarrow as pa

from sereno.check.compare import Answer, Reference
from sereno.check.fetched import Noted, about_fetch
from sereno.check.report import Finding, Kind, Outcome
from sereno.check.sample import spread
from sereno.check.service import Connection, InService, Reply, in_service
from sereno.exceptions import ModelFileError, OutputError, SettingsError
from sereno.rows import RowDecoder, encode
from sereno.schema import Column

if TYPE_CHECKING:
    from sereno.config import Settings

CLIENTS = 32
ALONE = 50  # rows that are asked for one after the other, which costs a call of predict each
FETCHED_ALONE = 8  # and a call of fetch too

_to_json = msgspec.json.Encoder(decimal_format="string").encode


class OverHttp(NamedTuple):
    """What came of it."""

    outcomes: list[Outcome]
    findings: list[Finding]


def ask_over_http(reference: Reference, settings: Settings, *, is_made_up: bool) -> OverHttp:
    """Put the loaded model in service, and have it asked in every way."""
    import uvloop

    model = reference.model
    try:
        noted = Noted(model, settings) if model.fetch_function is not None else None
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_over_http(reference, settings, noted, is_made_up=is_made_up))
    except (ModelFileError, SettingsError) as error:
        text = f"The model runs in batch, but cannot be served, so nothing was asked over HTTP. {error}"
        return OverHttp([], [Finding(level="warning", about="fetch", text=text)])


async def _over_http(reference: Reference, settings: Settings, noted: Noted | None, *, is_made_up: bool) -> OverHttp:
    async with in_service(reference.scorer, settings, noted) as service:
        asking = _Asking(reference, service)
        outcomes = await asking.outcomes()
        if noted is None:
            return OverHttp(outcomes, [])
        if is_made_up:
            text = "What fetch gives was not compared: of keys that are made up, it knows nothing."
            return OverHttp(outcomes, [Finding(level="note", about="fetch", text=text)])
        outcome = await asking.without_fetched([c.name for c in noted.columns])
        return OverHttp([*outcomes, outcome], about_fetch(reference, noted, outcome))


class _Asking:
    """Asks for the predictions of the whole sample, in one way after the other."""

    def __init__(self, reference: Reference, service: InService) -> None:
        self._reference, self._service = reference, service
        self._table = reference.table
        self._inputs = reference.model.inputs
        self._count = reference.table.num_rows
        self._clients = min(CLIENTS, self._count)
        self._path = f"/models/{reference.model.name}/predict"
        self._decoder = RowDecoder(reference.model.outputs)
        self._outputs = reference.model.outputs.columns

    async def outcomes(self) -> list[Outcome]:
        texts = encode(self._table)
        every = range(self._count)
        lists = self._lists(texts)
        some = spread(self._count, ALONE)
        alone = "over HTTP, one row at a time" + (f" ({ALONE} of them)" if len(some) < self._count else "")
        out = [
            await self._arranged(alone, self._singly(texts, some, clients=1)),
            await self._arranged(
                f"over HTTP, {self._clients} rows at a time", self._singly(texts, every, clients=self._clients)
            ),
            await self._arranged("over HTTP, in lists", self._in_lists(texts, lists)),
            await self._arranged("over HTTP, in tensors (V2)", self._in_tensors(lists)),
        ]
        live = self._service.live
        if all(c.nullable for c in live.row.keys):  # which they are where a request may leave them out
            without = encode(self._table.drop_columns([c.name for c in self._inputs.keys]))
            asked = self._singly(without, every, clients=self._clients)
            out.append(await self._arranged("over HTTP, without keys", asked, "keys"))
        return out

    async def without_fetched(self, names: Sequence[str]) -> Outcome:
        texts = encode(self._table.drop_columns(names))
        alone = min(FETCHED_ALONE, self._count)

        async def asked() -> dict[int, Answer]:
            first = await self._singly(texts, range(alone), clients=1)
            return first | await self._singly(texts, range(alone, self._count), clients=self._clients)

        return await self._arranged("over HTTP, with columns fetched", asked(), "fetch")

    async def _arranged(self, name: str, asked: Awaitable[dict[int, Answer]], kind: Kind = "http") -> Outcome:
        try:
            found = await asked
        except OutputError as error:
            return Outcome(name=name, kind=kind, error=str(error))
        answers = [found.get(i, expected) for i, expected in enumerate(self._reference.answers)]
        return Outcome(name=name, kind=kind, difference=self._reference.compare(answers))

    # Ways to ask

    async def _singly(self, texts: Sequence[bytes], positions: Sequence[int], *, clients: int) -> dict[int, Answer]:
        """A row a request, by so many clients at once."""
        replies: dict[int, Reply] = {}
        left = iter(positions)

        async def client(connection: Connection) -> None:
            for position in left:  # whoever is free takes the next
                replies[position] = await connection.post(self._path, texts[position])

        async with self._service.connections(clients) as connections, asyncio.TaskGroup() as group:
            for connection in connections:
                group.create_task(client(connection))
        return {position: self._answers(reply, 1, lambda body: [body])[0] for position, reply in replies.items()}

    async def _in_lists(self, texts: Sequence[bytes], lists: Sequence[Sequence[int]]) -> dict[int, Answer]:
        def body(positions: Sequence[int]) -> bytes:
            return b"[%b]" % b",".join(texts[p] for p in positions)

        return await self._in_groups(self._path, lists, body, msgspec.json.decode)

    async def _in_tensors(self, lists: Sequence[Sequence[int]]) -> dict[int, Answer]:
        def body(positions: Sequence[int]) -> bytes:
            part = self._table.take(pa.array(positions))
            return _to_json({"inputs": [_tensor(c, part.column(c.name).to_pylist()) for c in self._inputs.columns]})

        path = f"/v2/models/{self._reference.model.name}/infer"
        return await self._in_groups(path, lists, body, self._rows_of_tensors)

    async def _in_groups(
        self,
        path: str,
        groups: Sequence[Sequence[int]],
        body: Callable[[Sequence[int]], bytes],
        rows: Callable[[bytes], list[Any]],
    ) -> dict[int, Answer]:
        answers: dict[int, Answer] = {}
        async with self._service.connections(1) as [connection]:
            for positions in groups:
                reply = await connection.post(path, body(positions))
                answers |= zip(positions, self._answers(reply, len(positions), rows), strict=True)
        return answers

    def _lists(self, texts: Sequence[bytes]) -> list[list[int]]:
        """Positions that make up a request each: 1, 2, 4, 8 … rows, as many as a request may have.

        Rows that are rejects in batch are asked for alone, since one of them would fail its whole request.
        """
        limits = self._service.live.limits
        lists: list[list[int]] = []
        current: list[int] = []
        size, most = 0, 1
        for position, answer in enumerate(self._reference.answers):
            if isinstance(answer, str):
                lists.append([position])
                continue
            # tensors may be somewhat longer than rows
            too_long = size + len(texts[position]) > limits.max_body_bytes // 2
            if current and (len(current) == min(most, limits.max_rows) or too_long):
                lists.append(current)
                current, size, most = [], 0, 2 * most
            current.append(position)
            size += len(texts[position])
        return [*lists, current] if current else lists

    # Answers

    def _answers(self, reply: Reply, count: int, rows: Callable[[bytes], list[Any]]) -> list[Answer]:
        """The answer of each row of a request."""
        if reply.status != 200:
            return [self._service.reason(reply)] * count
        return list(self._decoded(rows(reply.body)))

    def _decoded(self, rows: Sequence[Any]) -> Iterator[Answer]:
        """As canonical values: JSON has texts for dates and decimals."""
        for row in rows:
            values = self._decoder.decode(row) if isinstance(row, bytes) else self._decoder.convert(row)
            yield {c.name: value for c, value in zip(self._outputs, values, strict=True)}

    def _rows_of_tensors(self, body: bytes) -> list[Any]:
        from sereno.serve.protocols.tensors import NESTED

        columns = {output["name"]: output["data"] for output in msgspec.json.decode(body)["outputs"]}
        for column in self._outputs:
            if column.kind in NESTED:
                columns[column.name] = [None if v is None else msgspec.json.decode(v) for v in columns[column.name]]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _tensor(column: Column, values: list[Any]) -> dict[str, Any]:
    from sereno.serve.protocols.tensors import NESTED, datatype_of

    if column.kind in NESTED:
        values = [None if v is None else _to_json(v).decode() for v in values]
    return {"name": column.name, "datatype": datatype_of(column.kind), "shape": [len(values)], "data": values}
