"""The settings in groups, each with its kind, default and meaning: of models, of the API, of `sereno up`, of clusters.

These dataclasses and the rows beside them in `table.py` are the only list of settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sereno.settings.kinds import (
    ADDRESS,
    BOOL,
    EXPORTS,
    KINDS,
    MODE,
    NOTIFY,
    PATH,
    READY,
    SCHEDULE,
    SOURCE,
    TEXTS,
    UNKNOWN,
    ZONE,
    Kind,
    choice,
    number,
    text,
    whole,
)

DAILY = "0 0 * * *"


def _setting(default: object, kind: Kind, about: str) -> Any:
    # What may hold a password stays out of every repr.
    return field(
        default=default,
        repr=kind not in (SOURCE, ADDRESS, EXPORTS, NOTIFY),
        metadata={"kind": kind, "about": about},
    )


@dataclass(frozen=True, kw_only=True)
class GateSettings:
    """When a run is held instead of published."""

    max_reject_rows: int = _setting(10, whole(0), "Hold a run with more rejects than this and `max_reject_share`.")
    max_reject_share: float = _setting(0.01, number(1), "The share of rows that may be rejects, whatever their number.")
    max_row_change: float = _setting(
        0.5, number(None), "Hold a run whose rows differ by more from the last snapshot's."
    )
    max_null_share: float = _setting(0.5, number(1), "Hold a run with a larger share of nulls in an output column.")
    constant: str = _setting("hold", choice("hold", "allow"), "What to do when every row gets the same prediction.")
    warn_output_psi: float = _setting(0.1, number(None), "Warn of an output whose drift (PSI) is greater.")
    hold_output_psi: float = _setting(0.25, number(None), "Hold a run with an output whose drift is greater.")
    warn_input_psi: float = _setting(0.25, number(None), "Warn of a feature whose drift is greater.")
    hold_input_psi: float | None = _setting(
        None, number(None), "Hold a run with a feature whose drift is greater; if not set, none does."
    )


@dataclass(frozen=True, kw_only=True)
class ColumnSettings:
    """The same for one output or feature; what is not set is as for the others."""

    warn_psi: float | None = _setting(None, number(None), "Warn of this column if its drift is greater.")
    hold_psi: float | None = _setting(None, number(None), "Hold a run if this column's drift is greater.")
    max_null_share: float | None = _setting(
        None, number(1), "Hold a run with a larger share of nulls in this column, output or feature."
    )
    constant: str | None = _setting(
        None,
        choice("hold", "allow"),
        "Hold a run in which this column alone has one value, or do not ask it whether predictions are all the same.",
    )


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The settings of one model: what was given, and the defaults for the rest."""

    file: Path | None = _setting(None, PATH, "The model file, so that commands can name the model instead.")
    source: str | None = _setting(None, SOURCE, "Where rows come from, unless the file has `read`.")
    database: str | None = _setting(None, ADDRESS, "Where a `source` that is a query is asked.")
    schedule: str = _setting(DAILY, SCHEDULE, "Cuts time into intervals; the run for one is due at its end.")
    time_zone: str = _setting("UTC", ZONE, "The time zone of `schedule` and of data dates.")
    exports: tuple[str, ...] = _setting(("parquet",), EXPORTS, "Copies of what is published, for other systems.")
    disposition: str = _setting(
        "replace",
        choice("replace", "partition"),
        "The table is the latest snapshot, or has a partition per data date.",
    )
    duplicates: str = _setting(
        "fail", choice("fail", "first", "last"), "Rows with the same key: the run fails, or the first or last counts."
    )
    scheduled: bool = _setting(True, BOOL, "Whether `sereno up` runs the model on its schedule.")
    catch_up: int = _setting(
        30, whole(1), "How many missed dates of a `partition` are run by themselves; with more, the model is paused."
    )
    retries: int = _setting(3, whole(0), "How often a scheduled run that the machine let down is tried again.")
    retry_seconds: float = _setting(
        3600.0, number(None), "How long after its first failure a scheduled run is still tried again."
    )
    ready: str = _setting(
        "auto",
        READY,
        "What a scheduled run waits for: a `source` that is a path, or `@model.ready`; nothing; or this path.",
    )
    quiet_seconds: float = _setting(
        5.0, number(None), "For how long what is waited for must not have changed, once it is there."
    )
    ready_seconds: float = _setting(30.0, number(None), "How long after it said no `@model.ready` is asked again.")
    deadline_seconds: float = _setting(
        21_600.0,
        number(None),
        "How long after it is due a scheduled run waits for its data; if it has not ended by then, people are told.",
    )
    late: str = _setting(
        "hold",
        choice("hold", "skip", "run"),
        "What becomes of a run whose data is not there by then: it is held, skipped, or started all the same.",
    )
    run_seconds: float | None = _setting(
        None, number(None), "How long a scheduled run may take; then it is ended, and has failed."
    )
    run_cores: int | None = _setting(
        None, whole(1), "How many cores a scheduled run may use, in place of `up.run_cores`."
    )
    run_memory_bytes: int | None = _setting(
        None,
        whole(1 << 20),
        "How much memory each process of a scheduled run may take, in place of `up.run_memory_bytes`.",
    )
    batch_rows: int = _setting(32_768, whole(1), "How many rows `predict` is given at once in a run.")
    max_batch_rows: int = _setting(256, whole(1), "How many rows of live requests `predict` is given at once.")
    queue_rows: int = _setting(1_000, whole(1), "How many rows of live requests may wait; beyond it, 503.")
    queue_seconds: float = _setting(
        1.0, number(None), "How long `predict` may take for those that wait; beyond it, and a full batch, 503."
    )
    fetch_timeout_seconds: float = _setting(2.0, number(None), "How long `fetch` may take.")
    predict_timeout_seconds: float = _setting(
        30.0, number(None), "A live `predict` that takes longer hangs: its process is replaced."
    )
    log: str = _setting("async", choice("off", "async", "sync"), "Whether live answers are kept, and waited for.")
    log_days: int = _setting(30, whole(1), "How many days live answers are kept.")
    lookup: str = _setting(
        "auto",
        choice("auto", "required", "off"),
        "Whether the API answers from the published predictions: once there are some, not ready without them, or never.",
    )
    max_age_seconds: float | None = _setting(
        None, number(None), "Published predictions that are older than this are stale."
    )
    stale: str = _setting(
        "flag",
        choice("flag", "refuse", "live"),
        "A lookup that finds a stale prediction says so, gets 503, or is answered live.",
    )
    unknown: str = _setting("404", UNKNOWN, "A lookup of an unknown key gets 404, or is answered live.")
    cache_seconds: int = _setting(0, whole(0), "How long a caller may keep what a lookup found, before it asks again.")
    notify: tuple[str, ...] | None = _setting(None, NOTIFY, "Who is told of this model, in place of `notify`.")
    notify_on: tuple[str, ...] | None = _setting(None, KINDS, "What they are told, in place of `notify_on`.")
    keep_snapshots: int = _setting(7, whole(1), "How many snapshots are kept, with their parts, beside what is served.")
    keep_hours: float = _setting(24.0, number(None), "Snapshots that are younger than this are kept, however many.")
    keep_run_days: int = _setting(
        400, whole(1), "How many days reports and profiles of runs are kept, and what the ledger knows of them."
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

    host: str = _setting("127.0.0.1", text("an address"), "The address to listen on.")
    port: int = _setting(8000, whole(0), "The port to listen on; 0 takes a free one.")
    unix: Path | None = _setting(None, PATH, "The Unix socket to listen on, in place of address and port.")
    unix_mode: str = _setting("0600", MODE, "Who may connect to the Unix socket.")
    tls_certificate: Path | None = _setting(None, PATH, "PEM file of the certificate and those above it.")
    tls_key: Path | None = _setting(None, PATH, "PEM file of the certificate's key.")
    keys_file: Path | None = _setting(None, PATH, "Has the hashes of the API keys, one a line, as `sereno key` prints.")
    no_auth: bool = _setting(False, BOOL, "Whoever reaches an open address may ask, without a key.")
    tls_terminated_upstream: bool = _setting(
        False, BOOL, "Something in front of an open address speaks TLS with the callers."
    )
    allowed_hosts: tuple[str, ...] = _setting((), TEXTS, "Names under which callers know the server, beside its own.")
    max_body_bytes: int = _setting(1 << 20, whole(1), "The largest body of a request.")
    max_rows: int = _setting(1_000, whole(1), "The most rows of a request.")
    max_reply_bytes: int = _setting(1 << 24, whole(1), "How large what many keys find may be together.")
    max_depth: int = _setting(32, whole(1), "How deep JSON may nest.")
    max_text_bytes: int = _setting(1 << 16, whole(1), "The longest text in a request.")
    header_timeout_seconds: float = _setting(10.0, number(None), "How long a caller may take to send the headers.")
    request_timeout_seconds: float = _setting(20.0, number(None), "How long a request may take, once it began.")
    keep_alive_seconds: float = _setting(75.0, number(None), "How long an idle connection is kept.")
    drain_seconds: float = _setting(25.0, number(None), "How long a server that is told to end may take.")
    access_log: str = _setting("errors", choice("off", "errors", "all"), "Which requests get a line in the log.")


@dataclass(frozen=True, kw_only=True)
class UpSettings:
    """The settings of `sereno up`: what its runs may take from the machine, and from the API beside them."""

    max_runs: int = _setting(1, whole(1), "How many runs may go on at once; of one model it is always one.")
    run_nice: int = _setting(
        19, whole(0, 19), "How far a run gives way to other processes: with 19 it gets what nobody else wants."
    )
    run_cores: int | None = _setting(None, whole(1), "How many cores a run may use; else those that the API leaves.")
    run_memory_bytes: int | None = _setting(
        None, whole(1 << 20), "How much memory each process of a run may take; else all there is."
    )
    stop_seconds: float = _setting(
        20.0, number(None), "How long runs may take to end when `sereno up` does; then they are killed."
    )


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """The settings of the executor "ray": the cluster, and what a worker takes of it."""

    address: str | None = _setting(
        None, text('an address, "host:6379"'), "The head of the Ray cluster; else one is started on this machine."
    )
    worker_cpus: float = _setting(1.0, number(None), "How many CPUs of a node a worker takes.")
    worker_gpus: float = _setting(0.0, number(None), "How many GPUs of a node a worker takes.")
    worker_memory_bytes: int | None = _setting(
        None, whole(1 << 20), "How much memory of a node a worker takes, for Ray to place it."
    )
    runtime_env: Path | None = _setting(
        None, PATH, "A file of JSON: the environment that Ray makes for the workers, its `runtime_env`."
    )
    server_cpus: float = _setting(
        1.0, number(None), "How many CPUs of its node a server of `sereno serve --on ray` takes."
    )


@dataclass(frozen=True, kw_only=True)
class SparkSettings:
    """The settings of the executor "spark"."""

    master: str | None = _setting(
        None,
        text('a master, "spark://host:7077" or "yarn"'),
        "The cluster, unless `spark-submit` was given another; none: this machine.",
    )
    config: Path | None = _setting(None, PATH, "A file of JSON: what else is set of Spark, as `spark.executor.memory`.")
