"""Servers that SageMaker and Vertex AI would start: what they say in their environment is all that differs."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.batch_transform import Job
from tests.acceptance.server import Server
from tests.lives import MODEL

# what an image that is built for a platform says: who reaches it comes through the platform's own door
OPEN = {"SERENO_SERVE__NO_AUTH": "true", "SERENO_SERVE__TLS_TERMINATED_UPSTREAM": "true"}
JOB = {"SAGEMAKER_BATCH": "true", "SAGEMAKER_MAX_PAYLOAD_IN_MB": "2", "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": "2"}
LINES = 3_000


def project(folder: Path) -> Path:
    (folder / "total.py").write_text(MODEL)
    (folder / "sereno.toml").write_text('[models.total]\nfile = "total.py"\n\n[serve]\nhost = "127.0.0.1"\n')
    return folder


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = project(tmp_path_factory.mktemp("job"))
    with Server(folder, SERENO_WORKERS="2", **OPEN, **JOB) as server:
        yield server


def records() -> list[tuple[Any, Any]]:
    """Rows of which some do not fit, and some cannot be answered."""
    chance = random.Random(7)
    rows: list[tuple[Any, Any]] = [(chance.randrange(1000), round(chance.uniform(-50, 50), 3)) for _ in range(LINES)]
    for position, bad in zip(
        chance.sample(range(LINES), 5), [(13, 1.0), (-1, 2.0), ("x", 3.0), (1.5, 1.0), (None, 1.0)], strict=True
    ):
        rows[position] = bad
    return rows


def is_bad(row: tuple[Any, Any]) -> bool:
    return not isinstance(row[0], int) or row[0] in (13, -1)


def expected(row: tuple[Any, Any]) -> dict[str, Any]:
    total = float(row[0]) + row[1]
    return {"total": pytest.approx(total), "is_large": total > 10}


class TestBatchTransform:
    @pytest.mark.parametrize("assemble_with", [None, "Line"])
    @pytest.mark.parametrize("payload_bytes", [200, 20_000, None])
    def test_csv_in_csv_out(self, job: Server, payload_bytes: int | None, assemble_with: Any) -> None:
        rows = records()
        file = b"".join([f"{'' if a is None else a},{b}\n".encode() for a, b in rows])
        out = Job(url=job.url, content_type="text/csv", payload_bytes=payload_bytes, assemble_with=assemble_with).run(
            file
        )
        lines = out.decode().splitlines()
        assert len(lines) == LINES
        for row, line in zip(rows, lines, strict=True):
            if is_bad(row):
                assert line == ","
            else:
                total, is_large = line.split(",")
                assert {"total": float(total), "is_large": json.loads(is_large)} == expected(row)

    @pytest.mark.parametrize("strategy", ["SINGLE_RECORD", "MULTI_RECORD"])
    def test_json_lines_in_json_lines_out(self, job: Server, strategy: Any) -> None:
        rows = [*records()[:300], (13, 0.0)]
        file = "\n".join([json.dumps({"a": a, "b": b}) for a, b in rows]).encode()
        out = Job(
            url=job.url, content_type="application/jsonlines", strategy=strategy, payload_bytes=2_000, concurrent=4
        ).run(file)
        lines = [json.loads(line) for line in out.splitlines()]
        assert len(lines) == len(rows)
        for row, line in zip(rows, lines, strict=True):
            assert list(line) == ["error"] if is_bad(row) else line == expected(row)
        assert "The server's log tells why, under " in lines[-1]["error"]

    def test_csv_in_json_out(self, job: Server) -> None:
        out = Job(url=job.url, content_type="text/csv", accept="application/json").run(b"1,2\nx,\n3,")
        assert [json.loads(line) for line in out.splitlines()] == [
            {"total": 3.0, "is_large": False},
            {"error": "a: must be a whole number"},
            {"total": 3.0, "is_large": False},
        ]

    @pytest.mark.parametrize(
        ("lines", "out"), [(b"", b""), (b"x,\n", b",\n"), (b"\n\n", b",\n,\n"), (b"1,2", b"3.0,false\n")]
    )
    def test_few_lines(self, job: Server, lines: bytes, out: bytes) -> None:
        reply = httpx.post(f"{job.url}/invocations", content=lines, headers={"Content-Type": "text/csv"})
        assert (reply.status_code, reply.content) == (200, out)

    def test_the_log_says_which_lines(self, job: Server) -> None:
        Job(url=job.url, content_type="text/csv").run(b"1,2\n-7,\n")
        assert job.wait_for(r"1 of 2 records got a placeholder: line 2: a: must be at least 0")


def test_sagemaker_asks_as_callers_do(tmp_path: Path) -> None:
    """A real-time endpoint: no batch, so one bad row fails its request, and Accept says what comes back."""
    with (
        Server(project(tmp_path), SAGEMAKER_BIND_TO_PORT="8080", **OPEN) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        assert client.get("/ping", headers={"Host": "model.aws.local:8080"}).content == b""
        ask = {"url": "/invocations", "content": b"1,2\n3,\n"}
        assert (
            client.post(**ask, headers={"Content-Type": "text/csv", "Accept": "text/csv"}).text
            == "3.0,false\n3.0,false\n"
        )
        answer = client.post(**ask, headers={"Content-Type": "text/csv", "Host": "model.aws.local:8080"})
        assert answer.json() == {"predictions": [{"total": 3.0, "is_large": False}] * 2}
        refused = client.post(
            "/invocations", content=b"1,2\nx,1", headers={"Content-Type": "text/csv", "Accept": "text/csv"}
        )
        assert (refused.status_code, refused.json()["error_code"]) == (400, "BAD_REQUEST")
        # as large as the platform sends, and larger than it is taken elsewhere
        large = (b"1," + b" " * 20_000 + b"2\n") * 1000
        assert (
            len(client.post("/invocations", content=large, headers={"Content-Type": "text/csv"}).json()["predictions"])
            == 1000
        )
        assert client.post("/invocations", content=large * 2, headers={"Content-Type": "text/csv"}).status_code == 413


def test_vertex_asks_at_its_own_paths(tmp_path: Path) -> None:
    variables = {
        "AIP_HTTP_PORT": "8080",
        "AIP_MODE": "PREDICTION",
        "AIP_HEALTH_ROUTE": "/v1/endpoints/17/deployedModels/42",
        "AIP_PREDICT_ROUTE": "/v1/endpoints/17/deployedModels/42:predict",
        "AIP_STORAGE_URI": "",
    }
    with Server(project(tmp_path), **OPEN, **variables) as server, httpx.Client(base_url=server.url) as client:
        assert client.get(variables["AIP_HEALTH_ROUTE"], headers={"Host": "10.0.0.7:8080"}).status_code == 200
        body = {"instances": [{"a": 1, "b": 2}, {"a": 10, "b": None}], "parameters": {}}
        answer = client.post(variables["AIP_PREDICT_ROUTE"], json=body)
        assert answer.json() == {"predictions": [{"total": 3.0, "is_large": False}, {"total": 10.0, "is_large": False}]}
        refused = client.post(variables["AIP_PREDICT_ROUTE"], json={"instances": [{"a": -1, "b": 2}]})
        assert (refused.status_code, list(refused.json())) == (422, ["error"])


def test_no_platform_makes_a_server_open_that_its_image_did_not_open(tmp_path: Path) -> None:
    with Server(project(tmp_path), ready=False, SAGEMAKER_BATCH="true") as server:
        server.process.wait(60)
        assert server.process.returncode == 2
        assert "--no-auth" in server.log or "no_auth" in server.log
