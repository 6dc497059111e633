"""What can be set: every setting with its kind, default and meaning, and the checks that name what is wrong.

The dataclasses below are the only list of settings; `SETTINGS` and the page `docs/settings.md` follow them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sereno.exceptions import SettingsError

if TYPE_CHECKING:
    from sereno.places import Place

FILE_NAME = "sereno.toml"
DAILY = "0 0 * * *"
EXPORT_FORMATS = ("parquet", "csv", "jsonl")
EXECUTORS = ("local", "ray", "spark")
NOTICE_KINDS = ("failed", "held", "late", "recovered")

ARRIVAL_ONLY = ("quiet_seconds", "ready_seconds", "late")  # heeded where data is waited for
LOOKUP_ONLY = ("stale", "unknown", "max_age_seconds", "cache_seconds")  # settings of models that lookups alone heed
IS_SQL = re.compile(r"\s*(select|with)\s", re.IGNORECASE)  # a source that is a query
Key = tuple[str, ...]  # a dotted name, split


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a setting may be: how it reads in the docs, how text becomes it, and the check."""

    name: str
    check: Callable[[Any], object]  # the value as it is kept; a ValueError adds a hint to the message
    parse: Callable[[str], object] = str


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of the table of settings."""

    name: str  # dotted; NAME stands for the name of a model or value, COLUMN for that of an output or feature
    kind: Kind
    default: object
    about: str  # one sentence


def _whole(least: int, most: int | None = None) -> Kind:
    def check(raw: object) -> int:
        if not isinstance(raw, int) or isinstance(raw, bool) or raw < least or (most is not None and raw > most):
            raise ValueError
        return raw

    name = f"a whole number, {least} or more" if most is None else f"a whole number from {least} to {most}"
    return Kind(name=name, check=check, parse=int)


def _number(most: float | None) -> Kind:
    def check(raw: object) -> float:
        # Written as a chain so that NaN fails it.
        if isinstance(raw, bool) or not isinstance(raw, int | float) or not 0 <= raw <= (most or 1e308):
            raise ValueError
        return float(raw)

    return Kind(name=f"a number from 0 to {most:g}" if most else "a number, 0 or more", check=check, parse=float)


def _text(name: str = "text") -> Kind:
    def check(raw: object) -> str:
        if not isinstance(raw, str) or not raw.strip():
            raise ValueError
        return raw

    return Kind(name=name, check=check)


def _choice(*valid: str) -> Kind:
    def check(raw: object) -> str:
        if raw not in valid:
            raise ValueError(nearest(str(raw), valid))
        return str(raw)

    return Kind(name=" or ".join(f'"{one}"' for one in valid), check=check)


def _check_unknown(raw: object) -> str:
    if raw not in ("404", 404, "live") or isinstance(raw, float):
        raise ValueError(nearest(str(raw), ("404", "live")))
    return str(raw)


def _check_zone(raw: object) -> str:
    from zoneinfo import ZoneInfo, available_timezones

    if not isinstance(raw, str) or not raw:
        raise ValueError
    try:
        ZoneInfo(raw)
    except (KeyError, ValueError, OSError):  # OSError: "Europe" is a folder of zones
        raise ValueError(nearest(raw, available_timezones())) from None
    return raw


def _check_schedule(raw: object) -> str:
    from sereno.schedule import check_schedule

    if not isinstance(raw, str):
        raise ValueError
    try:
        return check_schedule(raw)
    except SettingsError as error:
        raise ValueError(str(error)) from None


def _check_exports(raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list | tuple):
        raise ValueError(f"Write a list: [{redact(repr(raw))}]." if isinstance(raw, str) else "")
    for one in raw:
        if not isinstance(one, str) or not (one in EXPORT_FORMATS or re.match(r"postgresql://.", one)):
            kind = str(one).partition("://")[0]
            raise ValueError(f"{redact(repr(one))} is none of these." + nearest(kind, (*EXPORT_FORMATS, "postgresql")))
    if len(set(raw)) < len(raw):
        raise ValueError("One of them is there twice.")
    return tuple(raw)


def _check_ledger(raw: object) -> str:
    if not isinstance(raw, str) or not re.match(r"postgresql://.", raw):
        raise ValueError
    return raw


def _check_lookup_store(raw: object) -> str:
    if not isinstance(raw, str) or not re.match(r"(rediss?|unix)://.", raw):
        raise ValueError
    return raw


def _check_prefix(raw: object) -> str:
    if not isinstance(raw, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", raw):
        raise ValueError
    return raw


def _check_notify(raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list | tuple):
        raise ValueError('Write a list: ["mailto://…"].' if isinstance(raw, str) else "")
    for place, one in enumerate(raw, 1):
        if not isinstance(one, str) or not re.fullmatch(r"[A-Za-z][\w+.-]*://\S.*|secret:[A-Za-z_]\w*", one):
            raise ValueError(f"Number {place} of them is none of these.")
    if len(set(raw)) < len(raw):
        raise ValueError("One of them is there twice.")
    return tuple(raw)


def parse_addresses(text: str) -> list[Any]:
    """Like any list, but an address may hold commas: each begins with its kind."""
    if text.lstrip().startswith("["):
        return parse_list(text)
    return [one for one in re.split(r"[,\s]+(?=[A-Za-z][\w+.-]*://|secret:)|\s+", text.strip().rstrip(",")) if one]


def _check_kinds(raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list | tuple):
        raise ValueError(f"Write a list: [{raw!r}]." if isinstance(raw, str) else "")
    for one in raw:
        if one not in NOTICE_KINDS:
            raise ValueError(f"{one!r} is none of these." + nearest(str(one), NOTICE_KINDS))
    return tuple(dict.fromkeys(raw))


def _check_ready(raw: object) -> str:
    if not isinstance(raw, str) or not raw.strip():
        raise ValueError
    if raw.lower() in ("auto", "off") and raw not in ("auto", "off"):
        raise ValueError(f"Did you mean '{raw.lower()}'?")
    return raw


def _check_texts(raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list | tuple) or not all(isinstance(one, str) and one for one in raw):
        raise ValueError
    return tuple(raw)


def _check_bool(raw: object) -> bool:
    if not isinstance(raw, bool):
        raise ValueError
    return raw


def _check_mode(raw: object) -> str:
    if not isinstance(raw, str) or not re.fullmatch(r"0?[0-7]{3}", raw):
        raise ValueError
    return raw


def parse_list(text: str) -> list[Any]:
    import tomllib

    if text.lstrip().startswith("["):
        parsed: list[Any] = tomllib.loads(f"value = {text}")["value"]
        return parsed
    return [one.strip() for one in text.split(",") if one.strip()]


def _check_value(raw: object) -> object:
    if isinstance(raw, dict):
        raise ValueError
    return raw


def _check_place(raw: object) -> str:
    if not isinstance(raw, str) or not raw.strip():
        raise ValueError
    if "://" in raw:
        from sereno.places import place_of

        try:
            place_of(raw)
        except SettingsError as error:
            raise ValueError(str(error)) from None
    return raw


PATH = _text("a path")
PLACE = Kind(name='a path or a URL, "s3://…", "gs://…" or "az://…"', check=_check_place)
_SOURCE = _text("a path or a query")
_ADDRESS = _text("the address of a database")
_SCHEDULE = Kind(name="five fields of cron", check=_check_schedule)
_ZONE = Kind(name='a time zone, like "Europe/Madrid"', check=_check_zone)
_VALUE = Kind(name="text, a number, true or false, a date or a list", check=_check_value)
_LEDGER = Kind(name='an address, "postgresql://…"', check=_check_ledger)
_LOOKUP_STORE = Kind(name='an address, "redis://…", "rediss://…" or "unix://…"', check=_check_lookup_store)
_PREFIX = Kind(name="letters, digits and ._-", check=_check_prefix)
_READY = Kind(name='"auto", "off" or a path', check=_check_ready)
_TEXTS = Kind(name="a list of texts", check=_check_texts, parse=parse_list)
_BOOL = Kind(
    name="true or false", check=_check_bool, parse=lambda text: {"true": True, "false": False}.get(text.lower(), text)
)
_UNKNOWN = Kind(name='"404" or "live"', check=_check_unknown)
_MODE = Kind(name='the mode of a file, like "0660"', check=_check_mode)
_NOTIFY = Kind(name='a list of addresses, "mailto://…", or "secret:NAME"', check=_check_notify, parse=parse_addresses)
_KINDS = Kind(
    name=f"a list of {', '.join(map(repr, NOTICE_KINDS))}".replace("'", '"'), check=_check_kinds, parse=parse_list
)
_EXPORTS = Kind(name='a list of "parquet", "csv", "jsonl" or "postgresql://…"', check=_check_exports, parse=parse_list)


def _setting(default: object, kind: Kind, about: str) -> Any:
    # What may hold a password stays out of every repr.
    return field(
        default=default,
        repr=kind not in (_SOURCE, _ADDRESS, _EXPORTS, _NOTIFY),
        metadata={"kind": kind, "about": about},
    )


@dataclass(frozen=True, kw_only=True)
class GateSettings:
    """When a run is held instead of published."""

    max_reject_rows: int = _setting(10, _whole(0), "Hold a run with more rejects than this and `max_reject_share`.")
    max_reject_share: float = _setting(
        0.01, _number(1), "The share of rows that may be rejects, whatever their number."
    )
    max_row_change: float = _setting(
        0.5, _number(None), "Hold a run whose rows differ by more from the last snapshot's."
    )
    max_null_share: float = _setting(0.5, _number(1), "Hold a run with a larger share of nulls in an output column.")
    constant: str = _setting("hold", _choice("hold", "allow"), "What to do when every row gets the same prediction.")
    warn_output_psi: float = _setting(0.1, _number(None), "Warn of an output whose drift (PSI) is greater.")
    hold_output_psi: float = _setting(0.25, _number(None), "Hold a run with an output whose drift is greater.")
    warn_input_psi: float = _setting(0.25, _number(None), "Warn of a feature whose drift is greater.")
    hold_input_psi: float | None = _setting(
        None, _number(None), "Hold a run with a feature whose drift is greater; if not set, none does."
    )


@dataclass(frozen=True, kw_only=True)
class ColumnSettings:
    """The same for one output or feature; what is not set is as for the others."""

    warn_psi: float | None = _setting(None, _number(None), "Warn of this column if its drift is greater.")
    hold_psi: float | None = _setting(None, _number(None), "Hold a run if this column's drift is greater.")
    max_null_share: float | None = _setting(
        None, _number(1), "Hold a run with a larger share of nulls in this column, output or feature."
    )
    constant: str | None = _setting(
        None,
        _choice("hold", "allow"),
        "Hold a run in which this column alone has one value, or do not ask it whether predictions are all the same.",
    )


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The settings of one model: what was given, and the defaults for the rest."""

    file: Path | None = _setting(None, PATH, "The model file, so that commands can name the model instead.")
    source: str | None = _setting(None, _SOURCE, "Where rows come from, unless the file has `read`.")
    database: str | None = _setting(None, _ADDRESS, "Where a `source` that is a query is asked.")
    schedule: str = _setting(DAILY, _SCHEDULE, "Cuts time into intervals; the run for one is due at its end.")
    time_zone: str = _setting("UTC", _ZONE, "The time zone of `schedule` and of data dates.")
    exports: tuple[str, ...] = _setting(("parquet",), _EXPORTS, "Copies of what is published, for other systems.")
    disposition: str = _setting(
        "replace",
        _choice("replace", "partition"),
        "The table is the latest snapshot, or has a partition per data date.",
    )
    duplicates: str = _setting(
        "fail", _choice("fail", "first", "last"), "Rows with the same key: the run fails, or the first or last counts."
    )
    scheduled: bool = _setting(True, _BOOL, "Whether `sereno up` runs the model on its schedule.")
    catch_up: int = _setting(
        30, _whole(1), "How many missed dates of a `partition` are run by themselves; with more, the model is paused."
    )
    retries: int = _setting(3, _whole(0), "How often a scheduled run that the machine let down is tried again.")
    retry_seconds: float = _setting(
        3600.0, _number(None), "How long after its first failure a scheduled run is still tried again."
    )
    ready: str = _setting(
        "auto",
        _READY,
        "What a scheduled run waits for: a `source` that is a path, or `@model.ready`; nothing; or this path.",
    )
    quiet_seconds: float = _setting(
        5.0, _number(None), "For how long what is waited for must not have changed, once it is there."
    )
    ready_seconds: float = _setting(30.0, _number(None), "How long after it said no `@model.ready` is asked again.")
    deadline_seconds: float = _setting(
        21_600.0,
        _number(None),
        "How long after it is due a scheduled run waits for its data; if it has not ended by then, people are told.",
    )
    late: str = _setting(
        "hold",
        _choice("hold", "skip", "run"),
        "What becomes of a run whose data is not there by then: it is held, skipped, or started all the same.",
    )
    run_seconds: float | None = _setting(
        None, _number(None), "How long a scheduled run may take; then it is ended, and has failed."
    )
    run_cores: int | None = _setting(
        None, _whole(1), "How many cores a scheduled run may use, in place of `up.run_cores`."
    )
    run_memory_bytes: int | None = _setting(
        None,
        _whole(1 << 20),
        "How much memory each process of a scheduled run may take, in place of `up.run_memory_bytes`.",
    )
    batch_rows: int = _setting(32_768, _whole(1), "How many rows `predict` is given at once in a run.")
    max_batch_rows: int = _setting(256, _whole(1), "How many rows of live requests `predict` is given at once.")
    queue_rows: int = _setting(1_000, _whole(1), "How many rows of live requests may wait; beyond it, 503.")
    queue_seconds: float = _setting(
        1.0, _number(None), "How long `predict` may take for those that wait; beyond it, and a full batch, 503."
    )
    fetch_timeout_seconds: float = _setting(2.0, _number(None), "How long `fetch` may take.")
    predict_timeout_seconds: float = _setting(
        30.0, _number(None), "A live `predict` that takes longer hangs: its process is replaced."
    )
    log: str = _setting("async", _choice("off", "async", "sync"), "Whether live answers are kept, and waited for.")
    log_days: int = _setting(30, _whole(1), "How many days live answers are kept.")
    lookup: str = _setting(
        "auto",
        _choice("auto", "required", "off"),
        "Whether the API answers from the published predictions: once there are some, not ready without them, or never.",
    )
    max_age_seconds: float | None = _setting(
        None, _number(None), "Published predictions that are older than this are stale."
    )
    stale: str = _setting(
        "flag",
        _choice("flag", "refuse", "live"),
        "A lookup that finds a stale prediction says so, gets 503, or is answered live.",
    )
    unknown: str = _setting("404", _UNKNOWN, "A lookup of an unknown key gets 404, or is answered live.")
    cache_seconds: int = _setting(0, _whole(0), "How long a caller may keep what a lookup found, before it asks again.")
    notify: tuple[str, ...] | None = _setting(None, _NOTIFY, "Who is told of this model, in place of `notify`.")
    notify_on: tuple[str, ...] | None = _setting(None, _KINDS, "What they are told, in place of `notify_on`.")
    keep_snapshots: int = _setting(
        7, _whole(1), "How many snapshots are kept, with their parts, beside what is served."
    )
    keep_hours: float = _setting(24.0, _number(None), "Snapshots that are younger than this are kept, however many.")
    keep_run_days: int = _setting(
        400, _whole(1), "How many days reports and profiles of runs are kept, and what the ledger knows of them."
    )
    gates: GateSettings = field(default_factory=GateSettings)
    columns: Mapping[str, ColumnSettings] = field(default_factory=dict)  # by name, of outputs and features
    # Not a setting: what somebody gave ("source", "gates.constant") → the folder against which a path in it resolves.
    given: Mapping[str, Path] = field(default_factory=dict, repr=False)

    @property
    def source_base(self) -> Path | None:
        """The folder against which a relative `source` resolves; None when nobody gave a source."""
        return self.given.get("source")


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """The settings of the online API."""

    host: str = _setting("127.0.0.1", _text("an address"), "The address to listen on.")
    port: int = _setting(8000, _whole(0), "The port to listen on; 0 takes a free one.")
    unix: Path | None = _setting(None, PATH, "The Unix socket to listen on, in place of address and port.")
    unix_mode: str = _setting("0600", _MODE, "Who may connect to the Unix socket.")
    tls_certificate: Path | None = _setting(None, PATH, "PEM file of the certificate and those above it.")
    tls_key: Path | None = _setting(None, PATH, "PEM file of the certificate's key.")
    keys_file: Path | None = _setting(None, PATH, "Has the hashes of the API keys, one a line, as `sereno key` prints.")
    no_auth: bool = _setting(False, _BOOL, "Whoever reaches an open address may ask, without a key.")
    tls_terminated_upstream: bool = _setting(
        False, _BOOL, "Something in front of an open address speaks TLS with the callers."
    )
    allowed_hosts: tuple[str, ...] = _setting((), _TEXTS, "Names under which callers know the server, beside its own.")
    max_body_bytes: int = _setting(1 << 20, _whole(1), "The largest body of a request.")
    max_rows: int = _setting(1_000, _whole(1), "The most rows of a request.")
    max_reply_bytes: int = _setting(1 << 24, _whole(1), "How large what many keys find may be together.")
    max_depth: int = _setting(32, _whole(1), "How deep JSON may nest.")
    max_text_bytes: int = _setting(1 << 16, _whole(1), "The longest text in a request.")
    header_timeout_seconds: float = _setting(10.0, _number(None), "How long a caller may take to send the headers.")
    request_timeout_seconds: float = _setting(20.0, _number(None), "How long a request may take, once it began.")
    keep_alive_seconds: float = _setting(75.0, _number(None), "How long an idle connection is kept.")
    drain_seconds: float = _setting(25.0, _number(None), "How long a server that is told to end may take.")
    access_log: str = _setting("errors", _choice("off", "errors", "all"), "Which requests get a line in the log.")


@dataclass(frozen=True, kw_only=True)
class UpSettings:
    """The settings of `sereno up`: what its runs may take from the machine, and from the API beside them."""

    max_runs: int = _setting(1, _whole(1), "How many runs may go on at once; of one model it is always one.")
    run_nice: int = _setting(
        19, _whole(0, 19), "How far a run gives way to other processes: with 19 it gets what nobody else wants."
    )
    run_cores: int | None = _setting(None, _whole(1), "How many cores a run may use; else those that the API leaves.")
    run_memory_bytes: int | None = _setting(
        None, _whole(1 << 20), "How much memory each process of a run may take; else all there is."
    )
    stop_seconds: float = _setting(
        20.0, _number(None), "How long runs may take to end when `sereno up` does; then they are killed."
    )


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """The settings of the executor "ray": the cluster, and what a worker takes of it."""

    address: str | None = _setting(
        None, _text('an address, "host:6379"'), "The head of the Ray cluster; else one is started on this machine."
    )
    worker_cpus: float = _setting(1.0, _number(None), "How many CPUs of a node a worker takes.")
    worker_gpus: float = _setting(0.0, _number(None), "How many GPUs of a node a worker takes.")
    worker_memory_bytes: int | None = _setting(
        None, _whole(1 << 20), "How much memory of a node a worker takes, for Ray to place it."
    )
    runtime_env: Path | None = _setting(
        None, PATH, "A file of JSON: the environment that Ray makes for the workers, its `runtime_env`."
    )
    server_cpus: float = _setting(
        1.0, _number(None), "How many CPUs of its node a server of `sereno serve --on ray` takes."
    )


@dataclass(frozen=True, kw_only=True)
class SparkSettings:
    """The settings of the executor "spark"."""

    master: str | None = _setting(
        None,
        _text('a master, "spark://host:7077" or "yarn"'),
        "The cluster, unless `spark-submit` was given another; none: this machine.",
    )
    config: Path | None = _setting(None, PATH, "A file of JSON: what else is set of Spark, as `spark.executor.memory`.")


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


def _rows(prefix: str, owner: type[Any]) -> Iterator[Setting]:
    for one in fields(owner):
        if "kind" in one.metadata:
            name, kind, about = prefix + one.name, one.metadata["kind"], one.metadata["about"]
            yield Setting(name=name, kind=kind, default=one.default, about=about)


SETTINGS: Mapping[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting(name="home", kind=PATH, default=None, about="Where `predictions/`, `exports/` and `.sereno/` lie."),
        Setting(
            name="storage",
            kind=PLACE,
            default=None,
            about="Where what must last lies, in an object store or a folder; else in the home.",
        ),
        Setting(
            name="executor",
            kind=_choice(*EXECUTORS),
            default="local",
            about="What hands the tasks of a run to workers: this machine's processes, a Ray or a Spark cluster.",
        ),
        Setting(
            name="workers",
            kind=_whole(1),
            default=None,
            about="How many processes score; else one per core in a run, one in a server.",
        ),
        Setting(name="secrets_folder", kind=PATH, default="/run/secrets", about="Has a file for each secret."),
        Setting(
            name="ledger",
            kind=_LEDGER,
            default=None,
            about="Where the ledger of runs is kept: a PostgreSQL database; else a file in `.sereno/`.",
        ),
        Setting(
            name="lookup_store",
            kind=_LOOKUP_STORE,
            default=None,
            about="Where lookups are kept: a Redis or Valkey server, which several hosts share; else in `.sereno/` of `storage`.",
        ),
        Setting(
            name="lookup_prefix",
            kind=_PREFIX,
            default="sereno",
            about="How names begin in `lookup_store`: homes that share a server have one each.",
        ),
        Setting(
            name="lookup_versions",
            kind=_whole(1),
            default=2,
            about="How many versions `lookup_store` holds: what is served, and those that a rollback is to find there.",
        ),
        Setting(
            name="notify",
            kind=_NOTIFY,
            default=(),
            about="Who is told of a run that needs somebody: addresses as apprise has them.",
        ),
        Setting(name="notify_on", kind=_KINDS, default=NOTICE_KINDS, about="What they are told."),
        Setting(name="values.NAME", kind=_VALUE, default=None, about="Fills a parameter NAME, or {NAME} in a source."),
        *_rows("serve.", ServeSettings),
        *_rows("up.", UpSettings),
        *_rows("ray.", RaySettings),
        *_rows("spark.", SparkSettings),
        *_rows("models.NAME.", ModelSettings),
        *_rows("models.NAME.gates.", GateSettings),
        *_rows("models.NAME.columns.COLUMN.", ColumnSettings),
    )
}


# Checks


def find(key: Key, where: str, *, variable: bool = False) -> Setting | None:
    """The setting of a key, or None where the key is a table of them; raises on one that is unknown."""
    pattern = key
    if key[0] == "models" and len(key) > 1:
        check_model_name(key[1], where)
        pattern = (key[0], "NAME", *key[2:])
        if key[2:3] == ("columns",) and len(key) > 3:
            pattern = (*pattern[:3], "COLUMN", *key[4:])
    elif key[0] == "values" and len(key) > 1:
        if not key[1].isidentifier():
            what = f"'{key[1]}' from {where} cannot be the name of a value: it fills a parameter of that name."
            raise SettingsError(f"{what} Use letters, digits and underscores.")
        pattern = (key[0], "NAME", *key[2:])
    dotted = ".".join(pattern)
    if dotted in SETTINGS:
        return SETTINGS[dotted]
    if any(name.startswith(f"{dotted}.") for name in SETTINGS):
        return None

    depth = len(pattern) - 1
    beside = (tuple(name.split(".")) for name in SETTINGS)
    valid = list(dict.fromkeys(one[depth] for one in beside if len(one) > depth and one[:depth] == pattern[:-1]))
    if not depth and not variable and where.endswith(FILE_NAME) and not where.startswith("["):
        valid.append("env")
    spelled = "__".join(("SERENO", *key[:-1])).upper().replace("SERENO__", "SERENO_", 1).replace("-", "_")
    hint = nearest(key[-1], valid)
    if variable and hint:
        name = hint.split("'")[1].upper()
        hint = f" Did you mean {spelled}{'__' if depth else '_'}{name}?"
    raise SettingsError(
        f"There is no setting '{'.'.join(key)}', which {where} sets.{hint} "
        + (f"Valid there: {listed(valid)}." if valid else f"'{'.'.join(key[:-1])}' is itself a setting.")
    )


def require(key: Key, where: str, *, variable: bool = False) -> Setting:
    setting = find(key, where, variable=variable)
    if setting is None:
        raise SettingsError(f"'{'.'.join(key)}', which {where} sets, is a table. Name one of its settings after a dot.")
    return setting


def checked(key: Key, raw: object, where: str) -> Any:
    kind = require(key, where).kind
    try:
        return kind.check(raw)
    except ValueError as error:
        raise SettingsError(invalid(key, raw, where, kind.name, str(error))) from None


_ADDRESSES = ("ledger", "lookup_store", "database")


def invalid(key: Key, raw: object, where: str, valid: str, hint: str = "") -> str:
    # any part of one may be a secret; so may all of a text that should have been an address
    is_secret = key[-1] == "notify" or (key[-1] in _ADDRESSES and "://" not in str(raw))
    shown = "***" if is_secret and key[0] != "values" else redact(repr(raw))
    return f"'{'.'.join(key)}' is {shown}, from {where}. Valid: {valid}. {hint.strip()}".rstrip()


def check_model_name(name: str, where: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name):
        what = f"'{redact(name)}' from {where} cannot be the name of a model."
        raise SettingsError(f"{what} Use up to 64 of a-z, 0-9, '-' and '_', the first a letter or digit.")


def nearest(name: str, known: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


# What is secret by its name: of values, of options in the query of an address, of parts of a connection string; also
# `sslpassword`, `X-Amz-Signature`, `AccountKey`. Who put a secret there was not to, but it is not to be printed, too.
_SECRET_WORDS = (
    r"pass(?:word|wd|phrase)?|pwd|secret|token|cred(?:ential)?s?|auth(?!or)|signature"
    r"|(?:api|access|account|private|shared|signing|encryption)[_-]?key(?!_?id)"
)
_SECRET_NAME = re.compile(rf"{_SECRET_WORDS}|(?:^|\.)key$", re.IGNORECASE)
_SECRET_PART = re.compile(
    rf"((?<=[?&])sig|\b[\w.-]*(?:{_SECRET_WORDS}))(\s*=\s*|%3D)[^&\s;'\"]*", re.IGNORECASE
)  # sig: of an Azure address


def is_secret_name(name: str) -> bool:
    """Whether what is called so may be a secret, as far as a name tells."""
    return _SECRET_NAME.search(name) is not None


def redact(text: str) -> str:
    """The text without the passwords of addresses and connection strings in it."""
    text = re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text)
    text = re.sub(r"(?i)(https?://)[^:/?#@\s]+@", r"\1***@", text)  # a token in place of a user's name
    return _SECRET_PART.sub(r"\1\2***", text)
