"""Disks that are full, read-only or broken: the published table is unharmed, the message says what to do, a rerun completes.

Needs leave to mount a file system (and strace, for a disk that reports errors); says so where it has to skip.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.acceptance.project import DAY, NEXT_DAY, Project

PAGE = 4096
USUAL_PAGES = {0, 4, 18, 22, 26, 30, 34}
GOES_ON = "Nothing was published by this run. Mend that, then start it again: it goes on where it was."


def some(*values: int, usual: set[int]) -> list[object]:
    """These values, of which `make test` takes the usual ones and `make soak` the others."""
    return [pytest.param(value, marks=[] if value in usual else [pytest.mark.soak]) for value in values]


def mount(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder))
    if done.returncode:
        pytest.skip(f"this user may not mount a file system: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def on_disk(small_disk: Path) -> Project:
    """A project on a small disk that has published a night of 100 rows; another of 140 waits."""
    project = Project.new(small_disk / "project")
    project.rows(DAY, 100)
    project.rows(NEXT_DAY, 140)
    project.run(DAY)
    return project


def fill(disk: Path, *, but: int) -> Path:
    """A file that leaves so many pages free."""
    file = disk / "filler"
    with file.open("wb") as stream:
        for _ in range(shutil.disk_usage(disk).free // PAGE - but):
            stream.write(b"x" * PAGE)
    return file


def test_a_task_that_fills_the_disk(on_disk: Project, small_disk: Path) -> None:
    on_disk.settings(gates__max_row_change=1e9)
    before = on_disk.published()
    on_disk.rows(NEXT_DAY, np.random.default_rng(1).random(45_000))  # too much for what is left beside its input
    said = on_disk.run(NEXT_DAY, code=1)
    assert said["error"] == "StorageError"
    assert said["says"].startswith("A task could not be written: the disk is full")
    assert said["says"].endswith(GOES_ON)
    assert on_disk.published() == on_disk.exported() == before
    assert on_disk.states()[-1] in ("failed", "interrupted")  # the report may not fit either

    assert mount("-o", "remount,size=50m", str(small_disk)).returncode == 0
    report = on_disk.run(NEXT_DAY)
    assert (report["state"], report["predictions"]) == ("published", 45_000)
    assert on_disk.orphans() == set()


@pytest.mark.parametrize("pages", some(0, 1, 2, 4, 8, 12, *range(15, 46), usual=USUAL_PAGES))
def test_a_disk_that_fills_up_anywhere(on_disk: Project, small_disk: Path, pages: int) -> None:
    old = on_disk.published()
    filler = fill(small_disk, but=pages)
    said = on_disk.run(NEXT_DAY, code=None)
    filler.unlink()
    seen = on_disk.published()
    if "error" in said:
        assert said["error"] in ("StorageError", "ExportError", "LedgerError")
        assert "the disk is full" in said["says"], said["says"]
        if said["says"].endswith((GOES_ON, "Nothing was published by this run.")):
            assert seen == old
        else:
            assert "Version 2 is in service" in said["says"] or "Version 2 is published" in said["says"]
            assert seen != old
    else:
        assert seen != old
    assert on_disk.exported() in (old, seen)

    report = on_disk.run(NEXT_DAY)
    assert report["state"] == ("nothing" if seen != old else "published")
    assert on_disk.published() == on_disk.exported()
    assert on_disk.published().num_rows == 140  # type: ignore[union-attr]
    assert len(on_disk.versions()) == 2
    assert on_disk.states()[-1] == "published"
    assert on_disk.orphans() == set()


def test_a_disk_that_is_full_before_the_first_run(small_disk: Path) -> None:
    project = Project.new(small_disk / "project")
    project.rows(DAY, 100)
    filler = fill(small_disk, but=0)
    said = project.run(DAY, code=1)
    assert said["says"].startswith(f"The home {project.folder} cannot be used: the disk is full")
    filler.unlink()
    assert project.run(DAY)["state"] == "published"


def test_a_read_only_folder(on_disk: Project, small_disk: Path) -> None:
    before = on_disk.published()
    assert mount("-o", "remount,ro", str(small_disk)).returncode == 0
    said = on_disk.run(NEXT_DAY, code=1)
    assert said["error"] == "StorageError"
    assert said["says"].startswith(f"The home {on_disk.folder} cannot be used: the file system is read-only (")
    assert said["says"].endswith(GOES_ON)
    said = on_disk.json("rollback", "total", code=1)
    assert said["says"].startswith(f"The home {on_disk.folder} cannot be used: the file system is read-only (")
    assert said["says"].endswith("What was in service stays. Mend that, then try again.")

    # Whoever only reads is served.
    assert on_disk.published() == before
    assert on_disk.states() == ["published"]
    assert on_disk.in_service() == [1]
    assert on_disk.look("get", "total", "7")["y"] == 1.75
    assert on_disk.look("show", DAY)["predictions"] == 100

    assert mount("-o", "remount,rw", str(small_disk)).returncode == 0
    assert on_disk.run(NEXT_DAY)["version"] == 2


def test_a_home_that_cannot_be_made(small_disk: Path, project: Project) -> None:
    project.rows(DAY, 10)
    assert mount("-o", "remount,ro", str(small_disk)).returncode == 0
    said = project.run(DAY, "--home", str(small_disk / "home"), code=1)
    assert said["says"].startswith(f"The home {small_disk}/home cannot be used: the file system is read-only")


@pytest.mark.parametrize("when", some(*range(1, 31), usual={1, 6, 12, 17, 22, 26}))
def test_a_disk_that_reports_an_error(project: Project, when: int, tmp_path: Path) -> None:
    """The N-th time that anything is flushed to the disk, it fails."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    project.rows(DAY, 100)
    project.rows(NEXT_DAY, 140)
    project.run(DAY)
    old = project.published()
    process = project.start(
        "run", "total.py", "--date", NEXT_DAY, "--json", "--workers", "1",
        under=[strace, "-f", "--seccomp-bpf", "-o", str(tmp_path / "trace"), "-e", f"inject=fsync:error=EIO:when={when}"],
    )  # fmt: skip
    out, error = process.communicate()
    if "Operation not permitted" in error:
        pytest.skip(f"this user may not trace a process: {error}")
    assert "Traceback" not in error, error
    if "(INJECTED)" not in (tmp_path / "trace").read_text():
        assert when > 26, "a run flushes less often than it did"
        return
    assert process.returncode == 1
    assert "the disk reports an error" in out or "Input/output error" in out, out
    seen = project.published()
    if GOES_ON in out:
        assert seen == old
    elif when > 5:  # the first five flush what the night before published
        assert seen != old
    assert project.exported() in (old, seen)

    report = project.run(NEXT_DAY)
    assert report["state"] == ("nothing" if seen != old else "published")
    assert project.published() == project.exported()
    assert len(project.versions()) == 2
    assert project.states()[-1] == "published"
    assert project.orphans() == set()
