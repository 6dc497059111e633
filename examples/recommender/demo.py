"""Tells the story of this example in the terminal, with real commands: `make demo`, after the bank's; or `make shop`.

It works in a fresh folder, `demo-shop` under the repository's root (`demo-shop-2` and so on if there is one already),
which is left as it is at the end, to go on from. Every step must end as the story says; otherwise the demo stops with
code 1. With `--keep` it opens the shop, and goes on until Ctrl-C.
"""

import argparse
import signal
import time
import urllib.request
import webbrowser
from pathlib import Path

from examples.terminal import Terminal, copy_files, find, fresh_folder, heading, how_to_get_there, say

EXAMPLE = Path(__file__).resolve().parent
FILES = [
    "README.md", "recommender.py", "sereno.toml", "train.py", "prepare_shop.py", "ask.py", "shop.py", "shop", "data",
]  # fmt: skip
CUSTOMER = "1104"


def tell(terminal: Terminal, keep: bool, open_browser: bool) -> None:
    heading("A gourmet shop: a model of what goes together, and the shop's database")
    terminal.run("python", "train.py")
    terminal.run("python", "prepare_shop.py")
    say("recommender.py is all that Sereno needs to know: what comes in, what goes out, load, read, fetch, predict.")

    heading("Before it goes online: does a visit get the same answer, however it arrives?")
    terminal.run("sereno", "check", "recommender.py")

    heading("The online API")
    with terminal.background("sereno", "serve", "--port", "0", until=r"(?s) on (http://\S+?)[,\s].*Try: ") as url:
        say(
            "The shop's programs ask over HTTP. What the customer bought before, Sereno fetches from the shop's database."
        )
        terminal.run("python", "ask.py", CUSTOMER, "--sereno", url, "--again", "500")
        say("With spaghetti and a good pasta sauce in the basket, other products become likely:")
        terminal.run("python", "ask.py", CUSTOMER, "1210", "1213", "--sereno", url)
        say("A new customer, of whom the shop knows nothing, gets an answer too. Here with avocados and salsa:")
        terminal.run("python", "ask.py", "1000000", "827", "1229", "--sereno", url)
        say(f"What it counts for a monitoring system, at {url}/metrics, among others:")
        show_metrics(url)
        if keep:
            with terminal.background(
                "python", "shop.py", "--port", "0", "--sereno", url, until=r"open at (http://\S+)"
            ) as shop:
                browse(shop, open_browser)

    heading("Every answer was kept, with its input")
    terminal.run("sereno", "log", "recommender", "--limit", "3")
    say("Somebody wants to be forgotten:")
    terminal.run("sereno", "log", "recommender", "--erase", CUSTOMER)
    terminal.run("sereno", "log", "recommender")


def show_metrics(url: str) -> None:
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    shown = [line for line in lines if line.startswith("sereno_") and 'recommender"' in line and "_total" in line]
    find(r"(sereno_\w+)", "\n".join(shown))
    print("\n".join(f"  {line}" for line in shown))


def browse(shop: str, open_browser: bool) -> None:
    say(f"Open {shop} in a browser. Ctrl-C ends the demo.")
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

  sereno run recommender.py       # recommendations for all customers, by night
  sereno get recommender {customer}
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
