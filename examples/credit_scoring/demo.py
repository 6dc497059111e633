"""Tells the whole story of this example in the terminal, with real commands: `make demo`.

It works in a fresh folder, `demo` under the repository's root (`demo-2` and so on if there is one already), which is
left as it is at the end, to go on from. Every step must end as the story says; otherwise the demo stops with code 1.
"""

import argparse
import time
from pathlib import Path

from examples.terminal import Terminal, copy_files, find, fresh_folder, heading, how_to_get_there, say

EXAMPLE = Path(__file__).resolve().parent
FILES = ["README.md", "credit_scoring.py", "marketing.py", "prepare_nights.py", "sereno.toml", "train.py", "data"]


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

  {there}
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
    folder = (parser.parse_args().folder or fresh_folder("demo")).absolute()
    if folder.exists():
        parser.error(f"{folder} is there already; name a folder that is not")

    started = time.monotonic()
    copy_files(EXAMPLE, FILES, folder)
    print(f"Working in {folder}")
    tell(Terminal(folder))

    heading(f"Done in {time.monotonic() - started:.0f} seconds. What to try next")
    print(NEXT.format(there=how_to_get_there(folder)))


if __name__ == "__main__":
    main()
