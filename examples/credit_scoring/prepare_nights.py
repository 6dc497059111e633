"""Writes the bank's warehouse for three nights: warehouse/applicants/<date>.parquet.

    python prepare_nights.py               the three nights; the third arrives broken
    python prepare_nights.py --repair      the third night again, whole

The customers are the 1,000 real applicants of data/german_credit.csv, drawn many times with a fixed seed: the rows
are the same whenever they are made.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).parent
NIGHTS = ("2026-05-01", "2026-05-02", "2026-05-03")
CUSTOMERS = 4_000
FIRST_ID = 100_001

# What a customer may change from one day to the next.
REQUEST = ["duration_months", "purpose", "credit_amount", "installment_rate"]
ACCOUNTS = ["checking_account", "savings"]


def draw(real: pd.DataFrame, rows: int, first_id: int, rng: np.random.Generator) -> pd.DataFrame:
    """As many customers, each a real applicant with a number of their own."""
    drawn = real.sample(rows, replace=True, random_state=rng, ignore_index=True)
    drawn.insert(0, "customer_id", range(first_id, first_id + rows))
    return drawn


def next_day(customers: pd.DataFrame, real: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """The same customers a day later: some ask for another credit, some accounts move, some leave, some are new."""
    later = customers.sample(frac=0.985, random_state=rng).sort_values("customer_id", ignore_index=True)
    for columns, share in ((REQUEST, 0.06), (ACCOUNTS, 0.04)):
        changed = later.sample(frac=share, random_state=rng).index
        later.loc[changed, columns] = real[columns].sample(len(changed), replace=True, random_state=rng).to_numpy()
    newcomers = draw(real, 80, int(customers["customer_id"].max()) + 1, rng)
    return pd.concat([later, newcomers], ignore_index=True)


def break_rows(customers: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """A few rows as real feeds break them. Sereno rejects these rows, says why, and scores all the others."""
    broken = customers.astype({"credit_amount": "Int64"})
    rows = rng.choice(len(broken), size=6, replace=False)
    broken.loc[rows[:3], "credit_amount"] = pd.NA  # the amount is missing
    broken.loc[rows[3:5], "purpose"] = "e_bike"  # a new product, and nobody told the model's owner
    broken.loc[rows[5], "age"] = 126  # born on 1900-01-01: what a form fills in when nothing is typed
    return broken


def cut_off(customers: pd.DataFrame) -> pd.DataFrame:
    """The third night: the warehouse was read while it was still being loaded, and most customers are not there yet.

    The rows that are there are fine, so no check of single rows can notice. Published, they would make marketing
    withdraw the offers of everybody who is missing. Sereno holds the run, because it has less than half the rows of
    the night before, which stays in service.
    """
    return customers.head(1_500)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the bank's warehouse for three nights.")
    parser.add_argument("--repair", action="store_true", help="write the third night only, and whole")
    repair = parser.parse_args().repair

    real = pd.read_csv(HERE / "data" / "german_credit.csv").drop(columns="outcome")
    rng = np.random.default_rng(20260501)
    first = draw(real, CUSTOMERS, FIRST_ID, rng)
    second = next_day(first, real, rng)
    third = next_day(second, real, rng)
    arrivals = [break_rows(night, rng) for night in (first, second, third)]

    folder = HERE / "warehouse" / "applicants"
    folder.mkdir(parents=True, exist_ok=True)
    for night, customers in zip(NIGHTS, arrivals, strict=True):
        last = night == NIGHTS[-1]
        if repair and not last:
            continue
        broken = last and not repair
        arrived = cut_off(customers) if broken else customers
        arrived.to_parquet(folder / f"{night}.parquet", index=False)
        note = f"  (cut off while it was loaded; {len(customers):,} were due)" if broken else ""
        print(f"warehouse/applicants/{night}.parquet  {len(arrived):>5,} customers{note}")


if __name__ == "__main__":
    main()
