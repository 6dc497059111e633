"""Where docs/deploy_platforms.md needs an object store: a run in a container of which nothing stays, stopped and started as
platforms do it; and artefacts from where Vertex AI says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from sereno.object_path import ObjectPath
from tests.acceptance.containers import MODEL as SERVED
from tests.acceptance.containers import Container, as_first_process, free_port, until, values_of
from tests.objects import S3Server

PAGE = (Path(__file__).parents[3] / "docs" / "deploy_platforms.md").read_text(encoding="utf-8")
ROWS = 100
KILL_SECONDS = 10  # of Cloud Run, after its SIGTERM

MODEL = """
import time
from pathlib import Path
from typing import TypedDict

from sereno import Key, Model

HERE = Path(__file__).parent


class Row(TypedDict):
    id: Key[int]
    x: float


class Score(TypedDict):
    y: float


model = Model("churn", inputs=Row, outputs=Score, artifacts={"weight": "weight.txt"})


@model.load
def load(weight: Path) -> float:
    return float(weight.read_text())


@model.predict
def predict(weight: float, rows: list) -> list:
    while (HERE / "hold").exists():
        (HERE / "predicting").touch()
        time.sleep(0.01)
    return [{"y": weight * row["x"]} for row in rows]
"""


@pytest.fixture(scope="module")
def s3(shared_s3: S3Server) -> S3Server:
    return shared_s3


def image(folder: Path) -> Path:
    """A container's files, as they are at each of its starts."""
    folder.mkdir()
    (folder / "churn.py").write_text(MODEL)
    (folder / "weight.txt").write_text("2")
    return folder


def test_a_job_that_is_stopped_and_started_again_and_started_twice(s3: S3Server, tmp_path: Path) -> None:
    (text,) = [one for one in re.split(r"^## ", PAGE, flags=re.MULTILINE) if one.startswith("Runs at night\n")]
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    spec = yaml.safe_load(block)["spec"]["template"]["spec"]["template"]["spec"]
    (one,) = spec["containers"]
    bucket = s3.make_bucket()
    own = {name: re.sub(r"^gs://", f"s3://{bucket}/", value) for name, value in values_of(one["env"]).items()}
    rows = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"id": range(ROWS), "x": [float(n) for n in range(ROWS)]}), rows)
    with s3.reached():
        ObjectPath.of(own["SERENO_MODELS__CHURN__SOURCE"].replace("*", "0")).upload(rows)
    told = {
        "CLOUD_RUN_JOB": "churn-nightly",
        "CLOUD_RUN_TASK_INDEX": "0",
        "CLOUD_RUN_TASK_ATTEMPT": "0",
        "PORT": "8080",
    }
    variables = s3.environment | told | own | {"SERENO_WORKERS": "1"}

    def started(name: str) -> Container:
        # its own first process, so that signals reach it as they do there
        return Container(
            image(tmp_path / name), one["args"], variables, port=0, kill_seconds=KILL_SECONDS, under=as_first_process()
        )

    with started("stopped") as job:
        (job.folder / "hold").touch()
        until(lambda: (job.folder / "predicting").exists() or job.process.poll() is not None, "predict")
        assert job.stop() == 128 + 15
    with started("again") as job:
        assert job.wait() == 0, job.log
    with started("twice") as job:
        assert job.wait() == 0, job.log
        assert "nothing" in job.log.lower(), job.log

    (version,) = asked(tmp_path / "again", variables, "versions", "churn")
    assert (version["version"], version["rows"], version["in_service"]) == (1, ROWS, True)


def test_artefacts_from_where_vertex_ai_says(s3: S3Server, tmp_path: Path) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    source = re.sub(r"^model = .*\n", lambda _: block, SERVED, flags=re.MULTILINE)
    source = source.replace("def load():", "def load(weight: Path):\n    return float(weight.read_text())\n")
    source = source.replace('row["age"] / 100', 'row["age"] * loaded')
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "churn.py").write_text(source)
    storage = f"s3://{s3.make_bucket()}/models/17"
    with s3.reached():
        ObjectPath.of(f"{storage}/weight.txt").write_bytes(b"0.02")
    port = free_port()
    variables = {"AIP_HTTP_PORT": str(port), "AIP_PREDICT_ROUTE": "/predict", "AIP_HEALTH_ROUTE": "/healthy"}
    variables |= s3.environment | {"AIP_STORAGE_URI": storage}
    words = ["serve", "churn.py", "--no-auth", "--tls-terminated-upstream"]
    with Container(tmp_path / "image", words, variables, port=port, kill_seconds=30) as container:
        container.wait_for("/healthy", timeout=10)
        reply = httpx.post(f"{container.url}/predict", json={"instances": [{"age": 25, "spend": None}]}, timeout=60)
        assert reply.json() == {"predictions": [{"probability": 0.5}]}


def asked(folder: Path, variables: dict[str, str], *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "sereno", *arguments, "--json"],
        cwd=folder,
        env={"PATH": os.environ["PATH"]} | variables,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout)
