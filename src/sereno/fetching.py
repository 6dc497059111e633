"""Fetched columns: what `@model.fetch` is given, and what its answer means.

`fetch(keys, …)` gets the keys of some rows at once. By the annotation of its first parameter they come as a list (the
values of the key; tuples where several columns are the key) or as a frame with the key columns. It answers

    {key: value}                     one Fetched column
    {key: {column: value, …}}        several
    a frame, or a list of mappings   with the key columns and the Fetched columns

Keys that it does not know may be left out: their columns get their default, or null where they may be null.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sereno.exceptions import InputError, OutputError
from sereno.frames import Form, to_form
from sereno.loader import bind
from sereno.model import Model, place
from sereno.schema import ABSENT, Column
from sereno.scoring import arrow_of
from sereno.values import Refused, admit, plain_value

if TYPE_CHECKING:
    from sereno.settings import Settings

Key = tuple[Any, ...]  # canonical values of the key columns, in declared order
UNKNOWN = "nothing is known of this key"


class Fetch:
    """A model's `fetch`, ready to be called: its values and secrets are filled in."""

    def __init__(self, model: Model, settings: Settings) -> None:
        """Raises SettingsError for a parameter that nothing fills."""
        assert model.fetch_function is not None
        self.function: Callable[..., Any] = model.fetch_function
        self.place = place(self.function)
        self.is_async = inspect.iscoroutinefunction(inspect.unwrap(self.function))
        self.columns: tuple[Column, ...] = tuple(c for c in model.inputs.columns if c.role == "fetched")
        self._model = model
        self._keys = model.inputs.keys
        self._form: Form | None = model.fetch_form
        self._values = bind(model, self.function, settings, given={}, skip=1)

    def call(self, keys: Sequence[Key]) -> Any:
        """What fetch returns, or the awaitable that it returns. Raises whatever it raises."""
        return self.function(self._argument(keys), **self._values)

    def _argument(self, keys: Sequence[Key]) -> Any:
        if self._form is None or self._form == "rows":
            return list(keys) if len(self._keys) > 1 else [key[0] for key in keys]
        arrays = [pa.array([key[i] for key in keys], c.arrow_type) for i, c in enumerate(self._keys)]
        table = pa.Table.from_arrays(arrays, names=[c.name for c in self._keys])
        return to_form(self._form, self._model.inputs, self._keys, table)

    def read(self, answer: Any) -> dict[Key, tuple[Any, ...]]:
        """Key → the canonical values of the Fetched columns. Raises OutputError where the answer is not as described."""
        found = self._pairs(answer)
        out = {}
        for key, values in found:
            try:
                out[key] = tuple(admit(c, v) for c, v in zip(self.columns, values, strict=True))
            except Refused as reason:
                raise OutputError(f"{self.place}: a value of fetch does not fit its column: {reason}.") from None
        return out

    def unknown(self) -> tuple[Any, ...]:
        """The values for a key that fetch does not know. Raises Refused where a column has neither default nor null."""
        without = [c.name for c in self.columns if c.default is ABSENT and not c.nullable]
        if without:
            raise Refused(mistakes=[(name, UNKNOWN) for name in without])
        return tuple(None if c.default is ABSENT else c.default for c in self.columns)

    def _pairs(self, answer: Any) -> list[tuple[Key, list[Any]]]:
        if isinstance(answer, Mapping):
            return [(self._key(key), self._values_of(value)) for key, value in answer.items()]
        names = [c.name for c in (*self._keys, *self.columns)]
        try:
            table = arrow_of(answer, names)
        except InputError as error:
            raise OutputError(
                f"{self.place}: fetch answered {type(answer).__name__}. Valid are a mapping from key to value, a frame, or a "
                f"list of mappings, with {', '.join(names)}. ({error})"
            ) from error
        missing = [name for name in names if name not in table.column_names]
        if missing and table.num_rows:
            raise OutputError(
                f"{self.place}: the answer of fetch has no column {missing[0]!r}; it needs {', '.join(names)}."
            )
        rows = table.to_pylist()
        keys = [c.name for c in self._keys]
        return [(self._key(tuple(row[k] for k in keys)), [row[c.name] for c in self.columns]) for row in rows]

    def _key(self, given: Any) -> Key:
        values = tuple(given) if isinstance(given, tuple | list) else (given,)
        if len(values) != len(self._keys):
            raise OutputError(
                f"{self.place}: a key in the answer of fetch has {len(values)} values; declared are "
                f"{', '.join(c.name for c in self._keys)}."
            )
        try:
            return tuple(admit(c, plain_value(v)) for c, v in zip(self._keys, values, strict=True))
        except Refused as reason:
            raise OutputError(f"{self.place}: a key in the answer of fetch does not fit: {reason}.") from None

    def _values_of(self, value: Any) -> list[Any]:
        value = plain_value(value)
        if len(self.columns) == 1:
            return [value]
        if not isinstance(value, dict) or any(c.name not in value for c in self.columns):
            raise OutputError(
                f"{self.place}: fetch has several columns to answer, so each key needs a mapping with "
                f"{', '.join(c.name for c in self.columns)}."
            )
        return [value[c.name] for c in self.columns]
