"""The sample looked up by its keys, in what a run publishes of it: what is found must be what batch and live answer.

Where the settings have stale or unknown keys asked live, that is tried too: all that is known of a row then is its key.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from itertools import product
from typing import Any

import msgspec

from sereno.check.asking import Asking
from sereno.check.compare import Answer, Reference
from sereno.check.fetched import Noted
from sereno.check.published import Published
from sereno.check.report import Finding, Kind, Outcome
from sereno.check.service import Connection, InService, Reply
from sereno.lookup.found import UNKNOWN_KEY, key_path, key_value
from sereno.lookup.keys import Key
from sereno.schema import ABSENT, Column
from sereno.values import Refused, admit

ALONE = 8  # keys that are asked live one after the other, which costs a call of fetch and of predict each
UNKNOWN = f"HTTP 404: {UNKNOWN_KEY}"
# keys that hardly anybody has, of which the first that its column admits is taken
NOBODYS: dict[str, Sequence[Any]] = {
    "int": (2_147_483_629, 8_388_593, 32_749, 251),
    "str": ("nobody at all", "nobody-7f3a9c", "NB7F3A9C", "93817264", "7391"),
    "date": (date(2199, 12, 30), date(1902, 1, 3)),
}


class ByKey(Asking):
    """Looks up every key of the sample."""

    def __init__(self, reference: Reference, service: InService, published: Published) -> None:
        super().__init__(reference, service)
        self._published = published
        self._settings = service.live.settings
        self._keys = {position: key for key, position in published.positions.items()}
        self._texts = {position: msgspec.json.encode(key_value(key)) for position, key in self._keys.items()}

    async def outcomes(self) -> list[Outcome]:
        """What is found in what was published."""
        if self._settings.lookup == "off":
            return []
        if self._published.error:
            return [Outcome(name="looked up by key", kind="lookup", error=self._published.error)]
        if not self._published.is_served:  # all of the sample are rejects
            return []
        with self.service.looking_up(self._published.served, stale="flag", unknown="404", max_age_seconds=None):
            return [
                await self._one_by_one("looked up by key, one at a time", "lookup", clients=1),
                await self._in_lists("looked up by key, in lists", "lookup"),
            ]

    async def asked_live(self) -> list[Outcome]:
        """What is answered where the settings have a key asked live that is stale, or unknown."""
        out = []
        if self._settings.lookup != "off" and self._settings.stale == "live" and self._published.is_served:
            # older than that is everything
            with self.service.looking_up(self._published.served, unknown="404", max_age_seconds=-1):
                out.append(await self._in_lists("looked up where stale, so asked live", "alone"))
        if self._settings.lookup != "off" and self._settings.unknown == "live":
            with self.service.looking_up(self._published.nothing, stale="flag"):
                out.append(await self._one_by_one("looked up where unknown, so asked live", "alone", clients=ALONE))
        return out

    # Ways to ask

    async def _one_by_one(self, name: str, kind: Kind, *, clients: int) -> Outcome:
        async def send(connection: Connection, position: int) -> Reply:
            return await self._get(connection, self._keys[position])

        async def asked() -> dict[int, Answer]:
            replies = await self.one_by_one(self._keys, send, clients=min(clients, len(self._keys)))
            return {position: self._answers(reply, [position], kind)[0] for position, reply in replies.items()}

        return await self.arranged(name, asked(), kind)

    async def _in_lists(self, name: str, kind: Kind) -> Outcome:
        def body(positions: Sequence[int]) -> bytes:
            return b'{"keys":[%b]}' % b",".join(self._texts[p] for p in positions)

        def answers(reply: Reply, positions: Sequence[int]) -> list[Answer]:
            return self._answers(reply, positions, kind)

        groups = self.groups(self._keys, self._texts, first=1 if kind == "lookup" else ALONE)
        return await self.arranged(name, self.in_groups(f"{self.path}/predictions", groups, body, answers), kind)

    async def _get(self, connection: Connection, key: Key) -> Reply:
        return await connection.get(f"{self.path}/predictions/{key_path(key)}")

    # Answers

    def _answers(self, reply: Reply, positions: Sequence[int], kind: Kind) -> list[Answer]:
        """The prediction of each key of a request."""
        if reply.status == 200:
            found = msgspec.json.decode(reply.body)
            items = found if isinstance(found, list) else [found]
        elif (reason := self.service.reason(reply)) == UNKNOWN:
            items = [None]
        else:
            return [reason] * len(positions)
        origin = "lookup" if kind == "lookup" else "live"
        return [self._answer(item, position, origin) for item, position in zip(items, positions, strict=True)]

    def _answer(self, item: Any, position: int, origin: str) -> Answer:
        if item is None:
            expected = self.reference.answers[position]
            return expected if isinstance(expected, str) and origin == "lookup" else UNKNOWN
        if item["origin"] != origin:
            return f"its origin is {item['origin']}, and not {origin}"
        return next(self.decoded([item["prediction"]]))

    # What there is to say of keys that are asked live

    def about_defaults(self, outcomes: Iterable[Outcome]) -> list[Finding]:
        """Why rows of keys alone differ from those of the sample, where it is for the columns that get their defaults."""
        if all(outcome.passed for outcome in outcomes if outcome.kind == "alone"):
            return []
        rows = set()
        names = []
        for column in self.inputs.columns:
            if column.role == "feature" and column.default is not ABSENT:
                values = self.table.column(column.name).to_pylist()
                others = {position for position, value in enumerate(values) if value != column.default}
                rows |= others
                names += [column.name] if others else []
        if not names:
            return []
        text = (
            f"A lookup that is asked live has the default of {' and '.join(names)}, for all it knows is the key; "
            f"{len(rows)} of the sample's {self.count} rows have another value. Have fetch give such a column too "
            '(`Fetched`), or do without stale = "live" and unknown = "live".'
        )
        return [Finding(level="problem", about="lookup", text=text)]

    async def about_unknown(self, noted: Noted) -> list[Finding]:
        """What somebody is told who asks for a key that nobody has, where the settings leave that to fetch."""
        key = self._nobodys()
        if self._settings.lookup == "off" or self._settings.unknown != "live" or key is None:
            return []
        noted.error = None
        with self.service.looking_up(self._published.nothing):
            async with self.service.connections(1) as [connection]:
                reply = await self._get(connection, key)
        shown = ", ".join(f"{c.name} {value}" for c, value in zip(self.inputs.keys, key, strict=True))
        begins = f'With unknown = "live", a key that nobody has ({shown}, say)'
        if reply.status == 404:
            return [_note(f"{begins} gets HTTP 404, for fetch knows nothing of it.")]
        if reply.status != 200:
            text = f"{begins} gets no 404, but {self.service.reason(reply)}. Have fetch leave out the keys that it does not know."
            return [Finding(level="warning", about="lookup", text=text)]
        if key in noted.found:
            return [
                _note(
                    f"{begins} gets a prediction, for fetch gives values for it. Where it should get HTTP 404, have fetch leave "
                    "out the keys that it does not know."
                )
            ]
        names = " and ".join(c.name for c in noted.columns)
        return [
            _note(f"{begins} gets a prediction: {names} may be null or have defaults, and fetch gives nothing else.")
        ]

    def _nobodys(self) -> Key | None:
        """A key that is not in the sample, nor anywhere else, as far as one can tell; None: there is no such."""
        every = product(*([*_admitted(column), *self._some(column)] for column in self.inputs.keys))
        return next((key for key in every if key not in self._published.positions), None)

    def _some(self, column: Column) -> list[Any]:
        values: list[Any] = self.table.column(column.name).slice(0, 1).to_pylist()
        return values


def _admitted(column: Column) -> list[Any]:
    """Those of NOBODYS that fit the column, rules and all."""
    fitting = []
    for value in NOBODYS[column.kind]:
        try:
            fitting.append(admit(column, value))
        except Refused:
            continue
    return fitting


def _note(text: str) -> Finding:
    return Finding(level="note", about="lookup", text=text)
