"""Values without names meet columns: rows that are lists, tables by column, and the JSON forms that hold them.

By name, columns may come in any order, and names that the row type does not have are passed over, as everywhere. By
position, a row has the values of all its columns in declared order; columns that need not be there (the keys, what is
fetched) may be left out together. What could be read in two ways is refused, with all that would be valid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sereno.rows import RowDecoder
from sereno.schema import ABSENT, Column, RowType
from sereno.serve.wire import Mistake, RequestError, Row

Names = tuple[str, ...]
Decode = Callable[[bytes | str], list[Row] | None]
REMEMBERED, LONGEST = 64, 1 << 14  # how many spellings of column names are kept, and of how many bytes
MOST_NAMES = 256  # beside the columns; compiling thousands takes longer than what it saves


class Positions:
    """How lists become the rows of one model. Built once.

    `row` is the row type as a live request may send it. `check_count` refuses too many rows, before any is made.
    """

    def __init__(
        self, row: RowType, decoder: RowDecoder, check_count: Callable[[int], None] = lambda rows: None
    ) -> None:
        self.columns = {c.name: c for c in row.columns}
        self.required = [c.name for c in row.columns if c.default is ABSENT]
        self._decoder = decoder
        self._check_count = check_count
        self._spelled: dict[bytes, Decode] = {}
        self._layouts: dict[Names, Decode] = {}  # compiled ones of our own, which never go
        every = tuple(self.columns)
        without_keys = tuple(c.name for c in row.columns if c.role != "key")
        without_fetched = tuple(c.name for c in row.columns if c.role != "fetched")
        # widest first; each is there once, and has all that a row must have
        self.layouts = [
            names
            for names in dict.fromkeys((every, without_fetched, without_keys))
            if names and set(self.required) <= set(names)
        ]
        self._widths = {len(names) for names in self.layouts}

    def described(self) -> str:
        """What would be valid, for messages."""
        first, *others = self.layouts
        text = f"{len(first)} values ({', '.join(first)})"
        for names in others:
            text += f", or {len(names)} without {', '.join(n for n in first if n not in names)}"
        return text

    def by_position(self, width: int) -> Names:
        """The columns of rows that have so many values. Raises RequestError (400): none, or several readings."""
        fitting = [names for names in self.layouts if len(names) == width]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            valid = "; or ".join(", ".join(names) for names in fitting)
            raise RequestError(400, f"Rows of {width} values could be {valid}. Name the columns.")
        raise RequestError(400, f"Rows by position must have {self.described()}.")

    def by_name(self, names: Sequence[Any]) -> Names:
        """The columns of a table that names them. Raises RequestError: twice the same (400), one is missing (422)."""
        if names == list(range(len(names))):  # what pandas calls columns without names
            return self.by_position(len(names))
        if not all(type(name) is str for name in names):
            raise RequestError(400, "Column names must be texts.")
        found = tuple(names)
        distinct = set(found)
        if len(distinct) < len(found) and (
            twice := sorted(n for n in distinct & set(self.columns) if found.count(n) > 1)
        ):
            raise RequestError(400, f"Columns are there twice: {', '.join(twice)}.")
        if absent := [name for name in self.required if name not in distinct]:
            mistakes = [Mistake(0, name, "is absent") for name in absent]
            raise RequestError(422, "Columns of the row type of this model are missing.", mistakes)
        return found

    def decode(self, spelled: bytes, names: Callable[[], Names | None], rows: bytes) -> list[Row] | None:
        """The rows of a JSON list of lists, the fast way. None: one does not fit, or only the slow way can tell.

        `spelled` is what `names` is made of, as it came, so that names that were seen before cost nothing.
        """
        decode = self._spelled.get(spelled)
        if decode is None:
            if len(spelled) > LONGEST or (found := names()) is None:
                return None
            if len(found) > len(self.columns) + MOST_NAMES:
                return None
            decode = self._compiled(found)
            if len(self._spelled) >= REMEMBERED:  # callers have a few; who sends ever new ones fills no memory
                del self._spelled[next(iter(self._spelled))]
            self._spelled[spelled] = decode
        return decode(rows)

    def _compiled(self, names: Names) -> Decode:
        decode = self._layouts.get(names)
        if decode is None:
            decode = self._decoder.by_position(names)
            if names in self.layouts:
                self._layouts[names] = decode
        return decode

    def mappings(self, names: Names | None, rows: Sequence[Any]) -> list[dict[str, Any]]:
        """Rows that are lists, with their names; None: by position. Raises RequestError (400, 413, 422)."""
        chosen = self.names_of(names, rows)
        return [dict(zip(chosen, row, strict=True)) for row in rows]

    def names_of(self, names: Names | None, rows: Sequence[Any]) -> Names:
        """The columns of rows that are lists; None: by position. Raises RequestError (400, 422) where they are not that.

        413: there are too many.
        """
        self._check_count(len(rows))
        misfits = [i for i, row in enumerate(rows) if not self.fits(names, row)]
        if misfits:
            expected = self.expected(names)
            mistakes = [Mistake(i, "row", expected) for i in misfits]
            raise RequestError(422, "Rows do not have a value for each column.", mistakes)
        if names is not None or not rows:
            return names or ()
        if len({len(row) for row in rows}) > 1:
            raise RequestError(400, "Rows by position must all have the same number of values.")
        return self.by_position(len(rows[0]))

    def fits(self, names: Names | None, row: Any) -> bool:
        """Whether this is a list that has a value for each of these columns; None: of some layout."""
        return type(row) is list and (len(row) in self._widths if names is None else len(row) == len(names))

    def expected(self, names: Names | None) -> str:
        """What a row must be to fit."""
        if names is None:
            return f"must be a list of {self.described()}"
        return f"must be a list of {len(names)} values, one for each of the columns"

    def by_column(self, table: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows of a table by column, `{"age": [34, 61]}`; with single values in place of lists, the one row of them.

        Raises RequestError: 400 where columns have different lengths, or lists and single values are mixed; 413.
        """
        columns = {name: values for name, values in table.items() if name in self.columns}
        self.by_name(list(columns))
        shapes = {_is_list_of(self.columns[name], values) for name, values in columns.items()} - {None}
        if shapes == {False}:
            return [columns]
        if False in shapes:
            raise RequestError(400, "Each column must be a list of values, one for each row; some are single values.")
        if len({len(values) for values in columns.values()}) > 1:
            raise RequestError(400, "All columns must have the same number of values.")
        self._check_count(max(map(len, columns.values()), default=0))
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def of_items(self, items: Sequence[Any]) -> list[Any]:
        """Rows as they stand in a list: objects, lists by position, or single values where one column is all there is.

        This is a tensor too: its first axis counts rows, its second one columns. Raises RequestError.
        """
        self._check_count(len(items))
        kinds = {type(item) for item in items}
        alone = self._alone()
        if alone is not None and all(type(item) is dict or _depth(item) <= _nesting(alone) for item in items):
            return [item if type(item) is dict else {alone.name: item} for item in items]
        if kinds == {list}:
            return self.mappings(None, items)
        if kinds <= {dict}:
            return list(items)
        if dict in kinds or list in kinds:
            raise RequestError(400, "Rows must be all objects, or all lists.")
        raise RequestError(
            400,
            "Single values are rows of one column, but this model needs more. Write each row as an object, or as a list of "
            f"{self.described()}.",
        )

    def _alone(self) -> Column | None:
        """The column that a single value means."""
        names = next((names for names in self.layouts if len(names) == 1), None)
        return None if names is None else self.columns[names[0]]


def _nesting(column: Column) -> int:
    """How many lists deep the values of a column are."""
    return 0 if column.kind != "list" or column.item is None else 1 + _nesting(column.item)


def _depth(value: Any) -> int:
    """How many lists deep a value is, as far as the first list in each tells."""
    depth = 0
    while type(value) is list:
        depth += 1
        value = next((item for item in value if type(item) is list), None)
    return depth


def _is_list_of(column: Column, values: Any) -> bool | None:
    """Whether these are a column's values, or a single one of them; None where both could be so."""
    if type(values) is not list:
        return False
    if column.kind != "list":
        return True
    if not values:
        return None
    return _depth(values) > _nesting(column)
