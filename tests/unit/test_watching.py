"""--watch: a change is told once, when it is over, however the file was written."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sereno.serve.processes.watching import Watcher, changed_since, looks

PATIENCE = 30.0


class Told:
    """Counts what the watcher tells."""

    def __init__(self) -> None:
        self.times = 0
        self.news = threading.Condition()

    def __call__(self) -> None:
        with self.news:
            self.times += 1
            self.news.notify_all()

    def wait(self, times: int) -> None:
        with self.news:
            assert self.news.wait_for(lambda: self.times >= times, PATIENCE)
            assert self.times == times


@pytest.fixture
def told() -> Iterator[Told]:
    return Told()


def test_a_change_is_told_once(tmp_path: Path, told: Told) -> None:
    file, folder = tmp_path / "model.py", tmp_path / "weights"
    file.write_text("1")
    folder.mkdir()
    paths = [str(file), str(folder), str(tmp_path / "sereno.toml")]
    watcher = Watcher(told, seconds=0.01)
    watcher.serve(paths, looks(paths))
    watcher.start()
    changes = [
        lambda: file.write_text("22"),
        lambda: (folder / "deep").write_text("1"),
        lambda: (tmp_path / "sereno.toml").write_text(""),
        lambda: os.replace(folder / "deep", folder / "other"),
        lambda: file.unlink(),
    ]
    for times, change in enumerate(changes, 1):
        change()
        told.wait(times)
    watcher.stop()


def test_a_file_that_is_still_written_has_to_wait(monkeypatch: pytest.MonkeyPatch, told: Told) -> None:
    looked = iter(["as served", "as served", "a part", "more of it", "more than that", "all", "all"])
    times_when_seen = []

    def looks_like(paths: object) -> str:
        times_when_seen.append(told.times)
        return next(looked, "all")

    watcher = Watcher(told, seconds=0.001)
    watcher.serve([], "as served")
    monkeypatch.setattr("sereno.serve.processes.watching.looks", looks_like)
    watcher.start()
    told.wait(1)
    assert times_when_seen[:7] == [0] * 7
    watcher.stop()


def test_what_changed_before_it_was_served_is_told(tmp_path: Path, told: Told) -> None:
    file = tmp_path / "model.py"
    file.write_text("1")
    watcher = Watcher(told, seconds=0.01)
    watcher.serve([str(file)], "as it was when a worker read it")
    watcher.start()
    told.wait(1)
    watcher.stop()


def test_more_files_are_no_change(tmp_path: Path, told: Told) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    watcher = Watcher(told, seconds=0.01)
    watcher.serve([str(tmp_path / "a")], looks([str(tmp_path / "a")]))
    watcher.belong([str(tmp_path / "b")])
    watcher.start()
    (tmp_path / "b").write_text("more")
    told.wait(1)
    watcher.stop()


def test_links_are_followed(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).write_text("same")
    link = tmp_path / "current"
    link.symlink_to("old")
    before = looks([str(link)])
    link.unlink()
    link.symlink_to("new")
    assert looks([str(link)]) != before


def test_written_since(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("")
    written = file.stat().st_mtime_ns
    assert changed_since([str(tmp_path)], written)
    assert not changed_since([str(tmp_path)], written + 1)
    os.utime(file, ns=(written, written + 10**12))  # the clock of a file server that is ahead
    assert not changed_since([str(tmp_path)], written)
    assert not changed_since([str(tmp_path / "none")], 0)
