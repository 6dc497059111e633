"""Commands of schedules: backfill, pause, resume."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sereno.cli.commands import DONE, FAILED, HELD, Commands
from sereno.cli.named import file_of, models_in, overrides_of, settings_of, who
from sereno.cli.printing import output, write
from sereno.exceptions import ModelFileError, NotFoundError

if TYPE_CHECKING:
    from sereno.operate.declared import Declared
    from sereno.operate.scheduling.backfill import Filled
    from sereno.settings import Settings

_COUNTED = {"published": "published", "nothing": "published before", "held": "held", "failed": "failed"}
_ADVICE = {
    "held": "See `sereno show D`, then `sereno release D` or `sereno discard D`",
    "failed": "Mend what it says, then start this again: what is published is not run twice",
}


def add(commands: Commands) -> None:
    one = commands.command(
        "backfill",
        _backfill,
        "the runs of many data dates, oldest first, of a model with a partition per date",
        "Goes on after a date that fails or is held, and says so at the end: exit code 1, or 3.",
    )
    commands.takes_model(one)
    one.add_argument("--from", dest="first", type=_date, required=True, metavar="D", help="the first data date")
    one.add_argument("--to", dest="last", type=_date, required=True, metavar="D", help="the last one")
    one.add_argument("--force", action="store_true", help="score and publish even what is published or withdrawn")
    one = commands.command(
        "pause",
        _pause,
        "have the scheduler start no runs of a model",
        "A run that goes on goes on, and `sereno run` works as always.",
    )
    commands.takes_model(one)
    one.add_argument("--why", default="", metavar="TEXT", help="for whoever wonders")
    one = commands.command(
        "resume",
        _resume,
        "end a pause; what was missed is caught up with",
        "With a partition per data date all missed dates are run, else the newest.",
    )
    commands.takes_model(one)
    one.add_argument("--skip-missed", action="store_true", help="none of the missed dates is run")


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date; write it as 2026-05-01") from None


def _backfill(options: argparse.Namespace) -> int:
    from sereno.ledger import open_ledger
    from sereno.operate.scheduling.backfill import backfill, intervals_of

    model = _declared(options, _file(options))
    intervals = intervals_of(model, options.first, options.last, datetime.now(UTC))
    given = [*_again(options), "--who", who(), *(["--force"] if options.force else [])]
    done: list[Filled] = []
    with contextlib.closing(open_ledger(_settings(options, Path(model.file)))) as ledger:
        for filled in backfill(model, intervals, given, ledger=ledger, note=_note):
            done.append(filled)
            if not options.json:
                write(options, _line(filled, len(done), len(intervals)))
    output(options, {"model": model.name, "dates": [asdict(one) for one in done]}, _summary(model.name, done))
    states = {one.state for one in done}
    return FAILED if "failed" in states else HELD if "held" in states else DONE


def _line(filled: Filled, number: int, many: int) -> str:
    if filled.state == "published":
        says = f"version {filled.version}, {filled.rows:,} rows"
    else:
        says = filled.says.splitlines()[0] if filled.says else ""
    return f"{number} of {many}  {filled.label}  {filled.state:<9}  {says}"


def _summary(name: str, done: Sequence[Filled]) -> Iterator[str]:
    told = [f"{n} {words}" for state, words in _COUNTED.items() if (n := sum(one.state == state for one in done))]
    yield f"{len(done)} dates of {name}: {', '.join(told)}."
    for state, advice in _ADVICE.items():
        labels = [one.label for one in done if one.state == state]
        if labels:
            yield f"{state.capitalize()}: {', '.join(labels)}. {advice}."


def _pause(options: argparse.Namespace) -> int:
    from sereno.ledger import Pause, lease_name, open_ledger
    from sereno.typed import typed

    settings, name = _named(options)
    pause = Pause(model=name, since=datetime.now(UTC), who=who(), why=options.why)
    with contextlib.closing(open_ledger(settings)) as ledger:
        is_new = ledger.pause(pause)
        pause = ledger.pauses().get(name, pause)
        going = "".join(
            f" The run of {one.label or one.data_date} goes on, on {host} as pid {pid}: `kill {pid}` there would end it."
            for one in ledger.entries(model=name, states=["running"])
            if (lease := ledger.holder(lease_name(name, one.run_key))) is not None
            for host, pid in [lease.holder.split(":")[:2]]
        )
    data = {"model": name, "paused": True, "since": pause.since.isoformat(), "who": pause.who, "why": pause.why}
    why = f" {pause.why}" if pause.why else ""
    if is_new:
        resume = typed(settings.given_options, "resume", name)
        says = f"{name} is paused: the scheduler starts none of its runs until `{resume}`.{going}"
    else:
        says = f"{name} is paused already, since {pause.since:%Y-%m-%d %H:%M} UTC, by {pause.who}.{why}"
    output(options, data, [says])
    return DONE


def _resume(options: argparse.Namespace) -> int:
    from sereno.ledger import open_ledger
    from sereno.operate.scheduling.pausing import resume

    settings, name = _named(options)
    with contextlib.closing(open_ledger(settings)) as ledger:
        if name not in ledger.pauses():
            output(options, {"model": name, "paused": False, "due": [], "skipped": []}, [f"{name} is not paused."])
            return DONE
        model = _declared(options, _file(options))
        _, made = resume(ledger, model, skip_missed=options.skip_missed, now=datetime.now(UTC), who=who())
    due, skipped = ([one.label for one in made if one.state == state] for state in ("due", "skipped"))
    data = {"model": name, "paused": False, "due": due, "skipped": skipped}
    output(options, data, _resumed(model, due, skipped, skip_missed=options.skip_missed))
    return DONE


def _resumed(model: Declared, due: Sequence[str], skipped: Sequence[str], *, skip_missed: bool) -> Iterable[str]:
    yield f"{model.name} is no longer paused."
    if due:
        yield f"{len(due)} missed dates are due, oldest first: {_some(due)}."
    elif skipped:
        yield f"{len(skipped)} missed dates are skipped: {_some(skipped)}. `sereno backfill` or `sereno run --date` runs one later."
    elif not skip_missed and model.disposition == "replace":
        yield "If dates were missed, the scheduler runs the newest of them."
    else:
        yield "No date was missed."


def _some(labels: Sequence[str]) -> str:
    return labels[0] if len(labels) == 1 else f"{labels[0]} to {labels[-1]}"


# What a command names


def _named(options: argparse.Namespace) -> tuple[Settings, str]:
    """The settings, and a model that is known."""
    own = options.model_itself
    settings = _settings(options, own.file if own is not None else Path.cwd())
    name = own.name if own is not None else options.model
    known = sorted({*settings.models, *models_in(settings)})
    if own is None and name not in known:
        raise NotFoundError(
            f"There is no model {name!r}: sereno.toml and {settings.home} know {', '.join(known) or 'none'}. Name one of them."
        )
    return settings, name


def _settings(options: argparse.Namespace, start: Path) -> Settings:
    return settings_of(options, start)


def _file(options: argparse.Namespace) -> Path:
    own = options.model_itself
    return Path(own.file) if own is not None else file_of(options, options.model)


def _declared(options: argparse.Namespace, file: Path) -> Declared:
    """What a model file declares. Raises ModelFileError where it does not."""
    from sereno.operate.declared import declared

    found = declared([file], home=options.home, env=options.env, overrides=overrides_of(options))
    if found.failed:
        raise ModelFileError(found.failed[0].says)
    return found.models[0]


def _again(options: argparse.Namespace) -> list[str]:
    """What was typed, for another command."""
    home = ["--home", str(options.home)] if options.home is not None else []
    env = ["--env", options.env] if options.env is not None else []
    return [*home, *env, *(f"--set={key}={value}" for key, value in overrides_of(options).items())]


def _note(text: str) -> None:
    print(f"sereno: {text}", file=sys.stderr)
