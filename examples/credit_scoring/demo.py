"""Tells the whole story of this example in the terminal, with real commands: `make demo`.

It works in a fresh folder, `demo` under the repository's root (`demo-2` and so on if there is one already), which is
left as it is at the end, to go on from. Every step must end as the story says; otherwise the demo stops with code 1.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parent
REPOSITORY = EXAMPLE.parents[1]
FILES = ["README.md", "credit_scoring.py", "marketing.py", "prepare_nights.py", "sereno.toml", "train.py", "data"]


def fresh_folder() -> Path:
    names = (REPOSITORY / (f"demo-{number}" if number > 1 else "demo") for number in count(1))
    return next(folder for folder in names if not folder.exists())


def heading(text: str) -> None:
    print(f"\n\n── {text} " + "─" * max(3, 100 - len(text)), flush=True)


def say(text: str) -> None:
    print(f"\n{text}", flush=True)


class Terminal:
    """Runs commands in one folder, showing each as a user would type it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # The story needs the settings of this folder, not of whoever runs it.
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("SERENO_")}
        self.environment |= {"PYTHONUNBUFFERED": "1", "COLUMNS": str(shutil.get_terminal_size((120, 24)).columns)}

    def run(self, *command: str, expect: int = 0) -> str:
        """What the command printed, which is also shown as it comes. Ends the demo if the exit code is another."""
        program, *rest = command
        quoted = (f'"{argument}"' if " " in argument else argument for argument in command)
        print(f"\n$ {' '.join(quoted)}", flush=True)
        arguments = [sys.executable, "-m", "sereno", *rest] if program == "sereno" else [sys.executable, *rest]
        lines = []
        with subprocess.Popen(
            arguments, cwd=self.folder, env=self.environment, text=True, encoding="utf-8",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            for line in process.stdout:
                print(f"  {line}", end="", flush=True)
                lines.append(line)
        if process.returncode != expect:
            sys.exit(f"\nThe demo stops: the last command should end with {expect}, not {process.returncode}.")
        if expect:
            print(f"  (exit code {expect})", flush=True)
        return "".join(lines)


def find(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        sys.exit(f"\nThe demo stops: the last command should have printed something like {pattern}.")
    return found[1]


def tell(terminal: Terminal) -> None:
    heading("A model, and the bank's data")
    terminal.run("python", "train.py")
    terminal.run("python", "prepare_nights.py")
    say("credit_scoring.py is all that Sereno needs to know: what comes in, what goes out, load, read, predict.")

    heading("Before the first night: does the model give a row the same answer, however it arrives?")
    terminal.run("sereno", "check", "credit_scoring.py", "--date", "2026-05-01")

    heading("Night 1: every customer is scored and published")
    printed = terminal.run("sereno", "run", "credit_scoring.py", "--date", "2026-05-01")
    say("A few rows were broken. They are kept with the reason, and the others are scored. The run in detail:")
    terminal.run("sereno", "show", find(r"\b(2026-05-01-[0-9a-f]{6})\b", printed))

    heading("The morning of 2 May: marketing, a program of its own, makes its offers")
    terminal.run("python", "marketing.py", "--today", "2026-05-02")

    heading("Night 2, and the morning of 3 May: only what changed")
    terminal.run("sereno", "run", "credit_scoring.py", "--date", "2026-05-02")
    offers = terminal.run("python", "marketing.py", "--today", "2026-05-03")
    customer = find(r"raised +customer (\d+)", offers)

    heading("Night 3: the data arrives cut off, so the run is held")
    terminal.run("sereno", "run", "credit_scoring.py", "--date", "2026-05-03", expect=3)
    say("Night 2 stays in service. Marketing sees that it is not last night's, and leaves its offers alone:")
    terminal.run("python", "marketing.py", "--today", "2026-05-04", expect=1)

    heading("What is in service, and one command back")
    terminal.run("sereno", "versions", "credit-scoring")
    terminal.run("sereno", "get", "credit-scoring", customer)
    terminal.run("sereno", "rollback", "credit-scoring", "--why", "marketing reports strange offers")
    say("Table and export are those of night 1 again:")
    terminal.run("sereno", "get", "credit-scoring", customer)
    say("It was a false alarm. Forward again:")
    terminal.run("sereno", "rollback", "credit-scoring", "--to", "2", "--why", "false alarm")
    terminal.run("sereno", "get", "credit-scoring", customer)


NEXT = """
Everything is still there. Go on from it:

  cd {folder}{activate}
  sereno run credit_scoring.py --date 2026-05-02   # the same night again: nothing to do, and it says so
  sereno runs credit-scoring                       # every run; `sereno show RUN` for one of them
  python prepare_nights.py --repair                # the third night arrives whole …
  sereno run credit_scoring.py --date 2026-05-03   # … and is published
  python marketing.py --today 2026-05-04           # … and marketing goes on

  # the predictions, in Python; the folder is a Delta table that Spark, DuckDB and Polars read too
  python -c "import sereno; print(sereno.read_predictions('credit-scoring').to_pandas())"

  # a model file of your own, from your own data
  sereno new churn --from-data warehouse/applicants/2026-05-01.parquet
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Tell the story of the credit scoring example, with real commands.")
    parser.add_argument("--folder", type=Path, help="a folder that does not exist yet (default: demo)")
    folder = (parser.parse_args().folder or fresh_folder()).absolute()
    if folder.exists():
        parser.error(f"{folder} is there already; name a folder that is not")

    started = time.monotonic()
    folder.mkdir(parents=True)
    for name in FILES:
        source = EXAMPLE / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    print(f"Working in {folder}")
    tell(Terminal(folder))

    heading(f"Done in {time.monotonic() - started:.0f} seconds. What to try next")
    in_venv = sys.prefix != sys.base_prefix
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    print(NEXT.format(folder=shown, activate=f"\n  source {sys.prefix}/bin/activate" if in_venv else ""))


if __name__ == "__main__":
    main()
