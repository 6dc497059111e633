"""What a run waits for: its source, a path that `ready` names, what `@model.ready` says, or nothing.

Decided once, where the model file is read; then it goes to the scheduler's process, which has no settings of models and
fills in the interval alone.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal
from zoneinfo import ZoneInfo

import msgspec

from sereno.exceptions import SettingsError
from sereno.schedule import Interval, last_interval
from sereno.settings import IS_SQL
from sereno.sources import base_of, fill_path, joined, values_for, values_of_interval, without_values

if TYPE_CHECKING:
    from sereno.model import Model
    from sereno.settings import ModelSettings, Settings

# What is heeded where a path, a function or nothing is waited for.
HEEDED = {
    "path": ("quiet_seconds", "deadline_seconds", "late"),
    "function": ("ready_seconds", "deadline_seconds", "late"),
    "nothing": ("deadline_seconds",),  # of its end
}


class Awaited(msgspec.Struct, frozen=True, kw_only=True):
    """What the runs of one model wait for."""

    how: Literal["nothing", "path", "function"] = "nothing"
    template: str = ""  # of the path: it asks for nothing but what an interval gives
    base: str = ""  # the folder against which it resolves, where it is relative
    is_source: bool = False  # the path is what the run then reads; else a marker, of whatever kind
    quiet_seconds: float = 0.0
    ready_seconds: float = 30.0

    def path(self, interval: Interval) -> str:
        """The path or URL for an interval: of a source, the one that its run reads."""
        return joined(self.base, self.template.format(**values_of_interval(interval)))


def awaited(model: Model, settings: Settings, chosen: ModelSettings) -> Awaited:
    """What the runs of a model wait for, with these settings.

    Raises SettingsError where a path cannot be filled in, is a URL of no object store, or a setting would have no effect.
    """
    how, template, base, what = "nothing", "", settings.home, ""
    if chosen.ready not in ("auto", "off"):
        if model.ready_function is not None:
            raise SettingsError(
                f"'models.{model.name}.ready' is a path, from {settings.origin(model.name, 'ready')}, but the model file has "
                "a function under `@model.ready`, which would not be asked. Leave one of them out."
            )
        how, template, base = "path", chosen.ready, chosen.given["ready"]
        what = f"setting 'models.{model.name}.ready'"
    elif chosen.ready == "auto" and model.ready_function is not None:
        how = "function"
    elif chosen.ready == "auto" and chosen.source is not None and not IS_SQL.match(chosen.source):
        how, template, base = "path", chosen.source, chosen.source_base or settings.home
        what = "source"
    if chosen.ready != "off":  # switched off, the settings for what is waited for elsewhere may stay
        _refuse_idle(model, settings, chosen, how)
    if how == "path":  # whatever is wrong with it is told now, and not when the run is due
        interval = last_interval(chosen.schedule, chosen.time_zone, datetime.now(UTC))
        fill_path(template, values_for(settings, interval), settings, base, what)
        base, template = base_of(template, settings, base), without_values(template, settings)
    return Awaited(
        how=how,  # type: ignore[arg-type]
        template=template,
        base=str(base),
        is_source=what == "source",
        quiet_seconds=chosen.quiet_seconds,
        ready_seconds=chosen.ready_seconds,
    )


def _refuse_idle(model: Model, settings: Settings, chosen: ModelSettings, how: str) -> None:
    given = [name for name in ("quiet_seconds", "ready_seconds", "deadline_seconds", "late") if name in chosen.given]
    idle = next((name for name in given if name not in HEEDED[how]), None)
    if idle is None:
        return
    if how == "path":
        why = "the model file has no function under `@model.ready` that could be asked"
    elif how == "function":
        why = "`@model.ready` says when the data is there, and no file is looked at"
    else:
        source = "the source is a query" if chosen.source is not None else "nobody knows what `read` reads"
        why = f"nothing is waited for: {source}. Set ready to a path, or write a function under `@model.ready`"
    raise SettingsError(
        f"'models.{model.name}.{idle}', from {settings.origin(model.name, idle)}, has no effect, as {why}. "
        f"Leave {idle} out."
    )


def interval_of(run_key: str, data_time: datetime, time_zone: str, label: str = "") -> Interval:
    """The interval of a run as the ledger has it."""
    start = datetime.strptime(run_key, "%Y-%m-%dT%H:%MZ").replace(tzinfo=UTC)
    return interval_between(start, data_time, time_zone, alone="T" not in label)


def interval_between(start: datetime, end: datetime, time_zone: str, *, alone: bool) -> Interval:
    """The interval in the model's time zone."""
    zone = ZoneInfo(time_zone)
    return Interval(start=start.astimezone(zone), end=end.astimezone(zone), alone=alone)
