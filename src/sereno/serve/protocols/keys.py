"""Rows that bring the key alone: how clients of other protocols ask for what the last run published.

A request whose rows have every column of the key and no other column of the model is a lookup, unless such rows are
complete for a live prediction; then, and wherever the caller says `lookup: true`, that makes it one. What stands beside
the key is passed over then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from sereno.lookup.keys import Key, KeyCodec
from sereno.rows import NOT_DECODED, RowDecoder
from sereno.schema import ABSENT
from sereno.serve.protocols.positional import Positions
from sereno.serve.protocols.predictions import Looked, ask_by_keys, look_up, no_key, unknown_key
from sereno.serve.wire import Asked, RequestError, Row
from sereno.values import Door, Refused, admit_row

if TYPE_CHECKING:
    from sereno.serve.live import Live


@dataclasses.dataclass(frozen=True, slots=True)
class KeyAlone:
    """A record that brings its key alone."""

    values: Mapping[str, Any]


class ByKey:
    """How requests to one model bring keys. Built once."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._names = frozenset(c.name for c in live.inputs.keys)
        self._others = frozenset(c.name for c in live.inputs.features)
        # whether a row needs more than its key: else it is asked live
        self._too_few = any(c.default is ABSENT and c.name not in self._names for c in live.row.columns)
        # the rules of the columns do not hold: what breaks them is an unknown key
        codec = KeyCodec.of(live.inputs.arrow_schema(live.inputs.keys), [c.name for c in live.inputs.keys])
        self._decoder = RowDecoder(dataclasses.replace(live.inputs, columns=codec.columns))
        keys = dataclasses.replace(live.inputs, columns=live.inputs.keys)
        self.positions = Positions(keys, RowDecoder(keys), live.check_count)

    def are_alone(self, names: Collection[Any]) -> bool:
        """Whether these columns are the key's and no other of the model's, and do not do for a live prediction."""
        return self._too_few and self._others.isdisjoint(names) and all(name in names for name in self._names)

    def are_rows_alone(self, rows: Any) -> bool:
        """The same of a list of objects, or of a table by column."""
        if type(rows) is dict:
            return self.are_alone(rows)
        if type(rows) is not list or not rows or type(rows[0]) is not dict or not self.are_alone(rows[0]):
            return False
        return all(type(row) is dict and self.are_alone(row) for row in rows)

    def ask(self, rows: Sequence[Any], context: Any = None, door: Door = "json", *, told: bool = False) -> Asked:
        """The lookups of mappings with keys in them; `told`: the caller said that it wants them.

        Raises RequestError: 404 a key is unknown, or there are no lookups; 413, 422 no keys; 503 nothing to look up in.
        """
        live = self._live
        live.check_count(len(rows))
        if live.lookup is None:
            raise self._off(rows, door, told=told)
        keys: list[Key] = []
        refused: dict[int, Refused] = {}
        decoder = self._decoder
        for position, row in enumerate(rows):
            try:
                if door == "json":
                    keys.append(decoder.convert(row))
                else:
                    keys.append(tuple(admit_row(decoder.row, row, door).values()))
            except Refused as error:
                refused[position] = error
        if refused:
            raise no_key(list(refused.values()), list(refused))
        return ask_by_keys(live, keys, context)

    def each(self, records: Iterable[KeyAlone]) -> list[Looked | Row | RequestError]:
        """What there is about each of these: the answer, or a row that is to be asked live, or why there is neither.

        Raises RequestError (503).
        """
        live = self._live
        found: list[Key | RequestError] = []
        for record in records:
            if live.lookup is None:
                found.append(self._off([record.values], "json", told=False))
                continue
            try:
                found.append(self._decoder.convert(record.values))
            except Refused as refused:
                found.append(no_key([refused]))
        keys = [one for one in found if not isinstance(one, RequestError)]
        looked = map(_answer_or_row, look_up(live, keys) if keys else ())
        return [one if isinstance(one, RequestError) else next(looked) for one in found]

    def _off(self, rows: Sequence[Any], door: Door, *, told: bool) -> RequestError:
        """Why there are no lookups."""
        off = "This model's predictions cannot be looked up here"
        if told:
            return RequestError(404, f"{off}. Ask without `lookup`, with the columns that a row needs.")
        try:
            self._live.rows_of(rows, door)
        except RequestError as error:
            return RequestError(error.status, f"{error.says} {off}, so a key alone does not do.", error.mistakes)
        raise AssertionError("rows that were said to be too little are complete")


def _answer_or_row(looked: Looked) -> Looked | Row | RequestError:
    if looked.row is not None:
        return looked.row
    return looked if looked.answer is not None else unknown_key()


def wants_lookup(parameters: Raw | UnsetType) -> bool:
    """Whether the parameters of a request have `"lookup": true`. Raises RequestError (400)."""
    if parameters is UNSET:
        return False
    try:
        value = msgspec.json.decode(parameters)
    except NOT_DECODED:  # Raw was only looked through
        raise RequestError(400, "The body is not JSON.") from None
    lookup = value.get("lookup") if type(value) is dict else None
    if lookup is not None and type(lookup) is not bool:
        raise RequestError(400, "The parameter lookup must be true or false.")
    return lookup is True
