"""root in the home of a service's user: what writes is refused, and what reads leaves nothing of root's behind."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from tests.acceptance.project import DAY, NEXT_DAY, Project

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def service(tmp_path: Path) -> Project:
    """A home with a run, of the user daemon."""
    project = Project.new(tmp_path / "shop")
    project.rows(DAY, 50)
    project.run(DAY)
    user = pwd.getpwnam("daemon")
    for path in (project.folder, *project.folder.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
    return project


def of_root(project: Project) -> list[str]:
    return [
        str(path) for path in project.folder.rglob("*") if path.lstat().st_uid == 0 and "__pycache__" not in str(path)
    ]


@pytest.mark.parametrize(
    "words",
    [
        ("run", "total.py", "--date", NEXT_DAY),
        ("release", DAY),
        ("discard", DAY),
        ("rollback", "total"),
        ("pause", "total"),
        ("resume", "total"),
        ("backfill", "total.py", "--from", DAY, "--to", DAY),
        ("repair",),
        ("prune",),
        ("notify",),
        ("up",),
    ],
)
def test_what_writes_is_refused_and_it_is_said_what_to_type(service: Project, words: tuple[str, ...]) -> None:
    done = service.sereno(*words, code=2)
    assert "belongs to user daemon" in done.stderr
    assert f"Type instead: runuser -u daemon -- sereno {words[0]}" in done.stderr
    assert of_root(service) == []


def test_what_reads_leaves_nothing_of_root_s(service: Project) -> None:
    service.sereno("runs")
    service.sereno("runs", "total", "--attempts")
    service.sereno("versions", "total")
    service.sereno("show", DAY)
    service.sereno("health", code=1)
    assert of_root(service) == []


def test_a_user_without_a_name(service: Project) -> None:
    os.chown(service.folder / ".sereno", 4_321, 4_322)
    done = service.sereno("pause", "total", code=2)
    assert "belongs to uid 4321" in done.stderr
    assert "setpriv --reuid 4321 --regid 4322 --clear-groups -- sereno pause total" in done.stderr
