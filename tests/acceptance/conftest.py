"""A small project for each test that asks for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.project import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project.new(tmp_path / "project")
