"""What SageMaker's container contract has beside MLflow's: batch transform, and the parameters it asks for.

A batch transform job cuts files into records, sends some at a time to `/invocations`, and puts what comes back in their
place. So a request is lines, and so is its reply: one for each that came, in order. A record that cannot be answered
gets a placeholder; a line that were missing would shift all that follow.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from sereno.rows import NOT_DECODED, NotJsonError
from sereno.serve.platforms import SAGEMAKER_LARGEST_MB
from sereno.serve.protocols import csv
from sereno.serve.protocols.keys import ByKey, KeyAlone
from sereno.serve.protocols.mlflow import refuse
from sereno.serve.protocols.positional import Positions
from sereno.serve.wire import Mistake, Reply, Request, RequestError, Route, Row
from sereno.values import Refused

if TYPE_CHECKING:
    from sereno.serve.live import Live
    from sereno.serve.service import Service

LOG = logging.getLogger("sereno.serve")

Form = Literal["json", "csv", "jsonlines"]
CONTENT_TYPES: dict[Form, bytes] = {
    "json": b"application/json",
    "csv": b"text/csv; charset=utf-8",
    "jsonlines": b"application/jsonlines",
}
RETRIED = (503, 504)  # the job sends the same records again, so these need no placeholders
SHOWN = 5  # placeholders of a request whose reasons are logged

_encode = msgspec.json.Encoder().encode


def routes(service: Service) -> list[Route]:
    return [Route("GET", "/execution-parameters", answer=_execution_parameters, refuse=refuse)]


@dataclass(frozen=True, slots=True)
class Records:
    """The lines of a request, and of its reply."""

    form: Form  # of the reply
    problems: Sequence[str | None]  # for each line: why it has no row; None: it has one
    request_id: bytes


def read_lines(
    live: Live, positions: Positions, by_key: ByKey, body: bytes, form: Form, *, blank: bool
) -> list[Row | KeyAlone | RequestError]:
    """The row of each line, or its key alone, or why it has neither; `blank` lines count too.

    Raises RequestError (413): there are too many.
    """
    lines = body.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not blank:
        lines = [line for line in lines if line.strip()]
    elif not lines[-1]:
        lines.pop()  # the last line has an end too
    live.check_count(len(lines))
    if form == "csv" and (rows := csv.numbers(positions, None, body)) is not None and len(rows) == len(lines):
        return list(rows)
    lines = [line.removesuffix(b"\r") for line in lines]
    if form == "csv":
        return [*_csv_rows(live, positions, lines)]
    return [_json_row(live, positions, by_key, line) for line in lines]


def problem(error: RequestError) -> str:
    """What is wrong with one record."""
    if not error.mistakes:
        return error.says
    return "; ".join(m.expected if m.column == "row" else f"{m.column}: {m.expected}" for m in error.mistakes)


def write(live: Live, records: Records, answers: Sequence[Any]) -> Reply:
    """A line for each record. Raises RequestError where the job should send them all again."""
    columns = live.outputs.columns
    given = iter(answers)
    lines: list[bytes] = []
    failed: list[str] = []
    for number, wrong in enumerate(records.problems, start=1):
        if wrong is None:
            answer = next(given)
            if type(answer) is tuple:
                if records.form != "csv":
                    lines.append(live.encode(answer))
                    continue
                line = csv.line_of(columns, answer)
                if "\n" not in line and "\r" not in line:
                    lines.append(line.encode())
                    continue
                wrong = "the answer has a line break, which a line of CSV cannot hold; ask for application/jsonlines"
            elif answer.status in RETRIED:
                raise answer
            else:
                wrong = problem(answer)
        failed.append(f"line {number}: {wrong.rstrip('.')}")
        lines.append(csv.blank_line(columns).encode() if records.form == "csv" else _encode({"error": wrong}))
    if failed:
        more = "" if len(failed) <= SHOWN else f"; and {len(failed) - SHOWN} more"
        LOG.warning(
            "request %s: %d of %d records got a placeholder: %s%s",
            records.request_id.decode("latin-1"), len(failed), len(lines), "; ".join(failed[:SHOWN]), more,
        )  # fmt: skip
    return Reply(200, b"".join([line + b"\n" for line in lines]), CONTENT_TYPES[records.form])


def _csv_rows(live: Live, positions: Positions, lines: Sequence[bytes]) -> list[Row | RequestError]:
    found: list[Any] = [_cells(live, positions, line) for line in lines]
    widths: dict[int, list[int]] = {}  # how many values → which lines
    for i, cells in enumerate(found):
        if not isinstance(cells, RequestError):
            widths.setdefault(len(cells), []).append(i)
    for width, places in widths.items():
        try:
            rows = csv.rows_of(live, positions.by_position(width), [found[i] for i in places])
        except RequestError as error:
            rows = [error] * len(places)
        for i, row in zip(places, rows, strict=True):
            found[i] = row
    return found


def _cells(live: Live, positions: Positions, line: bytes) -> csv.Cells | RequestError:
    try:
        cells = csv.parse_line(csv.text_of(line))
        csv.check_cells([cells], live.limits.max_text_bytes)
    except csv.BrokenLineError as error:
        return RequestError(400, f"The line {error}.")
    except RequestError as error:
        return error
    return cells if positions.fits(None, cells) else RequestError(422, positions.expected(None))


def _json_row(live: Live, positions: Positions, by_key: ByKey, line: bytes) -> Row | KeyAlone | RequestError:
    limits = live.limits
    try:
        if len(line) > limits.max_text_bytes or line.count(b"{") + line.count(b"[") > limits.max_depth:
            live.check_json(line)
        if line.lstrip().startswith(b"["):
            return live.rows_of(positions.mappings(None, [msgspec.json.decode(line)]))[0]
        return live.decoder.decode(line)
    except NotJsonError:
        return RequestError(400, "The line is not JSON.")
    except Refused as refused:
        values = msgspec.json.decode(line)
        if by_key.are_rows_alone([values]):
            return KeyAlone(values)
        return live.unfit([Mistake(0, column, expected) for column, expected in refused.mistakes])
    except RequestError as error:
        return error
    except NOT_DECODED:
        return RequestError(400, "The line is not JSON.")


def _execution_parameters(service: Service, request: Request, params: dict[str, str]) -> Reply:
    """What the job is advised to do; what its owner chose stands in the environment, and counts more anyway."""
    environ = os.environ
    payload = int(environ.get("SAGEMAKER_MAX_PAYLOAD_IN_MB") or max(1, service.limits.max_body_bytes >> 20))
    at_once = min(service.settings.workers or 1, max(1, SAGEMAKER_LARGEST_MB // max(1, payload)))
    return Reply(
        200,
        _encode(
            {
                "MaxConcurrentTransforms": int(environ.get("SAGEMAKER_MAX_CONCURRENT_TRANSFORMS") or at_once),
                "BatchStrategy": environ.get("SAGEMAKER_BATCH_STRATEGY") or "MULTI_RECORD",
                "MaxPayloadInMB": payload,
            }
        ),
    )
