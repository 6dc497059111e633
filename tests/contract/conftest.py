"""A real PostgreSQL for the tests that ask for one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.contract.export_targets import Maker, PostgresqlTarget
from tests.services import postgresql


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    with postgresql() as url:
        yield url


@pytest.fixture
def postgresql_url(postgresql_server: str) -> Iterator[str]:
    """The address of an empty database, gone after the test."""
    name = f"test_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(postgresql_server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        yield postgresql_server.replace("/postgres?", f"/{name}?")
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    folder = tmp_path / "predictions"
    folder.mkdir()
    return Maker(folder=folder)


@pytest.fixture
def postgresql_target(tmp_path: Path, postgresql_url: str) -> PostgresqlTarget:
    return PostgresqlTarget(tmp_path, postgresql_url)
