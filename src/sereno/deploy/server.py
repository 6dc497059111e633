"""`sereno deploy server`: systemd units of a project on a dedicated server."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sereno.deploy.calendar import Timed, on_calendar
from sereno.deploy.writing import filled
from sereno.exceptions import SettingsError

USER = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
MEMORY = re.compile(r"[1-9]\d*(?:[KMGT]|%)?")
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
LEAST_BYTES = 64 << 20  # with less nothing starts: somebody forgot the unit


@dataclass(frozen=True, kw_only=True)
class Server:
    """What the units of a project say."""

    project: Path  # the folder of sereno.toml
    home: Path
    name: str  # of the units
    user: str
    memory: str = "80%"  # MemoryMax of each service
    stop_seconds: int = 60  # what a service is given to end
    storage: Path | None = None  # the folder of what must last, if it is not the home
    python: Path = Path(sys.executable)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", self.name):
            raise SettingsError(
                f"{self.name!r} cannot be the name of a unit: use small letters, digits, - and _. Say another one with --name."
            )
        if not USER.fullmatch(self.user):
            raise SettingsError(
                f"{self.user!r} is no name of a user. Use small letters, digits, - and _: --user sereno."
            )
        if self.user == "root":
            raise SettingsError("The service is not to run as root: model files are code. Say another one with --user.")
        if not MEMORY.fullmatch(self.memory):
            raise SettingsError(f"{self.memory!r} is no amount of memory for systemd. Write 8G, 6000M or 80%.")
        digits, unit = self.memory.rstrip("KMGT%"), self.memory[-1]
        if (int(digits) > 100) if unit == "%" else int(digits) * UNITS.get(unit, 1) < LEAST_BYTES:
            raise SettingsError(
                f"--memory {self.memory!r} cannot be meant: 64M is the least, and 100% the most. Write 8G, 6000M or 80%."
            )

    def units(self) -> dict[str, str]:
        """Name of the file → its text: one service that does everything."""
        return {f"{self.name}.service": self.unit("server/up.service", f"{self.name}.service")}

    def units_with_timers(self, models: Iterable[Timed]) -> dict[str, str]:
        """The same for who would rather have systemd's schedule: the API, and a service and a timer for each model."""
        api = f"{self.name}-api.service"
        units = {api: self.unit("server/api.service", api)}
        for model in models:
            run, timer = (f"{self.name}-run-{model.name}.{kind}" for kind in ("service", "timer"))
            units[run] = self.unit("server/run.service", run, model=model.name)
            lines = (f"OnCalendar={line}" for line in on_calendar(model.schedule, model.time_zone))
            units[timer] = filled(
                "server/run.timer",
                unit=timer,
                model=model.name,
                schedule=model.schedule,
                time_zone=model.time_zone,
                calendar="\n".join(lines),
            )
        return units

    def unit(self, template: str, unit: str, *, written: Sequence[str] = (), **more: str) -> str:
        """A unit from its template. `written`: what the service may write, too. Raises SettingsError."""
        writes = " ".join([*(quoted(folder) for folder in self.written), *written])
        hardening = filled("server/hardening.conf", unit=unit, writes=writes, protect_home=self._protect_home)
        return filled(
            template,
            unit=unit,
            name=self.name,
            user=self.user,
            project=escaped(self.project),
            project_quoted=escaped(self.project),  # the one setting that takes the rest of its line as it stands
            python=quoted(self.python).replace("$", "$$"),  # a command line, in which $ begins a variable
            stop_seconds=str(self.stop_seconds),
            memory=self.memory,
            hardening=hardening,
            **more,
        )

    @property
    def written(self) -> list[Path]:
        """What the services may write: not the model files, which are code."""
        lasting = [(self.storage or self.home) / name for name in ("predictions", "exports", "answers", ".sereno")]
        return [*dict.fromkeys([*lasting, self.home / ".sereno"])]

    @property
    def places(self) -> list[Path]:
        """Where all of it lies that is the project's."""
        return [*dict.fromkeys((self.project, self.home, self.storage or self.home))]

    @property
    def _protect_home(self) -> str:
        """Nobody's home can be seen, unless what is needed lies there."""
        places = (*self.places, self.python, Path(sys.base_prefix))
        at_home = any(place.is_relative_to(root) for place in places for root in ("/home", "/root", "/run/user"))
        return "read-only" if at_home else "yes"


def next_steps(server: Server, folder: Path, units: Iterable[str], env: str | None = None) -> Iterator[str]:
    """What an operator does with them."""
    places = {server.python, Path(sys.base_prefix)}
    if hidden := next((place for place in places if place.is_relative_to("/root")), None):
        yield f"WARNING: Python lies in {hidden}, which {server.user} may not read. Make the environment with another one."
    started = [name for name in units if not re.search(r"-run-.*\.service$", name)]
    home, user = shlex.quote(str(server.home)), server.user
    there = " ".join(shlex.quote(str(one)) for one in server.written)
    yield "Read them, then as root:"
    yield f"  id {user} || useradd --system --home-dir {home} --shell /usr/sbin/nologin {user}"
    yield f"  mkdir -p {there} && chown -R {user}: {there}"
    variables = f"/etc/sereno/{server.name}.env"
    made = (
        f"touch {variables}   # secrets, SERENO_ENV"
        if env is None
        else f"echo SERENO_ENV={shlex.quote(env)} >> {variables}   # secrets, too"
    )
    yield f"  install -d -m 700 /etc/sereno && {made}"
    yield f"  install -m 644 {' '.join(shlex.quote(str(folder / name)) for name in units)} /etc/systemd/system/"
    yield "  systemctl daemon-reload"
    yield f"  systemctl enable --now {' '.join(started)}"
    yield f"  journalctl -u '{server.name}*' -f"


def escaped(path: Path) -> str:
    """As a unit file takes it: a percent sign is the beginning of a specifier. Raises SettingsError."""
    text = os.fspath(path)
    if any(ord(letter) < 32 for letter in text):
        raise SettingsError(f"The path {text!r} has a control character, which no unit can hold. Rename the folder.")
    return text.replace("%", "%%")


def quoted(path: Path) -> str:
    """The same as one word of several. Raises SettingsError."""
    text = escaped(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"' if re.search(r"[\s\"'\\;]", text) else text
