"""Tensors of the Open Inference Protocol: their datatypes, and Python values from and to JSON and bytes.

Whatever comes from the wire is hostile: nothing here is allocated by a size that a request claims, only by bytes that
it sent, and every way to be wrong is a RequestError.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any

from sereno.schema import Kind
from sereno.serve.wire import RequestError

# BYTES hold text: of a str as it is, of a date or decimal in its usual form, of a list or a nested row as JSON.
DATATYPES: dict[Kind, str] = {"int": "INT64", "float": "FP64", "bool": "BOOL"}
NESTED = ("list", "row")

_CODES = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}  # of Python's `struct`, little-endian
_SIZES = {datatype: struct.calcsize("<" + code) for datatype, code in _CODES.items()}
_BITS = {datatype: 8 * size for datatype, size in _SIZES.items() if "INT" in datatype}
_INTEGERS = {
    datatype: range(2**bits) if datatype[0] == "U" else range(-(2 ** (bits - 1)), 2 ** (bits - 1))
    for datatype, bits in _BITS.items()
}
_FLOATS = ("FP16", "FP32", "FP64")
JSON_TYPES: dict[str, frozenset[type]] = {  # datatype → what its values are in JSON
    "BOOL": frozenset((bool, type(None))),
    **{datatype: frozenset((int, type(None))) for datatype in _INTEGERS},
    **{datatype: frozenset((float, int, type(None))) for datatype in _FLOATS},
    "BYTES": frozenset((str, type(None))),
}
WHOLE = frozenset((int, float, type(None)))
_LENGTH = struct.Struct("<I")


def datatype_of(kind: Kind) -> str:
    """The datatype of a column, as the model's metadata says it."""
    return DATATYPES.get(kind, "BYTES")


def from_json(datatype: str, data: list[Any], count: int, width: int, most_text: int, where: str) -> list[Any]:
    """`count * width` values of a tensor's `data`, flat or nested once, that are of the datatype or null."""
    if len(data) == count and data and all(type(row) is list and len(row) == width for row in data):
        data = [value for row in data for value in row]
    if len(data) != count * width:
        raise RequestError(400, f"{where}: data does not have as many values as its shape says.")
    types = set(map(type, data))
    valid = _INTEGERS.get(datatype)
    fits = types <= JSON_TYPES[datatype]
    if not fits and valid is not None and types <= WHOLE:  # 1e2 and 100.0 are whole numbers too
        fits = all(type(value) is not float or value.is_integer() for value in data)
    # what 64 bits cannot hold is refused by the row type, as on every way in
    if fits and valid is not None and datatype != "INT64":
        fits = all(value is None or int(value) in valid for value in data)
    if not fits:
        raise RequestError(400, f"{where}: data has other values than {datatype}.")
    if datatype == "BYTES" and any(value is not None and len(value.encode()) > most_text for value in data):
        raise RequestError(413, f"{where}: a text is longer than {most_text} bytes.")
    return data


def from_bytes(datatype: str, raw: memoryview, count: int, most_text: int, where: str) -> list[Any]:
    """`count` values from a tensor's bytes: no more, no fewer. NaN becomes None: it is a missing value everywhere."""
    if datatype == "BYTES":
        return _texts(raw, count, most_text, where)
    if len(raw) != count * _SIZES[datatype]:
        raise RequestError(400, f"{where}: binary_data_size is not what shape and datatype need.")
    values = list(struct.unpack(f"<{count}{_CODES[datatype]}", raw))
    # one look at the sum finds every NaN; two infinities of both signs may look like one too
    if datatype in _FLOATS and math.isnan(sum(values)):
        return [None if value != value else value for value in values]
    return values


def _texts(raw: memoryview, count: int, most_text: int, where: str) -> list[str]:
    out = []
    at, end = 0, len(raw)
    for _ in range(count):
        if end - at < 4:
            raise RequestError(400, f"{where}: the bytes end before the last element.")
        (size,) = _LENGTH.unpack_from(raw, at)
        at += 4
        if size > end - at:
            raise RequestError(400, f"{where}: an element is longer than the bytes that are left.")
        if size > most_text:
            raise RequestError(413, f"{where}: a text is longer than {most_text} bytes.")
        try:
            out.append(str(raw[at : at + size], "utf-8"))
        except UnicodeDecodeError:
            raise RequestError(400, f"{where}: an element is not text in UTF-8.") from None
        at += size
    if at != end:
        raise RequestError(400, f"{where}: there are bytes behind the last element.")
    return out


def to_bytes(datatype: str, values: Sequence[Any]) -> bytes | None:
    """The values as a tensor's bytes; None where one of them is null, for which only floats have a form."""
    if datatype == "FP64":
        values = [float("nan") if value is None else value for value in values]
    elif None in values:
        return None
    if datatype == "BYTES":
        return b"".join(_elements(values))
    return struct.pack(f"<{len(values)}{_CODES[datatype]}", *values)


def _elements(texts: Iterable[str]) -> Iterable[bytes]:
    for text in texts:
        raw = text.encode()
        yield _LENGTH.pack(len(raw))
        yield raw
