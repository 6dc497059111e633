"""Reading SQL databases: PostgreSQL by columns through ADBC, SQLite by rows through the standard library.

Values reach a query as bound parameters and never as text: `… WHERE day = {data_date}` is safe whatever the value is.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn
from urllib.parse import quote

from sereno.adapters.postgresql.address import Address, require
from sereno.exceptions import InputError, SettingsError, SourceError

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 32_768

# What a query is made of, as far as a placeholder is concerned: texts, quoted names and comments hide it.
_TOKEN = re.compile(
    r"""(?P<text>'(?:[^']|'')*')
      | (?P<name>"(?:[^"]|"")*")
      | (?P<comment>--[^\n]*|/\*.*?\*/)
      | (?P<brace>\{\{|\}\})
      | \{(?P<value>[^{}]*)\}
      | (?P<stray>[{}])
      | \$(?P<position>\d+)""",
    re.VERBOSE | re.DOTALL,
)


def bind(query: str, values: Mapping[str, object], style: Literal["$", "?"]) -> tuple[str, list[object]]:
    """Make each `{name}` of a query a parameter, `$1` or `?`; the query for the database, and the parameters.

    `{{` and `}}` are braces. Raises SettingsError for an unknown name, a lone brace, or a name inside quotes.
    """
    parameters: list[object] = []
    positions: dict[str, int] = {}

    def replace(token: re.Match[str]) -> str:
        name = token["value"]
        if name is None:
            if token["stray"]:
                raise SettingsError(
                    f"A lone {token['stray']} in the query: {_shown(query)}. A brace is written {{{{ or }}}}."
                )
            if token["brace"]:
                return token["brace"][0]
            quoted = token["text"] or token["name"]
            if quoted and (inside := re.search(r"(?<!\{)\{(\w+)\}(?!\})", quoted)) and inside[1] in values:
                raise SettingsError(
                    f"{inside[0]} is inside quotes in the query: {_shown(query)}. Write it without them, {inside[0]}: "
                    "values are bound as parameters, not pasted as text."
                )
            return re.sub(r"\{\{|\}\}", lambda brace: brace[0][0], token[0]) if quoted else token[0]
        if name not in values:
            raise SettingsError(
                f"The query names {{{name}}}, which no setting gives: {_shown(query)}. Known are "
                f"{', '.join(sorted(values)) or 'none'}. Add it to [values], or write a brace as {{{{ or }}}}."
            )
        if style == "?":
            parameters.append(values[name])
            return "?"
        if name not in positions:
            parameters.append(values[name])
            positions[name] = len(parameters)
        return f"${positions[name]}"

    return _TOKEN.sub(replace, query), parameters


def read_postgresql(url: str, query: str, parameters: Sequence[object] = ()) -> Iterator[pa.RecordBatch]:
    """The answer to a query, in batches as they arrive; memory is bounded by the batch, not by the answer.

    Raises SourceError when the database refuses, and InputError for columns that have no plain Arrow type.
    """
    require("adbc_driver_postgresql", "Reading PostgreSQL")
    import adbc_driver_manager
    import adbc_driver_postgresql.dbapi as postgresql  # type: ignore[import-untyped]
    import pyarrow as pa

    address = Address.parse(url)
    try:
        with postgresql.connect(address.url) as connection, connection.cursor() as cursor:
            # One state of the database for the whole answer, and no way to change it.
            cursor.execute("SET TRANSACTION READ ONLY")
            # ADBC streams a query by COPY, which takes no parameters; with parameters it would hold the whole answer
            # (3 M rows: 720 MB instead of 210). So each is set, as a parameter, for the length of this transaction.
            for position, value in enumerate(parameters, 1):
                cursor.execute("SELECT set_config($1, $2, true)", [f"sereno.p{position}", _text(value)])
                cursor.fetchall()
            cursor.execute(_by_setting(query, parameters))
            reader = cursor.fetch_record_batch()
            _check_columns(reader.schema)
            for batch in reader:
                if batch.num_rows:
                    yield batch
    except (adbc_driver_manager.Error, pa.ArrowException, OSError) as error:  # the last two while rows arrive
        told = re.search(r"ERROR:\s*(.*)", str(error)) or re.search(r"\[libpq\]\s*(.*)", str(error))
        _refused(address.shown, query, address.redact(told[1] if told else str(error).splitlines()[0]))


def read_sqlite(
    path: Path, query: str, parameters: Sequence[object] = (), booleans: frozenset[str] = frozenset()
) -> Iterator[list[dict[str, Any]]]:
    """The answer to a query, in batches of rows; the file is opened for reading only.

    SQLite has no booleans: in the columns `booleans`, 0 and 1 become False and True. Dates are bound as its own
    functions write them: 2026-05-01, and 2026-05-01 22:00:00 in UTC. Raises SourceError and InputError.
    """
    if not path.is_file():
        raise SourceError(f"There is no SQLite database {path}. Check `database` in the settings.")
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
            cursor = connection.execute(query, [_for_sqlite(value) for value in parameters])
            names = [column[0] for column in cursor.description or ()]
            _check_names(names)
            while rows := cursor.fetchmany(BATCH_ROWS):
                yield [_sqlite_row(names, row, booleans) for row in rows]
    except sqlite3.Error as error:
        _refused(str(path), query, str(error))


def _sqlite_row(names: list[str], row: tuple[Any, ...], booleans: frozenset[str]) -> dict[str, Any]:
    answer = dict(zip(names, row, strict=True))
    for name, value in answer.items():
        if type(value) is bytes:
            raise InputError(
                f"The column {name!r} of the query holds a BLOB. Columns are numbers, texts, dates or null: leave it "
                f"out, or cast it in SQL, e.g. CAST({name} AS TEXT)."
            )
        # Other numbers stay as they are, and are told as what they are: no booleans.
        if name in booleans and type(value) is int and value in (0, 1):
            answer[name] = bool(value)
    return answer


def _by_setting(query: str, parameters: Sequence[object]) -> str:
    def replace(token: re.Match[str]) -> str:
        if token["position"] is None:
            return token[0]
        position = int(token["position"])
        if not 1 <= position <= len(parameters):
            raise SettingsError(f"The query names ${position}, and has {len(parameters)} parameters: {_shown(query)}.")
        # A null parameter was set as nothing; no value is written so, for a text is prefixed.
        return f"(substr(nullif(current_setting('sereno.p{position}'), ''), 2)::{_type(parameters[position - 1])})"

    return _TOKEN.sub(replace, query)


def _type(value: object) -> str:
    match value:
        case bool():
            return "boolean"
        case int():
            return "bigint"
        case float():
            return "double precision"
        case Decimal():
            return "numeric"
        case datetime():
            return "timestamptz" if value.tzinfo else "timestamp"
        case date():
            return "date"
    return "text"


def _text(value: object) -> str:
    return "" if value is None else "=" + (value.isoformat() if isinstance(value, date) else str(value))


def _for_sqlite(value: object) -> Any:
    match value:
        case datetime():
            return (value.astimezone(UTC) if value.tzinfo else value).replace(tzinfo=None).isoformat(" ")
        case date():
            return value.isoformat()
        case Decimal():
            return str(value)
    return value


def _check_columns(schema: pa.Schema) -> None:
    import pyarrow as pa

    _check_names(schema.names)
    for field in schema:
        metadata = field.metadata or {}
        kind = (metadata.get(b"POSTGRESQL:type") or metadata.get(b"ADBC:postgresql:typname") or b"").decode()
        # A sum of money arrives as a whole number of cents, which nobody would notice.
        if isinstance(field.type, pa.BaseExtensionType) or pa.types.is_binary(field.type) or kind == "money":
            cast = "float8" if kind in ("numeric", "money") else "text"
            via = f"{field.name}::numeric::float8" if kind == "money" else f"{field.name}::{cast}"
            raise InputError(
                f"The column {field.name!r} of the query has the type {kind or field.type}, which has no plain column "
                f"type: cast it in SQL, e.g. {via} AS {field.name}."
            )


def _check_names(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"Two columns of the query have the name {twice[0]!r}. Give one another: AS NAME.")


def _refused(where: str, query: str, told: str) -> NoReturn:
    # Without its cause, which may hold the address and with it the password.
    raise SourceError(
        f"{where} refused the query: {told.strip().rstrip('.')}. It begins: {_shown(query)}. Try it there, and mend it."
    ) from None


def _shown(query: str) -> str:
    return query.strip().partition("\n")[0].strip()[:200]
