"""Inference requests of the Open Inference Protocol: tensors to rows, and answers to tensors, in JSON and in bytes.

Columns of the input row type are input tensors of shape [n], outputs likewise. A model that takes numbers only also
takes them as one tensor of shape [n, columns], under any name: what scikit-learn's users send.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from sereno.rows import NOT_DECODED
from sereno.schema import Column
from sereno.serve.protocols.compression import compress
from sereno.serve.protocols.keys import ByKey
from sereno.serve.protocols.positional import Positions
from sereno.serve.protocols.predictions import origin_of
from sereno.serve.protocols.tensors import (
    JSON_TYPES,
    NESTED,
    datatype_of,
    from_bytes,
    from_json,
    to_bytes,
)
from sereno.serve.wire import Asked, Mistake, Reply, Request, RequestError

if TYPE_CHECKING:
    from sereno.serve.live import Live

HEADER_LENGTH = b"inference-header-content-length"
NUMERIC = ("int", "float", "bool", "decimal")
ONE_ROW = [1]
NO_BYTES = memoryview(b"")

Scalar = bool | int | float | str | None


class InputParameters(msgspec.Struct, gc=False):
    binary_data_size: int | None = None
    shared_memory_region: str | None = None


class InputTensor(msgspec.Struct, gc=False):
    name: str
    shape: list[int]
    datatype: str
    data: list[Scalar | list[Scalar]] | None = None  # typed to this depth, so that nothing deeper is ever built
    parameters: InputParameters | None = None


class OutputParameters(msgspec.Struct, gc=False):
    binary_data: bool | None = None
    classification: int | None = None
    shared_memory_region: str | None = None


class OutputTensor(msgspec.Struct, gc=False):
    name: str
    parameters: OutputParameters | None = None


class RequestParameters(msgspec.Struct, gc=False):
    binary_data_output: bool | None = None
    lookup: bool | None = None


class InferRequest(msgspec.Struct, gc=False):
    inputs: list[InputTensor]
    id: str | None = None
    parameters: RequestParameters | None = None
    outputs: list[OutputTensor] | None = None


class Wanted(NamedTuple):
    """How the answer is to look."""

    id: str | None
    outputs: Sequence[tuple[int, bool]]  # position of each output column, and whether in bytes
    accepts: bytes  # Accept-Encoding
    parameters: bytes = b""  # what they say, as JSON


_decode = msgspec.json.Decoder(InferRequest).decode
_encode = msgspec.json.Encoder().encode


class Translation:
    """Requests to one model into rows, and its answers into replies. Built once."""

    def __init__(self, live: Live) -> None:
        self._live = live
        columns = live.inputs.columns
        self._columns = {c.name: (c, f"Input {c.name!r}") for c in columns}
        self._by_key = ByKey(live)
        self._key_count = len(live.inputs.keys)
        # of a column that needs no translation: its own datatype, with each Python type that JSON has for it
        self._plain = {
            c.name: frozenset((datatype, t) for t in JSON_TYPES[datatype])
            for c in columns
            if c.kind not in NESTED and (datatype := datatype_of(c.kind))
        }
        # how many columns a matrix may have, and which those are
        self._matrices: dict[int, list[Column]] = {}
        layouts = [[self._columns[name][0] for name in names] for names in Positions(live.row, live.decoder).layouts]
        for layout in layouts:
            alike = [other for other in layouts if len(other) == len(layout)]
            if len(alike) == 1 and all(c.kind in NUMERIC for c in layout):
                self._matrices[len(layout)] = layout

        self._outputs = [(c.name, datatype_of(c.kind), c.kind in NESTED) for c in live.outputs.columns]
        self._positions = {c.name: i for i, c in enumerate(live.outputs.columns)}
        self._everything = Wanted(None, [(i, False) for i in range(len(self._outputs))], b"")
        self._head = b'{"model_name":%s,"model_version":%s' % (_encode(live.name), _encode(live.model_version))
        self._heads = [
            b'{"name":%s,"datatype":"%s","shape":[' % (_encode(name), datatype.encode())
            for name, datatype, _ in self._outputs
        ]

    def read(self, live: Live, request: Request) -> Asked:
        body = request.body
        length = None
        accepts = b""
        for name, value in request.headers:
            if name == HEADER_LENGTH:
                length = value
            elif name == b"accept-encoding":
                accepts = value
        limits = self._live.limits
        binary = NO_BYTES
        if length is not None:
            if not (length.isdigit() and len(length) < 12 and int(length) <= len(body)):
                raise RequestError(400, "Inference-Header-Content-Length is not the length of the JSON in the body.")
            binary = memoryview(body)[int(length) :]
            body = body[: int(length)]
        try:
            asked = _decode(body)
        except NOT_DECODED as error:
            raise RequestError(400, f"The body is no inference request: {_reason(error)}.") from None
        # a body this small cannot hold a text that is too long
        is_small = not binary and len(body) <= limits.max_text_bytes
        if not is_small and asked.id is not None and len(asked.id.encode()) > limits.max_text_bytes:
            raise RequestError(413, f"The id is longer than {limits.max_text_bytes} bytes.")
        values = (is_small and self._plain_row(asked.inputs)) or self._rows(asked.inputs, binary)
        if asked.parameters is None and asked.id is None and asked.outputs is None and not accepts:
            wanted, told = self._everything, False
        else:
            wanted = self._wanted(asked, accepts)
            told = asked.parameters is not None and asked.parameters.lookup is True
        if told or (values and len(values[0]) == self._key_count and self._by_key.are_alone(values[0])):
            looked = self._by_key.ask(values, told=told)
            looked.context = wanted._replace(parameters=_encode(origin_of(live, looked)))
            return looked
        return Asked(self._live.rows_of(values), wanted)

    def _plain_row(self, inputs: list[InputTensor]) -> list[dict[str, Any]] | None:
        """The one row of tensors that need no translation: by far the most frequent request. None: they need some."""
        row: dict[str, Any] = {}
        plain = self._plain
        for tensor in inputs:
            data = tensor.data
            if data is None or len(data) != 1 or tensor.shape != ONE_ROW or tensor.parameters is not None:
                return None
            value = data[0]
            if (tensor.datatype, type(value)) not in plain.get(tensor.name, ()):
                return None
            row[tensor.name] = value
        return [row] if row and len(row) == len(inputs) else None  # none, or one of them twice

    def _rows(self, inputs: list[InputTensor], binary: memoryview) -> list[dict[str, Any]]:
        columns = self._columns_of(inputs, binary)
        names = list(columns)
        return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def _columns_of(self, inputs: list[InputTensor], binary: memoryview) -> dict[str, list[Any]]:
        """The values of each column that is given, equally many of each."""
        columns: dict[str, list[Any]] = {}
        limits = self._live.limits
        rows = None
        at = 0
        for position, tensor in enumerate(inputs):
            column, where = self._columns.get(tensor.name) or (None, f"Input number {position + 1}")
            data, raw = tensor.data, None
            if tensor.parameters is not None:
                if tensor.parameters.shared_memory_region is not None:
                    raise RequestError(400, f"{where}: shared memory is not supported. Send the data.")
                size = tensor.parameters.binary_data_size
                if size is not None:
                    if not 0 <= size <= len(binary) - at:
                        raise RequestError(
                            400, f"{where}: binary_data_size is not a part of the bytes behind the JSON."
                        )
                    raw = binary[at : at + size]
                    at += size
            if (raw is None) == (data is None):
                raise RequestError(400, f"{where}: needs either data or binary_data_size, and not both.")
            if tensor.datatype not in JSON_TYPES:
                raise RequestError(400, f"{where}: its datatype is none of {', '.join(JSON_TYPES)}.")
            matrix = self._matrix(tensor.name, tensor.shape, where) if len(inputs) == 1 else None
            if column is None and matrix is None:
                continue  # as unknown fields of a row
            width = 1 if matrix is None else len(matrix)
            count = self._count(tensor.shape, width, where)
            if rows is not None and rows != count:
                raise RequestError(400, f"{where}: its shape has another number of rows than the inputs before it.")
            rows = count
            if raw is not None:
                values = from_bytes(tensor.datatype, raw, count * width, limits.max_text_bytes, where)
            else:
                values = from_json(tensor.datatype, data or [], count, width, limits.max_text_bytes, where)
            if matrix is not None:
                columns = {c.name: _column_of(c, values[i::width]) for i, c in enumerate(matrix)}
            elif column is not None:
                if column.name in columns:
                    raise RequestError(400, f"{where}: is there twice.")
                columns[column.name] = self._parsed(column, values) if column.kind in NESTED else values
        if at != len(binary):
            raise RequestError(400, "There are more bytes behind the JSON than the inputs' binary_data_size say.")
        if rows is None:
            names = ", ".join(self._columns)
            raise RequestError(400, f"None of the inputs is one of the model's. Its inputs are: {names}.")
        return columns

    def _matrix(self, name: str, shape: list[int], where: str) -> list[Column] | None:
        """The columns of the only input, where it is a matrix of them."""
        width = shape[1] if len(shape) == 2 else 1
        if name in self._columns and (width == 1 or width not in self._matrices):
            return None
        if not self._matrices:
            return None
        if width not in self._matrices or not shape:
            valid = " or ".join(f"[n, {width}]" for width in self._matrices)
            raise RequestError(400, f"{where}: is none of the model's. As a matrix of all, its shape must be {valid}.")
        return self._matrices[width]

    def _count(self, shape: list[int], width: int, where: str) -> int:
        """How many rows a tensor has. [n, 1] is what frames send for a column."""
        if not ((len(shape) == 2 and shape[1] == width) or len(shape) == width == 1) or shape[0] < 0:
            raise RequestError(400, f"{where}: its shape is not [n] or [n, 1].")
        most = self._live.limits.max_rows
        if shape[0] > most:
            raise RequestError(413, f"The request has {shape[0]:,} rows; at most {most:,} may be.")
        return shape[0]

    def _parsed(self, column: Column, texts: list[Any]) -> list[Any]:
        """The values of a nested column, from JSON in text."""
        values: list[Any] = []
        mistakes = []
        for row, text in enumerate(texts):
            value = None
            if type(text) is str:
                raw = text.encode()
                self._live.check_json(raw)
                try:
                    value = msgspec.json.decode(raw)
                except NOT_DECODED:
                    mistakes.append(Mistake(row, column.name, "must be JSON in text"))
            elif text is not None:
                mistakes.append(Mistake(row, column.name, "must be JSON in text, with datatype BYTES"))
            values.append(value)
        if mistakes:
            raise RequestError(422, "The rows do not fit the model's inputs.", mistakes)
        return values

    def _wanted(self, asked: InferRequest, accepts: bytes) -> Wanted:
        parameters = asked.parameters
        binary = parameters is not None and parameters.binary_data_output is True
        if not asked.outputs:
            outputs = [(i, True) for i in range(len(self._outputs))] if binary else self._everything.outputs
            return Wanted(asked.id, outputs, accepts)
        chosen: dict[int, bool] = {}
        for output in asked.outputs:
            position = self._positions.get(output.name)
            if position is None or position in chosen:
                what = "is asked for twice" if position in chosen else "is none of the model's"
                raise RequestError(400, f"An output {what}. Its outputs are: {', '.join(self._positions)}.")
            chosen[position] = binary
            if output.parameters is not None:
                if output.parameters.classification is not None or output.parameters.shared_memory_region is not None:
                    raise RequestError(400, "Outputs as a classification or in shared memory are not supported.")
                if output.parameters.binary_data is not None:
                    chosen[position] = output.parameters.binary_data
        return Wanted(asked.id, list(chosen.items()), accepts)

    def write(self, live: Live, asked: Asked, answers: Sequence[Any]) -> Reply:
        wanted: Wanted = asked.context
        parts = [self._head]
        if wanted.id is not None:
            parts += (b',"id":', _encode(wanted.id))
        if wanted.parameters:
            parts += (b',"parameters":', wanted.parameters)
        tail: list[bytes] = []
        between = b',"outputs":['
        count = b"%d]" % len(answers)
        for position, in_bytes in wanted.outputs:
            values = [answer[position] for answer in answers]
            _, datatype, is_nested = self._outputs[position]
            if is_nested:
                values = [_encode(value).decode() for value in values]
            raw = None
            if in_bytes:
                texts = values if datatype != "BYTES" or is_nested else [_text(value) for value in values]
                raw = to_bytes(datatype, texts)
            if raw is None:
                parts += (between, self._heads[position], count, b',"data":', _encode(values), b"}")
            else:
                parts += (between, self._heads[position], count, b',"parameters":{"binary_data_size":%d}}' % len(raw))
                tail.append(raw)
            between = b","
        parts.append(b"]}")
        body = b"".join(parts)
        content_type = b"application/json"
        headers: tuple[tuple[bytes, bytes], ...] = ()
        if tail:
            headers = ((HEADER_LENGTH, b"%d" % len(body)),)
            content_type = b"application/octet-stream"
            body = b"".join(chain((body,), tail))
        if wanted.accepts:
            body, encoded = compress(wanted.accepts, body)
            headers += encoded
        return Reply(200, body, content_type, headers)


def _column_of(column: Column, values: list[Any]) -> list[Any]:
    """A column of a matrix: in numbers, a truth value is 0 or 1."""
    if column.kind == "bool":
        return [bool(value) if value is not None and value in (0, 1) else value for value in values]
    return values


def _text(value: Any) -> str | None:
    """A value as the text that stands for it in JSON."""
    if value is None or type(value) is str:
        return value
    text: str = msgspec.to_builtins(value)
    return text


def _reason(error: Exception) -> str:
    return "it nests too deeply" if isinstance(error, RecursionError) else str(error)
