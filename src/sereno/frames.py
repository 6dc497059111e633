"""Arrow tables ↔ the form that a model asks for by annotation.

What a column is in each form follows from the row type alone and never from the values of a batch: a column of
`int | None` is Int64 in pandas whether or not a value is missing tonight. `docs/rows.md` has the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sereno.checks import floats_of_decimals, one_array
from sereno.exceptions import OutputError
from sereno.schema import Column, RowType
from sereno.values import plain_value

Form = Literal["pandas", "polars", "arrow", "numpy", "rows"]
BLOCK = 4096  # rows transposed at a time: the block stays in the processor's cache


def form_of(annotation: Any) -> Form | None:
    """The form that an annotation asks for, without importing its library; None: it names none."""
    module, name = getattr(annotation, "__module__", ""), getattr(annotation, "__name__", "")
    if name == "DataFrame" and module.split(".")[0] in ("pandas", "polars"):
        return "pandas" if module.startswith("pandas") else "polars"
    if module.startswith("pyarrow") and name == "Table":
        return "arrow"
    origin = getattr(annotation, "__origin__", None)
    if origin is not None and getattr(origin, "__name__", "") == "ndarray":
        return "numpy"
    if module.startswith("numpy") and name == "ndarray":
        return "numpy"
    if origin is list or annotation is list:
        return "rows"
    return None


def to_form(form: Form, row: RowType, columns: Sequence[Column], table: pa.Table) -> Any:
    """`table` (canonical, with exactly these columns) as the form."""
    return _TO[form](row, columns, table)


def _to_arrow(row: RowType, columns: Sequence[Column], table: pa.Table) -> pa.Table:
    return table


def _to_numpy(row: RowType, columns: Sequence[Column], table: pa.Table) -> Any:
    """float64 (rows × columns), row-major, missing values NaN."""
    arrays = []
    for k, column in enumerate(columns):
        array = one_array(table.column(k))
        if column.kind == "bool":
            array = pc.cast(array, pa.float64())
        elif column.kind == "decimal":
            array = floats_of_decimals(array)
        arrays.append(array.to_numpy(zero_copy_only=False))
    out = np.empty((table.num_rows, len(columns)))
    block = np.empty((len(columns), BLOCK))
    for start in range(0, len(out), BLOCK):
        rows = min(BLOCK, len(out) - start)
        for k, values in enumerate(arrays):
            block[k, :rows] = values[start : start + rows]
        out[start : start + rows] = block[:, :rows].T
    return out


def _to_pandas(row: RowType, columns: Sequence[Column], table: pa.Table) -> Any:
    import pandas as pd

    if all(c.kind == "float" for c in columns):  # one block, as pandas itself would make it
        by_column = np.empty((table.num_rows, len(columns)), order="F")
        for k in range(len(columns)):
            by_column[:, k] = one_array(table.column(k)).to_numpy(zero_copy_only=False)
        return pd.DataFrame(by_column, columns=[c.name for c in columns], copy=False)
    series = {c.name: _series(pd, c, one_array(table.column(k))) for k, c in enumerate(columns)}
    return pd.DataFrame(series, index=pd.RangeIndex(table.num_rows), copy=False)


def _series(pd: Any, column: Column, array: pa.Array) -> Any:
    if column.choices:
        categories = pd.Index(list(column.choices))
        codes = pc.index_in(array, value_set=pa.array(column.choices, column.arrow_type)).fill_null(-1)
        return pd.Categorical.from_codes(codes.to_numpy(zero_copy_only=False), categories=categories)
    match column.kind:
        case "int" | "bool" if column.nullable:
            masked = pd.arrays.IntegerArray if column.kind == "int" else pd.arrays.BooleanArray
            missing = array.is_null().to_numpy(zero_copy_only=False)
            filled = array.fill_null(0 if column.kind == "int" else False)
            return masked(np.array(filled.to_numpy(zero_copy_only=False)), missing)
        case "int" | "bool" | "float":
            return np.array(array.to_numpy(zero_copy_only=False))  # a copy: Arrow's own cannot be written to
        case "str" if int(pd.__version__.split(".")[0]) >= 3:
            return pd.Series(pd.StringDtype(na_value=np.nan).__from_arrow__(array))
        case "date":
            return pd.Series(array.cast(pa.timestamp("s")).to_numpy(zero_copy_only=False)).astype("datetime64[us]")
        case "datetime":
            naive = pd.Series(array.cast(pa.timestamp("us")).to_numpy(zero_copy_only=False)).astype("datetime64[us]")
            return naive.dt.tz_localize("UTC")
        case _:
            return pd.Series(array.to_pylist(), dtype=object)


def _to_polars(row: RowType, columns: Sequence[Column], table: pa.Table) -> Any:
    import polars as pl

    frame = pl.from_arrow(table)
    enums = [c for c in columns if c.choices and isinstance(c.choices[0], str)]
    return frame.with_columns([pl.col(c.name).cast(pl.Enum(list(c.choices))) for c in enums])  # type: ignore[union-attr, arg-type]


def _to_rows(row: RowType, columns: Sequence[Column], table: pa.Table) -> list[Any]:
    values = zip(*(one_array(table.column(k)).to_pylist() for k in range(len(columns))), strict=True)
    make = _maker(row, columns)
    return [make(v) for v in values]


def _maker(row: RowType, columns: Sequence[Column]) -> Callable[[Sequence[Any]], Any]:
    """A function from values to an instance of the row type that has these columns and no others."""
    converts = [_converter(c) for c in columns]
    names = [c.name for c in columns]

    def fields(values: Sequence[Any]) -> dict[str, Any]:
        return {n: v if f is None else f(v) for n, f, v in zip(names, converts, values, strict=True)}

    if row.style == "typeddict":
        return fields
    if row.style == "pydantic":
        construct = row.cls.model_construct  # type: ignore[attr-defined]
        return lambda values: construct(**fields(values))

    def instance(values: Sequence[Any]) -> Any:
        made: Any = object.__new__(row.cls)  # keys are not among the columns, so __init__ cannot be called
        for name, value in fields(values).items():
            object.__setattr__(made, name, value)
        return made

    return instance


def _converter(column: Column) -> Callable[[Any], Any] | None:
    if column.enum is not None:
        enum = column.enum
        return lambda v: None if v is None else enum(v)
    if column.kind == "row" and column.row is not None:
        inner, names = _maker(column.row, column.row.columns), [c.name for c in column.row.columns]
        return lambda v: None if v is None else inner([v[n] for n in names])
    if column.kind == "list" and column.item is not None and (convert := _converter(column.item)) is not None:
        return lambda v: None if v is None else [convert(item) for item in v]
    return None


_TO: dict[Form, Callable[[RowType, Sequence[Column], pa.Table], Any]] = {
    "pandas": _to_pandas,
    "polars": _to_polars,
    "arrow": _to_arrow,
    "numpy": _to_numpy,
    "rows": _to_rows,
}


def from_answer(answer: Any, outputs: RowType, rows: int) -> pa.Table:
    """What `predict` returned, in whatever form, as an Arrow table with the declared columns; values unchecked.

    Raises OutputError where columns or the number of rows are not as declared.
    """
    columns = _columns(answer, outputs)
    names = [c.name for c in outputs.columns]
    missing = [n for n in names if n not in columns]
    extra = [n for n in columns if n not in names]
    if missing or extra:
        said = " and ".join(
            part
            for part in (
                f"has no column {', '.join(map(repr, missing))}" if missing else "",
                f"has {', '.join(map(repr, extra))}, which {outputs.name} does not declare" if extra else "",
            )
            if part
        )
        raise OutputError(f"The answer of predict {said}. Declared are {', '.join(names)}.")
    arrays = []
    for name in names:
        array = _array(name, columns[name])
        if len(array) != rows:
            raise OutputError(
                f"predict was given {rows} rows and answered {len(array)} in column {name!r}. It must answer every row, "
                "in the order given; a row that cannot be scored may raise an error or hold a null where declared."
            )
        arrays.append(array)
    return pa.Table.from_arrays(arrays, names=names)


def _array(name: str, values: Any) -> pa.Array:
    try:
        if isinstance(values, pa.ChunkedArray | pa.Array):
            return one_array(values)
        if hasattr(values, "to_arrow"):  # polars
            return one_array(values.to_arrow())
        return one_array(pa.array(values, from_pandas=True))
    except (TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        raise OutputError(
            f"Column {name!r} of the answer of predict holds values that are no column: {error}."
        ) from error


def _columns(answer: Any, outputs: RowType) -> dict[str, Any]:
    """Name → values, from any form."""
    names = [c.name for c in outputs.columns]
    if isinstance(answer, dict):
        return answer
    if isinstance(answer, pa.Table | pa.RecordBatch):
        return _by_name(answer.schema.names, answer.columns)
    if isinstance(answer, pa.Array | pa.ChunkedArray):
        return _single(answer, names)
    if isinstance(answer, np.ndarray):
        if answer.dtype.names:
            return {n: answer[n] for n in answer.dtype.names}
        if answer.ndim == 2:
            if answer.shape[1] != len(names):
                raise OutputError(
                    f"predict answered an array of {answer.shape[1]} columns; {outputs.name} declares {len(names)}: "
                    f"{', '.join(names)}."
                )
            return {n: np.ascontiguousarray(answer[:, k]) for k, n in enumerate(names)}
        if answer.ndim == 1:
            return _single(answer, names)
        raise OutputError(f"predict answered an array of {answer.ndim} dimensions; valid are 1 and 2.")
    if isinstance(answer, list | tuple):
        return _from_rows(answer, outputs)
    kind = type(answer).__name__
    module = type(answer).__module__.split(".")[0]
    if kind == "DataFrame" and module in ("pandas", "polars"):
        columns = [answer.iloc[:, k] for k in range(answer.shape[1])] if module == "pandas" else answer.get_columns()
        return _by_name([str(n) for n in answer.columns], columns)
    if kind in ("Series", "Categorical"):
        return _single(answer, names)
    if hasattr(answer, "__array__"):  # a tensor, say
        return _columns(np.asarray(answer), outputs)
    raise OutputError(
        f"predict answered {type(answer).__name__}. Valid are a pandas or polars DataFrame or Series, a pyarrow Table, a "
        "numpy array, a dict of columns, or a list of rows."
    )


def _by_name(names: Sequence[str], columns: Sequence[Any]) -> dict[str, Any]:
    found = dict(zip(names, columns, strict=True))
    if len(found) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise OutputError(f"The answer of predict has column {twice!r} twice.")
    return found


def _single(values: Any, names: list[str]) -> dict[str, Any]:
    if len(names) != 1:
        raise OutputError(f"predict answered one column; declared are {len(names)}: {', '.join(names)}.")
    return {names[0]: values}


def _from_rows(rows: Sequence[Any], outputs: RowType) -> dict[str, Any]:
    names = [c.name for c in outputs.columns]
    mappings = [plain_value(row) for row in rows]
    if len(names) == 1 and mappings and not isinstance(mappings[0], dict):
        return {names[0]: mappings}
    found: dict[str, list[Any]] = {n: [] for n in names}
    for position, mapping in enumerate(mappings):
        if not isinstance(mapping, dict) or set(mapping) != set(names):
            got = ", ".join(mapping) if isinstance(mapping, dict) else type(mapping).__name__
            raise OutputError(f"Row {position} of the answer of predict has {got}; declared are {', '.join(names)}.")
        for name in names:
            found[name].append(mapping[name])
    return {n: v or pa.array([], c.arrow_type) for c, (n, v) in zip(outputs.columns, found.items(), strict=True)}
