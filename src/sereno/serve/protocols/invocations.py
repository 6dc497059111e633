"""`POST /invocations`, which MLflow's scoring server and SageMaker's containers have in common.

What a request is follows from its own headers, not from where the server runs:

    Content-Type   application/json (or none): MLflow's JSON forms · text/csv: rows, with a header or by position ·
                   application/jsonlines: a row a line, an object or a list by position
    Accept         */*, application/json or none: `{"predictions": …}`, for JSON lines too unless they are asked for ·
                   text/csv, application/jsonlines: a line for each row, without a header

The environment decides one thing. In the container of a batch transform job (`SAGEMAKER_BATCH=true`) a request is lines
whatever its type, the reply has the form of the request unless Accept says otherwise, and there are placeholders for
bad records (`sagemaker.py`); anywhere else, one bad row fails its request.

A CSV line is a header only if it names every column that a row needs; else it is a row.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sereno.serve.platforms import is_batch
from sereno.serve.protocols import csv, mlflow, sagemaker
from sereno.serve.protocols.mlflow import Frames
from sereno.serve.protocols.positional import Names, Positions
from sereno.serve.protocols.sagemaker import CONTENT_TYPES, Form, Records
from sereno.serve.wire import Asked, Exchange, Mistake, Reply, Request, RequestError, Route, Row

if TYPE_CHECKING:
    from sereno.serve.live import Live
    from sereno.serve.service import Service

TYPES: dict[str, Form] = {
    "application/json": "json",
    "text/csv": "csv",
    "application/jsonlines": "jsonlines",
    "application/x-jsonlines": "jsonlines",
    "application/jsonl": "jsonlines",
    "application/x-ndjson": "jsonlines",
}
VALID = "application/json, text/csv and application/jsonlines"
ANYTHING = ("*/*", "application/*")


def routes(service: Service) -> list[Route]:
    live = service.only
    if live is None:
        return [Route("POST", "/invocations", answer=_several, refuse=mlflow.refuse)]
    both = Invocations(live, batch=is_batch(os.environ))
    exchange = Exchange("invocations", both.read, both.write, mlflow.refuse)
    return [Route("POST", "/invocations", exchange, live)]


class Invocations:
    """Requests to one model into rows, and its answers into replies. Built once."""

    def __init__(self, live: Live, *, batch: bool) -> None:
        self._batch = batch
        self._positions = Positions(live.row, live.decoder, live.check_count)
        self._frames = Frames(live, self._positions)

    def read(self, live: Live, request: Request) -> Asked:
        given = accept = None
        for name, value in request.headers:
            if name == b"content-type":
                given = value
            elif name == b"accept":
                accept = value
        form: Form = "json" if given is None or given == b"application/json" else form_of(given)
        wanted = None if accept is None or accept == b"*/*" else accepted(accept)
        body = request.body
        if self._batch:
            return self._read_records(live, request, form, wanted)
        if form == "json":
            return Asked(self._frames.rows(body), wanted or "json")
        if form == "csv":
            return Asked(read_csv(live, self._positions, body), wanted or "json")
        found = sagemaker.read_lines(live, self._positions, body, form, blank=False)
        return Asked(_all_of(live, found), wanted or "json")

    def write(self, live: Live, asked: Asked, answers: Sequence[Any]) -> Reply:
        context = asked.context
        if context == "json":
            return mlflow.write(live, answers)
        if isinstance(context, Records):
            return sagemaker.write(live, context, answers)
        if context == "csv":
            lines = [csv.line_of(live.outputs.columns, answer).encode() for answer in answers]
        else:
            lines = [live.encode(answer) for answer in answers]
        return Reply(200, b"".join([line + b"\n" for line in lines]), CONTENT_TYPES[context])

    def _read_records(self, live: Live, request: Request, form: Form, wanted: Form | None) -> Asked:
        body = request.body
        if form == "json" and self._frames.has_form(body):  # a document of MLflow's in place of lines
            try:
                return Asked(self._frames.rows(body), wanted or "json")
            except RequestError as error:
                if error.status == 413 or b"\n" in body.strip():
                    raise  # a whole file; a placeholder would hide that all of it is lost
                found: list[Row | RequestError] = [error]
        else:
            found = sagemaker.read_lines(live, self._positions, body, form, blank=True)
        problems = [sagemaker.problem(one) if isinstance(one, RequestError) else None for one in found]
        rows = [one for one in found if not isinstance(one, RequestError)]
        return Asked(rows, Records(wanted or form, problems, request.id), one_by_one=True)


def form_of(content_type: bytes) -> Form:
    """Which form a body has. Raises RequestError (415)."""
    kind, *parameters = (part.strip().lower() for part in content_type.decode("latin-1").split(";"))
    form = TYPES.get(kind)
    if form is None:
        raise RequestError(415, f"This Content-Type is not taken. Valid are {VALID}.")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if parameter and (name.strip() != "charset" or value.strip().strip('"') not in ("utf-8", "utf8")):
            raise RequestError(415, "The only parameter that a Content-Type may have here is charset=utf-8.")
    return form


def accepted(accept: bytes) -> Form | None:
    """Which form a reply is to have; None where any will do. Raises RequestError (406)."""
    best: tuple[float, Form | None] = (0.0, None)
    for choice in accept.decode("latin-1").lower().split(","):
        kind, *parameters = (part.strip() for part in choice.split(";"))
        if kind not in TYPES and kind not in ANYTHING and kind != "text/*":
            continue
        weight = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            quality = float(weight)
        except ValueError:
            quality = 1.0
        if quality > best[0]:
            best = (quality, "csv" if kind == "text/*" else TYPES.get(kind))
    if not best[0]:
        raise RequestError(406, f"No type that Accept asks for can be given. Valid are {VALID}.")
    return best[1]


def read_csv(live: Live, positions: Positions, body: bytes) -> list[Row]:
    """The rows of a CSV body, whose first line may name the columns. Raises RequestError."""
    if (rows := _numbers(positions, body)) is not None:
        live.check_count(len(rows))
        return rows
    try:
        lines = csv.parse(csv.text_of(body))
    except csv.BrokenLineError as error:
        raise RequestError(400, f"The body is not CSV: line {error.line + 1} {error}.") from None
    csv.check_cells(lines, live.limits.max_text_bytes)
    names = header_of(positions, lines[0]) if lines else None
    found = lines if names is None else lines[1:]
    live.check_count(len(found))
    return _all_of(live, csv.rows_of(live, positions.names_of(names, found), found))


def _numbers(positions: Positions, body: bytes) -> list[Row] | None:
    """The rows of numbers, under a header or not; None where that is not all that there is."""
    first, _, rest = body.partition(b"\n")
    if not first.translate(None, csv.NUMBERS):
        return csv.numbers(positions, None, body)
    first = first.removesuffix(b"\r")
    if b'"' in first or b"\r" in first:
        return None
    names = header_of(positions, csv.parse_line(csv.text_of(first)))
    return None if names is None else csv.numbers(positions, names, rest)


def header_of(positions: Positions, cells: csv.Cells) -> Names | None:
    """The columns, if this line names all that a row needs. Raises RequestError where it names columns, but too few."""
    names = [(cell or "").strip() for cell in cells]
    absent = [name for name in positions.required if name not in names]
    are_columns = [name in positions.columns for name in names if name]
    if not absent and any(are_columns):
        return positions.by_name(names)
    if are_columns and all(are_columns):
        raise RequestError(
            400, f"The first line names columns, but not {', '.join(absent)}. Name them all, or send rows by position."
        )
    return None


def _all_of(live: Live, found: Sequence[Row | RequestError]) -> list[Row]:
    """The rows, if every line has one. Raises RequestError with the mistakes of all lines."""
    mistakes = []
    for position, one in enumerate(found):
        if isinstance(one, RequestError):
            if one.status != 422 and not one.mistakes:
                mistakes.append(Mistake(position, "row", one.says))
            mistakes += [Mistake(position, m.column, m.expected) for m in one.mistakes]
    if mistakes:
        raise live.unfit(mistakes)
    return [one for one in found if not isinstance(one, RequestError)]


def _several(service: Service, request: Request, params: dict[str, str]) -> Reply:
    raise RequestError(
        404,
        "Several models are served here, and /invocations cannot say which one it means. Ask POST /models/NAME/predict "
        f"(NAME is one of {', '.join(service.lives)}), or serve one model alone: `sereno serve FILE`.",
    )
