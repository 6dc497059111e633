"""A pod's cold start: from exec to the first right answer of a lookup, where disk and memory of the pod are empty.

The index lies in a real S3 server on the same machine, so the network is not in it. `again` is a container that starts
once more with the disk that it had.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import report
from benchmarks.environments import variables
from benchmarks.workload import DATA, LOGS
from tests.objects import s3_server

ROUNDS, ROWS = 5, 1_000_000
PARTS = {
    "server": "the server listens: processes, imports, model",
    "fetched": "of the fetch: download and SHA-256",
    "copied": "the index is on the pod's disk: also the start of the process that fetches",
    "answered": "the first lookup is answered: the index is read once and verified, too",
}
MODEL = """
from pathlib import Path
from typing import TypedDict
import pyarrow as pa
import pyarrow.compute as pc
from sereno import Key, Model

class Row(TypedDict):
    id: Key[int]
    x: float

class Score(TypedDict):
    band: str
    reason: str
    y: float

model = Model("total", inputs=Row, outputs=Score, artifacts={"weight": "weight.txt"}, source="rows.parquet")

@model.load
def load(weight: Path):
    return float(weight.read_text())

@model.predict
def predict(weight, rows: pa.Table) -> pa.Table:
    n = len(rows)
    return pa.table({"band": ["A"] * n, "reason": ["income and history"] * n, "y": pc.multiply(rows["x"], weight)})
"""


def cold_start(arguments: argparse.Namespace) -> None:
    conditions, runs = report.conditions(), []
    LOGS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DATA, prefix="output-") as text, s3_server(Path(text) / "s3") as s3:
        folder = Path(text)
        env = {**variables(None), **s3.environment, "SERENO_STORAGE": f"s3://{s3.make_bucket()}/bank"}
        size = _publish(_pod(folder / "run"), env, arguments.rows)
        for _ in range(arguments.rounds):
            pod = _pod(folder / "serve")
            for name in ("cold", "again"):
                load = round(os.getloadavg()[0], 2)
                runs.append({"name": name, "load": load, **_start(pod, env, arguments.rows)})
            shutil.rmtree(pod)
    title = f"{arguments.rows:,} keys, an index of {size / 1e6:.0f} MB"
    is_try = arguments.rounds < ROUNDS or arguments.rows < ROWS
    facts = {"conditions": conditions, "left_out": {}, "runs": runs}
    report.save(
        "cold-start", vars(arguments), {title: table(runs)}, facts, DATA / "results" if is_try else report.RESULTS
    )


def _pod(folder: Path) -> Path:
    folder.mkdir()
    (folder / "total.py").write_text(MODEL)
    (folder / "weight.txt").write_text("2")
    (folder / "sereno.toml").write_text('models.total.lookup = "required"\n')
    return folder


def _publish(pod: Path, env: dict[str, str], rows: int) -> int:
    """Publish, in a pod that is gone afterwards; bytes of the index."""
    pq.write_table(pa.table({"id": np.arange(rows), "x": np.arange(rows) / 8}), pod / "rows.parquet")
    command = [sys.executable, "-m", "sereno", "run", "total.py", "--date", "2026-05-01"]
    subprocess.run(command, cwd=pod, env=env, check=True, capture_output=True)
    (index,) = (pod / ".sereno" / "copies").rglob("*.lmdb")
    size = index.stat().st_size
    shutil.rmtree(pod)
    return size


def _start(pod: Path, env: dict[str, str], rows: int) -> dict[str, float]:
    """Seconds from exec to each part."""
    log = LOGS / "cold-start.log"
    command = [sys.executable, "-m", "sereno", "serve", "total.py", "--port", "0", "--json"]
    pointer = pod / ".sereno" / "copies" / ".sereno" / "lookup" / "total" / "served.json"
    told: dict[str, float] = {}
    began = time.perf_counter()
    with (
        log.open("w") as stream,
        subprocess.Popen(command, cwd=pod, env=env, stdout=subprocess.PIPE, stderr=stream, text=True) as server,
    ):
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        told["server"] = time.perf_counter() - began
        while True:
            if "copied" not in told and pointer.exists():
                told["copied"] = time.perf_counter() - began
            try:
                with urllib.request.urlopen(f"{url}/predictions/{rows - 1}", timeout=5) as answer:
                    found = json.load(answer)
                break
            except urllib.error.HTTPError:  # 503: not yet
                time.sleep(0.002)
        told["answered"] = time.perf_counter() - began
        assert found["prediction"]["y"] == (rows - 1) / 4
        server.send_signal(signal.SIGTERM)
    if seconds := re.search(r"was fetched \(.* ([\d.]+) s\)", log.read_text()):
        told["fetched"] = float(seconds[1])
    return told


def table(runs: list[dict[str, Any]]) -> str:
    lines = [["seconds from exec (median)", "an empty pod", "its container again"], ["---", "---:", "---:"]]
    for part, says in PARTS.items():
        cells = []
        for name in ("cold", "again"):
            times = [one[part] for one in runs if one["name"] == name and part in one]
            cells.append(f"{statistics.median(times):.2f}" if times else "")
        lines.append([says, *cells])
    return report.markdown(lines)


def options(parser: argparse.ArgumentParser) -> None:
    """What `cold-start` needs to know."""
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.set_defaults(command=cold_start)
