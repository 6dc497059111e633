"""README.md, followed from top to bottom in a fresh folder by a reader who types every block."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

import httpx
import pandas as pd
import pytest

from sereno.adapters.sql import bind
from sereno.config import load_settings
from sereno.schedule import check_schedule, last_interval
from tests.acceptance.server import Server

ROOT = Path(__file__).parents[2]

# Known, and not run here, each for its reason. A line that is in neither list and cannot be run fails the test.
NOT_RUN = {
    "make shop": "goes on until Ctrl-C; test_example_recommender.py tests the shop",
    "make demo": "is run by hand and by CI's users; test_example_credit_scoring.py tests its parts",
    "make test": "is what runs this",
    "make build": "test_script_block.py builds the wheel",
    "pip install dist/*.whl pandas scikit-learn joblib": "the packages are installed where tests run",
    "uv run --find-links ~/sereno/dist churn.py check": "test_script_block.py runs it, with a wheel of its own",
}


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int

    @property
    def file_name(self) -> str | None:
        """Of a block that begins with `# churn.py`: the file that it is."""
        found = re.match(r"# ([\w.]+\.(?:py|toml))\n", self.text)
        return found[1] if found else None


def blocks() -> Iterator[Block]:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        yield Block(found[1], found[2], page[: found.start()].count("\n") + 1)


def commands(block: Block) -> Iterator[tuple[list[str], int]]:
    """Each line's words, and the exit code that its comment announces."""
    for line in block.text.splitlines():
        words = shlex.split(line, comments=True)
        announced = re.search(r"# exit code (\d)", line)
        yield words, int(announced[1]) if announced else 0


@dataclass
class Reader:
    """Types what the page says, in one folder."""

    folder: Path
    printed: str = ""
    server: Server | None = None  # what `sereno serve` started, on a port of its own
    skipped: list[str] = field(default_factory=list)

    def follow(self, block: Block) -> None:
        match block.language:
            case "sh":
                for words, code in commands(block):
                    self.run(words, code, block)
            case "python" | "toml" if block.file_name:
                (self.folder / block.file_name).write_text(block.text, encoding="utf-8")
            case "python":
                self.start([sys.executable, "-c", block.text], 0, block)
            case "toml":
                self.settings(block)
            case "text":
                self.compare(block)
            case "json":
                told = json.loads(self.printed.splitlines()[-1])
                shown = json.loads(block.text)
                assert {name: told[name] for name in shown} == shown, f"README.md:{block.line}: not so: {told}"
            case "crontab":
                self.cron(block)
            case other:
                pytest.fail(f"README.md:{block.line}: nobody knows how to follow a block marked {other!r}")

    def run(self, words: list[str], code: int, block: Block) -> None:
        if shlex.join(words).replace("'", "") in NOT_RUN:
            self.skipped.append(shlex.join(words).replace("'", ""))
            return
        if words[:2] == ["sereno", "serve"]:
            self.server = Server(self.folder, *words[2:]).__enter__()
            return
        starts = {"curl": ["curl", "-sS"], "sereno": [sys.executable, "-m", "sereno"], "python": [sys.executable]}
        assert words[0] in starts, f"README.md:{block.line}: {shlex.join(words)!r} is neither run nor known"
        self.start([*starts[words[0]], *words[1:]], code, block)

    def start(self, arguments: list[str], code: int, block: Block) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SERENO_")}
        if self.server is not None:
            if any("/predictions" in a for a in arguments):  # the reader is not as fast as the index is built
                url = self.server.url
                self.server.until(lambda: "version" in httpx.get(f"{url}/readyz").text, "look up")
            arguments = [a.replace("localhost:8000", self.server.url.removeprefix("http://")) for a in arguments]
        done = subprocess.run(arguments, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        where = f"README.md:{block.line}: {shlex.join(arguments)[:200]}"
        assert done.returncode == code, f"{where} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        self.printed += done.stdout if done.stdout.endswith("\n") else f"{done.stdout}\n"

    def settings(self, block: Block) -> None:
        """Tables that sereno.toml lacks are added to it; others are an alternative, which is read by itself."""
        file = self.folder / "sereno.toml"
        both = f"{file.read_text()}\n{block.text}"
        try:
            tomllib.loads(both)
        except tomllib.TOMLDecodeError:
            apart = self.folder / "alternative"
            apart.mkdir()
            (apart / "sereno.toml").write_text(block.text)
            chosen = load_settings(apart).models["churn"]
            query, parameters = bind(str(chosen.source), {"data_date": date(2026, 5, 2)}, "$")
            assert query.endswith("WHERE day = $1")
            assert parameters == [date(2026, 5, 2)]
        else:
            file.write_text(both)

    def compare(self, block: Block) -> None:
        """What the page shows was printed since it last showed something."""
        lines = self.printed.splitlines()
        for line in block.text.splitlines():
            assert line in lines, f"README.md:{block.line}: this was not printed: {line!r}\nbut:\n{self.printed}"
        self.printed = ""

    def cron(self, block: Block) -> None:
        (line,) = block.text.splitlines()
        *times, command = line.split(maxsplit=5)
        check_schedule(" ".join(times))
        night = last_interval("0 0 * * *", "Europe/Madrid", datetime.now(UTC)).data_date
        warehouse = self.folder / "warehouse" / "customers"
        pd.read_parquet(warehouse / "2026-05-02.parquet").to_parquet(warehouse / f"{night}.parquet")
        here = command.replace("/srv/churn/.venv/bin/sereno", f"{shlex.quote(sys.executable)} -m sereno")
        here = here.replace("/srv/churn", shlex.quote(str(self.folder)))
        assert here.count(str(self.folder)) == 1
        # in a home of its own, so that the page's story goes on with the nights of May
        for says in ("published as version 1", "Nothing to do"):
            self.start(["bash", "-c", f"{here} --home {shlex.quote(str(self.folder / 'cron'))}"], 0, block)
            assert says in self.printed


def test_following_the_readme(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    try:
        for block in blocks():
            reader.follow(block)
    finally:
        if reader.server is not None:
            reader.server.__exit__(None, None, None)
    assert sorted(reader.skipped) == sorted(NOT_RUN)

    # What it says lands where:
    table = (
        (ROOT / "README.md").read_text(encoding="utf-8").split("**What lands where**")[1].split("**Every night**")[0]
    )
    places = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(places) == 4
    for place in places:
        assert (tmp_path / place).exists(), place
    assert (tmp_path / "trial" / ".sereno" / "runs" / "churn").is_dir()


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [
        words[1] for block in blocks() if block.language == "sh" for words, _ in commands(block) if words[0] == "make"
    ]
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_make_test_leaves_no_test_out() -> None:
    """Nor does it run one twice: each file is of one of the three that go on at once."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = [
        words
        for part in ("FIRST", "SECOND", "THIRD")
        for words in re.findall(rf"^{part} := (.*)$", makefile, re.MULTILINE)
    ]
    assert len(named) == 3
    run: list[Path] = []
    for pattern in " ".join(named).split():
        for path in ROOT.glob(pattern):
            run += [path] if path.is_file() else path.rglob("test_*.py")
    assert sorted(run) == sorted((ROOT / "tests").rglob("test_*.py"))


def test_the_model_file_is_short() -> None:
    (model,) = [block for block in blocks() if block.file_name == "churn.py"]
    assert len([line for line in model.text.splitlines() if line]) <= 40
