"""`sereno deploy cluster`: a folder of systemd units for each host, the balancer's configuration, and what to do with them."""

from __future__ import annotations

import contextlib
import ipaddress
import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sereno.deploy.server import Server, quoted
from sereno.deploy.writing import filled
from sereno.exceptions import SettingsError

HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(\.(?!-)[A-Za-z0-9-]{1,63})*")
RAY_PORT = 6379
LONGEST_NAME = 28  # of the units: a socket's path has at most 107 bytes
MOST_SCHEDULERS = 2  # one works, the other stands by


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What is written for a project on several hosts. The first is the head of Ray."""

    server: Server  # what holds for the units of each host
    hosts: tuple[str, ...]  # names or addresses under which they reach each other
    domain: str  # under which callers know the balancer
    executor: str  # that the settings say
    port: int = 8000  # of the API on each host
    body_bytes: int = 1 << 20  # the largest request
    request_seconds: float = 20.0  # that a request may take
    env: str | None = None  # of sereno.toml, if one was chosen: the services are to choose it, too

    def __post_init__(self) -> None:
        for host in self.hosts:
            if not (_is_address(host) or HOST.fullmatch(host)):
                raise SettingsError(
                    f"{host!r} in --hosts is no name and no IPv4 address of a host. Write --hosts node1,node2."
                )
        if len(self.hosts) < 2 or len({*self.hosts}) < len(self.hosts):
            raise SettingsError(
                f"--hosts names {', '.join(self.hosts) or 'none'}: a cluster has at least two hosts, each named once. For one host: "
                "sereno deploy server."
            )
        if self.uses_ray and len(self.server.name) > LONGEST_NAME:
            raise SettingsError(
                f"{self.server.name!r} is longer than {LONGEST_NAME} letters: Ray could not name its sockets in {self._folder}. "
                "Say a shorter one with --name."
            )
        if not HOST.fullmatch(self.domain):
            raise SettingsError(
                f"{self.domain!r} is no name of a host. Say under which name callers know it: --domain scores.bank."
            )

    def files(self) -> dict[str, str]:
        """Name of the file, with the host's folder → its text. Raises SettingsError."""
        found = {f"{host}/{unit}": text for host in self.hosts for unit, text in self.units(host).items()}
        return {"README.md": self._readme(), "nginx.conf": self._balancer(), **found}

    def units(self, host: str) -> dict[str, str]:
        """Those of one host."""
        name, more = self.server.name, {"host": host, "mounts": _mounts(self.server)}
        units = {}
        if self.uses_ray:
            is_head = host == self.hosts[0]
            ray = f"{name}-ray.service"
            units[ray] = self.server.unit(
                "cluster/ray.service",
                ray,
                ray=quoted(self.server.python.with_name("ray")).replace("$", "$$"),
                role="the head" if is_head else f"of the head {self.hosts[0]}",
                options=self._ray_options(host),
                folder=self._folder,
                **more,
            )
        api = f"{name}-api.service"
        units[api] = self.server.unit("cluster/api.service", api, port=str(self.port), allowed=self.domain, **more)
        if host in self.schedulers:
            schedule = f"{name}-schedule.service"
            units[schedule] = self.server.unit(
                "cluster/schedule.service",
                schedule,
                written=[f"-{self._folder}"] if self.uses_ray else [],
                after=f"{name}-ray.service" if self.uses_ray else "",
                hosts=" and ".join(self.schedulers),
                **more,
            )
        return units

    @property
    def _folder(self) -> str:
        """Ray's, on each host."""
        return f"/var/cache/{self.server.name}-ray"

    @property
    def uses_ray(self) -> bool:
        return self.executor != "spark"

    @property
    def schedulers(self) -> tuple[str, ...]:
        """Not the head's host where there are enough: then no other host's end takes the night with it."""
        first = 1 if self.uses_ray and len(self.hosts) > MOST_SCHEDULERS else 0
        return self.hosts[first : first + MOST_SCHEDULERS]

    def _ray_options(self, host: str) -> str:
        where = [f"--node-ip-address={host}"] if _is_address(host) else []
        common = [*where, "--disable-usage-stats", f"--temp-dir={self._folder}"]
        head = self.hosts[0]
        if host == head:
            return " ".join(["--head", f"--port={RAY_PORT}", "--include-dashboard=false", *common])
        return " ".join([f"--address={head}:{RAY_PORT}", *common])

    def _balancer(self) -> str:
        servers = [f"    server {host}:{self.port} max_fails=1 fail_timeout=2s;" for host in self.hosts]
        return filled(
            "cluster/nginx.conf",
            name=self.server.name,
            upstream=re.sub(r"\W", "_", f"{self.server.name}_api"),
            domain=self.domain,
            servers="\n".join(servers),
            body_bytes=str(self.body_bytes),
            read_seconds=str(math.ceil(self.request_seconds) + 5),
            next_seconds=str(math.ceil(self.request_seconds) + 10),
        )

    def _readme(self) -> str:
        server, name = self.server, self.server.name
        first, second = self.schedulers
        written = " ".join(shlex.quote(str(folder)) for folder in server.written)
        return filled(
            "cluster/README.md",
            name=name,
            count=str(len(self.hosts)),
            domain=self.domain,
            table="\n".join(self._table()),
            executor_line=self._executor_line(),
            home=str(server.home),
            home_quoted=shlex.quote(str(server.home)),
            project=str(server.project),
            python=str(server.python),
            extras="postgresql,ray,redis" if self.uses_ray else "postgresql,redis,spark",
            user=server.user,
            written=written,
            environment="\n".join(self._environment()),
            port=str(self.port),
            settings="\n".join(self._settings()),
            install="\n".join(self._install()),
            by_hand=self._by_hand(),
            first=first,
            second=second,
            head_dies=self._head_dies(),
        )

    def _executor_line(self) -> str:
        if self.uses_ray:
            return f"Ray runs on every host, with {self.hosts[0]} as its head, and scores the tasks of runs."
        return "Spark, which is there already, scores the tasks of runs."

    def _table(self) -> Iterator[str]:
        name, every = self.server.name, "every host"
        if self.uses_ray:
            yield f"| `{name}-ray.service` | {every}; {self.hosts[0]} is the head | Ray, which places the tasks of runs |"
        yield f"| `{name}-api.service` | {every} | the online API |"
        yield f"| `{name}-schedule.service` | {' and '.join(self.schedulers)} | starts the runs; one of the two stands by |"
        yield f"| `nginx.conf` | {self.domain} | the balancer in front of the API |"

    def _environment(self) -> Iterator[str]:
        if self.uses_ray:
            yield "RAY_AUTH_TOKEN=…"
        if self.env:
            yield f"SERENO_ENV={self.env}"
        yield "SERENO_SECRET_API_KEYS=sha256:…"
        yield "SERENO_LEDGER=postgresql://sereno:…@db.example.com/operations"
        yield "SERENO_LOOKUP_STORE=redis://sereno:…@lookups.example.com:6379/0"

    def _settings(self) -> Iterator[str]:
        if self.uses_ray:
            yield 'executor = "ray"'
            yield ""
            yield "[ray]"
            yield f'address = "{self.hosts[0]}:{RAY_PORT}"'
        else:
            yield 'executor = "spark"'
            yield ""
            yield "[spark]"
            yield 'master = "yarn"  # or spark://host:7077'

    def _install(self) -> Iterator[str]:
        yield "H=…   # this host's folder here"
        yield "install -m 644 $H/*.service /etc/systemd/system/"
        yield "systemctl daemon-reload"
        yield "systemctl enable --now $(cd $H && echo *.service)"
        yield f"journalctl -u '{self.server.name}-*' -f"

    def _by_hand(self) -> str:
        python = self.server.python
        if not self.uses_ray:
            submit = shlex.quote(str(python.with_name("spark-submit")))
            return (
                "## Spark by hand\n\nThe scheduler starts a run as `sereno run MODEL`, which is Spark's driver. The same by hand, from "
                f"any host that may submit:\n\n```sh\ncd {shlex.quote(str(self.server.project))}\n"
                f"PYSPARK_PYTHON={shlex.quote(str(python))} {submit} --master yarn --deploy-mode client MODEL.py run\n"
                f"PYSPARK_PYTHON={shlex.quote(str(python))} {submit} --master spark://HOST:7077 MODEL.py run\n```\n"
            )
        ray = shlex.quote(str(python.with_name("ray")))
        head, other = self._ray_options(self.hosts[0]), self._ray_options(self.hosts[1])
        return (
            "## Ray by hand\n\nWhat the units start, as their user, with `RAY_AUTH_MODE=token` and the token in the environment:\n\n"
            f"```sh\n{ray} start {head}      # {self.hosts[0]}\n{ray} start {other}      # {self.hosts[1]}\n```\n"
        )

    def _head_dies(self) -> str:
        if not self.uses_ray:
            return ""
        name, first, second = self.server.name, *self.hosts[:2]
        return (
            f"- **{first}, the head of Ray, dies**: runs fail, and are tried again a few times. To do without it: "
            f"`sereno deploy cluster` with\n  {second} in front of `--hosts` and without {first}, into another folder; its "
            f'`{name}-ray.service` for every host, and `ray.address = "{second}:{RAY_PORT}"`.\n'
        )


def warnings(
    cluster: Cluster, *, executor: str, ray_address: str | None, ledger: str | None, lookups_are_shared: bool
) -> Iterator[str]:
    """What the settings lack for it."""
    if ledger is None:
        yield (
            "WARNING: The ledger is a file of the home, which several hosts cannot share. Set SERENO_LEDGER, or `ledger` in sereno.toml, "
            "to the address of a PostgreSQL before the schedule starts on two hosts."
        )
    if not lookups_are_shared:
        yield (
            "WARNING: Lookups, where models have them, are kept in the home, which every host reads over the network. Set "
            "SERENO_LOOKUP_STORE, or `lookup_store` in sereno.toml, to the address of a Redis or Valkey server."
        )
    head = f"{cluster.hosts[0]}:{RAY_PORT}"
    if executor == "local":
        yield f'WARNING: executor is "local": runs would stay on the host of the schedule. Set executor = "ray" and ray.address = "{head}".'
    elif executor == "ray" and ray_address != head:
        yield f'WARNING: ray.address is {ray_address or "not set"}: set it to "{head}", or runs do not find this Ray.'


def _mounts(server: Server) -> str:
    return " ".join(quoted(place) for place in server.places)


def _is_address(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(ipaddress.IPv4Address(host))
    return False


def next_steps(folder: Path) -> Iterator[str]:
    """What an operator does with them."""
    yield f"Read {folder / 'README.md'}: it says what goes where."
