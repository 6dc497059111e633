"""MLflow's scoring server: the JSON forms of `/invocations`, and the paths that tell about the server.

A body has exactly one of

    {"dataframe_split": {"columns": ["age", …], "index"?: …, "data": [[34, …], …]}}
    {"dataframe_records": [{"age": 34, …}, …]}
    {"instances": …}   {"inputs": …}      rows, a table by column, or a tensor: see `positional.py`

Beside it, `"params": {"lookup": true}` asks for what was published under the keys of the rows (`keys.py`); anything else is
passed over: predict takes rows and nothing else. `POST /invocations` itself, which SageMaker's callers share, is in
`invocations.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from sereno import __version__
from sereno.rows import JSON_TEXT, NOT_DECODED
from sereno.serve.platforms import platform_of
from sereno.serve.protocols.keys import ByKey, wants_lookup
from sereno.serve.protocols.native import extra_headers
from sereno.serve.protocols.positional import Names, Positions
from sereno.serve.wire import Asked, Reply, Request, RequestError, Route

if TYPE_CHECKING:
    from sereno.serve.live import Live
    from sereno.serve.service import Service

TEXT = b"text/plain; charset=utf-8"
NAMES = ("dataframe_split", "dataframe_records", "instances", "inputs")
FORMS = "dataframe_split, dataframe_records, instances or inputs"
SPLIT = 'dataframe_split must be an object of "data" (a list of rows), and "columns" and "index" if you like.'
# pandas frames have NaN where a value is missing, and Python writes it into JSON, which has no such word
NAN = re.compile(JSON_TEXT + rb"|\bNaN\b", re.DOTALL)

ERROR_CODES = {
    400: "BAD_REQUEST",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    413: "BAD_REQUEST",
    422: "BAD_REQUEST",
    429: "REQUEST_LIMIT_EXCEEDED",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class Split(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    data: Raw
    columns: Raw = Raw(b"null")
    index: Raw = Raw(b"null")


class Body(msgspec.Struct, gc=False):
    dataframe_split: Raw | UnsetType = UNSET
    dataframe_records: Raw | UnsetType = UNSET
    instances: Raw | UnsetType = UNSET
    inputs: Raw | UnsetType = UNSET
    params: Raw | UnsetType = UNSET


class SplitBody(msgspec.Struct, gc=False):
    """What pandas frames are sent as, and so by far the most frequent body."""

    dataframe_split: Split
    dataframe_records: UnsetType = UNSET
    instances: UnsetType = UNSET
    inputs: UnsetType = UNSET
    params: Raw | UnsetType = UNSET


_decode_split = msgspec.json.Decoder(SplitBody).decode
_decode_body = msgspec.json.Decoder(Body).decode
_encode = msgspec.json.Encoder().encode


def routes(service: Service) -> list[Route]:
    platform = platform_of(os.environ)
    # SageMaker asks for an empty body, and MLflow has a line end there
    empty = platform is not None and platform.name == "sagemaker"

    def health(service: Service, request: Request, params: dict[str, str]) -> Reply:
        return Reply(200 if service.is_ready else 404, b"" if empty else b"\n")

    return [
        Route("GET", "/ping", answer=health, refuse=refuse),
        Route("GET", "/health", answer=health, refuse=refuse),
        Route("GET", "/version", answer=_version, refuse=refuse),
    ]


class Frames:
    """Reads the JSON forms for one model. Built once."""

    def __init__(self, live: Live, positions: Positions, by_key: ByKey) -> None:
        self._live = live
        self._positions = positions
        self._by_key = by_key

    def read(self, body: bytes, context: Any) -> Asked:
        """What a body asks for. Raises RequestError."""
        live = self._live
        live.check_json(body)
        try:
            parsed = _decode_split(body)
        except NOT_DECODED:
            return self._read_other(body, context)
        split = parsed.dataframe_split
        told = parsed.params is not UNSET and wants_lookup(parsed.params)
        columns = bytes(split.columns)
        if told or columns == b"null":
            return self._read_split(split, context, told=told)
        rows = self._positions.decode(columns, lambda: self._names_of_rows(split), split.data)
        if rows is None:
            return self._read_split(split, context, told=False)
        live.check_count(len(rows))
        return Asked(rows, context)

    def has_form(self, body: bytes) -> bool:
        """Whether the body is one JSON object with one of the forms, right or wrong as that may be."""
        try:
            return bool(_forms(_decode_body(body)))
        except NOT_DECODED:
            return False

    def _read_other(self, body: bytes, context: Any) -> Asked:
        live = self._live
        name, raw, told = _form(body)
        if name == "dataframe_split":
            return self._read_split(_split(raw), context, told=told)
        # a list of objects, mostly
        if (
            not told
            and body.count(b"{") <= live.limits.max_rows
            and (rows := live.decoder.decode_list(raw)) is not None
        ):
            live.check_count(len(rows))
            return Asked(rows, context)
        value = _value(raw)
        if name == "dataframe_records" and not isinstance(value, list):
            raise RequestError(400, "dataframe_records must be a list of rows, each an object.")
        is_lookup = told or self._by_key.are_rows_alone(value)
        positions = self._by_key.positions if is_lookup else self._positions
        if name == "dataframe_records":
            values = value
        elif isinstance(value, dict):
            values = positions.by_column(value)
        else:
            values = positions.of_items(value if isinstance(value, list) else [value])
        return self._by_key.ask(values, context, told=told) if is_lookup else Asked(live.rows_of(values), context)

    def _read_split(self, split: Split, context: Any, *, told: bool) -> Asked:
        rows = _value(split.data)
        if not isinstance(rows, list):
            raise RequestError(400, SPLIT)
        columns = _columns(split)
        if told or (columns is not None and self._by_key.are_alone([c for c in columns if type(c) is str])):
            positions = self._by_key.positions
            names = None if columns is None else positions.by_name(columns)
            return self._by_key.ask(positions.mappings(names, rows), context, told=told)
        names = None if columns is None else self._positions.by_name(columns)
        return Asked(self._live.rows_of(self._positions.mappings(names, rows)), context)

    def _names_of_rows(self, split: Split) -> Names | None:
        """The columns of rows that have all they need by name; None: another look is needed."""
        columns = _columns(split)
        try:
            return None if columns is None else self._positions.by_name(columns)
        except RequestError:
            return None


def refuse(error: RequestError) -> Reply:
    """`{"error_code", "message"}`, with the mistakes of all rows in the message; of a 415, plain text."""
    says = explained(error)
    if error.status == 415:
        return Reply(415, says.encode(), TEXT)
    status = 400 if error.status == 422 else error.status
    code = ERROR_CODES.get(error.status, "BAD_REQUEST" if error.status < 500 else "INTERNAL_ERROR")
    return Reply(status, _encode({"error_code": code, "message": says}), headers=extra_headers(error))


def explained(error: RequestError) -> str:
    """An error in one text, with its mistakes."""
    if not error.mistakes:
        return error.says
    found = (
        f"row {m.row}: {m.expected}" if m.column == "row" else f"row {m.row}: {m.column}: {m.expected}"
        for m in error.mistakes
    )
    return f"{error.says} {'; '.join(found)}"


def write(live: Live, answers: Sequence[Any]) -> Reply:
    """A table of answers gives records."""
    return Reply(200, b'{"predictions":%s}' % live.encode_many(answers))


def _version(service: Service, request: Request, params: dict[str, str]) -> Reply:
    return Reply(200, __version__.encode(), TEXT)


def _form(body: bytes) -> tuple[str, Raw, bool]:
    """The one form that the body has, with its name, and whether lookups are asked for. Raises RequestError."""
    try:
        try:
            parsed = _decode_body(body)
        except msgspec.DecodeError:
            if b"NaN" not in body:
                raise
            parsed = _decode_body(NAN.sub(lambda found: b"null" if found[0] == b"NaN" else found[0], body))
    except msgspec.ValidationError:
        raise RequestError(400, f"The body must be a JSON object with one of {FORMS}.") from None
    except NOT_DECODED:
        raise RequestError(400, "The body is not JSON.") from None
    forms = _forms(parsed)
    if len(forms) != 1:
        raise RequestError(400, f"The body must have exactly one of {FORMS}; it has {len(forms) or 'none'} of them.")
    ((name, raw),) = forms.items()
    return name, raw, wants_lookup(parsed.params)


def _forms(body: Body) -> dict[str, Raw]:
    return {name: raw for name in NAMES if (raw := getattr(body, name)) is not UNSET}


def _columns(split: Split) -> list[Any] | None:
    """What the columns are called; None: they have no names. Raises RequestError (400)."""
    columns = _value(split.columns)
    if columns is not None and not isinstance(columns, list):
        raise RequestError(400, "The columns of dataframe_split must be a list of names.")
    return columns


def _split(raw: Raw) -> Split:
    try:
        return msgspec.json.decode(raw, type=Split)
    except NOT_DECODED:
        raise RequestError(400, SPLIT) from None


def _value(raw: Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except NOT_DECODED:  # Raw was only looked through
        raise RequestError(400, "The body is not JSON.") from None
