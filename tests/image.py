"""An image as a builder makes it from a Dockerfile, without one: its commands run in namespaces over the files of a base.

The base is this machine (its files under an overlay that is thrown away), or a folder that debootstrap has filled. What is
read of a Dockerfile is what `sereno deploy docker` writes. A container of the image is process 1 of namespaces of its own,
on a root that nobody can write, as a user without any rights. Needs root, and a kernel that lets root have all that.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOLDER = 'mount --make-rprivate / && mount -t tmpfs -o mode=755 tmpfs "$0" && echo mounted && exec cat'
OVERLAY = """
mkdir -p "$1"/upper "$1"/work "$1"/root
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$1/root"
"""
# This machine as a base: Python for everybody, and the packages of the tests beside it, without Sereno.
MACHINE = """
mkdir -p "$1"/root/base "$1"/site/upper "$1"/site/work
for folder in $SHOWN; do mkdir -p "$1/root$folder"; mount --bind "$folder" "$1/root$folder"; done
for folder in $OPEN; do [ "$folder" = / ] || chmod o+x "$1/root$folder"; done
mount -t overlay overlay -o "lowerdir=$SITE,upperdir=$1/site/upper,workdir=$1/site/work" "$1/root/base"
rm -rf "$1"/root/base/sereno-*.dist-info "$1"/root/base/_editable_impl_sereno.pth
"""
DEVICES = """
set -e
R=$1; shift
mount --rbind "$R" "$R"
mount -t tmpfs -o mode=755 tmpfs "$R/dev"
mkdir "$R/dev/shm"
for device in null zero full random urandom tty; do touch "$R/dev/$device"; mount --bind "/dev/$device" "$R/dev/$device"; done
mount -t tmpfs -o mode=1777 tmpfs "$R/dev/shm"
ln -s /proc/self/fd "$R/dev/fd"
mount -t proc proc "$R/proc"
"""
BUILDS = DEVICES + 'exec chroot "$R" env --chdir="$WORKDIR" -- "$@"'
# As `docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges` has it.
CONTAINS = (
    DEVICES
    + """
[ -z "$TMP" ] || mount -t tmpfs -o mode=1777,noexec,nosuid,nodev tmpfs "$R/tmp"
for pair in $VOLUMES; do mkdir -p "$R${pair#*:}"; mount --bind "${pair%:*}" "$R${pair#*:}"; done
mount -o remount,bind,ro "$R"
exec chroot "$R" env --chdir="$WORKDIR" --unset=WORKDIR --unset=VOLUMES --unset=TMP --unset=USER -- \
    setpriv --reuid "${USER%:*}" --regid "${USER#*:}" --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""
)


@dataclass(frozen=True, kw_only=True)
class Base:
    """What FROM names."""

    folder: Path = Path("/")
    environment: Mapping[str, str] = field(
        default_factory=lambda: {"PATH": "/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin"}
    )


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of a Dockerfile, built."""

    place: Path
    environment: Mapping[str, str]
    workdir: str = "/"
    user: str = "0:0"
    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    health: Sequence[str] = ()
    stop_signal: str = ""


@dataclass(frozen=True)
class Container:
    """One that runs. `pid` is that of its process 1, as it is called outside."""

    process: subprocess.Popen[str]
    stage: Stage
    environment: Mapping[str, str]

    @property
    def pid(self) -> int:
        """Raises AssertionError where it has not come so far."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            (tree,) = Path(f"/proc/{self.process.pid}/task").glob("*/children")
            with contextlib.suppress(OSError):
                for child in tree.read_text().split():
                    if b"sereno" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                        return int(child)
            time.sleep(0.02)
        raise AssertionError("the container has not started")

    def stop(self, number: int) -> None:
        os.kill(self.pid, number)

    def health(self) -> subprocess.CompletedProcess[str]:
        """What the HEALTHCHECK says, asked as the image's user, within."""
        uid, gid = self.stage.user.split(":")
        within = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--root"]
        rights = ["setpriv", "--reuid", uid, "--regid", gid, "--clear-groups", "--no-new-privs", "--bounding-set=-all"]
        return subprocess.run(
            [*within, "env", f"--chdir={self.stage.workdir}", *rights, *self.stage.health],
            env={**self.environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


class Builder:
    """Builds, and starts what it has built. See `builder`."""

    def __init__(self, place: Path, holder: int) -> None:
        self.place = place
        self.secrets: dict[str, Path] = {}  # by id
        self._holder = holder
        self._count = 0

    def build(self, context: Path, base: Base, dockerfile: Path | None = None) -> Stage:
        """The last stage of a Dockerfile. Raises AssertionError, with what was printed, where a command of it fails."""
        text = (dockerfile or context / "Dockerfile").read_text()
        arguments: dict[str, str] = {}
        stages: dict[str, Stage] = {}
        stage = None
        for name, rest in instructions(text):
            if name == "ARG":
                arguments |= [rest.split("=", 1)]
            elif name == "FROM":
                image, _, alias = filled(rest, arguments).partition(" AS ")
                assert image.startswith("python:"), image
                stage = self._begun(base)
                stages[alias] = stage
                continue
            if stage is not None:
                stage = self._step(stage, name, rest, stages, context)
                stages = {alias: stage if one.place == stage.place else one for alias, one in stages.items()}
        assert stage is not None
        return stage

    def _begun(self, base: Base) -> Stage:
        self._count += 1
        stage = Stage(place=self.place / str(self._count), environment={**base.environment})
        places = [sys.base_prefix, str(ROOT / ".tools")]
        environment = {
            "SHOWN": " ".join(places),
            "OPEN": " ".join({str(folder) for place in places for folder in Path(place).parents}),
            "SITE": str(next((ROOT / ".venv").glob("lib/python*/site-packages"))),
        }
        script = "set -e" + OVERLAY + (MACHINE if base.folder == Path("/") else "")
        self._run(["sh", "-c", script, "sh", str(stage.place), str(base.folder)], environment)
        return stage

    def _step(self, stage: Stage, name: str, rest: str, stages: Mapping[str, Stage], context: Path) -> Stage:
        if name == "ENV":
            pairs = dict(word.split("=", 1) for word in shlex.split(rest))
            found = {key: filled(text, stage.environment) for key, text in pairs.items()}
            return replace(stage, environment={**stage.environment, **found})
        if name == "WORKDIR":
            self._run(["mkdir", "-p", f"{stage.place}/root{rest}"])
            return replace(stage, workdir=rest)
        if name == "USER":
            return replace(stage, user=rest)
        if name == "STOPSIGNAL":
            return replace(stage, stop_signal=rest)
        if name == "ENTRYPOINT":
            return replace(stage, entrypoint=json.loads(rest))
        if name == "CMD":
            return replace(stage, command=json.loads(rest))
        if name == "HEALTHCHECK":
            return replace(stage, health=json.loads(rest.partition("CMD ")[2]))
        if name == "COPY":
            self._copy(stage, rest, stages, context)
        elif name == "RUN":
            self._do(stage, rest)
        else:
            assert name in ("ARG", "LABEL", "EXPOSE"), name
        return stage

    def _copy(self, stage: Stage, rest: str, stages: Mapping[str, Stage], context: Path) -> None:
        *sources, target = rest.split()
        there = f"{stage.place}/root{os.path.join(stage.workdir, target)}"
        if sources[0].startswith("--from="):
            other = stages[sources[0].removeprefix("--from=")]
            self._run(["cp", "-a", "-T", f"{other.place}/root{sources[1]}", there])
            return
        (source,) = sources
        files = [file for file in let_in(context) if source == "." or Path(source) in (file, *file.parents)]
        assert files, f"nothing is let in of {source}"
        folder = context / source if (context / source).is_dir() else (context / source).parent
        self._run(["mkdir", "-p", there])
        names = [str((context / file).relative_to(folder)) for file in files]
        self._run(["env", f"--chdir={folder}", "cp", "-a", "--parents", *names, there])

    def _do(self, stage: Stage, rest: str) -> None:
        if mounted := re.match(r"--mount=type=secret,id=(\w+),target=(\S+) +", rest):
            rest = rest[mounted.end() :]
            if mounted[1] in self.secrets:
                target = f"{stage.place}/root{mounted[2]}"
                self._run(["cp", str(self.secrets[mounted[1]]), target])
                self._do(stage, rest)
                self._run(["rm", target])
                return
        command = json.loads(rest) if rest.startswith("[") else ["/bin/sh", "-c", rest]
        uid, gid = stage.user.split(":")
        rights = ["setpriv", "--reuid", uid, "--regid", gid, "--clear-groups"]
        unshared = ["unshare", "--mount", "--pid", "--fork", "sh", "-c", BUILDS, "sh", f"{stage.place}/root"]
        self._run([*unshared, *rights, *command], {**stage.environment, "WORKDIR": stage.workdir})

    def _run(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        done = subprocess.run(
            self._within(command),
            env={"PATH": os.environ["PATH"], **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-3000:]}"

    def _within(self, command: Sequence[str]) -> list[str]:
        return ["nsenter", f"--target={self._holder}", "--mount", "--", *command]

    @contextlib.contextmanager
    def run(
        self,
        stage: Stage,
        *arguments: str,
        volumes: Mapping[Path, str],
        variables: Mapping[str, str] | None = None,
        tmp: bool = True,
    ) -> Iterator[Container]:
        """A container, killed where it has not ended by itself."""
        command = [*stage.entrypoint, *(arguments or stage.command)]
        environment = {**stage.environment, **(variables or {})}
        told = {
            "WORKDIR": stage.workdir,
            "USER": stage.user,
            "TMP": "yes" if tmp else "",
            "VOLUMES": " ".join(f"{outside}:{inside}" for outside, inside in volumes.items()),
        }
        unshared = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
        process = subprocess.Popen(
            self._within([*unshared, "sh", "-c", CONTAINS, "sh", f"{stage.place}/root", *command]),
            env={**environment, **told},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        container = Container(process, stage, environment)
        try:
            yield container
        finally:
            if process.poll() is None:
                with contextlib.suppress(AssertionError, ProcessLookupError):
                    container.stop(signal.SIGKILL)  # it has changed its user, so it does not end with who started it
            process.kill()
            process.communicate()


def missing() -> str:
    """Why nothing can be built here; empty: it can."""
    if os.geteuid() != 0:
        return "only root can have namespaces with files of their own"
    tools = [tool for tool in ("unshare", "nsenter", "setpriv", "chroot") if shutil.which(tool) is None]
    if tools:
        return f"{', '.join(tools)} is not installed"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"namespaces are not permitted: {tried.stderr.strip()}" if tried.returncode else ""


@contextlib.contextmanager
def builder(place: Path) -> Iterator[Builder]:
    """A builder whose stages lie in memory. `place` is a folder of the test's own."""
    place.mkdir(parents=True)
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", HOLDER, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "mounted\n"
        yield Builder(place, holder.pid)
    finally:
        holder.kill()
        holder.communicate()


def machine() -> Base:
    """This machine, whose Python brings what the tests have installed."""
    path = f"{ROOT}/.tools/bin:/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin"
    return Base(environment={"PATH": path, "PYTHONPATH": "/base"})


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Name and rest of each, on one line."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name, rest


def filled(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda found: values[found[1]], text)


def let_in(context: Path, ignored: str | None = None) -> list[Path]:
    """The files that a builder is sent: of all patterns of .dockerignore that fit one or a folder above it, the last counts."""
    text = ignored if ignored is not None else (context / ".dockerignore").read_text()
    rules = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found = []
    for path in sorted(context.rglob("*")):
        file = path.relative_to(context)
        names = [file, *file.parents][:-1]
        out = False
        for rule in rules:
            if any(re.fullmatch(expression(rule.removeprefix("!")), str(one)) for one in names):
                out = not rule.startswith("!")
        if not out and (path.is_symlink() or not path.is_dir()):
            found.append(file)
    return found


def expression(rule: str) -> str:
    """A pattern of .dockerignore (filepath.Match of Go, and **) as a regular expression."""
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        words.get(word) or (word if word.startswith("[") else re.escape(word.removeprefix("\\") or word))
        for word in re.findall(r"\\.|\*\*/|\*\*|\[[^\]]*\]|.", rule.strip("/"))
    )
