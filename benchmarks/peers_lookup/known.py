"""The other ways to answer by key: who they are, how each is started and asked, and the environment it needs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.environments import CannotInstall, python_with
from benchmarks.lookup.tables import Outputs

FEW = 1_000_000  # keys
PROGRAMS = {
    "nginx": "nginx-light",
    "redis-server": "redis-server",
    "redis-benchmark": "redis-tools",
}  # → Debian's package
FASTAPI_PACKAGES = ("fastapi==0.165.0", "uvicorn[standard]==0.54.0", "redis==7.4.1", "hiredis==3.5.0")
FEAST_PACKAGES = ("feast[redis]==0.67.0",)


def environment(venv: str, packages: Sequence[str]) -> Path:
    """Its Python. Raises CannotInstall."""
    return python_with(f"{venv}-lookup", packages)


def _outputs(answer: Any) -> Outputs:
    return Outputs(answer["probability"], answer["band"], answer["segment"])


@dataclass(frozen=True, kw_only=True)
class Peer:
    """How a server is started, and how a key is asked of it."""

    # In the command: {python}, {bin} (the folder of its environment's commands), {port}, {port2} (another), {folder} (one
    # of its own for this run, empty at first), {store}; for Sereno also {file}, {home} and {workers}.
    command: tuple[str, ...]
    store: str = ""  # of tables.STORES, if it has one
    venv: str = ""  # the environment; empty: this one, whose packages Sereno needs anyway
    packages: tuple[str, ...] = ()  # of that environment
    programs: tuple[str, ...] = ()  # of PROGRAMS, which must be installed
    path: str = "/predictions/{key}"
    body: str = ""  # JSON with {key} in it; empty: a GET
    answer: Callable[[Any], Outputs] = _outputs
    headers: tuple[str, ...] = ()  # that every answer must have
    environ: Mapping[str, str] = field(default_factory=dict)
    most_keys: int | None = None  # of more it is not asked unless it is named
    speaks_redis: bool = False  # and no HTTP
    is_constant: bool = False  # answers everybody the same
    kind: str = "by hand"  # or "sereno", "feast", "limit", and "bound": neither peer nor to be compared with

    def python(self) -> Path:
        """Raises CannotInstall, also where a program is missing."""
        for program in self.programs:
            if not shutil.which(program):
                raise CannotInstall(f"{program} is not here (apt-get install {PROGRAMS[program]})")
        return environment(self.venv, self.packages) if self.venv else Path(sys.executable)


def _module(name: str, *arguments: str) -> tuple[str, ...]:
    return ("{python}", "-m", f"benchmarks.peers_lookup.{name}", *arguments)


def _uvicorn(app: str) -> tuple[str, ...]:
    server = ("{bin}/uvicorn", f"benchmarks.peers_lookup.{app}:app", "--host", "127.0.0.1", "--port", "{port}")
    return (*server, "--no-access-log", "--log-level", "warning")


def _from_sereno(answer: Any) -> Outputs:
    is_told = answer["version"] >= 1 and answer["age_seconds"] >= 0 and answer["data_date"] and answer["data_time"]
    if not is_told or answer["origin"] != "lookup" or answer["stale"] is not False:
        raise ValueError(f"not what a lookup answers: {answer}")
    return _outputs(answer["prediction"])


def _from_feast(answer: Any) -> Outputs:
    names = answer["metadata"]["feature_names"]
    return _outputs({name: one["values"][0] for name, one in zip(names, answer["results"], strict=True)})


WITH_REDIS = _module("with_redis", "{store}", "{port2}")
FASTAPI: dict[str, Any] = {"venv": "fastapi", "packages": FASTAPI_PACKAGES}
REDIS: dict[str, Any] = {"programs": ("redis-server",), "environ": {"REDIS_PORT": "{port2}"}, "most_keys": FEW}
FEAST: dict[str, Any] = {
    "kind": "feast",
    "venv": "feast",
    "packages": FEAST_PACKAGES,
    "path": "/get-online-features",
    "body": json.dumps(
        {"features": [f"scores:{name}" for name in Outputs._fields], "entities": {"customer_id": ["{key}"]}}
    ).replace('"{key}"', "{key}"),
    "answer": _from_feast,
    "most_keys": FEW,  # it takes some minutes to fill with these
}
PEERS = {
    "sereno": Peer(
        command=("{bin}/sereno", "serve", "{file}", "--home", "{home}", "--port", "{port}", "--workers", "{workers}"),
        path="/models/lookup/predictions/{key}",
        answer=_from_sereno,
        headers=("etag", "age", "cache-control"),
        kind="sereno",
    ),
    "sereno-redis": Peer(  # which its own builder fills; the Redis is on the same core, as its peers' is
        command=(
            *_module("with_redis", "{folder}", "{port2}"),
            *("{bin}/sereno", "serve", "{file}", "--home", "{home}", "--port", "{port}", "--workers", "{workers}"),
            *("--set", "lookup_store=redis://127.0.0.1:{port2}/0"),
        ),
        path="/models/lookup/predictions/{key}",
        answer=_from_sereno,
        headers=("etag", "age", "cache-control"),
        programs=("redis-server",),
        most_keys=FEW,
        kind="sereno",
    ),
    "limit": Peer(command=_module("bare_loop", "{store}/data.lmdb", "{port}"), store="lmdb", kind="limit"),
    "limit-line": Peer(command=_module("bare_line", "{store}/data.lmdb", "{port}"), store="lmdb", kind="bound"),
    "nginx": Peer(
        command=_module("nginx_start", "{folder}", "{port}"),
        programs=("nginx",),
        is_constant=True,
        kind="bound",
        most_keys=FEW,
    ),
    "redis": Peer(
        command=("redis-server", "--bind", "127.0.0.1", "--port", "{port}", "--dir", "{store}", "--save", ""),
        store="redis",
        programs=("redis-server", "redis-benchmark"),
        speaks_redis=True,
        kind="bound",
        most_keys=FEW,
    ),
    "fastapi-sqlite": Peer(
        command=_uvicorn("fastapi_sqlite"), store="sqlite", environ={"DATABASE": "{store}/data.sqlite"}, **FASTAPI
    ),
    "fastapi-redis": Peer(command=(*WITH_REDIS, *_uvicorn("fastapi_redis")), store="redis", **FASTAPI, **REDIS),
    "feast-sqlite": Peer(command=_module("feast_start", "sqlite", "{store}", "{port}"), store="feast-sqlite", **FEAST),
    "feast-redis": Peer(
        command=(*WITH_REDIS, *_module("feast_start", "redis", "{store}", "{port}")),
        store="feast-redis",
        **FEAST | REDIS,
    ),
}
