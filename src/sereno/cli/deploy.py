"""Commands of the machine: deploy, prune."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sereno.cli import deploy_docker, deploy_kubernetes
from sereno.cli.commands import DONE, Commands
from sereno.cli.named import home_of, overrides_of, settings_of
from sereno.cli.printing import output
from sereno.exceptions import ModelFileError, SettingsError

if TYPE_CHECKING:
    from sereno.config import Settings
    from sereno.deploy.calendar import Timed
    from sereno.deploy.server import Server

ENVIRONMENTS = ("server", "cluster", "docker", "kubernetes")


def add(commands: Commands) -> None:
    one = commands.command(
        "prune",
        _prune,
        "remove what retention does not keep",
        "Old snapshots, reports of runs and what the ledger knows of them: see keep_snapshots, keep_hours, keep_run_days.",
    )
    if not commands.own:
        one.add_argument("model", metavar="MODEL", nargs="?", help="the model's name; all of them, if not given")
    one.add_argument("--dry-run", action="store_true", help="say what would go, and leave it")
    if commands.own:
        return
    one = commands.command(
        "deploy",
        _deploy,
        "write what an environment needs beside the project",
        "server: systemd units that run `sereno up`. cluster: units for each of several hosts, the balancer's nginx.conf, and a "
        "README. docker: a Dockerfile, and what its image is made of. kubernetes: manifests of the API and of a CronJob for each "
        "model. They are written, not installed: what to do with them is said.",
    )
    one.add_argument("environment", metavar="ENVIRONMENT", choices=ENVIRONMENTS, help=", ".join(ENVIRONMENTS))
    one.add_argument("--to", type=Path, metavar="DIR", help="where to write them (deploy; for docker the project)")
    one.add_argument("--name", metavar="NAME", help="of what is written; the project's folder if not given")
    one.add_argument("--user", metavar="USER", help="who the services run as (sereno)")
    one.add_argument("--memory", metavar="SIZE", help="how much memory each service or pod may take (80%%, 2Gi)")
    one.add_argument("--timers", action="store_true", help="systemd's own timers start the runs, and `serve` answers")
    one.add_argument("--hosts", type=_names, metavar="A,B,…", help="of the cluster: names or addresses, the head first")
    one.add_argument("--domain", metavar="NAME", help="under which callers know the API")
    deploy_docker.add_options(one)
    deploy_kubernetes.add_options(one)


def _deploy(options: argparse.Namespace) -> int:
    from sereno.config import find_home
    from sereno.deploy.server import Server, next_steps
    from sereno.deploy.writing import write
    from sereno.settings import FILE_NAME

    settings = settings_of(options, Path.cwd())
    project = find_home(Path.cwd())
    if not (project / FILE_NAME).is_file():
        raise SettingsError(
            f"There is no {FILE_NAME} in {project} or above, which names the models of the project. Write one; see docs/settings.md."
        )
    if options.environment == "docker":
        return deploy_docker.deploy(options, settings, project)
    options.to = options.to or Path("deploy")
    if of_docker := deploy_docker.given_here(options):
        raise SettingsError(f"--{of_docker[0]} is of docker: sereno deploy docker --{of_docker[0]} …")
    if options.environment == "kubernetes":
        return deploy_kubernetes.deploy(options, settings, project)
    if given := deploy_kubernetes.given_here(options):
        raise SettingsError(f"--{given[0]} is of Kubernetes: sereno deploy kubernetes --{given[0]} …")
    server = Server(
        project=project,
        home=settings.home,
        name=options.name or project.name.lower(),
        user=options.user or "sereno",
        memory=options.memory or "80%",
        stop_seconds=max(settings.serve.drain_seconds, settings.up.stop_seconds) + 30,
    )
    folder = options.to.absolute()
    if options.environment == "cluster":
        units, steps = _cluster(options, settings, server, folder)
    else:
        for name in ("hosts", "domain"):
            if getattr(options, name):
                raise SettingsError(f"--{name} is of a cluster: sereno deploy cluster --{name} …")
        units = server.units_with_timers(_timed(options, settings)) if options.timers else server.units()
        steps = list(next_steps(server, folder, units))
    written = write(units, folder)
    output(options, {"written": [str(path) for path in written]}, [*(f"Wrote {path}" for path in written), *steps])
    return DONE


def _cluster(
    options: argparse.Namespace, settings: Settings, server: Server, folder: Path
) -> tuple[dict[str, str], list[str]]:
    """The files, and what is said of them. Raises SettingsError."""
    from sereno.deploy.cluster import Cluster, next_steps, warnings

    if options.timers:
        raise SettingsError(
            "--timers is of one server: on a cluster `sereno up` schedules, with another host that stands by."
        )
    if not options.hosts or not options.domain:
        raise SettingsError(
            "A cluster needs its hosts and its name: sereno deploy cluster --hosts node1,node2 --domain scores.bank"
        )
    cluster = Cluster(
        server=server,
        hosts=options.hosts,
        domain=options.domain,
        executor=settings.executor,
        port=settings.serve.port or 8000,
        body_bytes=settings.serve.max_body_bytes,
        request_seconds=settings.serve.request_timeout_seconds,
        env=options.env or os.environ.get("SERENO_ENV"),
    )
    said = warnings(
        cluster,
        executor=settings.executor,
        ray_address=settings.ray.address,
        ledger=settings.ledger,
        lookup_store=settings.lookup_store,
    )
    return cluster.files(), [*said, *next_steps(folder)]


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _prune(options: argparse.Namespace) -> int:
    from sereno.operate.prune import models_of, prune
    from sereno.show import table_lines

    own = options.model_itself
    settings = settings_of(options, own.file if own is not None else Path.cwd())
    name = own.name if own is not None else options.model
    if name is not None:
        home_of(options)  # there is a model of that name
    found = prune(settings, [name] if name is not None else models_of(settings.root), dry_run=options.dry_run)
    size = sum(one.size for one in found)
    says = "Nothing is to go." if not found else f"{'Would free' if options.dry_run else 'Freed'} {size / 1e6:,.1f} MB."
    rows = [("model", "what", "how many", "MB")]
    rows += [(one.model or "all", one.what, f"{one.count:,}", f"{one.size / 1e6:,.1f}") for one in found]
    data = {"dry_run": options.dry_run, "bytes": size, "pruned": [asdict(one) for one in found]}
    output(options, data, [*(table_lines(rows) if found else ()), says])
    return DONE


def _timed(options: argparse.Namespace, settings: Settings) -> list[Timed]:
    """The models that have runs. Raises ModelFileError where a model file cannot be read, SettingsError where there is none."""
    from sereno.deploy.calendar import Timed
    from sereno.operate.declared import declared

    files = [model.file for model in settings.models.values() if model.file is not None]
    found = declared(files, home=options.home, env=options.env, overrides=overrides_of(options))
    if found.failed:
        raise ModelFileError(found.failed[0].says)
    timed = [
        Timed(name=one.name, schedule=one.schedule, time_zone=one.time_zone)
        for one in found.models
        if one.has_input and one.scheduled
    ]
    if not timed:
        raise SettingsError(
            f"No model of sereno.toml has runs: none of {len(files)} has both a file there and a source or `read`. "
            "Leave out --timers to serve alone."
        )
    return timed
