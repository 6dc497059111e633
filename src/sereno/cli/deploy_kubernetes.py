"""`sereno deploy kubernetes`: its options, and what it reads of the settings."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sereno.cli.commands import DONE
from sereno.cli.named import overrides_of
from sereno.cli.printing import output
from sereno.exceptions import ModelFileError, SettingsError

if TYPE_CHECKING:
    from sereno.config import Settings
    from sereno.deploy.kubernetes import Kubernetes, Nightly

OPTIONS = ("image", "cpu", "scratch", "replicas", "callers", "egress", "scheduler")  # that no other environment has
OF_OTHERS = ("user", "timers", "hosts")


def add_options(one: Any) -> None:
    one.add_argument("--image", metavar="IMAGE", help="of Kubernetes: the image, as it was pushed")
    one.add_argument("--cpu", metavar="N", help="of Kubernetes: what each pod asks for (1)")
    one.add_argument("--scratch", metavar="SIZE", help="of Kubernetes: what a pod may keep on its node (10Gi)")
    one.add_argument("--replicas", type=_range, metavar="N-M", help="of Kubernetes: how many pods answer (2-10)")
    one.add_argument("--callers", type=_names, metavar="A,B,…", help="of Kubernetes: namespaces that may ask the API")
    one.add_argument("--egress", type=_ports, metavar="P,Q,…", help="of Kubernetes: the only ports that pods reach")
    one.add_argument(
        "--scheduler",
        action="store_const",
        const=True,
        help="of Kubernetes: `sereno up` starts the runs, and no CronJobs",
    )


def deploy(options: argparse.Namespace, settings: Settings, project: Path) -> int:
    """Write the manifests. Raises SettingsError, ModelFileError, StorageError."""
    from datetime import UTC, datetime

    from sereno.deploy.kubernetes import next_steps, warnings
    from sereno.deploy.writing import write

    for name in OF_OTHERS:
        if getattr(options, name):
            raise SettingsError(f"--{name} is not of Kubernetes, whose manifests say it otherwise. Leave it out.")
    kubernetes = _kubernetes(options, settings, project)
    folder = options.to.absolute()
    written = write(kubernetes.files(), folder)
    said = warnings(
        kubernetes,
        has_storage=_is_object_store(settings),
        executor=settings.executor,
        has_ledger=_is_in_image(settings, "ledger"),
        knows_keys=any(_is_in_image(settings, f"serve.{name}") for name in ("no_auth", "keys_file")),
        now=datetime.now(UTC),
    )
    steps = [*said, *next_steps(kubernetes, folder)]
    output(options, {"written": [str(path) for path in written]}, [*(f"Wrote {path}" for path in written), *steps])
    return DONE


def _kubernetes(options: argparse.Namespace, settings: Settings, project: Path) -> Kubernetes:
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
        models=tuple(_nightly(options, settings)),
        env=options.env or os.environ.get("SERENO_ENV"),
        storage=str(settings.storage) if _is_object_store(settings) and not _is_in_image(settings, "storage") else None,
        domains=(*settings.serve.allowed_hosts, *([options.domain] if options.domain else [])),
        port=settings.serve.port or 8000,
        speaks_tls=settings.serve.tls_certificate is not None,
        drain_seconds=settings.serve.drain_seconds,
        predict_seconds=max((model.predict_timeout_seconds for model in settings.models.values()), default=30.0),
        has_scheduler=bool(options.scheduler),
        run_stop_seconds=settings.up.stop_seconds,
        **{name: value for name, value in given.items() if value is not None},
    )


def _is_object_store(settings: Settings) -> bool:
    return settings.storage is not None and not isinstance(settings.storage, Path)


def _is_in_image(settings: Settings, name: str) -> bool:
    """Whether sereno.toml says it, and not only where the command was typed."""
    origin = settings.origins.get(name)
    return origin is not None and not origin.startswith(("the variable ", "the command line"))


def _nightly(options: argparse.Namespace, settings: Settings) -> list[Nightly]:
    """The models that have runs, if any. Raises ModelFileError where a model file cannot be read."""
    from sereno.deploy.kubernetes import Nightly
    from sereno.operate.declared import declared

    files = [model.file for model in settings.models.values() if model.file is not None]
    if not files:
        raise SettingsError(
            'No model of sereno.toml has a file: there is nothing to serve and to run. Add [models.NAME] with file = "NAME.py".'
        )
    found = declared(files, home=options.home, env=options.env, overrides=overrides_of(options))
    if found.failed:
        raise ModelFileError(found.failed[0].says)
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
        for one in found.models
        if one.has_input and one.scheduled
    ]


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _ports(text: str) -> tuple[int, ...]:
    names = _names(text)
    if not names or not all(name.isdecimal() for name in names):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of ports: 443,5432")
    return tuple(map(int, names))


def _range(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no range: 2-10, or 3")
    least = int(match[1])
    return least, int(match[2] or least)


def given_here(options: argparse.Namespace) -> Sequence[str]:
    """The options that are given and are of Kubernetes alone."""
    return [name for name in OPTIONS if getattr(options, name) is not None]
