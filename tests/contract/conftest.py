"""A real PostgreSQL, and a real S3 server, for the tests that ask for one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from sereno.places import ObjectPath
from tests.contract.export_targets import Maker, PostgresqlTarget
from tests.objects import S3Server
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


@pytest.fixture(scope="session")
def s3_bucket(shared_s3: S3Server) -> tuple[S3Server, str]:
    return shared_s3, shared_s3.make_bucket()


@pytest.fixture
def storage(s3_bucket: tuple[S3Server, str]) -> Iterator[ObjectPath]:
    """A place of its own in a bucket, which this process reaches meanwhile."""
    server, bucket = s3_bucket
    with server.reached():
        yield ObjectPath.of(f"s3://{bucket}/{uuid.uuid4().hex[:8]}")


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    folder = tmp_path / "predictions"
    folder.mkdir()
    return Maker(folder=folder)


@pytest.fixture
def postgresql_target(tmp_path: Path, postgresql_url: str) -> PostgresqlTarget:
    return PostgresqlTarget(tmp_path, postgresql_url)
