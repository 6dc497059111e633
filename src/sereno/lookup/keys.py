"""A key: as texts of a URL, as JSON, as columns of a table; and the bytes under which an index has its prediction.

    int     8 bytes, the most significant first, with the sign bit flipped
    date    4 bytes, likewise: days since 1970
    str     4 bytes with the length of the text in UTF-8, then the text

The values of a composite key stand one after the other, in declared order. No two keys have the same bytes, and no key's
bytes begin another's. What is longer than an index takes keeps its beginning, and its SHA-256 instead of the rest.

Nothing heavy is imported: a server asks about keys before it has anything else to do with tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from hashlib import sha256
from struct import Struct
from typing import TYPE_CHECKING, Any, Literal

from sereno.exceptions import IndexingError
from sereno.schema import Column
from sereno.values import DATE_TEXT, INT64, NOUNS, Mistake, Refused, admit

if TYPE_CHECKING:
    import pyarrow as pa

KeyKind = Literal["int", "str", "date"]
Key = tuple[Any, ...]  # canonical values, in declared order

LONGEST = 510  # bytes of a key that stands as it is; one byte more says that it does not
KEPT = 479  # bytes of a longer one that stay, before the 32 of its SHA-256
WHOLE = re.compile(r"0|-?[1-9][0-9]{0,18}", re.ASCII)
INT_SIGN = 1 << 63
DATE_SIGN = 1 << 31
EPOCH = date(1970, 1, 1).toordinal()

UNRESERVED = re.compile(
    rb"[A-Za-z0-9._~-]{1,500}"
).fullmatch  # a text that stands for itself in a URL, and is not shortened
ZERO = ord("0")

_length, _whole = Struct(">I").pack, Struct(">Q").pack


@dataclass(frozen=True)
class KeyCodec:
    """What a key of one model is."""

    names: tuple[str, ...]
    kinds: tuple[KeyKind, ...]
    columns: tuple[Column, ...] = field(init=False, compare=False, repr=False)  # with no rules but their kinds
    single: KeyKind | None = field(init=False, compare=False, repr=False)  # the kind of a key of one value
    encode: Callable[[Key], bytes] = field(init=False, compare=False, repr=False)
    """The bytes of a key, which `of_texts` or `of_value` made."""
    plain: Callable[[bytes], bytes | None] = field(init=False, compare=False, repr=False)
    """The bytes of a key as it stands in most URLs; None: it is one that `of_texts` must look at, or no key at all."""

    def __post_init__(self) -> None:
        columns = tuple(Column(name=n, kind=k, role="key") for n, k in zip(self.names, self.kinds, strict=True))
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "single", self.kinds[0] if len(self.kinds) == 1 else None)
        object.__setattr__(self, "encode", _encoder(self.kinds))
        object.__setattr__(self, "plain", _PLAIN.get(self.kinds, _not_plain))

    @classmethod
    def of(cls, schema: pa.Schema, names: Sequence[str]) -> KeyCodec:
        """The keys of a table. Raises IndexingError where a column cannot be one."""
        return cls(tuple(names), tuple(_kind(schema, name) for name in names))

    def of_texts(self, texts: Sequence[str]) -> Key:
        """The key whose values these texts are, as segments of a URL have them. Raises Refused.

        A value has one text: neither +7 nor 007 is 7.
        """
        if len(texts) != len(self.kinds):
            raise self._other_count()
        values: list[Any] = []
        mistakes: list[Mistake] = []
        for column, text in zip(self.columns, texts, strict=True):
            try:
                values.append(_of_text(column.kind, text))
            except ValueError:
                mistakes.append((column.name, f"must be {NOUNS[column.kind]}"))
        if mistakes:
            raise Refused(mistakes=mistakes)
        return tuple(values)

    def of_value(self, value: Any) -> Key:
        """The key that stands in JSON: the value, or the list of its values where the key is composite. Raises Refused."""
        if self.single is not None:
            if self.single == "int" and type(value) is int and value in INT64:
                return (value,)
            return (admit(self.columns[0], value, "json"),)
        if not isinstance(value, list | tuple) or len(value) != len(self.kinds):
            raise self._other_count()
        values: list[Any] = []
        mistakes: list[Mistake] = []
        for column, one in zip(self.columns, value, strict=True):
            try:
                values.append(admit(column, one, "json"))
            except Refused as refused:
                mistakes += refused.mistakes
        if mistakes:
            raise Refused(mistakes=mistakes)
        return tuple(values)

    def _other_count(self) -> Refused:
        if self.single is not None:
            return Refused(mistakes=[(self.names[0], f"must be one value, {NOUNS[self.single]}")])
        return Refused(mistakes=[("key", f"must have {len(self.names)} values ({', '.join(self.names)})")])

    def encode_array(self, table: pa.Table) -> pa.Array:
        """The bytes of each row's key, as a binary column. The table has the columns of the keys, without nulls."""
        import pyarrow as pa
        import pyarrow.compute as pc

        pieces = []
        for name, kind in zip(self.names, self.kinds, strict=True):
            column = table.column(name).combine_chunks()
            pieces += _text_pieces(column) if kind == "str" else [_number_piece(column, kind)]
        if len(pieces) == 1:
            return pieces[0]
        whole = pc.binary_join_element_wise(*pieces, pa.scalar(b"", pa.large_binary()))
        longer = pc.greater(pc.binary_length(whole), LONGEST)
        if not pc.any(longer).as_py():
            return whole
        return pc.replace_with_mask(
            whole, longer, pa.array([_shortened(raw) for raw in whole.filter(longer).to_pylist()], pa.large_binary())
        )

    def encode_table(self, table: pa.Table) -> list[bytes]:
        """What `encode` gives for the key of each row."""
        found: list[bytes] = self.encode_array(table).to_pylist()
        return found


def _kind(schema: pa.Schema, name: str) -> KeyKind:
    import pyarrow as pa

    at = schema.get_field_index(name)
    found = schema.field(at).type if at >= 0 else None
    if found is not None:
        if pa.types.is_integer(found):
            return "int"
        if pa.types.is_string(found) or pa.types.is_large_string(found):
            return "str"
        if pa.types.is_date32(found):
            return "date"
    raise IndexingError(
        f"Column {name!r} is {'not there' if found is None else found}, and cannot be the key of a lookup. "
        "A key is a whole number, text or a date."
    )


def _of_text(kind: str, text: str) -> Any:
    """Raises ValueError."""
    match kind:
        case "int":
            if WHOLE.fullmatch(text) and (number := int(text)) in INT64:
                return number
        case "date":
            if DATE_TEXT.fullmatch(text):
                return date.fromisoformat(text)
        case "str":
            text.encode()  # a lone surrogate is no text: UnicodeEncodeError is a ValueError
            return text
    raise ValueError


def _encoder(kinds: tuple[KeyKind, ...]) -> Callable[[Key], bytes]:
    match kinds:
        case ("int",):
            return lambda key: _whole(key[0] + INT_SIGN)
        case ("str",):
            return lambda key: _fitted(_text_bytes(key[0]))
    encoders = [_ENCODE[kind] for kind in kinds]
    return lambda key: _fitted(b"".join([encode(value) for encode, value in zip(encoders, key, strict=True)]))


def _text_bytes(text: str) -> bytes:
    raw = text.encode()
    return _length(len(raw)) + raw


def _plain_whole(text: bytes) -> bytes | None:
    if not text.isdigit() or len(text) > 18 or (text[0] == ZERO and len(text) > 1):
        return None
    return _whole(int(text) + INT_SIGN)


def _plain_text(text: bytes) -> bytes | None:
    return None if UNRESERVED(text) is None else _length(len(text)) + text


def _not_plain(text: bytes) -> bytes | None:
    return None


_PLAIN: dict[tuple[KeyKind, ...], Callable[[bytes], bytes | None]] = {("int",): _plain_whole, ("str",): _plain_text}
_ENCODE: dict[KeyKind, Callable[[Any], bytes]] = {
    "int": lambda number: (number + INT_SIGN).to_bytes(8, "big"),
    "date": lambda day: (day.toordinal() - EPOCH + DATE_SIGN).to_bytes(4, "big"),
    "str": _text_bytes,
}


def _fitted(raw: bytes) -> bytes:
    return raw if len(raw) <= LONGEST else _shortened(raw)


def _shortened(raw: bytes) -> bytes:
    return raw[:KEPT] + sha256(raw).digest()


def _number_piece(column: pa.Array, kind: KeyKind) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    if kind == "int":
        bits = np.asarray(column.cast(pa.int64())).view(np.uint64) ^ np.uint64(INT_SIGN)
    else:
        bits = np.asarray(column.cast(pa.int32())).view(np.uint32) ^ np.uint32(DATE_SIGN)
    return _as_binary(bits)


def _text_pieces(column: pa.Array) -> list[pa.Array]:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    raw = column.cast(pa.large_binary())
    return [_as_binary(np.asarray(pc.binary_length(raw)).astype(np.uint32)), raw]


def _as_binary(numbers: Any) -> pa.Array:
    """Each number's bytes, the most significant first."""
    import pyarrow as pa

    swapped = numbers.astype(numbers.dtype.newbyteorder(">"))
    width = pa.binary(swapped.dtype.itemsize)
    fixed = pa.FixedSizeBinaryArray.from_buffers(width, len(swapped), [None, pa.py_buffer(swapped)])
    return fixed.cast(pa.large_binary())  # from which Python's bytes are made ten times as fast
