"""The check that a home is the same folder everywhere, in one process: what a worker finds, and what the driver does."""

import os
from pathlib import Path

import msgspec
import pytest

from sereno import shared
from sereno.exceptions import NotSharedError
from sereno.shared import Check, Seen, announce, confirm, forget, seen

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


def test_what_a_worker_writes_and_the_driver_does_not_find(tmp_path: Path) -> None:
    check = elsewhere(announce(tmp_path, ATTEMPT), tmp_path)
    answer = msgspec.msgpack.encode(Seen(host="node-2", name="node-2-0", content="0", clock=0.0))
    with pytest.raises(NotSharedError, match="what node-2 wrote there is not to be found on driver-1"):
        seen(check, answer)
