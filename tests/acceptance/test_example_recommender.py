"""The recommender example: its data, its model, the shop's server, and the shop's page in a browser."""

from __future__ import annotations

import json
import re
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import numpy as np
import pandas as pd
import pytest

from sereno import Client, read_predictions
from sereno.loader import load_model
from tests.acceptance.browser import Browser, Page
from tests.acceptance.server import Server
from tests.recommender import EXAMPLE, trained_copy

CUSTOMER, NOBODY = 1104, 1_000_000
CHEESE, SALMON, NAVEL_ORANGES, ITALIAN_WINE = 101, 601, 814, 1010


def run_python(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example with its model trained, its database made, and last night's run published."""
    folder = trained_copy(tmp_path_factory)
    sereno(folder, "run", "recommender.py", "--date", nights_ago(1))
    return folder


@pytest.fixture(scope="module")
def module(folder: Path) -> Iterator[dict[str, Any]]:
    """The names of the model file, and what it loads under "learned"."""
    path = [*sys.path]
    model = load_model(folder / "recommender.py")
    names = vars(sys.modules["recommender"])
    yield names | {
        "learned": names["load"](folder / "recommender.npz"),
        "database": folder / "shop.sqlite",
        "model": model,
    }
    sys.path[:] = path
    del sys.modules["recommender"]


@pytest.fixture
def visit(module: dict[str, Any]) -> Callable[..., Any]:
    return lambda customer, basket, bought: module["Visit"](customer_id=customer, basket=basket, bought=bought)


def sereno(folder: Path, *arguments: str) -> None:
    done = run_python("-m", "sereno", *arguments, folder=folder)
    assert done.returncode == 0, done.stderr


def nights_ago(number: int) -> str:
    """A data date, where the shop is."""
    return str(datetime.now(ZoneInfo("Europe/Madrid")).date() - timedelta(days=number))


def percents(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"(\d+\.\d) ?%", text)]


# The data.


def test_the_extract_is_what_its_page_says() -> None:
    page = (EXAMPLE / "data" / "README.md").read_text(encoding="utf-8")
    purchases = pd.read_parquet(EXAMPLE / "data" / "purchases.parquet")
    products = pd.read_csv(EXAMPLE / "data" / "products.csv")
    said = "{:,} purchases of {} products, in {:,} baskets of {:,} households".format(
        len(purchases), len(products), purchases["basket_id"].nunique(), purchases["customer_id"].nunique()
    )
    assert said in " ".join(page.split())
    assert products["product_id"].is_monotonic_increasing
    assert products["product_id"].is_unique
    assert products["name"].is_unique
    assert (products["price"] > 0).all()
    assert set(purchases["product_id"]) == set(products["product_id"])
    assert not purchases.duplicated(["basket_id", "product_id"]).any()
    assert sum(file.stat().st_size for file in (EXAMPLE / "data").iterdir() if file.is_file()) < 2_000_000


# The model.


def test_the_figures_of_the_readme_are_those_of_the_training(folder: Path) -> None:
    printed = (folder / "printed.txt").read_text(encoding="utf-8")
    page = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    for situation in ("half of the basket is known", "the basket is still empty", "half is known, of a new customer"):
        told = percents(next(line for line in page.splitlines() if line.startswith(f"| {situation}")))
        found = percents(next(line for line in printed.splitlines() if line.startswith(situation)))
        assert len(found) == 6
        assert found == pytest.approx(told, abs=0.15)  # another processor may add up in another order
        bestsellers, favourites, model = found[0:2], found[2:4], found[4:6]
        assert model > favourites >= bestsellers
    told = percents(page[page.index("Scores are what") :])[:2]
    assert percents(printed[printed.index("At a random moment") :]) == pytest.approx(told, abs=0.15)


def test_ten_others_than_those_in_the_basket_best_first(module: dict[str, Any], visit: Callable[..., Any]) -> None:
    bought = module["fetch"]([CUSTOMER], module["database"])[CUSTOMER]
    (answer,) = module["predict"](module["learned"], [visit(CUSTOMER, [CHEESE, ITALIAN_WINE, CHEESE], bought)])
    numbers = [product["product_id"] for product in answer["products"]]
    assert len(set(numbers)) == 10
    assert not {CHEESE, ITALIAN_WINE} & set(numbers)
    scores = [product["score"] for product in answer["products"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    assert [product["bought_before"] for product in answer["products"]] == [number in bought for number in numbers]
    names = dict(zip(module["learned"].numbers.tolist(), module["learned"].names.tolist(), strict=True))
    assert [product["name"] for product in answer["products"]] == [names[number] for number in numbers]


def test_products_that_the_model_does_not_know_change_nothing(
    module: dict[str, Any], visit: Callable[..., Any]
) -> None:
    strange = [0, -1, 99, 10_000, 2**63 - 1, -(2**63)]
    known, unknown = module["predict"](
        module["learned"], [visit(1, [CHEESE], [SALMON]), visit(2, [*strange, CHEESE], [SALMON, *strange])]
    )
    assert known == unknown


def test_a_customer_without_a_history_is_recommended_what_goes_with_the_basket(
    module: dict[str, Any], visit: Callable[..., Any]
) -> None:
    new = visit(NOBODY, [], []), visit(NOBODY, [SALMON], [])
    empty, salmon = module["predict"](module["learned"], list(new))
    assert empty != salmon
    assert not any(product["bought_before"] for product in empty["products"] + salmon["products"])


def test_a_visit_gets_the_same_answer_to_the_last_bit_alone_and_among_others(
    module: dict[str, Any], visit: Callable[..., Any]
) -> None:
    rng = np.random.default_rng(5)
    numbers = module["learned"].numbers
    histories = module["fetch"](list(range(1, 301)), module["database"])
    visits = [
        visit(customer, rng.choice(numbers, rng.integers(0, 30)).tolist(), bought)
        for customer, bought in histories.items()
    ]
    together = module["predict"](module["learned"], visits)
    assert [module["predict"](module["learned"], [one])[0] for one in visits] == together
    assert module["predict"](module["learned"], visits[::-1])[::-1] == together


def test_fetch_gives_the_newest_purchases_first_and_nothing_of_whom_it_does_not_know(module: dict[str, Any]) -> None:
    purchases = pd.read_parquet(EXAMPLE / "data" / "purchases.parquet")
    keenest = purchases["customer_id"].mode()[0].item()
    fetched = module["fetch"]([NOBODY, keenest, CUSTOMER], module["database"])
    assert fetched.keys() == {NOBODY, keenest, CUSTOMER}
    assert fetched[NOBODY] == []
    for customer in (keenest, CUSTOMER):
        own = purchases.loc[purchases["customer_id"] == customer, "product_id"].tolist()
        assert fetched[customer] == own[::-1][: module["HISTORY"]]
    assert len(fetched[CUSTOMER]) < len(fetched[keenest]) == module["HISTORY"]


def test_read_gives_every_customer_as_fetch_has_them(module: dict[str, Any]) -> None:
    rows = module["read"](module["database"])
    customers = [row.customer_id for row in rows]
    assert len(customers) == len(set(customers)) == 2_440
    assert {row.customer_id: row.bought for row in rows} == module["fetch"](customers, module["database"])
    assert all(row.basket == [] for row in rows)


def test_a_database_that_is_not_there_is_an_error_and_is_not_made(module: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError, match="unable to open database file"):
        module["fetch"]([CUSTOMER], tmp_path / "shop.sqlite")
    assert not (tmp_path / "shop.sqlite").exists()


# The shop's server, and Sereno behind it.


def test_who_asks_where_no_server_is_learns_how_to_start_one(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and listens not
        done = run_python(
            str(EXAMPLE / "ask.py"), "1104", "--sereno", f"http://127.0.0.1:{nobody.getsockname()[1]}", folder=tmp_path
        )
    assert done.returncode == 1
    assert "there is no connection" in done.stderr
    assert done.stderr.endswith("`sereno serve`, in this folder, starts a server; --sereno names another one.\n")


@contextmanager
def open_shop(folder: Path, sereno: str) -> Iterator[str]:
    """The address of a shop that asks this address, with patience for a busy machine; ended with the block."""
    command = [sys.executable, "-W", "error", "shop.py", "--port", "0", "--sereno", sereno, "--patience", "60"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"open at (http://\S+)", line)
        assert found, f"The shop did not open: {line}{process.stderr.read() if process.stderr else ''}"
        yield found[1]
    finally:
        process.terminate()
        _, errors = process.communicate()
    assert "Traceback" not in errors, errors


def wait_for_version(server: Server, version: int) -> None:
    """Until answers are of this version (or would be, were it not too old)."""

    def has_it() -> bool:
        found = httpx.get(f"{server.url}/readyz").json().get("lookup", {}).get("recommender")
        return found is not None and found["version"] == version

    server.until(has_it, f"look up in version {version}")


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Server]:
    with Server(folder) as server:
        wait_for_version(server, 1)
        yield server


@pytest.fixture(scope="module")
def shop(folder: Path, served: Server) -> Iterator[str]:
    with open_shop(folder, served.url) as address:
        yield address


def recommended(shop: str, customer: int, *basket: int) -> dict[str, Any]:
    answer = httpx.post(f"{shop}/api/recommendations", json={"customer_id": customer, "basket": [*basket]}, timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_the_shop_passes_on_what_the_model_answers(
    shop: str, module: dict[str, Any], visit: Callable[..., Any]
) -> None:
    bought = module["fetch"]([CUSTOMER], module["database"])[CUSTOMER]
    for basket, origin in ([], "lookup"), ([CHEESE, ITALIAN_WINE], "live"):
        expected = module["predict"](module["learned"], [visit(CUSTOMER, basket, bought)])[0]
        found = recommended(shop, CUSTOMER, *basket)
        assert found["origin"] == origin
        assert found["products"] == expected["products"]
        assert found["milliseconds"] > 0


def test_lookup_live_and_batch_agree(shop: str, served: Server, folder: Path) -> None:
    rows = read_predictions("recommender", home=folder).to_pylist()
    with Client(served.url) as client:
        for row in rows[::100]:
            customer, products = row["customer_id"], row["products"]
            looked_up = recommended(shop, customer)
            assert (looked_up["origin"], looked_up["version"]) == ("lookup", 1)
            assert looked_up["age_seconds"] > 0
            assert looked_up["products"] == products
            assert client.predict({"customer_id": customer})["products"] == products


def test_the_answer_on_the_page_is_the_one_that_comes(served: Server) -> None:
    page = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    (body,) = re.findall(r"^curl http://127\.0\.0\.1:8000/predict -d '(.*)'$", page, re.MULTILINE)
    (first,) = re.findall(r'^{"products": \[({.*?}), …\]}$', page, re.MULTILINE)
    answer = httpx.post(f"{served.url}/predict", content=body).json()["products"][0]
    assert answer | {"score": round(answer["score"], 2)} == json.loads(first)
    assert f"client.predict({body})" in page


def forget(folder: Path, customer: int) -> None:
    """As if they had never been in the shop."""
    with closing(sqlite3.connect(folder / "shop.sqlite")) as database, database:
        database.execute("DELETE FROM purchases WHERE customer_id = ?", [customer])
        database.execute("DELETE FROM customers WHERE customer_id = ?", [customer])


def test_an_order_of_a_new_customer_counts_at_once(shop: str, folder: Path, module: dict[str, Any]) -> None:
    customer = module["read"](module["database"])[-1].customer_id + 1
    first = recommended(shop, customer)
    assert (first["origin"], first["version"], first["age_seconds"]) == ("live", None, 0)
    before = first["products"]
    assert not any(product["bought_before"] for product in before)
    ordered = {"customer_id": customer, "basket": [SALMON, NAVEL_ORANGES]}
    assert httpx.post(f"{shop}/api/orders", json=ordered).status_code == 201
    after = recommended(shop, customer)["products"]
    assert {p["product_id"] for p in after if p["bought_before"]} <= {SALMON, NAVEL_ORANGES}
    assert [p["score"] for p in after] != [p["score"] for p in before]
    forget(folder, customer)


@pytest.mark.parametrize(
    ("path", "sent", "status"),
    [
        ("recommendations", b"{", 400),
        ("recommendations", b"[]", 400),
        ("recommendations", b'{"customer_id": "1", "basket": []}', 400),
        ("recommendations", b'{"customer_id": 1, "basket": [true]}', 400),
        ("recommendations", b'{"customer_id": 1, "basket": [' + b"101," * 100 + b"101]}", 422),
        ("orders", b'{"customer_id": 1, "basket": []}', 400),
        ("orders", b'{"customer_id": 1, "basket": [101, 100]}', 422),
    ],
)
def test_the_shop_refuses_what_makes_no_sense(shop: str, path: str, sent: bytes, status: int) -> None:
    answer = httpx.post(f"{shop}/api/{path}", content=sent)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]


def test_an_order_is_written_whole_or_not_at_all(shop: str, module: dict[str, Any]) -> None:
    before = module["fetch"]([1], module["database"])
    answer = httpx.post(f"{shop}/api/orders", json={"customer_id": 1, "basket": [CHEESE, 100]})
    assert answer.status_code == 422
    assert module["fetch"]([1], module["database"]) == before


def test_an_order_without_the_page(folder: Path, module: dict[str, Any]) -> None:
    customer = str(NOBODY + 1)
    done = run_python("shop.py", "--sell", customer, str(SALMON), str(CHEESE), folder=folder)
    assert done.stdout == f"Customer {customer} bought 2 products.\n"
    assert module["fetch"]([int(customer)], module["database"]) == {int(customer): [CHEESE, SALMON]}
    forget(folder, int(customer))
    done = run_python("shop.py", "--sell", customer, "100", folder=folder)
    assert done.returncode == 2
    assert "the shop does not have all of these products" in done.stderr
    assert module["fetch"]([int(customer)], module["database"]) == {int(customer): []}


def test_the_shop_answers_its_own_name_only(shop: str) -> None:
    assert httpx.get(f"{shop}/api/catalogue", headers={"Host": "shop.example"}).status_code == 400


def test_ask_prints_ten_products(folder: Path, served: Server) -> None:
    done = run_python("ask.py", str(CUSTOMER), str(CHEESE), "--again", "5", "--sereno", served.url, folder=folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f'{{"customer_id": {CUSTOMER}, "basket": [{CHEESE}]}}' in lines[0]
    assert all(re.match(r" *\d+  .+ \d+\.\d%( |$)", line) for line in lines[1:11])
    assert lines[11] == "computed just now"
    assert re.fullmatch(r"5 times more: half within [\d.]+ ms, 99 % within [\d.]+ ms", lines[12])
    done = run_python("ask.py", "1", *["101"] * 101, "--sereno", served.url, folder=folder)
    assert done.returncode == 1
    assert "basket" in done.stderr


def test_ask_prints_what_the_home_page_shows(folder: Path, served: Server) -> None:
    live = run_python("ask.py", str(CUSTOMER), "--sereno", served.url, folder=folder)
    done = run_python("ask.py", str(CUSTOMER), "--home", "--again", "5", "--sereno", served.url, folder=folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"GET {served.url}/models/recommender/predictions/{CUSTOMER}"
    assert lines[1:11] == live.stdout.splitlines()[1:11]
    assert re.fullmatch(rf"of the run for {nights_ago(1)}: version 1, \d+\.\d hours old", lines[11])
    assert lines[12].startswith("5 times more: ")
    done = run_python("ask.py", str(NOBODY), "--home", "--sereno", served.url, folder=folder)
    assert done.stdout.splitlines()[11].startswith("computed just now: of this customer nothing")
    done = run_python("ask.py", str(CUSTOMER), str(CHEESE), "--home", "--sereno", served.url, folder=folder)
    assert done.returncode == 2


# The page, in a browser.

FROM_LAST_NIGHT = r"From last night: version {version}, \d+ (minute|hour)s? old\. Looked up in \d+(\.\d)? ms\."
JUST_NOW = r"computed just now, in \d+(\.\d)? ms\."


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, shop: str) -> Iterator[Page]:
    """The shop, after its first recommendations; what the browser complained of fails the test at its end."""
    opened = browser.open(shop)
    wait_for_answer(opened, 1)
    yield opened
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith((f"{shop}/", "data:"))] == []


def wait_for_answer(page: Page, number: int) -> None:
    """Until the answer to the page's question of that number is shown."""
    page.until(f"document.querySelector('#recommended .cards').dataset.asked === '{number}'")


def numbers_shown(page: Page, section: str = "#recommended") -> list[int]:
    found: list[int] = page.run(f"[...document.querySelectorAll('{section} .add')].map(b => Number(b.dataset.product))")
    return found


def text(page: Page, selector: str) -> str:
    return str(page.run(f"document.querySelector({json.dumps(selector)}).textContent"))


def choose(page: Page, customer: int) -> None:
    page.run(
        f"(() => {{ const s = document.querySelector('#customer'); s.value = '{customer}'; "
        "s.dispatchEvent(new Event('change', {bubbles: true})); return s.value; })()"
    )


def customers_of(page: Page) -> list[int]:
    found: list[int] = page.run("[...document.querySelectorAll('#customer option')].map(o => Number(o.value))")
    return found


def test_a_customer_browses_and_the_recommendations_follow(page: Page, shop: str) -> None:
    customers = customers_of(page)
    assert len(customers) == 15  # one for each shelf, and a new one
    first = numbers_shown(page)
    assert first == [p["product_id"] for p in recommended(shop, customers[0])["products"]]
    assert text(page, "#answered .origin") == "lookup"
    assert re.fullmatch(FROM_LAST_NIGHT.format(version=1), text(page, "#answered .how"))

    choose(page, customers[5])
    wait_for_answer(page, 2)
    of_other = numbers_shown(page)
    assert of_other != first

    page.click("#recommended li:nth-child(1) .add")
    wait_for_answer(page, 3)
    basket = numbers_shown(page, "#basket") or page.run(
        "[...document.querySelectorAll('#basket .remove')].map(b => Number(b.dataset.product))"
    )
    assert basket == of_other[:1]
    after = numbers_shown(page)
    assert of_other[0] not in after
    assert after == [p["product_id"] for p in recommended(shop, customers[5], *basket)["products"]]
    assert text(page, "#answered .origin") == "live"
    assert re.fullmatch(rf"By what is in your basket: {JUST_NOW}", text(page, "#answered .how"))

    page.click(".shelf-names [data-shelf='Wine and spirits']")
    wine = numbers_shown(page, "#shelves")
    assert wine == list(range(1001, 1022))
    page.click(f"#shelves [data-product='{ITALIAN_WINE}']")
    wait_for_answer(page, 4)
    assert numbers_shown(page) == [
        p["product_id"] for p in recommended(shop, customers[5], *basket, ITALIAN_WINE)["products"]
    ]
    assert text(page, f"#shelves [data-product='{ITALIAN_WINE}']") == "In the basket"

    page.click("#basket li:nth-child(1) .remove")
    wait_for_answer(page, 5)
    assert page.run("document.querySelectorAll('#basket li').length") == 1
    assert text(page, "#total") == text(page, "#basket li .price")
    page.click("#basket li:nth-child(1) .remove")
    wait_for_answer(page, 6)
    assert text(page, "#answered .origin") == "lookup"
    assert numbers_shown(page) == of_other


def test_a_new_customer_orders_and_is_known(page: Page, folder: Path) -> None:
    new = customers_of(page)[-1]
    choose(page, new)
    wait_for_answer(page, 2)
    assert page.run("[...document.querySelectorAll('#recommended .known')].filter(e => !e.hidden).length") == 0
    bought = numbers_shown(page)[0]
    page.click("#recommended li:nth-child(1) .add")
    wait_for_answer(page, 3)
    page.click("#order")
    wait_for_answer(page, 4)
    assert page.run("document.querySelectorAll('#basket li').length") == 0
    assert text(page, "#news") == "Thank you. What you ordered counts already."
    shown = page.run(f"!document.querySelector('#recommended li:has([data-product=\"{bought}\"]) .known').hidden")
    assert shown
    with closing(sqlite3.connect(folder / "shop.sqlite")) as database:
        rows = database.execute("SELECT product_id FROM purchases WHERE customer_id = ?", [new]).fetchall()
    assert rows == [(bought,)]


def test_the_home_page_follows_the_nights(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = trained_copy(tmp_path_factory)
    with Server(folder) as server, open_shop(folder, server.url) as shop:

        def show() -> tuple[str, str, list[int]]:
            """What the page says and shows, opened anew."""
            page.go(shop)
            wait_for_answer(page, 1)
            return text(page, "#answered .origin"), text(page, "#answered .how"), numbers_shown(page)

        page = browser.open(shop)

        # Before the first run.
        origin, how, shown = show()
        assert origin == "live"
        assert re.fullmatch(rf"There is nothing for you from last night: {JUST_NOW}", how)
        assert len(shown) == 10

        # A run that is too old.
        sereno(folder, "run", "recommender.py", "--date", nights_ago(4))
        wait_for_version(server, 1)
        assert show()[0] == "live"

        # Last night's. It computed what the model says, and stays, whatever is ordered until the next one.
        sereno(folder, "run", "recommender.py", "--date", nights_ago(1))
        wait_for_version(server, 2)
        origin, how, of_night_2 = show()
        assert origin == "lookup"
        assert re.fullmatch(FROM_LAST_NIGHT.format(version=2), how)
        assert of_night_2 == shown
        page.click("#recommended li:nth-child(10) .add")
        wait_for_answer(page, 2)
        page.click("#order")
        wait_for_answer(page, 3)
        assert numbers_shown(page) == of_night_2
        assert text(page, "#news").endswith("with your next basket at once, and on this page from tomorrow.")
        customer = customers_of(page)[0]

        # Who is new since then is asked live, until the next run knows them.
        new = customers_of(page)[-1]
        ordered = {"customer_id": new, "basket": [SALMON]}
        assert httpx.post(f"{shop}/api/orders", json=ordered).status_code == 201
        just_now = recommended(shop, new)
        assert just_now["origin"] == "live"
        sereno(folder, "run", "recommender.py", "--date", nights_ago(1))
        wait_for_version(server, 3)
        by_night = recommended(shop, new)
        assert (by_night["origin"], by_night["version"]) == ("lookup", 3)
        assert by_night["products"] == just_now["products"]
        ordered_since = recommended(shop, customer)
        assert ordered_since["products"] != recommended_by(folder, customer, version=2)
        assert ordered_since["products"] == recommended_by(folder, customer, version=3)
        assert re.fullmatch(FROM_LAST_NIGHT.format(version=3), show()[1])

        # Rolled back.
        sereno(folder, "rollback", "recommender")
        wait_for_version(server, 2)
        origin, how, shown = show()
        assert re.fullmatch(FROM_LAST_NIGHT.format(version=2), how)
        assert shown == of_night_2
        assert recommended(shop, customer)["products"] == recommended_by(folder, customer, version=2)
        assert recommended(shop, new)["origin"] == "live"
        assert page.complaints == []


def recommended_by(folder: Path, customer: int, version: int) -> Any:
    """What one run computed."""
    rows = read_predictions("recommender", home=folder, version=version).to_pylist()
    return next(row["products"] for row in rows if row["customer_id"] == customer)


def test_all_of_it_with_the_keyboard(page: Page) -> None:
    def focused(attribute: str) -> Any:
        return page.run(f"document.activeElement.{attribute}")

    page.press("Tab")
    assert focused("textContent") == "To the shelves"
    page.press("Tab")
    assert focused("id") == "customer"
    page.press("ArrowDown")
    wait_for_answer(page, 2)
    page.press("Tab")
    first = numbers_shown(page)[0]
    assert focused("dataset.product") == str(first)
    page.press("Enter")
    wait_for_answer(page, 3)
    # The list is another one, and the focus stays where it was in it.
    assert focused("dataset.product") == str(numbers_shown(page)[0])
    page.run("document.querySelector('.remove').focus()")
    page.press("Enter")
    wait_for_answer(page, 4)
    assert focused("id") == "basket-heading"
    assert page.run("getComputedStyle(document.querySelector('.skip')).outlineStyle") is not None


def test_what_a_screen_reader_hears(page: Page) -> None:
    assert page.names("combobox") == ["You are"]
    assert page.names("heading")[:2] == ["La Despensa fine food", "For you"]
    buttons = page.names("button")
    assert all(buttons)
    added = [name for name in buttons if name.startswith("Add ")]
    assert len(added) == 10 + 14  # recommended, and on the first shelf
    assert all(len(name) > len("Add ") for name in added)
    assert page.run("document.documentElement.lang") == "en"
    assert page.run("[...document.querySelectorAll('svg')].every(s => s.matches('[hidden], [aria-hidden=true]'))")
    page.click("#recommended li:nth-child(1) .add")
    wait_for_answer(page, 2)
    assert text(page, "[role=status]").endswith(": in the basket.")


def test_colours_can_be_told_apart(page: Page) -> None:
    """WCAG 2.2 AA: 4.5 between a text and what is behind it."""
    page.click("#recommended li:nth-child(1) .add")
    wait_for_answer(page, 2)
    poor = page.run(CONTRAST)
    assert poor == []


def test_it_fits_a_phone(page: Page) -> None:
    for width in (320, 360, 414, 768):
        page.resize(width, 740)
        assert page.run("document.scrollingElement.scrollWidth <= document.scrollingElement.clientWidth")
    page.resize(360, 740)
    small = page.run(
        "[...document.querySelectorAll('button, select')].map(e => e.getBoundingClientRect()).filter(r => r.height < 24).length"
    )
    assert small == 0  # WCAG 2.2 AA: 24 pixels for a finger


def test_without_an_answer_the_page_shows_bestsellers(browser: Browser, folder: Path) -> None:
    with ExitStack() as stack:
        # An address where nobody listens: taken, and kept from others, but never listened on.
        taken = stack.enter_context(socket.socket())
        taken.bind(("127.0.0.1", 0))
        shop = stack.enter_context(open_shop(folder, f"http://127.0.0.1:{taken.getsockname()[1]}"))
        opened = browser.open(shop)
        wait_for_answer(opened, 1)
        assert text(opened, "#answered .how") == "Our bestsellers, because the recommender does not answer."
        assert not opened.run("document.querySelector('#answered .origin').checkVisibility()")
        best = numbers_shown(opened)
        assert len(best) == 10
        opened.click("#recommended li:nth-child(1) .add")
        wait_for_answer(opened, 2)
        assert best[0] not in numbers_shown(opened)
        assert opened.complaints == []


CONTRAST = """(() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = parts(colour).map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if ((parts(colour)[3] ?? 1) === 1) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.textContent.trim() || !element.checkVisibility() || element.closest("script, template")) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.push([node.textContent.trim(), ratio]);
  }
  return poor;
})()"""
