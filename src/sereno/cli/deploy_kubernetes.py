"""`sereno deploy kubernetes`: its options, and what it reads of the settings."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sereno.cli import deploying
from sereno.cli.commands import Commands
from sereno.exceptions import SettingsError

if TYPE_CHECKING:
    from sereno.deploy.kubernetes import Kubernetes, Nightly
    from sereno.operate.declared import Declared
    from sereno.settings import Settings


def add(environments: Commands) -> None:
    one = environments.command(
        "kubernetes", _kubernetes, "manifests of the online API and of a CronJob for each model that has runs"
    )
    deploying.add_options(one, folder="deploy")
    one.add_argument("--image", metavar="IMAGE", help="the image, as it was pushed")
    one.add_argument("--cpu", metavar="N", help="what each pod asks for (1)")
    one.add_argument("--memory", metavar="SIZE", help="what each pod asks for, and may take (2Gi)")
    one.add_argument("--scratch", metavar="SIZE", help="what a pod may keep on its node (10Gi)")
    one.add_argument("--replicas", type=_range, metavar="N-M", help="how many pods answer (2-10)")
    one.add_argument("--domain", metavar="NAME", help="under which callers know the API")
    one.add_argument("--callers", type=deploying.names, metavar="A,B,…", help="namespaces that may ask the API")
    one.add_argument("--egress", type=_ports, metavar="P,Q,…", help="the only ports that pods reach")
    one.add_argument("--scheduler", action="store_true", help="`sereno up` starts the runs, and no CronJobs")


def _kubernetes(options: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    from sereno.deploy.kubernetes import leftovers, next_steps, warnings

    settings, project = deploying.project_of(options)
    models = _declared(options, settings)
    kubernetes = _of(options, settings, project, models)
    folder = deploying.folder_of(options)
    said = warnings(
        kubernetes,
        has_storage=deploying.is_in_bucket(settings),
        executor=settings.executor,
        has_ledger=_is_in_image(settings, "ledger"),
        knows_keys=settings.serve.keys_file is not None or _is_in_image(settings, "serve.no_auth"),
        now=datetime.now(UTC),
    )
    texts = kubernetes.files()
    told = [*said, *_unlocked(settings, project, models), *deploying.left_here(settings, models)]
    told += [*leftovers(texts, folder), *next_steps(kubernetes, folder)]
    return deploying.wrote(options, texts, folder, told)


def _of(options: argparse.Namespace, settings: Settings, project: Path, models: list[Declared]) -> Kubernetes:
    from sereno.deploy.kubernetes import Kubernetes

    if not options.image:
        raise SettingsError(
            "Kubernetes needs the name of the image, as it was pushed: sereno deploy kubernetes --image registry.bank/scores:1.0"
        )
    if settings.serve.unix is not None:
        raise SettingsError(
            f"'serve.unix' is {settings.serve.unix}, but callers of a pod come to a port. Set it in an environment of its own, "
            "and choose another one with --env."
        )
    given = {name: getattr(options, name) for name in ("cpu", "memory", "scratch", "replicas", "callers", "egress")}
    return Kubernetes(
        name=options.name or re.sub(r"[^a-z0-9-]+", "-", project.name.lower()).strip("-"),
        image=options.image,
        models=tuple(_nightly(models)),
        env=deploying.env_of(options),
        storage=str(settings.storage)
        if deploying.is_in_bucket(settings) and not _is_in_image(settings, "storage")
        else None,
        domains=(*settings.serve.allowed_hosts, *([options.domain] if options.domain else [])),
        port=settings.serve.port or 8000,
        speaks_tls=settings.serve.tls_certificate is not None,
        drain_seconds=settings.serve.drain_seconds,
        predict_seconds=max((model.predict_timeout_seconds for model in settings.models.values()), default=30.0),
        has_scheduler=options.scheduler,
        run_stop_seconds=settings.up.stop_seconds,
        max_runs=settings.up.max_runs,
        run_cores=settings.up.run_cores,
        run_memory_bytes=settings.up.run_memory_bytes,
        server_files=deploying.server_files(settings),
        **{name: value for name, value in given.items() if value is not None},
    )


def _unlocked(settings: Settings, project: Path, models: list[Declared]) -> Iterator[str]:
    """Of a file of requirements beside sereno.toml, as the image was built from: what it lacks that pods want."""
    from sereno.deploy.locked import extras_for, lacking_extras, locked_in

    file = project / "requirements.txt"
    if not file.is_file() or (locked := locked_in(file.read_text("utf-8"))).unlocked:
        return  # another one, which says what is wanted and not what is there
    artifacts = (text for model in models for text in model.artifacts.values())
    extras = sorted({*extras_for(settings, artifacts), "postgresql"})  # which is the ledger's
    if lacking := lacking_extras(locked, extras):
        yield (
            f"WARNING: {file} has nothing of sereno[{','.join(lacking)}], without which commands in pods end with exit code 2. Lock "
            f"sereno[{','.join(extras)}], and build the image anew."
        )


def _is_in_image(settings: Settings, name: str) -> bool:
    """Whether sereno.toml says it, and not only where the command was typed."""
    origin = settings.origins.get(name)
    return origin is not None and not origin.startswith(("the variable ", "the command line"))


def _declared(options: argparse.Namespace, settings: Settings) -> list[Declared]:
    """Of one model at least. Raises ModelFileError where a model file cannot be read, SettingsError."""
    if not deploying.files_in(settings):
        raise SettingsError(
            'No model of sereno.toml has a file: there is nothing to serve and to run. Add [models.NAME] with file = "NAME.py".'
        )
    return deploying.declared_in(options, settings)


def _nightly(models: list[Declared]) -> list[Nightly]:
    """Those that have runs, if any."""
    from sereno.deploy.kubernetes import Nightly

    return [
        Nightly(
            name=one.name,
            schedule=one.schedule,
            time_zone=one.time_zone,
            disposition=one.disposition,
            deadline_seconds=one.deadline_seconds,
            run_seconds=one.run_seconds,
            cores=one.run_cores,
            memory_bytes=one.run_memory_bytes,
        )
        for one in models
        if one.has_input and one.scheduled
    ]


def _ports(text: str) -> tuple[int, ...]:
    found = deploying.names(text)
    if not found or not all(port.isdecimal() for port in found):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of ports: 443,5432")
    return tuple(map(int, found))


def _range(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no range: 2-10, or 3")
    least = int(match[1])
    return least, int(match[2] or least)
