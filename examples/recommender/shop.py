"""The shop: a web server of its own, which asks Sereno what to recommend, as any shop's would.

    sereno serve                           in one terminal
    python shop.py                         in another; then open the address that it prints
    python shop.py --sell 1104 601 814     orders two products for customer 1104, without the page

The page talks to this server only. This server reads and writes shop.sqlite, and asks Sereno over one connection that
it keeps open. The home page, of a customer whose basket is empty, looks up what last night's run computed; with something
in the basket, the model is asked live. When no answer comes in time, the page shows bestsellers: a shop must not stop
because a model does.
"""

import argparse
import asyncio
import contextlib
import json
import socket
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

import sereno

HERE = Path(__file__).parent
PAGES = {"/": "index.html", "/shop.css": "shop.css", "/shop.js": "shop.js"}
HEADERS = {
    # The page can load nothing from elsewhere, and send nothing elsewhere.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Shop:
    def __init__(self, database: Path, address: str, patience_seconds: float = 1.0) -> None:
        self.database, self.address, self.patience_seconds = database, address, patience_seconds
        self.client: sereno.AsyncClient

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.client = sereno.AsyncClient(self.address, model="recommender", timeout_seconds=self.patience_seconds)
        async with self.client:
            yield

    async def recommend(self, request: Request) -> Response:
        """What the page asks when a customer comes, and whenever the basket changes."""
        visit = await visit_of(request)
        if visit is None:
            return JSONResponse({"error": "A customer_id and a basket of product numbers are needed."}, status_code=400)
        started = time.perf_counter()
        try:
            answer = await (self.for_basket(visit) if visit["basket"] else self.for_home_page(visit["customer_id"]))
        except sereno.ServerError as error:
            if error.status == 422:  # what the page sent makes no sense to the model: its mistake, or an attack
                return JSONResponse({"error": str(error)}, status_code=422)
            print(f"Bestsellers are shown instead of recommendations: {error}", file=sys.stderr)
            answer = {
                "products": await asyncio.to_thread(self.bestsellers, visit["basket"]),
                "origin": "bestsellers",
            }
        milliseconds = round(1000 * (time.perf_counter() - started), 1)
        return JSONResponse(answer | {"milliseconds": milliseconds})

    async def for_home_page(self, customer: int) -> dict[str, Any]:
        """What last night's run computed, and how old it is. Sereno asks the model itself about whom it did not know."""
        found = await self.client.lookup(customer)
        return {
            "products": found.prediction["products"],
            "origin": found.origin,
            "version": found.version,
            "age_seconds": found.age_seconds,
        }

    async def for_basket(self, visit: dict[str, Any]) -> dict[str, Any]:
        return {"products": (await self.client.predict(visit))["products"], "origin": "live"}

    async def order(self, request: Request) -> Response:
        visit = await visit_of(request)
        if visit is None or not visit["basket"]:
            return JSONResponse({"error": "A customer_id and a basket that is not empty are needed."}, status_code=400)
        try:
            await asyncio.to_thread(self.sell, visit["customer_id"], visit["basket"])
        except sqlite3.IntegrityError:
            return JSONResponse({"error": "The shop does not have all of these products."}, status_code=422)
        return JSONResponse({"ordered": len(visit["basket"])}, status_code=201)

    async def catalogue(self, request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(self.goods_and_customers))

    def goods_and_customers(self) -> dict[str, Any]:
        """All products, and for each shelf a customer who likes it: of those who bought 150 to 400, the first."""
        with closing(self.connect()) as shop:
            products = shop.execute("SELECT product_id, shelf, name, price FROM products ORDER BY product_id")
            customers = shop.execute(
                "SELECT min(customer_id) AS customer_id, likes FROM customers WHERE customer_id IN "
                "(SELECT customer_id FROM purchases GROUP BY customer_id HAVING count(*) BETWEEN 150 AND 400) "
                "GROUP BY likes ORDER BY customer_id"
            )
            new = shop.execute("SELECT max(customer_id) + 1 FROM customers").fetchone()[0]
            return {
                "products": [dict(row) for row in products],
                "customers": [*(dict(row) for row in customers), {"customer_id": new, "likes": None}],
            }

    def bestsellers(self, basket: list[int]) -> list[dict[str, Any]]:
        with closing(self.connect()) as shop:
            found = shop.execute(
                "SELECT product_id, name FROM purchases JOIN products USING (product_id) "
                "WHERE product_id NOT IN (SELECT value FROM json_each(?)) "
                "GROUP BY product_id ORDER BY count(*) DESC LIMIT 10",
                [json.dumps(basket)],
            )
            return [dict(row) for row in found]

    def sell(self, customer: int, basket: list[int]) -> None:
        """Write the order down, whole or not at all. `fetch` in recommender.py knows of it from then on."""
        with closing(self.connect()) as shop, shop:
            shop.execute("PRAGMA foreign_keys = ON")
            shop.execute("INSERT INTO customers VALUES (?, '') ON CONFLICT DO NOTHING", [customer])
            today = date.today().isoformat()
            shop.executemany(
                "INSERT INTO purchases (customer_id, product_id, day) VALUES (?, ?, ?)",
                [(customer, product, today) for product in basket],
            )

    def connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(f"file:{self.database}?mode=rw", uri=True)
        connection.row_factory = sqlite3.Row
        return connection


async def visit_of(request: Request) -> dict[str, Any] | None:
    """Who it is, and what is in the basket; nothing else that the request may hold."""
    try:
        sent = await request.json()
        visit = {"customer_id": sent["customer_id"], "basket": sent["basket"]}
    except (ValueError, KeyError, TypeError):
        return None
    whole = type(visit["customer_id"]) is int and isinstance(visit["basket"], list)
    return visit if whole and all(type(product) is int for product in visit["basket"]) else None


def page(file: str) -> Callable[[Request], Response]:
    return lambda request: FileResponse(HERE / "shop" / file, headers=HEADERS)


def make_app(shop: Shop) -> Starlette:
    routes = [Route(path, page(file)) for path, file in PAGES.items()]
    routes += [
        Route("/api/catalogue", shop.catalogue),
        Route("/api/recommendations", shop.recommend, methods=["POST"]),
        Route("/api/orders", shop.order, methods=["POST"]),
    ]
    app = Starlette(routes=routes, lifespan=shop.lifespan)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description="Open the shop.")
    parser.add_argument("--sereno", default="http://127.0.0.1:8000", metavar="ADDRESS", help="where `sereno serve` is")
    parser.add_argument("--port", type=int, default=8080, help="of the shop; 0: one that is free")
    parser.add_argument("--database", type=Path, default=HERE / "shop.sqlite", metavar="FILE")
    parser.add_argument(
        "--patience", type=float, default=1.0, metavar="SECONDS", help="then the page shows bestsellers (default: 1)"
    )
    parser.add_argument(
        "--sell",
        type=int,
        nargs="+",
        metavar="N",
        help="open nothing: order these products, after the customer's number",
    )
    options = parser.parse_args()
    if not options.database.is_file():
        parser.error(f"there is no {options.database}; `python prepare_shop.py` makes it")
    shop = Shop(options.database, options.sereno, options.patience)
    if options.sell:
        customer, *basket = options.sell
        try:
            shop.sell(customer, basket)
        except sqlite3.IntegrityError:
            parser.error("the shop does not have all of these products")
        print(f"Customer {customer} bought {len(basket)} products.")
        return

    listening = socket.create_server(("127.0.0.1", options.port))
    print(f"The shop is open at http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    config = uvicorn.Config(make_app(shop), log_level="warning")
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
