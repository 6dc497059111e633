"""`POST /invocations`, which MLflow's scoring server and SageMaker's containers have in common.

What a request is follows from its own headers, not from where the server runs:

    Content-Type   application/json (or none): MLflow's JSON forms · text/csv: rows, with a header or by position ·
                   application/jsonlines: a row a line, an object or a list by position
    Accept         */*, application/json or none: `{"predictions": …}`, for JSON lines too unless they are asked for ·
                   text/csv, application/jsonlines: a line for each row, without a header

The environment decides one thing. In the container of a batch transform job (`SAGEMAKER_BATCH=true`) a request is lines
whatever its type, the reply has the form of the request unless Accept says otherwise, and there are placeholders for
bad records (`sagemaker.py`); anywhere else, one bad row fails its request.

A CSV line is a header only if it names every column that a row needs, or those of the key alone; else it is a row. Rows
that bring the key alone are looked up (`keys.py`): all those of a request or none, and each record of a job for itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sereno.serve.platforms import is_batch
from sereno.serve.protocols import csv, mlflow, sagemaker
from sereno.serve.protocols.keys import ByKey, KeyAlone
from sereno.serve.protocols.mlflow import Frames
from sereno.serve.protocols.positional import Names, Positions
from sereno.serve.protocols.predictions import Looked
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
        self._by_key = ByKey(live)
        self._frames = Frames(live, self._positions, self._by_key)

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
            return self._frames.read(body, wanted or "json")
        if form == "csv":
            return self._read_csv(live, body, wanted or "json")
        found = sagemaker.read_lines(live, self._positions, self._by_key, body, form, blank=False)
        if found and isinstance(found[0], KeyAlone):
            alone = [one.values for one in found if isinstance(one, KeyAlone)]
            if len(alone) == len(found):
                return self._by_key.ask(alone, wanted or "json")
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

    def _read_csv(self, live: Live, body: bytes, context: Form) -> Asked:
        """Rows whose first line may name the columns. Raises RequestError."""
        positions = self._positions
        if (rows := _numbers(positions, body)) is not None:
            live.check_count(len(rows))
            return Asked(rows, context)
        try:
            lines = csv.parse(csv.text_of(body))
        except csv.BrokenLineError as error:
            raise RequestError(400, f"The body is not CSV: line {error.line + 1} {error}.") from None
        csv.check_cells(lines, live.limits.max_text_bytes)
        try:
            names = header_of(positions, lines[0]) if lines else None
        except RequestError:
            given = _names(lines[0])
            if not self._by_key.are_alone(given):
                raise
            by_key = self._by_key.positions
            return self._by_key.ask(by_key.mappings(by_key.by_name(given), lines[1:]), context, "text")
        found = lines if names is None else lines[1:]
        live.check_count(len(found))
        return Asked(_all_of(live, csv.rows_of(live, positions.names_of(names, found), found)), context)

    def _read_records(self, live: Live, request: Request, form: Form, wanted: Form | None) -> Asked:
        body = request.body
        if form == "json" and self._frames.has_form(body):  # a document of MLflow's in place of lines
            try:
                return self._frames.read(body, wanted or "json")
            except RequestError as error:
                if error.status in (413, *sagemaker.RETRIED) or b"\n" in body.strip():
                    raise  # a whole file; a placeholder would hide that all of it is lost
                found: list[Row | KeyAlone | Looked | RequestError] = [error]
        else:
            found = [*sagemaker.read_lines(live, self._positions, self._by_key, body, form, blank=True)]
        if alone := [one for one in found if isinstance(one, KeyAlone)]:
            looked = iter(self._by_key.each(alone))
            found = [next(looked) if isinstance(one, KeyAlone) else one for one in found]
        problems = [sagemaker.problem(one) if isinstance(one, RequestError) else None for one in found]
        answered = [one for one in found if not isinstance(one, RequestError)]
        known = {i: one.answer for i, one in enumerate(answered) if isinstance(one, Looked) and one.answer is not None}
        rows = [one for one in answered if not isinstance(one, (Looked, KeyAlone))]
        return Asked(rows, Records(wanted or form, problems, request.id), one_by_one=True, known=known or None)


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


def _numbers(positions: Positions, body: bytes) -> list[Row] | None:
    """The rows of numbers, under a header or not; None where that is not all that there is."""
    first, _, rest = body.partition(b"\n")
    if not first.translate(None, csv.NUMBERS):
        return csv.numbers(positions, None, body)
    first = first.removesuffix(b"\r")
    if b'"' in first or b"\r" in first:
        return None
    try:
        names = header_of(positions, csv.parse_line(csv.text_of(first)))
    except RequestError:
        return None
    return None if names is None else csv.numbers(positions, names, rest)


def header_of(positions: Positions, cells: csv.Cells) -> Names | None:
    """The columns, if this line names all that a row needs. Raises RequestError where it names columns, but too few."""
    names = _names(cells)
    absent = [name for name in positions.required if name not in names]
    if not absent and any(name in positions.columns for name in names):
        return positions.by_name(names)
    if any(names) and all(name in positions.columns for name in names if name):
        raise RequestError(
            400, f"The first line names columns, but not {', '.join(absent)}. Name them all, or send rows by position."
        )
    return None


def _names(cells: csv.Cells) -> list[str]:
    """What a line says, taken for a header."""
    return [(cell or "").strip() for cell in cells]


def _all_of(live: Live, found: Sequence[Row | KeyAlone | RequestError]) -> list[Row]:
    """The rows, if every line has one. Raises RequestError with the mistakes of all lines."""
    rows: list[Row] = [one for one in found if type(one) is tuple]
    if len(rows) == len(found):
        return rows
    mistakes = []
    for position, line in enumerate(found):
        one = _refused(live, line) if isinstance(line, KeyAlone) else line
        if isinstance(one, RequestError):
            if not one.mistakes:
                mistakes.append(Mistake(position, "row", one.says))
            mistakes += [Mistake(position, m.column, m.expected) for m in one.mistakes]
    raise live.unfit(mistakes)


def _refused(live: Live, line: KeyAlone) -> RequestError:
    """What a key alone lacks, among lines that bring more."""
    try:
        live.rows_of([line.values])
    except RequestError as error:
        return error
    raise AssertionError("a row that is too little is complete")


def _several(service: Service, request: Request, params: dict[str, str]) -> Reply:
    raise RequestError(
        404,
        "Several models are served here, and /invocations cannot say which one it means. Ask POST /models/NAME/predict "
        f"(NAME is one of {', '.join(service.lives)}), or serve one model alone: `sereno serve FILE`.",
    )
