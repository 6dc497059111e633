"""Serving in the cloud: runs publish to a bucket; a server in a pod of its own answers from its copy of the index, and leaves
what it answered in the bucket."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sereno.answers.read import Wanted, find_answers
from sereno.places import ObjectPath
from tests.acceptance.project import Project
from tests.acceptance.server import Server
from tests.objects import S3Server, s3_server


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
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
        project.within = True
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


def test_a_pod_that_ends_leaves_its_answers_in_the_bucket(s3: S3Server, tmp_path: Path) -> None:
    cloud = Cloud(s3, tmp_path)
    names = ("one", "two")
    with cloud.server(cloud.pod("one")) as one, cloud.server(cloud.pod("two")) as two:
        for number in range(6):
            server = (one, two)[number % 2]
            asked = {"id": number, "x": number / 8}
            assert httpx.post(f"{server.url}/predict", json=asked, timeout=10).json() == {"y": number / 4}
    for name in names:  # their disks do not last
        shutil.rmtree(tmp_path / name)
    with s3.reached():
        found = find_answers(tmp_path / "desk", "total", Wanted(), ObjectPath.of(cloud.storage))
    assert sorted(found.column("y").to_pylist()) == [number / 4 for number in range(6)]
    desk = cloud.pod("desk")
    assert len(desk.json("log", "total")) == 6
    assert desk.json("log", "total", "--erase", "3") == {"erased": 1}
    assert len(desk.json("log", "total")) == 5


def test_a_storage_that_is_a_folder(tmp_path: Path) -> None:
    """The home and what lasts lie apart: lookups are with the table, and answers go there."""
    home, storage = tmp_path / "home", tmp_path / "disk"
    home.mkdir()
    project = Project.new(home)
    project.variables, project.within = {"SERENO_STORAGE": str(storage)}, True
    project.rows("2026-05-01", 5)
    with Server(home, "total.py", **project.variables) as server:
        assert httpx.post(f"{server.url}/predict", json={"id": 1, "x": 1.5}, timeout=10).json() == {"y": 3.0}
        project.run("2026-05-01")
        server.until(lambda: score(server).get("version") == 1, "follow")
        assert score(server)["prediction"] == {"y": 1.0}
    assert project.json("log", "total", "--compact")["answers"] + len(project.json("log", "total")) >= 1
    assert (storage / "answers" / "total" / "_delta_log").is_dir()
    assert (storage / ".sereno" / "lookup" / "total" / "served.json").exists()
    assert (storage / "exports" / "total" / "parquet" / "latest").exists()
    assert not (home / "predictions").exists()


# The last one: it leaves no store


def test_a_pod_answers_from_what_another_has_published(s3: S3Server, tmp_path: Path) -> None:
    cloud = Cloud(s3, tmp_path)
    # no answers are kept, that would have to be saved while the store is gone
    required = {"SERENO_MODELS__TOTAL__LOOKUP": "required", "SERENO_MODELS__TOTAL__LOG": "off"}
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
