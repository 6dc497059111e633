"""Status files: read back as written; what is torn or foreign is left out, and what stands still costs next to nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from sereno.status import MOST_BYTES, Status, Statuses, read_status, read_statuses, status_folder, write_status

NOON = datetime(2026, 5, 2, 12, tzinfo=UTC)


def status(model: str = "churn", version: int = 1) -> Status:
    return Status(
        model=model,
        last_success_at=NOON,
        version=version,
        data_date=date(2026, 5, 1),
        data_time=datetime(2026, 5, 2, tzinfo=UTC),
        published_at=NOON,
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_status(tmp_path, "churn") is None
    assert read_statuses(tmp_path) == {}
    write_status(tmp_path, status())
    write_status(tmp_path, status("a-b_c", 7))
    assert read_status(tmp_path, "churn") == status()
    assert read_statuses(tmp_path) == {"churn": status(), "a-b_c": status("a-b_c", 7)}
    write_status(tmp_path, status(version=2))
    assert read_status(tmp_path, "churn") == status(version=2)
    assert sorted(os.listdir(status_folder(tmp_path))) == ["a-b_c.json", "churn.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"format":1,"model":"churn","last_succ',
        b"[]",
        b"\xff\xfe",
        b'{"format":2,"model":"churn","last_success_at":"2026-05-02T12:00:00Z"}',
        b'{"format":1,"model":"other","last_success_at":"2026-05-02T12:00:00Z"}',
        b'{"format":1,"model":"churn","last_success_at":"2026-05-02T12:00:00"}',  # of no zone
        b'{"format":1,"model":"churn","last_success_at":"2026-05-02T12:00:00Z","version":"one"}',
        b'{"format":1,"model":"churn","last_success_at":"2026-05-02T12:00:00Z","x":"' + b"x" * MOST_BYTES + b'"}',
    ],
)
def test_what_is_torn_or_foreign_is_left_out(tmp_path: Path, content: bytes) -> None:
    write_status(tmp_path, status("whole"))
    (status_folder(tmp_path) / "churn.json").write_bytes(content)
    assert read_status(tmp_path, "churn") is None
    assert read_statuses(tmp_path) == {"whole": status("whole")}


def test_nobody_waits_for_what_is_no_file(tmp_path: Path) -> None:
    write_status(tmp_path, status("whole"))
    folder = status_folder(tmp_path)
    os.mkfifo(folder / "pipe.json")
    (folder / "folder.json").mkdir()
    (folder / "link.json").symlink_to("/dev/zero")
    (folder / ".hidden.json").write_text("{}")
    (folder / "notes.txt").write_text("{}")
    (folder / "UPPER.json").write_text((folder / "whole.json").read_text().replace("whole", "UPPER"))
    assert read_statuses(tmp_path) == {"whole": status("whole")}
    assert read_status(tmp_path, "pipe") is None
    assert read_status(tmp_path, "folder") is None


def test_what_a_later_version_adds_is_no_harm(tmp_path: Path) -> None:
    write_status(tmp_path, status())
    file = status_folder(tmp_path) / "churn.json"
    file.write_text(file.read_text().replace("{", '{"more":1,', 1))
    assert read_status(tmp_path, "churn") == status()


def test_only_what_has_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(5):
        write_status(tmp_path, status(f"m{n}"))
    folder, statuses = status_folder(tmp_path), Statuses(tmp_path)
    assert len(statuses.read()) == 5

    opened: list[str] = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: (opened.append(self.name), real(self, *a, **k))[1])
    write_status(tmp_path, status("m3", 9))
    opened.clear()
    assert statuses.read()["m3"].version == 9
    assert opened == ["m3.json"]

    old = NOON.timestamp()
    os.utime(folder, (old, old))  # it was changed long ago
    statuses.read()
    monkeypatch.setattr(os, "scandir", lambda *_: pytest.fail("it looked again"))
    assert len(statuses.read()) == 5
    monkeypatch.undo()
    (folder / "m3.json").unlink()
    assert sorted(statuses.read()) == ["m0", "m1", "m2", "m4"]


def test_a_change_within_the_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    statuses = Statuses(tmp_path)
    for version in range(1, 200):
        write_status(tmp_path, status(version=version))
        assert statuses.read()["churn"].version == version


def test_a_home_that_is_gone_has_none(tmp_path: Path) -> None:
    write_status(tmp_path, status())
    statuses = Statuses(tmp_path)
    assert statuses.read()
    (status_folder(tmp_path) / "churn.json").unlink()
    status_folder(tmp_path).rmdir()
    assert statuses.read() == {}


def test_it_is_light() -> None:
    show = "import sys, sereno.status; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    assert {"numpy", "pyarrow", "deltalake", "asyncio"} & set(done.stdout.split()) == set()
