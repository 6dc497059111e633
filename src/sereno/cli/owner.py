"""Whose home it is: what root writes in the home of a service's user, that user could not write any more."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from sereno.cli.named import file_of, settings_of
from sereno.exceptions import SerenoError, SettingsError

WRITING = frozenset(
    {"run", "up", "release", "discard", "rollback", "backfill", "pause", "resume", "repair", "prune", "notify"}
)


def refuse_root(options: argparse.Namespace) -> None:
    """Raises SettingsError for a command that writes, typed by root where the home is another user's."""
    if os.geteuid() != 0 or options.named not in WRITING:
        return
    try:
        home = settings_of(options, _start(options)).home
        there = os.stat(home / ".sereno")
    except (SerenoError, OSError):  # the command itself tells what is wrong; or there is nothing yet
        return
    if there.st_uid == 0:
        return
    name, become = _become(there.st_uid, there.st_gid)
    own = options.model_itself
    typed = shlex.join([*(["sereno"] if own is None else ["python", str(own.file)]), *options.given])
    raise SettingsError(
        f"{home / '.sereno'} belongs to {name}, who could not write what root would leave there. Type instead: "
        f"{become} -- {typed}"
    )


def _start(options: argparse.Namespace) -> Path:
    if options.model_itself is not None:
        return Path(options.model_itself.file)
    return file_of(options) if getattr(options, "file", None) is not None else Path.cwd()


def _become(uid: int, gid: int) -> tuple[str, str]:
    """The user's name, and what a command begins with to be that user's."""
    import pwd

    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:  # of a container, say
        return f"uid {uid}", f"setpriv --reuid {uid} --regid {gid} --clear-groups"
    return f"user {name}", f"runuser -u {name}"
