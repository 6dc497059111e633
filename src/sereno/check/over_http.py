"""The sample over HTTP: requests as callers send them, to the model in service, each answer held against batch."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pyarrow as pa

from sereno.check.asking import Asking
from sereno.check.by_key import ByKey
from sereno.check.compare import Answer, Reference
from sereno.check.fetched import Noted, about_fetch
from sereno.check.published import Published, publish
from sereno.check.report import Finding, Kind, Outcome
from sereno.check.sample import spread
from sereno.check.service import Connection, Reply, in_service
from sereno.exceptions import ModelFileError, SettingsError
from sereno.rows import encode
from sereno.schema import Column

if TYPE_CHECKING:
    from sereno.settings import Settings

ALONE = 50  # rows that are asked for one after the other, which costs a call of predict each
FETCHED_ALONE = 8  # and a call of fetch too

_to_json = msgspec.json.Encoder(decimal_format="string").encode


class OverHttp(NamedTuple):
    """What came of it."""

    outcomes: list[Outcome]
    findings: list[Finding]


def ask_over_http(reference: Reference, settings: Settings, *, is_made_up: bool) -> OverHttp:
    """Put the loaded model in service, publish the sample in a home of its own, and have both asked in every way."""
    import uvloop

    model = reference.model
    try:
        noted = Noted(model, settings) if model.fetch_function is not None else None
        with (
            tempfile.TemporaryDirectory(prefix="sereno-check-") as folder,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            published = publish(reference, settings, Path(folder))
            return runner.run(_over_http(reference, settings, noted, published, is_made_up=is_made_up))
    except (ModelFileError, SettingsError) as error:
        text = f"The model runs in batch, but cannot be served, so nothing was asked over HTTP. {error}"
        chosen = settings.model(model.name, model.declared, model.file.parent if model.file else None)
        is_to_be_served = "live" in (chosen.stale, chosen.unknown)  # else it may be meant for batch alone
        return OverHttp([], [Finding(level="problem" if is_to_be_served else "warning", about="fetch", text=text)])


async def _over_http(
    reference: Reference, settings: Settings, noted: Noted | None, published: Published, *, is_made_up: bool
) -> OverHttp:
    async with in_service(reference.scorer, settings, noted, published.served) as service:
        live, by_key = _Live(reference, service), ByKey(reference, service, published)
        outcomes = [*await live.outcomes(), *await by_key.outcomes()]
        if noted is None:
            return OverHttp(outcomes, [])
        if is_made_up:
            text = "What fetch gives was not compared: of keys that are made up, it knows nothing."
            return OverHttp(outcomes, [Finding(level="note", about="fetch", text=text)])
        fetched = [*await live.without_fetched([c.name for c in noted.columns]), *await by_key.asked_live()]
        findings = about_fetch(reference, noted, fetched) + by_key.about_defaults(fetched)
        return OverHttp([*outcomes, *fetched], findings + await by_key.about_unknown(noted))


class _Live(Asking):
    """Asks for predictions that are made now."""

    async def outcomes(self) -> list[Outcome]:
        texts = encode(self.table)
        every = range(self.count)
        lists = self.groups(every, dict(enumerate(texts)))
        some = spread(self.count, ALONE)
        alone = "one row at a time" + (f" ({ALONE} of them)" if len(some) < self.count else "")
        out = [
            await self._asked(alone, self._singly(texts, some, clients=1)),
            await self._asked(f"{self.clients} rows at a time", self._singly(texts, every, clients=self.clients)),
            await self._asked("in lists", self._in_lists(texts, lists)),
            await self._asked("in tensors (V2)", self._in_tensors(lists)),
        ]
        if all(c.nullable for c in self.service.live.row.keys):  # which they are where a request may leave them out
            without = encode(self.table.drop_columns([c.name for c in self.inputs.keys]))
            asked = self._singly(without, every, clients=self.clients)
            out.append(await self._asked("without keys", asked, "keys"))
        return out

    async def without_fetched(self, names: Sequence[str]) -> list[Outcome]:
        texts = encode(self.table.drop_columns(names))
        alone = min(FETCHED_ALONE, self.count)

        async def singly() -> dict[int, Answer]:
            first = await self._singly(texts, range(alone), clients=1)
            return first | await self._singly(texts, range(alone, self.count), clients=self.clients)

        # whatever fetch asks may have a limit that a few keys do not reach
        together = self.groups(range(self.count), dict(enumerate(texts)), first=self.count)
        return [
            await self._asked("with columns fetched", singly(), "fetch"),
            await self._asked("in lists, with columns fetched", self._in_lists(texts, together), "fetch"),
        ]

    async def _asked(self, how: str, asked: Awaitable[dict[int, Answer]], kind: Kind = "http") -> Outcome:
        return await self.arranged(f"over HTTP, {how}", asked, kind)

    # Ways to ask

    async def _singly(self, texts: Sequence[bytes], positions: Sequence[int], *, clients: int) -> dict[int, Answer]:
        async def send(connection: Connection, position: int) -> Reply:
            return await connection.post(f"{self.path}/predict", texts[position])

        replies = await self.one_by_one(positions, send, clients=clients)
        return {position: self._answers(reply, 1, lambda body: [body])[0] for position, reply in replies.items()}

    async def _in_lists(self, texts: Sequence[bytes], lists: Sequence[Sequence[int]]) -> dict[int, Answer]:
        def body(positions: Sequence[int]) -> bytes:
            return b"[%b]" % b",".join(texts[p] for p in positions)

        def answers(reply: Reply, positions: Sequence[int]) -> list[Answer]:
            return self._answers(reply, len(positions), msgspec.json.decode)

        return await self.in_groups(f"{self.path}/predict", lists, body, answers)

    async def _in_tensors(self, lists: Sequence[Sequence[int]]) -> dict[int, Answer]:
        def body(positions: Sequence[int]) -> bytes:
            part = self.table.take(pa.array(positions))
            return _to_json({"inputs": [_tensor(c, part.column(c.name).to_pylist()) for c in self.inputs.columns]})

        def answers(reply: Reply, positions: Sequence[int]) -> list[Answer]:
            return self._answers(reply, len(positions), self._rows_of_tensors)

        return await self.in_groups(f"/v2{self.path}/infer", lists, body, answers)

    # Answers

    def _answers(self, reply: Reply, count: int, rows: Callable[[bytes], list[Any]]) -> list[Answer]:
        """The answer of each row of a request."""
        if reply.status != 200:
            return [self.service.reason(reply)] * count
        return list(self.decoded(rows(reply.body)))

    def _rows_of_tensors(self, body: bytes) -> list[Any]:
        from sereno.serve.protocols.tensors import NESTED

        columns = {output["name"]: output["data"] for output in msgspec.json.decode(body)["outputs"]}
        for column in self.outputs:
            if column.kind in NESTED:
                columns[column.name] = [None if v is None else msgspec.json.decode(v) for v in columns[column.name]]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _tensor(column: Column, values: list[Any]) -> dict[str, Any]:
    from sereno.serve.protocols.tensors import NESTED, datatype_of

    if column.kind in NESTED:
        values = [None if v is None else _to_json(v).decode() for v in values]
    return {"name": column.name, "datatype": datatype_of(column.kind), "shape": [len(values)], "data": values}
