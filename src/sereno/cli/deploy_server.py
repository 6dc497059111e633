"""`sereno deploy server` and `sereno deploy cluster`: their options, and what they read of the settings."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sereno.cli import deploying
from sereno.cli.commands import Commands
from sereno.exceptions import SettingsError

if TYPE_CHECKING:
    from sereno.deploy.calendar import Timed
    from sereno.deploy.server import Server
    from sereno.settings import Settings


def add(environments: Commands) -> None:
    one = environments.command("server", _server, "systemd units that run `sereno up` on one machine")
    _add_options(one)
    one.add_argument("--timers", action="store_true", help="systemd's own timers start the runs, and `serve` answers")
    one = environments.command(
        "cluster",
        _cluster,
        "systemd units for each of several hosts, the balancer's nginx.conf, and a README",
        "Runs are scored by Ray on all hosts, or by a Spark that is there already, as `executor` says.",
    )
    _add_options(one)
    one.add_argument(
        "--hosts", type=deploying.names, metavar="A,B,…", help="their names or addresses, the head of Ray first"
    )
    one.add_argument("--domain", metavar="NAME", help="under which callers know the API")


def _add_options(one: Any) -> None:
    deploying.add_options(one, folder="deploy")
    one.add_argument("--user", metavar="USER", help="who the services run as (sereno)")
    one.add_argument("--memory", metavar="SIZE", help="how much memory each service may take (80%%)")


def _server(options: argparse.Namespace) -> int:
    from sereno.deploy.server import next_steps

    settings, project = deploying.project_of(options)
    server, folder = _server_of(options, settings, project), deploying.folder_of(options)
    units = server.units_with_timers(_timed(options, settings)) if options.timers else server.units()
    return deploying.wrote(options, units, folder, next_steps(server, folder, units, deploying.env_of(options)))


def _cluster(options: argparse.Namespace) -> int:
    from sereno.deploy.cluster import Cluster, next_steps, warnings
    from sereno.lookup.where import where_of

    settings, project = deploying.project_of(options)
    if not options.hosts or not options.domain:
        raise SettingsError(
            "A cluster needs its hosts and its name: sereno deploy cluster --hosts node1,node2 --domain scores.bank"
        )
    cluster = Cluster(
        server=_server_of(options, settings, project),
        hosts=options.hosts,
        domain=options.domain,
        executor=settings.executor,
        port=settings.serve.port or 8000,
        body_bytes=settings.serve.max_body_bytes,
        request_seconds=settings.serve.request_timeout_seconds,
        env=deploying.env_of(options),
    )
    folder = deploying.folder_of(options)
    said = warnings(
        cluster,
        executor=settings.executor,
        ray_address=settings.ray.address,
        ledger=settings.ledger,
        lookups_are_shared=where_of(settings) is not None,
    )
    return deploying.wrote(options, cluster.files(), folder, [*said, *next_steps(folder)])


def _server_of(options: argparse.Namespace, settings: Settings, project: Path) -> Server:
    from sereno.deploy.server import Server
    from sereno.deploy.stopping import stop_seconds

    return Server(
        project=project,
        home=settings.home,
        name=options.name or project.name.lower(),
        user=options.user or "sereno",
        memory=options.memory or "80%",
        stop_seconds=stop_seconds(settings),
        storage=settings.storage if isinstance(settings.storage, Path) else None,
    )


def _timed(options: argparse.Namespace, settings: Settings) -> list[Timed]:
    """The models that have runs. Raises ModelFileError where a model file cannot be read, SettingsError where there is none."""
    from sereno.deploy.calendar import Timed

    timed = [
        Timed(name=one.name, schedule=one.schedule, time_zone=one.time_zone)
        for one in deploying.declared_in(options, settings)
        if one.has_input and one.scheduled
    ]
    if not timed:
        raise SettingsError(
            f"No model of sereno.toml has runs: none of {len(deploying.files_in(settings))} has both a file there and a source "
            "or `read`. Leave out --timers to serve alone."
        )
    return timed
