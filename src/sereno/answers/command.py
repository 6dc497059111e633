"""What `sereno log` does, and what it shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa

from sereno.answers.columns import part_of
from sereno.answers.compact import Compactor, Done
from sereno.answers.folder import DAMAGE
from sereno.answers.read import Wanted, find_answers, models_with_answers, unknown
from sereno.answers.tidy import erase, hand_over
from sereno.exceptions import NotFoundError, SettingsError
from sereno.moments import time_of

if TYPE_CHECKING:
    from sereno.places import Place
    from sereno.settings import Settings

LIMIT = 20
SHOWN = 60  # characters of a value in a line


def log(
    settings: Settings, model: str, wanted: Mapping[str, Any], *, compact: bool, without: Sequence[str] | None
) -> tuple[Any, list[str], list[str]]:
    """What the command prints: as JSON, as lines, and what there is to say beside it.

    `wanted` are its options that choose answers, `without` is the key to be erased.
    """
    home, root = settings.home.absolute(), settings.storage
    given = [f"--{name}" for name, value in wanted.items() if value is not None]
    if (compact or without is not None) and given:
        raise SettingsError(
            f"{given[0]} chooses answers to show; with --compact or --erase none are shown. Leave it out."
        )
    if model not in models_with_answers(home, root):
        raise NotFoundError(unknown(home, model, root))
    notes = list(damage_lines(home, model))
    if without is not None:
        compactor = Compactor(home, model, root)
        erased = erase(compactor, without).erased
        if not erased:  # not a success: it may be a slip of the pen
            order = (
                f" Its values are given in this order: {', '.join(compactor.declared[-1])}."
                if compactor.declared
                else ""
            )
            raise NotFoundError(
                f"Nothing was erased: no answer of {model} has the key {', '.join(without)}.{order} `sereno log {model}` shows "
                "keys as they are kept."
            )
        says = (
            f"Erased {_count(erased, 'answer')} of key {', '.join(without)} from {model}; no file of the log has one."
        )
        return {"erased": erased}, [says], notes
    if compact:
        done, kept_back = compact_now(home, root, model, settings.model(model, {}).log_days)
        return msgspec.to_builtins(done), list(done_lines(done, model)), [*notes, *kept_back_lines(kept_back)]
    answers = newest_answers(home, root, model, **{**wanted, "limit": wanted["limit"] or LIMIT})
    return answers, list(answer_lines(answers, model)), notes


def newest_answers(
    home: Path,
    root: Place | None,
    model: str,
    *,
    since: str | None,
    until: str | None,
    key: Sequence[str] | None,
    request: str | None,
    limit: int,
) -> list[dict[str, Any]]:
    """The newest answers that are wanted, oldest first, as JSON has them."""
    wanted = Wanted(
        since=None if since is None else time_of(since, "--since"),
        until=None if until is None else time_of(until, "--until", end=True),
        key=None if key is None else tuple(key),
        request=request,
        newest=limit,
    )
    return as_json(find_answers(home, model, wanted, root))


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
        yield f"No such answer of {model} is kept."


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def damage_lines(home: Path, model: str) -> Iterator[str]:
    """What of the answers was lost on a damaged disk."""
    file = Compactor(home, model).segments / DAMAGE
    for line in file.read_bytes().splitlines() if file.exists() else ():
        note = msgspec.json.decode(line)
        yield (
            f"Segment {note['segment']} was damaged, as was seen at {note['at']}: {note['bytes']:,} bytes were not as they "
            f"had been written, {note['answers']:,} answers could not be read."
        )


def compact_now(home: Path, root: Place | None, model: str, days: int) -> tuple[Done, list[str]]:
    """Put all that was answered until now into the table; also the pids of those that did not hand over what they have."""
    compactor = Compactor(home, model, root)
    kept_back = hand_over(compactor)
    return compactor.compact(days=days), kept_back


def done_lines(done: Done, model: str) -> Iterator[str]:
    yield f"Put {_count(done.answers, 'answer')} of {model} into the table, from {_count(done.segments, 'segment')}."
    if done.dropped_days:
        yield f"Dropped {_count(done.dropped_days, 'day')} that were too old."
    if done.joined_files:
        yield f"Joined {_count(done.joined_files, 'small file')}."


def kept_back_lines(pids: Sequence[str]) -> Iterator[str]:
    for pid in pids:
        yield f"The process {pid} did not hand over its newest answers; they are in its segment until it does or ends."
