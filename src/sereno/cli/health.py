"""Commands that tell how everything is: health, notify."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sereno.cli.commands import DONE, FAILED, Commands, positive
from sereno.cli.named import settings_of
from sereno.cli.printing import output

if TYPE_CHECKING:
    from sereno.operate.health import Health
    from sereno.settings import Settings

MOST_SHOWN = 50  # models; of more, those that are not well


def add(commands: Commands) -> None:
    one = commands.command(
        "health",
        _health,
        "is all well: runs, dates, the scheduler, notices",
        "Exit code 1: something is wrong; what, and what to do about it, is on stderr. For cron and monitoring.",
    )
    if not commands.own:
        one.add_argument("model", metavar="MODEL", nargs="?", help="one model; all of them if not given")
    one.add_argument("--max-age", type=positive, metavar="SECONDS", help="served data that is older is wrong, too")
    if not commands.own:
        one = commands.command(
            "notify",
            _notify,
            "tell people now what they were not told yet",
            "Also what was given up. With --test a test message goes to every address of the settings.",
        )
        one.add_argument("--test", action="store_true", help="send a test message to every address instead")


def tell_people(
    settings: Settings, model: str, since: datetime, *, file: Path | None = None, run_key: str | None = None
) -> None:
    """Have people told how a run ended that began at `since`; nothing that goes wrong here is an error of the run."""
    from sereno.operate.notices.words import addresses

    if addresses(settings, model):
        from sereno.operate.notices.sending import after_run

        if says := after_run(settings, model, since, file=file, run_key=run_key):
            print(f"sereno: {says}", file=sys.stderr)


def _settings(options: argparse.Namespace) -> Settings:
    own = options.model_itself
    return settings_of(options, own.file if own is not None else Path.cwd())


def _health(options: argparse.Namespace) -> int:
    from sereno.operate.health import look

    own = options.model_itself
    health = look(_settings(options), model=own.name if own is not None else options.model, max_age=options.max_age)
    output(options, health.to_dict() if options.json else None, _lines(health, whole=len(health.models) <= MOST_SHOWN))
    if not options.json:
        from sereno.foreign import harmless

        for one in health.wrong:
            about = f"{one.model}: " if one.model else ""
            print(f"sereno: {about}{harmless(one.says, 2_000)}\n    → {one.do}", file=sys.stderr)
    return DONE if health.ok else FAILED


def _lines(health: Health, *, whole: bool) -> Iterator[str]:
    from sereno.lines import age, table_lines

    rows = [("model", "", "newest run", "version", "data date", "age", "last success (UTC)")]
    for one in health.models:
        if whole or one.wrong:
            how = ", ".join(dict.fromkeys(w.what for w in one.wrong)).upper() or ("paused" if one.paused else "ok")
            rows.append(
                (
                    one.model,
                    how,
                    one.state or "none",
                    str(one.version or ""),
                    one.data_date or "",
                    age(health.at, one.data_time) if one.data_time else "",
                    f"{one.last_success_at:%Y-%m-%d %H:%M}" if one.last_success_at else "",
                )
            )
    if len(rows) > 1:
        yield from table_lines(rows)
    well = sum(1 for one in health.models if not one.wrong)
    yield f"{well} of {len(health.models)} models are well; scheduler: {health.scheduler or 'none'}"


def _notify(options: argparse.Namespace) -> int:
    from sereno.exceptions import SettingsError
    from sereno.operate.notices.words import everyone

    settings = _settings(options)
    if not everyone(settings):
        raise SettingsError(
            f"Nobody is to be told: 'notify' is not set for {settings.home}. Write notify = [\"mailto://…\"] at the top of "
            "sereno.toml, or set SERENO_NOTIFY."
        )
    return _test(options, settings) if options.test else _tell(options, settings)


def _tell(options: argparse.Namespace, settings: Settings) -> int:
    """Tell what is untold, once; the answer says what could not be."""
    import contextlib

    from sereno.ledger import open_ledger
    from sereno.operate.notices.sending import tell_again
    from sereno.operate.notices.words import addresses, told_to

    with contextlib.closing(open_ledger(settings)) as ledger:
        done, left = tell_again(ledger, settings)
    reasons = [
        f"{one.model} {one.kind} ({one.run_key}), {label}: {told.says}"
        for one in left
        for label, told in told_to(one, addresses(settings, one.model)).items()
        if told.tries and not told.told
    ]
    output(
        options,
        {"told": done, "untold": reasons},
        [f"{done} of {done + len(left)} notices were told.", *(f"  not told: {reason}" for reason in reasons)],
    )
    return FAILED if left else DONE


def _test(options: argparse.Namespace, settings: Settings) -> int:
    from sereno.operate.notices.sending import test_everyone

    results = test_everyone(settings)
    data: list[dict[str, Any]] = [{"address": label, "ok": not error, "says": error} for label, error in results]
    output(options, data, [f"{label:<40} {error or 'told'}" for label, error in results])
    return FAILED if any(error for _, error in results) else DONE
