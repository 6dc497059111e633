"""What a comparison is about: whose settings, which snapshot, which interval."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from sereno.exceptions import NotFoundError, PublishError, SettingsError
from sereno.home import Home
from sereno.model import Model
from sereno.schedule import Interval, interval_for
from sereno.scoring import published_schema
from sereno.snapshots import Snapshot, State, schema_of

if TYPE_CHECKING:
    from sereno.settings import ModelSettings, Settings

SERVED = "served"


def settings_of(model: Model, settings: Settings, name: str) -> ModelSettings:
    """Those of the challenger's own name; where there are none, it is to do the work of the other model, with its settings."""
    known = {n.replace("_", "-") for n in settings.models}
    own = model.name == name or model.name.replace("_", "-") in known
    assert model.file is not None
    return settings.model(model.name if own else name, model.declared, model.file.parent)


def snapshot_of(home: Home, against: str, when: str | None) -> Snapshot:
    """The one to compare with, if its parts are still there. Raises NotFoundError, SettingsError."""
    state = home.store.state()
    if state.newest is None:
        raise NotFoundError(
            f"No snapshot of model {home.name!r} is published in {home.root}, so there is nothing to compare with. "
            "`sereno run` publishes one; --model says whose snapshots are meant, --home where they lie."
        )
    if against == SERVED:
        return home.store.kept_snapshot(state, _served(state, when).number)
    if not against.isdecimal():
        raise SettingsError(f"--against {against!r} is no version. Give a number of `sereno versions`, or {SERVED!r}.")
    return home.store.kept_snapshot(state, int(against))


def _served(state: State, when: str | None) -> Snapshot:
    """What is in service; where each data date is, that of the date."""
    assert state.newest is not None
    of_date = (s for s in state.served if when is not None and s.data_date.isoformat() == when[:10])
    return next(of_date, state.newest)


def check_keys(model: Model, snapshot: Snapshot) -> None:
    """Raise PublishError where the two have other keys."""
    own = [c.name for c in model.inputs.keys]
    if sorted(own) != sorted(snapshot.keys):
        raise PublishError(
            f"The keys of the challenger {model.name!r} are {', '.join(own)}; those of version {snapshot.number} of "
            f"{snapshot.model!r} are {', '.join(snapshot.keys)}. Predictions are compared by key, so they must be the same "
            "columns. Mend the row type, or say with --model whose snapshot is meant."
        )
    here, there = published_schema(model), schema_of(snapshot)
    for key in snapshot.keys:
        if here.field(key).type != there.field(key).type:
            raise PublishError(
                f"The key {key} is {here.field(key).type} in the challenger {model.name!r} and {there.field(key).type} in "
                f"version {snapshot.number} of {snapshot.model!r}. Predictions are compared by key, so the types must be the same."
            )


def interval_of(model: Model, chosen: ModelSettings, snapshot: Snapshot, when: str | None) -> Interval:
    """The interval of the snapshot, or of the date that was asked for. Raises SettingsError."""
    if when is not None:
        return interval_for(chosen.schedule, chosen.time_zone, when, datetime.now(UTC))
    zone = ZoneInfo(chosen.time_zone)
    start = datetime.fromisoformat(snapshot.run_key).astimezone(zone)
    interval = Interval(start=start, end=snapshot.data_time.astimezone(zone), alone=snapshot.attempt[10:11] != "T")
    if interval.data_date != snapshot.data_date:
        raise SettingsError(
            f"Version {snapshot.number} of {snapshot.model!r} is of {snapshot.data_date}, but in the challenger's time zone, "
            f"{chosen.time_zone}, its interval starts on {interval.data_date}. Set models.{model.name}.time_zone, or say "
            "with --date which data is meant."
        )
    return interval
