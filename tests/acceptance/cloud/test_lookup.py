"""Lookups in the cloud: runs publish to a bucket, and a server in a pod of its own answers from its copy of the index."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sereno.places import ObjectPath
from tests.acceptance.project import Project
from tests.acceptance.server import Server
from tests.objects import S3Server, s3_server


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Server]:
    with s3_server(tmp_path / "s3") as server:
        yield server


class Cloud:
    """A bucket, and pods whose disks are empty when they start."""

    def __init__(self, s3: S3Server, folder: Path) -> None:
        self.s3, self._folder = s3, folder
        self.storage = f"s3://{s3.make_bucket()}/bank"
        self.variables = {**s3.environment, "SERENO_STORAGE": self.storage}

    def pod(self, name: str) -> Project:
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        project = Project.new(folder)
        project.variables = self.variables
        return project

    def publish(self, weight: int, *options: str) -> Any:
        """A run in a pod that is gone afterwards."""
        run = self.pod("run")
        run.write("weight.txt", str(weight))
        run.rows("2026-05-01", 5)
        report = run.run("2026-05-01", "--force", *options)
        shutil.rmtree(run.folder)
        return report

    def server(self, project: Project, **variables: str) -> Server:
        return Server(project.folder, "total.py", **{**self.variables, **variables})


def score(server: Server, key: int = 4) -> Any:
    return httpx.get(f"{server.url}/models/total/predictions/{key}", timeout=10).json()


def test_a_pod_answers_from_what_another_has_published(s3: S3Server, tmp_path: Path) -> None:
    cloud = Cloud(s3, tmp_path)
    required = {"SERENO_MODELS__TOTAL__LOOKUP": "required"}
    first = cloud.publish(2, "--set", "models.total.lookup=required")
    assert first["state"] == "published", first
    serving = cloud.pod("serve")
    with cloud.server(serving, **required) as server:
        server.until(lambda: httpx.get(f"{server.url}/readyz").status_code == 200, "be ready")
        found = score(server)
        assert (found["prediction"], found["version"], found["origin"]) == ({"y": 1.0}, 1, "lookup")
        cloud.publish(4)  # a server is there: whoever publishes builds an index
        server.until(lambda: score(server)["version"] == 2, "follow")
        assert score(server)["prediction"] == {"y": 2.0}
        with s3.reached():
            folder = ObjectPath.of(cloud.storage) / ".sereno" / "lookup" / "total"
            names = {path.name for path, _ in folder.below()}
            assert len([name for name in names if name.endswith(".lmdb")]) == 2
            assert names > {"served.json", "wanted", "lock.json"}
            assert json.loads((folder / "served.json").read_bytes())["pointer"]["index"].startswith("000002-")
        s3.kill()
        for _ in range(20):
            found = score(server)
            assert (found["prediction"], found["version"]) == ({"y": 2.0}, 2)
        assert found["age_seconds"] > 0
    with cloud.server(serving, **required) as server:  # its container starts again, and the bucket is still gone
        server.until(lambda: httpx.get(f"{server.url}/readyz").status_code == 200, "be ready")
        assert score(server)["prediction"] == {"y": 2.0}
    assert not (serving.folder / "predictions").exists()
