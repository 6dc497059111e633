"""What `sereno log` does, and what it shows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from sereno.answers.columns import part_of
from sereno.answers.compact import Compactor, Done
from sereno.answers.folder import DAMAGE
from sereno.answers.read import Wanted, find_answers, models_with_answers, moment
from sereno.answers.tidy import erase, hand_over
from sereno.exceptions import NotFoundError, SettingsError

SHOWN = 60  # characters of a value in a line
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def newest_answers(
    home: Path,
    model: str,
    *,
    since: str | None = None,
    until: str | None = None,
    key: Sequence[str] | None = None,
    request: str | None = None,
    limit: int = 20,
) -> list[dict[str, Any]]:
    """The newest answers that are wanted, oldest first, as JSON has them."""
    wanted = Wanted(
        since=None if since is None else time_of(since, "--since"),
        until=None if until is None else time_of(until, "--until", end=True),
        key=None if key is None else tuple(key),
        request=request,
        newest=limit,
    )
    return as_json(find_answers(home, model, wanted))


def as_json(answers: pa.Table) -> list[dict[str, Any]]:
    rows = []
    parts = {field.name: part_of(field) for field in answers.schema}
    for row in answers.to_pylist():
        values = {name: msgspec.to_builtins(value) for name, value in row.items()}
        rows.append(
            {name: values[name] for name, part in parts.items() if part == "own"}
            | {"inputs": {n: v for n, v in values.items() if parts[n] in ("key", "input")}}
            | {"prediction": {n: v for n, v in values.items() if parts[n] == "prediction"}}
        )
    return rows


def answer_lines(answers: Sequence[dict[str, Any]], model: str) -> Iterator[str]:
    """Three lines for each: when and by what, its inputs, its prediction. Nulls are left out."""
    for one in answers:
        when = datetime.fromisoformat(one["answered_at"]).astimezone(UTC)
        version = one["model_fingerprint"][:12]
        yield f"{when:%Y-%m-%d %H:%M:%S.%f} UTC  request {one['request_id']}  model {version}"
        for name in ("inputs", "prediction"):
            values = (f"{n}={_short(v)}" for n, v in one[name].items() if v is not None)
            yield f"  {name:<10}  {'  '.join(values)}"
    if not answers:
        yield f"No answer of {model} is kept that is wanted here."


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def damage_lines(home: Path, model: str) -> Iterator[str]:
    """What of the answers was lost on a damaged disk."""
    file = Compactor(home, model).segments / DAMAGE
    for line in file.read_bytes().splitlines() if file.exists() else ():
        note = msgspec.json.decode(line)
        yield (
            f"Segment {note['segment']} was damaged, as was seen at {note['at']}: {note['bytes']:,} bytes were not as they "
            f"had been written, {note['answers']:,} answers could not be read."
        )


def compact_now(home: Path, model: str, days: int) -> tuple[Done, list[str]]:
    """Put all that was answered until now into the table; also say which processes did not hand over what they have."""
    _require(home, model)
    compactor = Compactor(home, model)
    kept_back = hand_over(compactor)
    return compactor.compact(days=days), kept_back


def done_lines(done: Done, model: str, kept_back: Sequence[str]) -> Iterator[str]:
    yield f"{done.answers:,} answers of {model} from {done.segments:,} segments were put into the table."
    if done.dropped_days:
        yield f"{done.dropped_days:,} days were too old and were dropped."
    if done.joined_files:
        yield f"{done.joined_files:,} small files were joined."
    if kept_back:
        yield f"The process {', '.join(kept_back)} did not hand over what it has; the compactor takes it later."


def erase_now(home: Path, model: str, key: Sequence[str]) -> int:
    """Remove the answers of a key up to this moment; how many there were."""
    _require(home, model)
    return erase(Compactor(home, model), key).erased


def _require(home: Path, model: str) -> None:
    if model not in models_with_answers(home):
        raise NotFoundError(f"No answers of model {model!r} are kept in {home}.")


def time_of(text: str, option: str, *, end: bool = False) -> datetime:
    """A time that was given as text: a date, a date and time (UTC if it has no zone), or how long ago it was (90m)."""
    ago = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if ago:
        return datetime.now(UTC) - timedelta(**{UNITS[ago[2]]: int(ago[1])})
    try:
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
            return moment(date.fromisoformat(text), end=end)
        when = datetime.fromisoformat(text)
        return when if when.tzinfo else when.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise SettingsError(
            f"{option} {text!r} is no time. Write 2026-05-01, 2026-05-01T12:00 (UTC) or, for how long ago, 90s, 15m, 2h, 3d."
        ) from None
