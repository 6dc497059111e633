"""Writes the shop's database, shop.sqlite: its products, its registered customers, and what they bought.

    python prepare_shop.py

It stands for the shop's own systems. Sereno reads it (`read` and `fetch` in recommender.py); the shop (shop.py) reads
it too, and writes into it what is ordered.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
TABLES = """
CREATE TABLE products (
    product_id INTEGER PRIMARY KEY, shelf TEXT NOT NULL, name TEXT NOT NULL, price REAL NOT NULL
);
CREATE TABLE customers (
    customer_id INTEGER PRIMARY KEY,
    likes TEXT NOT NULL  -- the shelf of which they take more than others do
);
CREATE TABLE purchases (
    purchase_id INTEGER PRIMARY KEY,  -- in the order of time
    customer_id INTEGER NOT NULL REFERENCES customers,
    product_id INTEGER NOT NULL REFERENCES products,
    day TEXT NOT NULL
);
CREATE INDEX purchases_of_customer ON purchases (customer_id, purchase_id, product_id);
"""


def favourite_shelves(purchases: pd.DataFrame, products: pd.DataFrame) -> pd.Series:
    """Of each customer, the shelf whose share of their purchases is the largest multiple of its share in all."""
    shelf = purchases["product_id"].map(products.set_index("product_id")["shelf"])
    counts = pd.crosstab(purchases["customer_id"], shelf)
    usual = counts.sum() / counts.to_numpy().sum()
    # Ten purchases as others make them are added, so that one bunch of roses is not yet a love of flowers.
    return (counts + 10 * usual).div(counts.sum(axis=1) + 10, axis=0).div(usual).idxmax(axis=1)


def main() -> None:
    products = pd.read_csv(HERE / "data" / "products.csv")
    purchases = pd.read_parquet(HERE / "data" / "purchases.parquet").astype({"day": "str"})
    likes = favourite_shelves(purchases, products)

    new = HERE / "shop.sqlite.new"
    new.unlink(missing_ok=True)
    with closing(sqlite3.connect(new)) as shop, shop:
        shop.executescript(TABLES)
        shop.executemany("INSERT INTO products VALUES (?, ?, ?, ?)", products.itertuples(index=False))
        shop.executemany("INSERT INTO customers VALUES (?, ?)", likes.items())
        rows = purchases[["customer_id", "product_id", "day"]].itertuples(index=False)
        shop.executemany("INSERT INTO purchases (customer_id, product_id, day) VALUES (?, ?, ?)", rows)
    new.replace(HERE / "shop.sqlite")
    print(f"shop.sqlite: {len(products)} products, {len(likes):,} customers, {len(purchases):,} purchases")


if __name__ == "__main__":
    main()
