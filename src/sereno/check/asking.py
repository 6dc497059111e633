"""Requests for the answers of a sample, in one way after the other: what all ways have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sereno.check.compare import Answer, Reference
from sereno.check.report import Kind, Outcome
from sereno.check.service import Connection, InService, Reply
from sereno.exceptions import OutputError
from sereno.rows import RowDecoder

CLIENTS = 32


class Asking:
    """Asks the model in service about rows of the sample, and holds its answers against batch."""

    def __init__(self, reference: Reference, service: InService) -> None:
        self.reference, self.service = reference, service
        self.table, self.inputs = reference.table, reference.model.inputs
        self.count = reference.table.num_rows
        self.clients = min(CLIENTS, self.count)
        self.path = f"/models/{reference.model.name}"
        self.outputs = reference.model.outputs.columns
        self._decoder = RowDecoder(reference.model.outputs)

    async def arranged(self, name: str, asked: Awaitable[Mapping[int, Answer]], kind: Kind) -> Outcome:
        """What became of these rows; of others nothing is said."""
        try:
            found = await asked
        except OutputError as error:
            return Outcome(name=name, kind=kind, error=str(error))
        answers = [found.get(i, expected) for i, expected in enumerate(self.reference.answers)]
        return Outcome(name=name, kind=kind, difference=self.reference.compare(answers))

    async def one_by_one(
        self, positions: Iterable[int], send: Callable[[Connection, int], Awaitable[Reply]], *, clients: int
    ) -> dict[int, Reply]:
        """A request a row, by so many clients at once."""
        replies: dict[int, Reply] = {}
        left = iter(positions)

        async def client(connection: Connection) -> None:
            for position in left:  # whoever is free takes the next
                replies[position] = await send(connection, position)

        async with self.service.connections(clients) as connections, asyncio.TaskGroup() as group:
            for connection in connections:
                group.create_task(client(connection))
        return replies

    async def in_groups(
        self,
        path: str,
        groups: Sequence[Sequence[int]],
        body: Callable[[Sequence[int]], bytes],
        answers: Callable[[Reply, Sequence[int]], Iterable[Answer]],
    ) -> dict[int, Answer]:
        """Several rows a request, one request after the other.

        Where the server refuses some of the rows and so the request, the others are asked for again without them.
        """
        found: dict[int, Answer] = {}
        async with self.service.connections(1) as [connection]:
            for positions in groups:
                left = list(positions)
                while left:
                    reply = await connection.post(path, body(left))
                    refused = self.service.refused(reply) if len(left) > 1 else {}
                    if not refused:
                        found |= zip(left, answers(reply, left), strict=True)
                        break
                    found |= {left[row]: reason for row, reason in refused.items()}
                    left = [position for row, position in enumerate(left) if row not in refused]
        return found

    def groups(self, positions: Iterable[int], texts: Mapping[int, bytes], *, first: int = 1) -> list[list[int]]:
        """Positions that make up a request each: `first`, then 2, 4, 8 … times as many, up to what a request may have.

        Rows that are rejects in batch are asked for alone, since one of them may fail its whole request.
        """
        limits = self.service.live.limits
        groups: list[list[int]] = []
        current: list[int] = []
        size, most = 0, first
        for position in positions:
            if isinstance(self.reference.answers[position], str):
                groups.append([position])
                continue
            # tensors may be somewhat longer than rows
            too_long = size + len(texts[position]) > limits.max_body_bytes // 2
            if current and (len(current) == min(most, limits.max_rows) or too_long):
                groups.append(current)
                current, size, most = [], 0, 2 * most
            current.append(position)
            size += len(texts[position])
        return [*groups, current] if current else groups

    def decoded(self, rows: Iterable[Any]) -> Iterator[Answer]:
        """As canonical values: JSON has texts for dates and decimals."""
        for row in rows:
            values = self._decoder.decode(row) if isinstance(row, bytes) else self._decoder.convert(row)
            yield {c.name: value for c, value in zip(self.outputs, values, strict=True)}
