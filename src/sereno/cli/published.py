"""Commands of what is published: versions, rollback, get."""

from __future__ import annotations

import argparse

from sereno.cli.commands import DONE, Commands, positive
from sereno.cli.named import home_of, who
from sereno.cli.printing import output


def add(commands: Commands) -> None:
    one = commands.command("versions", _versions, "what was published, what is in service, what was withdrawn")
    commands.takes_model(one, optional=True)
    one = commands.command(
        "rollback",
        _rollback,
        "put an older version back in service: table, lookups and exports",
        "What was rolled back is withdrawn: no run publishes it again, unless you say --force or roll back --to it.",
    )
    commands.takes_model(one)
    one.add_argument("--to", type=positive, metavar="V", help="the version; the one before if not given")
    one.add_argument("--date", metavar="D", help="with disposition = partition: the data date; the newest if not given")
    one.add_argument("--why", default="", metavar="TEXT", help="kept in the table's history")
    one = commands.command("get", _get, "the published prediction of one key")
    commands.takes_model(one)
    one.add_argument("key", nargs="+", metavar="KEY", help="the key's values, in declared order")
    one.add_argument("--version", type=positive, dest="number", metavar="V", help="of an older version")


def _versions(options: argparse.Namespace) -> int:
    from sereno.show import versions_lines

    state = home_of(options).store.state()
    served = {s.number for s in state.served}
    data = [
        {
            "version": s.number,
            "data_date": s.data_date.isoformat(),
            "data_time": s.data_time.isoformat(),
            "published_at": s.published_at.isoformat(),
            "run": s.attempt,
            "rows": s.rows,
            "rejects": s.rejects,
            "model_fingerprint": s.fingerprint,
            "in_service": s.number in served,
            "withdrawn": s.number in state.withdrawn,
            "why_withdrawn": state.why_withdrawn.get(s.number),
        }
        for s in state.snapshots.values()
    ]
    output(options, data, versions_lines(state))
    return DONE


def _rollback(options: argparse.Namespace) -> int:
    from sereno.home import rollback

    home = home_of(options)
    before, served = rollback(home, to=options.to, day=options.date, why=options.why, who=who())
    if served:
        place = f", in place of {before.number}" if before else ""
        says = f"Version {served.number} (data date {served.data_date}) of {home.name} is in service again{place}."
    else:
        assert before is not None
        says = f"Data date {before.data_date} of {home.name} is empty now: version {before.number} was its first."
    data = {
        "rolled_back": before.number if before else None,
        "in_service": served.number if served else None,
        "data_date": str((served or before).data_date),  # type: ignore[union-attr]
    }
    output(options, data, [says])
    return DONE


def _get(options: argparse.Namespace) -> int:
    from sereno.home import get

    found = get(home_of(options), options.key, version=options.number)
    output(options, found, [f"{name}: {value}" for name, value in found.items()])
    return DONE
