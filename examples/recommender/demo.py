"""Tells the story of this example in the terminal, with real commands: `make demo`, after the bank's; or `make shop`.

It works in a fresh folder, `demo-shop` under the repository's root (`demo-shop-2` and so on if there is one already),
which is left as it is at the end, to go on from. Every step must end as the story says; otherwise the demo stops with
code 1. With `--keep` it opens the shop, and goes on until Ctrl-C.
"""

import argparse
import json
import re
import signal
import sys
import time
import tomllib
import urllib.request
import webbrowser
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from examples.terminal import Terminal, copy_files, find, fresh_folder, heading, how_to_get_there, say

EXAMPLE = Path(__file__).resolve().parent
FILES = [
    "README.md", "recommender.py", "sereno.toml", "train.py", "prepare_shop.py", "ask.py", "shop.py", "shop", "data",
]  # fmt: skip
CUSTOMER, NEW_CUSTOMER = "1104", "1000000"
PATIENCE_SECONDS = 60


def tell(terminal: Terminal, keep: bool, open_browser: bool) -> None:
    before, last = last_nights()
    heading("A gourmet shop: a model of what goes together, and the shop's database")
    terminal.run("python", "train.py")
    terminal.run("python", "prepare_shop.py")
    say("recommender.py is all that Sereno needs to know: what comes in, what goes out, load, read, fetch, predict.")

    heading("Before it goes online: does a customer get the same answer, however it arrives?")
    terminal.run("sereno", "check", "recommender.py")

    heading("The night before last: recommendations for every customer, published as a table")
    terminal.run("sereno", "run", "recommender.py", "--date", before)

    heading("The online API")
    with terminal.background("sereno", "serve", "--port", "0", until=r"(?s) on (http://\S+?)[,\s].*Try: ") as url:
        wait_for_version(url, 1)
        say("When a customer comes, the shop's home page looks up what that run computed, by the customer's number:")
        looked_up = terminal.run("python", "ask.py", CUSTOMER, "--home", "--sereno", url, "--again", "200")
        find("(version 1)", looked_up)
        say(
            "Once they shop, the model is asked live. What they bought before, Sereno fetches from the shop's database.\n"
            "As long as the basket is empty, it answers what was looked up:"
        )
        live = terminal.run("python", "ask.py", CUSTOMER, "--sereno", url, "--again", "200")
        must_be_equal(looked_up, live)
        say("With spaghetti and a good pasta sauce in the basket, other products become likely:")
        terminal.run("python", "ask.py", CUSTOMER, "1210", "1213", "--sereno", url)
        say("Somebody whom that run did not know gets an answer too, computed on the spot: sereno.toml says so.")
        find("(just now)", terminal.run("python", "ask.py", NEW_CUSTOMER, "--home", "--sereno", url))

        heading("A day, and another night")
        say("Both customers buy something: avocados and salsa, salmon and oranges. The live path knows at once.")
        terminal.run("python", "shop.py", "--sell", NEW_CUSTOMER, "827", "1229")
        terminal.run("python", "shop.py", "--sell", CUSTOMER, "601", "814")
        terminal.run("sereno", "run", "recommender.py", "--date", last)
        wait_for_version(url, 2)
        say("The same server, which nobody told: the home page is that of last night, and the new customer is in it.")
        find("(version 2)", terminal.run("python", "ask.py", CUSTOMER, "--home", "--sereno", url))
        find("(version 2)", terminal.run("python", "ask.py", NEW_CUSTOMER, "--home", "--sereno", url))

        heading("Something is wrong with it: one command back")
        terminal.run("sereno", "rollback", "recommender", "--why", "customers are shown strange things")
        seconds = wait_for_version(url, 1)
        say(f"Answers were of version 1 again {seconds:.1f} seconds after the command's end, without a restart:")
        must_be_equal(looked_up, terminal.run("python", "ask.py", CUSTOMER, "--home", "--sereno", url))
        say("It was a false alarm. Forward again:")
        terminal.run("sereno", "rollback", "recommender", "--to", "2", "--why", "false alarm")
        wait_for_version(url, 2)

        heading("What a monitoring system sees")
        say(f"At {url}/metrics, among others:")
        show_metrics(url)
        if keep:
            with terminal.background(
                "python", "shop.py", "--port", "0", "--sereno", url, until=r"open at (http://\S+)"
            ) as shop:
                browse(shop, terminal.folder, open_browser)

    heading("Every live answer was kept, with its input")
    terminal.run("sereno", "log", "recommender", "--limit", "3")
    say("Somebody wants to be forgotten:")
    terminal.run("sereno", "log", "recommender", "--erase", CUSTOMER)
    terminal.run("sereno", "log", "recommender")
    say(
        "That was the log of answers. Published predictions are another place: they hold a customer until runs without them\n"
        "have replaced every version that is kept."
    )


def last_nights() -> tuple[str, str]:
    """The data dates of the last two nights, where the shop is."""
    settings = tomllib.loads((EXAMPLE / "sereno.toml").read_text(encoding="utf-8"))
    today = datetime.now(ZoneInfo(settings["models"]["recommender"]["time_zone"])).date()
    return str(today - timedelta(days=2)), str(today - timedelta(days=1))


def wait_for_version(url: str, version: int) -> float:
    """Look up a customer until the answer is of this version; how many seconds that took."""
    started = time.monotonic()
    while time.monotonic() < started + PATIENCE_SECONDS:
        with urllib.request.urlopen(f"{url}/models/recommender/predictions/{CUSTOMER}", timeout=30) as answer:
            if json.load(answer)["version"] == version:
                return time.monotonic() - started
        time.sleep(0.02)
    sys.exit(f"\nThe demo stops: answers should be of version {version} by now.")


def must_be_equal(one: str, other: str) -> None:
    """Two runs of ask.py printed the same ten products, with the same scores."""
    ten, others = (re.findall(r"^ *\d+  .*%.*$", printed, re.MULTILINE) for printed in (one, other))
    if ten != others or len(ten) != 10:
        sys.exit("\nThe demo stops: the last command should have printed the same products as before.")


def show_metrics(url: str) -> None:
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    shown = [line for line in lines if line.startswith("sereno_") and 'recommender"' in line and "_total" in line]
    find(r"(sereno_\w+)", "\n".join(shown))
    print("\n".join(f"  {line}" for line in shown))


def browse(shop: str, folder: Path, open_browser: bool) -> None:
    say(
        f"Open {shop} in a browser: the home page is looked up, the basket is answered live. Ctrl-C ends the demo.\n"
        "To see a rollback there, type in another terminal, then load the page again:\n\n"
        f"  {how_to_get_there(folder)}\n  sereno rollback recommender"
    )
    if open_browser:
        webbrowser.open(shop)
    try:
        signal.pause()
    except KeyboardInterrupt:
        print()


NEXT = """
Everything is still there. Go on from it:

  {there}
  sereno serve                    # the API; http://127.0.0.1:8000/docs shows it
  python shop.py                  # in another terminal: the shop, to browse in

  sereno run recommender.py       # last night's again: nothing to do, unless the shop sold something since
  python ask.py {customer} --home
  sereno versions recommender
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Tell the story of the recommender example, with real commands.")
    parser.add_argument("--folder", type=Path, help="a folder that does not exist yet (default: demo-shop)")
    parser.add_argument("--keep", action="store_true", help="open the shop, and go on until Ctrl-C")
    parser.add_argument("--open", action="store_true", help="and show it in this machine's browser")
    options = parser.parse_args()
    folder = (options.folder or fresh_folder("demo-shop")).absolute()
    if folder.exists():
        parser.error(f"{folder} is there already; name a folder that is not")

    started = time.monotonic()
    copy_files(EXAMPLE, FILES, folder)
    print(f"Working in {folder}")
    tell(Terminal(folder), options.keep or options.open, options.open)

    heading(f"Done in {time.monotonic() - started:.0f} seconds. What to try next")
    print(NEXT.format(there=how_to_get_there(folder), customer=CUSTOMER))


if __name__ == "__main__":
    main()
