"""A real systemd, as process 1 of namespaces of its own, over a copy of this machine's files that is thrown away.

Nothing of it can be seen outside: its root is an overlay whose upper half lies in memory, its /tmp, /run and /dev are its own,
and so are its processes, network and control groups. Needs root, and a kernel that lets root have all that.
"""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SYSTEMD = Path("/lib/systemd/systemd")
GROUPS = [Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")]  # hybrid, unified
BOOT = """
set -e
echo $$ > "$GROUP/cgroup.procs"
exec unshare --mount --pid --uts --ipc --net --cgroup --fork --mount-proc --kill-child bash "$PLACE/inside.sh"
"""
INSIDE = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$PLACE/memory"
mkdir "$PLACE"/memory/{upper,work,root}
R="$PLACE/memory/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$PLACE/memory/upper,workdir=$PLACE/memory/work" "$R"
for pair in $SHOWN; do mkdir -p "$R${pair#*:}"; mount --bind "${pair%:*}" "$R${pair#*:}"; done
for folder in $OPEN; do chmod o+rx "$R$folder"; done
mount -t proc proc "$R/proc"
mount -t tmpfs tmpfs "$R/run"
mount -t tmpfs tmpfs "$R/dev"
mkdir "$R"/dev/{pts,shm}
for device in null zero full random urandom tty; do touch "$R/dev/$device"; mount --bind "/dev/$device" "$R/dev/$device"; done
ln -s /proc/self/fd "$R/dev/fd"
mount -t devpts devpts "$R/dev/pts" -o newinstance,ptmxmode=0666
ln -s pts/ptmx "$R/dev/ptmx"
mount --rbind /sys "$R/sys"
mount -t tmpfs tmpfs "$R/sys/fs/cgroup"
mount -t cgroup2 cgroup2 "$R/sys/fs/cgroup"
rm -rf "$R"/etc/systemd/system/* "$R"/etc/tmpfiles.d "$R"/usr/lib/tmpfiles.d
cp "$PLACE"/units/* "$R/etc/systemd/system/"
mkdir "$R/.outside"
cd "$R"
pivot_root . .outside
umount --lazy /.outside
cd /
exec env -i container=sereno-test PATH="$PATH" /lib/systemd/systemd --system --unit=tested.target --show-status=no
"""
TARGET = """
[Unit]
Description=What is tested
Wants={wants} systemd-journald.service dbus.service
AllowIsolate=yes
"""


@dataclass(frozen=True)
class Systemd:
    """It runs. `run` is for commands within."""

    pid: int  # of process 1, as it is called outside

    def run(self, *command: str, check: bool = True) -> str:
        """What a command within printed."""
        done = subprocess.run(
            ["nsenter", f"--target={self.pid}", "--all", "--", *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert not check or done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def state(self, unit: str) -> str:
        return self.run("systemctl", "is-active", unit, check=False).strip()

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}", check=False)


def missing() -> str:
    """Why there can be none here; empty: there can."""
    if not SYSTEMD.exists() or shutil.which("systemctl") is None:
        return "systemd is not installed"
    if os.geteuid() != 0:
        return "only root can start a systemd of its own"
    if not any((one / "cgroup.procs").exists() for one in GROUPS):
        return "there is no unified hierarchy of control groups"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--cgroup", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"namespaces are not permitted: {tried.stderr.strip()}" if tried.returncode else ""


@contextlib.contextmanager
def booted(
    place: Path, units: dict[str, str], *, shown: Mapping[Path, str], readable: Sequence[Path] = ()
) -> Iterator[Systemd]:
    """A systemd that has started the units (name → text).

    `shown`: folders that are the same within, with what they are called there. `readable`: what everybody within may read,
    as far as the folders above it go. `place` is a folder of the test's own.
    """
    (place / "memory").mkdir(parents=True)
    (place / "units").mkdir()
    started = [name for name in units if not name.endswith(".timer") or f"{Path(name).stem}.service" not in units]
    for name, text in {**units, "tested.target": TARGET.format(wants=" ".join(started))}.items():
        (place / "units" / name).write_text(text)
    (place / "inside.sh").write_text(INSIDE)
    group = next(one for one in GROUPS if (one / "cgroup.procs").exists()) / f"sereno-test-{os.getpid()}"
    group.mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "PLACE": str(place),
        "GROUP": str(group),
        "SHOWN": " ".join(f"{outside}:{inside}" for outside, inside in shown.items()),
        "OPEN": " ".join(str(folder) for path in readable for folder in (path, *path.parents)),
    }
    with (place / "log").open("wb") as log:
        outer = subprocess.Popen(
            ["bash", "-c", BOOT], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield Systemd(_first_within(outer, place))
    finally:
        outer.kill()
        outer.wait()
        _remove(group)


def _first_within(outer: subprocess.Popen[bytes], place: Path) -> int:
    """The process that is number 1 within, once it answers."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and outer.poll() is None:
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        if children and Path(f"/proc/{children[0]}/exe").resolve() == SYSTEMD.resolve():
            found = Systemd(int(children[0]))
            if found.run("systemctl", "is-system-running", check=False).strip() in ("running", "degraded", "starting"):
                return found.pid
        time.sleep(0.05)
    raise AssertionError((place / "log").read_text())


def _remove(group: Path) -> None:
    """Control groups go from the innermost outwards, once their processes have ended."""
    deadline = time.monotonic() + 10
    while group.exists() and time.monotonic() < deadline:
        for folder in sorted(group.rglob("*/"), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            group.rmdir()
        time.sleep(0.05)
