"""What lookups answer from: a model's predictions of made-up rows, published as its users publish them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

MAKE_ROWS = """
import sys
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
from sereno.loader import load_model
from sereno.madeup import made_up

made = made_up(load_model(Path(sys.argv[1])).inputs, 50)
if len(sys.argv) > 3:
    made = made.filter(pc.greater(pc.list_value_length(made[sys.argv[3]]), 0))
pq.write_table(made, sys.argv[2])
"""


def publish(
    folder: Path, file: str, *options: str, rows: pa.Table | None = None, full: str = "", date: str = "2026-05-01"
) -> None:
    """Publish a model of the folder, and have its index built, with no server there.

    Without `rows` they are made up; `full` is a column whose lists are not to be empty then.
    """
    source = folder / f"{Path(file).stem}.parquet"
    if rows is None:
        _run(folder, "-c", MAKE_ROWS, file, str(source), *([full] if full else []))
    else:
        pq.write_table(rows, source)
    index = f"models.{Path(file).stem}.lookup=required"
    _run(folder, "-m", "sereno", "run", file, "--date", date, "--source", str(source), "--set", index, *options)


def _run(folder: Path, *arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
