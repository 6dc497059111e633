"""Everything that was set, checked, and of each model what counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sereno.exceptions import SettingsError
from sereno.settings.groups import ModelSettings, RaySettings, ServeSettings, SparkSettings, UpSettings
from sereno.settings.kinds import NOTICE_KINDS
from sereno.settings.redacting import redact
from sereno.settings.table import check_model_name, checked

if TYPE_CHECKING:
    from sereno.places import Place

ARRIVAL_ONLY = ("quiet_seconds", "ready_seconds", "late")  # heeded where data is waited for
LOOKUP_ONLY = ("stale", "unknown", "max_age_seconds", "cache_seconds")  # settings of models that lookups alone heed


@dataclass(frozen=True, kw_only=True)
class Value:
    """One of `[values]`."""

    value: object
    base: Path  # the folder against which a relative path in it resolves

    def __repr__(self) -> str:
        return f"Value(value={redact(repr(self.value))}, base={str(self.base)!r})"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that was set, checked."""

    home: Path  # absolute
    storage: Place | None = None  # None: the home
    executor: str = "local"
    workers: int | None = None  # None: a run has as many as there are cores, a server one
    secrets_folder: Path = Path("/run/secrets")
    ledger: str | None = field(default=None, repr=False)  # None: SQLite in the home; it may hold a password
    lookup_store: str | None = field(default=None, repr=False)  # None: the home's folder; it may hold a password
    lookup_prefix: str = "sereno"
    lookup_versions: int = 2
    notify: tuple[str, ...] = field(default=(), repr=False)  # addresses that may hold secrets
    notify_on: tuple[str, ...] = NOTICE_KINDS
    values: Mapping[str, Value] = field(default_factory=dict)
    models: Mapping[str, ModelSettings] = field(default_factory=dict)
    serve: ServeSettings = field(default_factory=ServeSettings)
    up: UpSettings = field(default_factory=UpSettings)
    ray: RaySettings = field(default_factory=RaySettings)
    spark: SparkSettings = field(default_factory=SparkSettings)
    folder: Path | None = field(default=None, compare=False)  # where sereno.toml lies, or would
    given_options: tuple[str, ...] = field(
        default=(), compare=False
    )  # of the command line (--home, --env, --set), none of them secret
    origins: Mapping[str, str] = field(default_factory=dict)  # dotted key → where it came from; defaults are absent

    @property
    def root(self) -> Place:
        """Where what must last lies: the place that `storage` names, else the home."""
        return self.home if self.storage is None else self.storage

    def model(self, name: str, declared: Mapping[str, object], folder: Path | None = None) -> ModelSettings:
        """The settings of a model, where what its file declared (None: nothing) yields to anything given elsewhere.

        `folder` is the model file's, against which relative paths in what it declared resolve.
        """
        check_model_name(name, "the model file")
        settings = self.given_for(name)
        where, base = f"the file of model '{name}'", folder or self.home
        changes: dict[str, Any] = {}
        for key, raw in declared.items():
            if raw is not None and key not in settings.given:
                changes[key] = checked(("models", name, key), raw, where)
        chosen = replace(settings, **changes, given={**settings.given, **dict.fromkeys(changes, base)})
        self._check_lookup(name, chosen)
        self._check_arrival(name, chosen)
        return chosen

    def given_for(self, name: str) -> ModelSettings:
        """What was set for a model, without what its file declares."""
        return next((self.models[one] for one in _spellings(name) if one in self.models), ModelSettings())

    def origin(self, model: str, setting: str) -> str:
        """Where a model's setting came from, for messages."""
        spelled = (f"models.{name}.{setting}" for name in _spellings(model))
        return next((self.origins[key] for key in spelled if key in self.origins), "the defaults")

    def _check_lookup(self, name: str, chosen: ModelSettings) -> None:
        """Raise SettingsError where a setting of lookups would have no effect.

        Switched off from elsewhere, by an environment or on the command line, those of the file may stay.
        """
        off = self.origin(name, "lookup")
        given = next((one for one in LOOKUP_ONLY if one in chosen.given and self.origin(name, one) == off), None)
        if chosen.lookup == "off" and given is not None:
            raise SettingsError(
                f"'models.{name}.{given}', from {self.origin(name, given)}, has no effect, as 'models.{name}.lookup' is "
                f"'off', from {off}. Leave {given} out, or set lookup = \"auto\"."
            )
        if chosen.stale != "flag" and chosen.max_age_seconds is None:
            raise SettingsError(
                f"'models.{name}.stale' is {chosen.stale!r}, from {self.origin(name, 'stale')}, but nothing is ever stale, as "
                f"'models.{name}.max_age_seconds' is not set. Set it, e.g. to 129600 (36 hours), or leave stale out."
            )

    def _check_arrival(self, name: str, chosen: ModelSettings) -> None:
        """Raise SettingsError where a setting of the arrival of data would have no effect, as with those of lookups."""
        off = self.origin(name, "ready")
        given = next((one for one in ARRIVAL_ONLY if one in chosen.given and self.origin(name, one) == off), None)
        if chosen.ready == "off" and given is not None:
            raise SettingsError(
                f"'models.{name}.{given}', from {off}, has no effect, as 'models.{name}.ready' is 'off' there, and nothing is "
                f"waited for. Leave {given} out, or ready."
            )
        if (
            chosen.ready != "off"
            and "quiet_seconds" in chosen.given
            and chosen.quiet_seconds >= max(chosen.deadline_seconds, 1e-9)
        ):
            raise SettingsError(
                f"'models.{name}.quiet_seconds' is {chosen.quiet_seconds:g}, from {self.origin(name, 'quiet_seconds')}, but "
                f"'models.{name}.deadline_seconds' is {chosen.deadline_seconds:g}, so that all data is late. Set it to more."
            )


def _spellings(name: str) -> tuple[str, ...]:
    """SERENO_MODELS__CREDIT_SCORING__… may mean a "credit-scoring" that sereno.toml does not know."""
    return tuple(dict.fromkeys((name, name.replace("-", "_"))))
