"""The bank's marketing system: pre-granted credit offers, updated from last night's scores.

    python marketing.py                       on the morning after the scores were published
    python marketing.py --today 2026-05-02    as on that morning

It stands for any program that uses published predictions, and has none of Sereno's code: it reads a folder with a
manifest (JSON) and Parquet files. Offers live in SQLite. They change all together or, when anything is wrong with the
scores, not at all (exit code 1).
"""

import argparse
import hashlib
import json
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

MODEL = "credit-scoring"
MOST = {"A": 10_000, "B": 5_000, "C": 1_500, "D": 0}  # the largest offer by risk band, in DM
MOST_LOSS = 600  # what one offer may cost on average, in DM: amount × probability of default
STEP = 500  # offers are round amounts
EXAMPLES = 3  # lines printed for each kind of change


class RefusedError(Exception):
    """The scores cannot be used; offers stay as they are."""


class Offer(NamedTuple):
    amount: int  # DM
    band: str  # "A" (safest) to "D"


class Change(NamedTuple):
    kind: str  # new, raised, lowered, withdrawn or unchanged
    customer: int
    old: Offer | None
    new: Offer | None


def latest_folder(exports: Path) -> Path:
    """The folder that `latest` leads to now.

    The link is followed once, and everything is read from where it led: a version that is published while we read
    cannot mix with the one that we began.
    """
    try:
        return (exports / "latest").resolve(strict=True)
    except OSError:
        raise RefusedError(f"there are no published scores at {exports}/latest. Was the model run?") from None


def read_manifest(folder: Path, today: date) -> dict[str, Any]:
    """What was published, provided that it is last night's."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    except (OSError, ValueError) as error:
        raise RefusedError(f"{folder}/manifest.json cannot be read: {error}.") from None
    if (manifest["model"], manifest["format"]) != (MODEL, "parquet"):
        raise RefusedError(f"{folder} has {manifest['format']} of {manifest['model']}, not parquet of {MODEL}.")
    last_night = today - timedelta(days=1)
    if date.fromisoformat(manifest["data_date"]) != last_night:
        raise RefusedError(
            f"the published scores are of {manifest['data_date']}, and last night was {last_night}. "
            f"Ask the scoring team, or see `sereno runs {MODEL}`; then run this again."
        )
    return manifest


def read_scores(folder: Path, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """All the scores of one version. The very bytes whose SHA-256 was checked are the ones that are read."""
    rows: list[dict[str, Any]] = []
    for file in manifest["files"]:
        path = folder / file["name"]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise RefusedError(f"{path} cannot be read: {error.strerror}.") from None
        if hashlib.sha256(content).hexdigest() != file["sha256"]:
            raise RefusedError(f"{path} is not what was published: its SHA-256 is not the manifest's.")
        part = pq.read_table(pa.BufferReader(content), columns=["customer_id", "probability_of_default", "band"])
        if part.num_rows != file["rows"]:
            raise RefusedError(f"{path} has {part.num_rows:,} rows, and the manifest says {file['rows']:,}.")
        rows += part.to_pylist()
    if len(rows) != manifest["rows"]:
        raise RefusedError(f"the files of {folder} have {len(rows):,} rows, the manifest says {manifest['rows']:,}.")
    return rows


def offer_for(probability_of_default: float, band: str) -> Offer | None:
    """The business rule: the band sets the most, and no offer may cost more than MOST_LOSS on average."""
    affordable = MOST_LOSS / probability_of_default if probability_of_default else MOST[band]
    amount = int(min(MOST[band], affordable)) // STEP * STEP
    return Offer(amount, band) if amount else None


def kind_of_change(old: Offer | None, new: Offer | None) -> str:
    if old is None:
        return "new"
    if new is None:
        return "withdrawn"
    return "raised" if new.amount > old.amount else "lowered" if new.amount < old.amount else "unchanged"


def compare(offers: dict[int, Offer], scores: list[dict[str, Any]]) -> list[Change]:
    """What today's scores make of the present offers. A customer who was not scored gets no offer."""
    wanted = {row["customer_id"]: offer_for(row["probability_of_default"], row["band"]) for row in scores}
    changes = []
    for customer in sorted(offers.keys() | wanted.keys()):
        old, new = offers.get(customer), wanted.get(customer)
        if old or new:
            changes.append(Change(kind_of_change(old, new), customer, old, new))
    return changes


def update_offers(database: Path, manifest: dict[str, Any], scores: list[dict[str, Any]]) -> list[Change]:
    """Replace the offers, all in one transaction."""
    # `with connection` commits at its end, or rolls back after an error.
    with closing(sqlite3.connect(database, isolation_level=None)) as connection, connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS offers (customer_id INTEGER PRIMARY KEY, amount INTEGER NOT NULL, "
            "band TEXT NOT NULL, data_date TEXT NOT NULL, version INTEGER NOT NULL)"
        )
        present = connection.execute("SELECT customer_id, amount, band FROM offers")
        changes = compare({customer: Offer(amount, band) for customer, amount, band in present}, scores)
        connection.execute("DELETE FROM offers")
        connection.executemany(
            "INSERT INTO offers VALUES (?, ?, ?, ?, ?)",
            [
                (change.customer, change.new.amount, change.new.band, manifest["data_date"], manifest["version"])
                for change in changes
                if change.new
            ],
        )
    return changes


def describe(offer: Offer | None) -> str:
    return f"{offer.amount:,} DM (band {offer.band})" if offer else "no offer"


def print_changes(changes: list[Change]) -> None:
    counts = Counter(change.kind for change in changes)
    kinds = ("new", "raised", "lowered", "withdrawn")
    print("Offers: " + ", ".join(f"{counts[kind]:,} {kind}" for kind in (*kinds, "unchanged")) + ".")
    for kind in kinds:
        examples = [change for change in changes if change.kind == kind][:EXAMPLES]
        for change in examples:
            old, new = describe(change.old), describe(change.new)
            print(f"  {kind:<10} customer {change.customer}  {old:>19} -> {new}")
        if counts[kind] > len(examples):
            print(f"  {'':<10} … and {counts[kind] - len(examples):,} more")


def main() -> int:
    parser = argparse.ArgumentParser(description="Update the pre-granted credit offers from last night's scores.")
    parser.add_argument("--today", type=date.fromisoformat, default=date.today(), metavar="DATE")
    parser.add_argument("--exports", type=Path, default=Path("exports") / MODEL / "parquet", metavar="FOLDER")
    parser.add_argument("--database", type=Path, default=Path("offers.sqlite"), metavar="FILE")
    options = parser.parse_args()

    try:
        folder = latest_folder(options.exports)
        manifest = read_manifest(folder, options.today)
        scores = read_scores(folder, manifest)
    except RefusedError as refused:
        print(f"Offers stay as they are: {refused}", file=sys.stderr)
        return 1
    changes = update_offers(options.database, manifest, scores)
    print(f"Scores of {manifest['data_date']}, version {manifest['version']}: {manifest['rows']:,} customers, checked.")
    print_changes(changes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
