"""The check that a home is the same folder everywhere, in one process: what a worker finds, and what the driver does."""

import errno
import fcntl
import os
from pathlib import Path

import msgspec
import pytest

from sereno import shared
from sereno.compare import temporary
from sereno.compare.temporary import leftovers
from sereno.exceptions import NotSharedError, StorageError
from sereno.operate.prune import prune
from sereno.operate.up import command
from sereno.settings import Settings
from sereno.shared import Check, Seen, announce, confirm, file_system, forget, is_network, seen
from sereno.storage import host_name

ATTEMPT = "2026-05-01-3f9a2c"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "LOOK_SECONDS", 0.01)


def elsewhere(check: bytes, home: Path) -> bytes:
    """The check as a worker sees it for whom the path of the home leads to another folder."""
    asked = msgspec.msgpack.decode(check, type=Check)
    return msgspec.msgpack.encode(msgspec.structs.replace(asked, home=str(home), host="driver-1", patience=0.05))


def test_a_shared_home_is_found_from_both_sides(tmp_path: Path) -> None:
    check = announce(tmp_path, ATTEMPT)
    told = seen(check, confirm(check))
    assert (told.host, told.clock > 0) == (os.uname().nodename, True)
    assert confirm(check) != confirm(check)  # each worker has a file of its own
    forget(check)
    assert not (tmp_path / ".sereno" / "shared" / ATTEMPT).exists()


def test_a_home_that_is_not_there(tmp_path: Path) -> None:
    check = elsewhere(announce(tmp_path, ATTEMPT), tmp_path / "lacks")
    with pytest.raises(NotSharedError) as caught:
        confirm(check)
    assert str(caught.value) == (
        f"The folder {tmp_path / 'lacks'} is not the same on host {os.uname().nodename} as on host driver-1: on "
        f"{os.uname().nodename} there is no such folder. Nothing was published. Every node needs the home at the same path, "
        "as one folder that all can write: mount it there, or leave that node out."
    )


def test_another_folder_of_that_name_is_left_as_it_was(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(NotSharedError, match="it lacks the file that the run wrote there"):
        confirm(elsewhere(announce(tmp_path, ATTEMPT), other))
    assert list(other.iterdir()) == []


def test_a_copy_of_the_home_is_not_the_home(tmp_path: Path) -> None:
    check = announce(tmp_path / "home", ATTEMPT)
    announce(tmp_path / "copy", ATTEMPT)  # the same attempt, from a copy that somebody made while it ran
    with pytest.raises(NotSharedError, match="has another content"):
        confirm(elsewhere(check, tmp_path / "copy"))


def test_a_home_that_a_worker_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = announce(tmp_path, ATTEMPT)

    def refuse(path: Path, content: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shared, "write_atomically", refuse)
    with pytest.raises(
        NotSharedError, match=r"cannot write there: this user may not write there\. Nothing was published"
    ):
        confirm(check)


@pytest.mark.parametrize(
    ("lacks", "number", "says"),
    [
        ("hardlink_to", errno.EPERM, "no hard links, by which a commit is made: Operation not permitted"),
        ("flock", errno.ENOLCK, "no locks, which keep processes of one host apart .*: No locks available"),
    ],
)
def test_a_file_system_that_lacks_what_publishing_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: str, number: int, says: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl if lacks == "flock" else Path, lacks, fail)
    with pytest.raises(
        StorageError, match=rf"{tmp_path} cannot be a home: its file system \(\w+\) gives {says}\. Nothing"
    ):
        announce(tmp_path, ATTEMPT)


def test_a_home_that_the_driver_cannot_write(tmp_path: Path) -> None:
    (tmp_path / ".sereno").write_text("a file")
    with pytest.raises(StorageError, match="cannot be used: .*Not a directory"):
        announce(tmp_path, ATTEMPT)


def test_the_kind_of_a_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert file_system(Path("/proc")) == "proc"
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        "40 21 0:40 / /data rw - nfs4 nas:/data rw,vers=4.2\n"
        "41 40 0:41 / /data/a\\040b rw - tmpfs tmpfs rw\n"
        "42 40 0:42 / /data/bank rw - xfs /dev/sdb rw\n"
        "43 42 0:43 / /data/bank rw - cifs //nas/bank rw\n"
    )
    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, **more: real(mounts, **more))
    found = {path: file_system(Path(path)) for path in ("/", "/data/x", "/data/a b/c", "/data/bank", "/data/banks")}
    assert found == {
        "/": "ext4",
        "/data/x": "nfs4",
        "/data/a b/c": "tmpfs",
        "/data/bank": "cifs",
        "/data/banks": "nfs4",
    }
    assert [is_network(kind) for kind in found.values()] == [False, True, False, True, True]


def test_what_a_worker_writes_and_the_driver_does_not_find(tmp_path: Path) -> None:
    check = elsewhere(announce(tmp_path, ATTEMPT), tmp_path)
    answer = msgspec.msgpack.encode(Seen(host="node-2", name="node-2-0", content="0", clock=0.0))
    with pytest.raises(NotSharedError, match="what node-2 wrote there is not to be found on driver-1"):
        seen(check, answer)


@pytest.mark.parametrize(
    ("kind", "ledger", "is_told"), [("nfs4", None, True), ("nfs4", "x", False), ("ext4", None, False)]
)
def test_up_warns_of_a_sqlite_ledger_on_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, ledger: str | None, is_told: bool
) -> None:
    monkeypatch.setattr(command, "file_system", lambda path: kind)
    told = list(command.warnings_of(Settings(home=tmp_path, ledger=ledger)))
    says = (
        f"The home {tmp_path} lies on a network file system (nfs4), and the ledger in it is a SQLite file: no other host must "
        'use it. Set ledger = "postgresql://…" where several do.'
    )
    assert told == ([says] if is_told else [])


def test_checks_of_runs_that_were_killed_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announce(tmp_path, ATTEMPT)
    settings = Settings(home=tmp_path)
    assert prune(settings, []) == []
    monkeypatch.setattr(shared, "LEFT_SECONDS", -1.0)
    for dry_run in (True, False):
        (pruned,) = prune(settings, [], dry_run=dry_run)
        assert (pruned.what, pruned.count) == ("checks of shared folders, of runs that were killed", 1)
    assert prune(settings, []) == []


def test_a_comparison_of_another_host_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / ".sereno" / "compare"
    for name in ("0123456789ab", f"0123456789ac-{host_name()}", "0123456789ad-node_2.bank"):
        (place / name).mkdir(parents=True)
    assert sorted(folder.name[11] for folder in leftovers(tmp_path)) == ["b", "c"]
    monkeypatch.setattr(temporary, "LEFT_SECONDS", -1.0)
    assert sorted(folder.name[11] for folder in leftovers(tmp_path)) == ["b", "c", "d"]
