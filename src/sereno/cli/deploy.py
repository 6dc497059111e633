"""Commands of the machine: deploy, prune."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from sereno.cli import deploy_docker, deploy_kubernetes, deploy_server
from sereno.cli.commands import DONE, Commands
from sereno.cli.named import home_of, settings_of
from sereno.cli.printing import output


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
    environments = commands.group(
        "deploy",
        "write what an environment needs beside the project",
        "Files are written, not installed: what to do with them is said.",
        word="ENVIRONMENT",
    )
    for module in (deploy_server, deploy_docker, deploy_kubernetes):
        module.add(environments)


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
