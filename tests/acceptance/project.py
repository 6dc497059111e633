"""A project in a folder, worked on as a user does: files are written, `sereno …` is started, tables are read back."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from sereno.cli import main

DAY, NEXT_DAY, THIRD_DAY = "2024-05-01", "2024-05-02", "2024-05-03"
PARTS, PART_ROWS = 4, 40_000  # four files, each of them a task: enough for two workers
ROWS = PARTS * PART_ROWS

MODEL = """
import os, sys
from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from sereno import Key, Model

if Path(sys.argv[0]).name == "worker.py":  # the tests give the second worker faults of its own
    os.environ["SERENO_FAILPOINT"] = os.environ.get("FAILPOINT_OF_WORKER", "")


class Row(TypedDict):
    id: Key[int]
    x: float


class Score(TypedDict):
    y: float


model = Model("total", inputs=Row, outputs=Score, artifacts={"weight": "weight.txt"},
              source="input/{data_date}/*.parquet")


@model.load
def load(weight: Path):
    return float(weight.read_text())


@model.predict
def predict(weight, rows: pa.Table) -> pa.Table:
    return pa.table({"y": pc.multiply(rows["x"], weight)})


if __name__ == "__main__":
    model.main()
"""


class Project:
    """One folder with the model `total` (y = x × weight), or whatever is written over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variables: dict[str, str] = {}  # of every process
        self.within = False  # commands are started within the test's process, ten times as fast

    @classmethod
    def new(cls, folder: Path) -> Project:
        project = cls(folder)
        project.write("total.py", MODEL)
        project.write("weight.txt", "2")
        project.write("sereno.toml", "")
        return project

    def copy(self, folder: Path) -> Project:
        shutil.copytree(self.folder, folder, symlinks=True)
        return Project(folder)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def settings(self, **settings: Any) -> None:
        """Write sereno.toml with settings of the model; those of gates are named `gates__…`."""
        lines = [f"models.total.{k.replace('__', '.')} = {json.dumps(v)}" for k, v in settings.items()]
        self.write("sereno.toml", "\n".join(lines) + "\n")

    def rows(self, day: str, rows: Sequence[float] | npt.NDArray[Any] | int, *, first: int = 0, parts: int = 1) -> None:
        """The rows of a day: so many, or those with these x; ids count from `first`."""
        x = np.arange(rows) / 8 if isinstance(rows, int) else np.asarray(rows, dtype=float)
        folder = self.folder / "input" / day
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for part, places in enumerate(np.array_split(np.arange(len(x)), parts)):
            pq.write_table(pa.table({"id": places + first, "x": x[places]}), folder / f"{part}.parquet")

    def table(self, day: str, columns: dict[str, Any], name: str = "0.parquet") -> None:
        """The rows of a day, column by column."""
        folder = self.folder / "input" / day
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), folder / name)

    def start(self, *arguments: str, under: Sequence[str] = (), **variables: str) -> subprocess.Popen[str]:
        """Start `sereno …` in the project's folder, perhaps under another program."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SERENO_")} | self.variables | variables
        return subprocess.Popen(
            [*under, sys.executable, "-W", "error", "-m", "sereno", *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def sereno(self, *arguments: str, code: int | None = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        """`sereno …`, which must end with this exit code (None: any)."""
        if self.within:
            assert not variables
            done = self._within(arguments)
        else:
            process = self.start(*arguments, **variables)
            out, error = process.communicate()
            done = subprocess.CompletedProcess(process.args, process.returncode, out, error)
        assert code in (None, done.returncode), (
            f"{arguments} ended with {done.returncode}, not {code}:\n{done.stdout[:500]}\n{done.stderr}"
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def _within(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        out, error = io.StringIO(), io.StringIO()
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.chdir(self.folder))
            stack.callback(self._forget_modules)  # the model file is read anew each time
            stack.enter_context(mock.patch.object(sys, "path", [*sys.path]))
            # a worker beside this process takes longer to start than all the rest
            alone = {"SERENO_WORKERS": "1"} if arguments[0] == "run" else {}
            stack.enter_context(mock.patch.dict(os.environ, alone | self.variables))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(error))
            try:
                code: Any = main(arguments)
            except SystemExit as end:  # of argparse
                code = end.code
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), error.getvalue())

    def _forget_modules(self) -> None:
        for name, module in [*sys.modules.items()]:
            if str(getattr(module, "__file__", None)).startswith(str(self.folder)):
                del sys.modules[name]

    def json(self, *arguments: str, code: int | None = 0, **variables: str) -> Any:
        return json.loads(self.sereno(*arguments, "--json", code=code, **variables).stdout)

    def run(self, day: str = DAY, *arguments: str, code: int | None = 0, **variables: str) -> Any:
        """The report of a run, or what it says of its failure."""
        return self.json("run", "total.py", "--date", day, *arguments, code=code, **variables)

    def look(self, *arguments: str) -> Any:
        """What a command that only reads prints."""
        done = self._within([*arguments, "--json"])
        assert done.returncode == 0, done
        return json.loads(done.stdout)

    def runs(self) -> list[Any]:
        return list(self.look("runs", "total"))

    def states(self) -> list[str]:
        return [run["state"] for run in self.runs()]

    def versions(self) -> list[Any]:
        return list(self.look("versions", "total"))

    def in_service(self) -> list[int]:
        return [v["version"] for v in self.versions() if v["in_service"]]

    @property
    def predictions(self) -> Path:
        return self.folder / "predictions" / "total"

    @property
    def latest(self) -> Path:
        return self.folder / "exports" / "total" / "parquet" / "latest"

    def published(self) -> pa.Table | None:
        """The Delta table as others read it; None: there is none."""
        if not (self.predictions / "_delta_log" / f"{0:020d}.json").exists():
            return None
        return in_order(DeltaTable(self.predictions).to_pyarrow_table())

    def exported(self) -> pa.Table | None:
        """What `latest` shows, checked against its manifest; None: it is not there."""
        if not self.latest.is_symlink():
            return None
        folder = self.latest.resolve(strict=True)
        manifest = json.loads((folder / "manifest.json").read_bytes())
        assert folder.name == f"{manifest['version']:06}"
        table = pa.concat_tables(pq.read_table(folder / file["name"]) for file in manifest["files"])
        assert table.num_rows == manifest["rows"]
        return in_order(table)

    def orphans(self) -> set[str]:
        """Files below the table that no published version and no held run needs."""
        commits = (json.loads(line) for log in self._log() for line in log.read_text().splitlines())
        wanted = set()
        for action in commits:
            if "add" in action:
                wanted.add(action["add"]["path"])
            wanted |= {action.get("commitInfo", {}).get(f"sereno.{name}_file", "") for name in ("rejects", "profile")}
        there = {str(f.relative_to(self.predictions)) for f in self.predictions.rglob("*") if f.is_file()}
        held = tuple(r["attempt"] for r in self.runs() if r["state"] == "held")
        log = {str(f.relative_to(self.predictions)) for f in self._log()}
        return {f for f in there - wanted - log if not any(h in f for h in held)}

    def _log(self) -> Iterable[Path]:
        return sorted((self.predictions / "_delta_log").glob("*.json"))


def in_order(table: pa.Table) -> pa.Table:
    """Equal for equal content: Delta calls every column nullable, and neither promises an order."""
    table = table.cast(pa.schema([field.with_nullable(True) for field in table.schema]))
    by = [(name, "ascending") for name in ("data_date", "id") if name in table.column_names]
    return table.select(sorted(table.column_names)).sort_by(by).combine_chunks()


def faults(text: str) -> dict[str, str]:
    """The variables that cause faults in the process itself, not in its second worker."""
    return {"SERENO_TESTING": "1", "SERENO_FAILPOINT": text}
