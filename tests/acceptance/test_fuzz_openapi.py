"""The server keeps to its OpenAPI document, whatever it is sent: schemathesis makes requests from the document.

Every answer must have a status, headers, a type and a body that the document tells; none may be a 5xx; rows that do not
fit the schema are refused, those that fit are answered.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from sereno.serve.guard import new_key
from tests.acceptance.server import Server
from tests.lookups import publish

MODELS = Path(__file__).parents[1] / "models"
SETTINGS = Path(__file__).parent / "fuzz"
CAMPAIGN = 100_000  # requests: an hour on two cores, nearly all of it spent making them up
TOGETHER = 2


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    for file in (*MODELS.glob("*.py"), *SETTINGS.iterdir()):
        if file.is_file():
            shutil.copy(file, folder)
    publish(folder, "plain.py")
    publish(folder, "everything.py", "--set", "models.everything.gates.max_null_share=1")
    return folder


def fuzz(server: Server, *options: str, cases: int, seed: int = 1) -> int:
    """Send requests, about so many to each path; how many they were in all."""
    command = [
        Path(sys.executable).with_name("schemathesis"), "--config-file", "schemathesis.toml", "run",
        f"{server.url}/openapi.json", "--max-examples", str(cases), "--seed", str(seed), *options,
    ]  # fmt: skip
    before = server.workers()
    done = subprocess.run(command, cwd=server.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert server.workers() == before, "a worker died"
    count = re.search(r"^  ([\d,]+) generated", done.stdout, re.MULTILINE)
    assert count is not None, done.stdout
    return int(count[1].replace(",", ""))


def test_two_models(project: Path) -> None:
    with Server(project, "everything.py", "plain.py") as server:
        assert fuzz(server, cases=5) > 500


def test_one_model_with_keys(project: Path) -> None:
    key = new_key()
    with Server(project, "plain.py", SERENO_SECRET_API_KEYS=key.line) as server:
        header = f"Authorization: Bearer {key.key}"
        assert fuzz(server, "--header", header, cases=5) > 300


@pytest.mark.soak
def test_a_campaign(project: Path) -> None:
    """Many requests: no 5xx, no crash, and the memory stays what it was once all paths were used."""
    # two lists of 1,000 rows at once are too much by default, rightly so
    limits = [
        f"models.{name}.{limit}"
        for name in ("everything", "plain")
        for limit in ("queue_rows = 10000", "queue_seconds = 20")
    ]
    (project / "sereno.toml").write_text("\n".join(limits))
    with Server(project, "everything.py", "plain.py") as server, ThreadPoolExecutor(TOGETHER) as pool:
        (worker,) = server.workers()
        sent, memory = 0, []
        while sent < CAMPAIGN:
            seeds = range(len(memory) * TOGETHER, (len(memory) + 1) * TOGETHER)
            sent += sum(pool.map(lambda seed: fuzz(server, cases=200, seed=seed), seeds))
            memory.append(psutil.Process(worker).memory_info().rss >> 20)
            print(f"{sent:,} requests, {memory[-1]} MiB", flush=True)
        assert memory[-1] <= 1.1 * memory[0], memory
