# /// script
# requires-python = ">=3.11"
# dependencies = ["sereno", "numpy"]
# ///
"""Ten products for a customer of a gourmet shop: by what is in the basket, and by what they bought before."""

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict

import numpy as np
from annotated_types import Ge, Le, MaxLen

from sereno import Fetched, Key, Model

ANSWERS = 10
BASKET = 100  # products at most
HISTORY = 200  # purchases that count, the newest
HALF_LIFE = 60  # purchases after which one counts half
# Exact in binary, as are the weights that train.py saves. Sums of them are exact too, in whatever order they are made,
# so a row gets the same answer to the last bit, alone or among thousands.
RECENCY = np.round(0.5 ** (np.arange(HISTORY) / HALF_LIFE) * 1024) / 1024


@dataclass(kw_only=True)
class Visit:
    """A customer who looks at the shop's page."""

    customer_id: Key[int]
    # Numbers of products. A visit begins with none: so a customer's number is enough to be answered, by night and online.
    basket: Annotated[list[int], MaxLen(BASKET)] = field(default_factory=list)
    bought: Fetched[list[int]]  # numbers of products, the newest purchase first


class Recommendation(TypedDict):
    product_id: int
    name: str
    score: Annotated[float, Ge(0), Le(1)]  # how likely it is that they buy it in this visit
    bought_before: bool


class Suggestions(TypedDict):
    products: Annotated[list[Recommendation], MaxLen(ANSWERS)]


model = Model("recommender", inputs=Visit, outputs=Suggestions, artifacts={"weights": "recommender.npz"})


class Weights(NamedTuple):
    """What train.py has learned."""

    numbers: Any  # of the products, ascending
    names: Any
    weights: Any  # (basket and history of each product) × products
    bias: Any


@model.load
def load(weights: Path) -> Weights:
    with np.load(weights) as saved:
        return Weights(*(saved[name] for name in Weights._fields))


@model.read
def read(database: Path) -> list[Visit]:
    """Every registered customer, before anything is in the basket."""
    with closing(connect(database)) as shop:
        customers = [customer for (customer,) in shop.execute("SELECT customer_id FROM customers ORDER BY customer_id")]
    bought = fetch(customers, database)
    return [Visit(customer_id=customer, bought=bought[customer]) for customer in customers]


@model.fetch
def fetch(customers: list[int], database: Path) -> dict[int, list[int]]:
    """What each of these customers bought; nothing yet, if the shop does not know them."""
    bought: dict[int, list[int]] = {customer: [] for customer in customers}
    with closing(connect(database)) as shop:
        purchases = shop.execute(
            "SELECT customer_id, product_id FROM purchases WHERE customer_id IN (SELECT value FROM json_each(?)) "
            "ORDER BY customer_id, purchase_id DESC",
            [json.dumps(customers)],
        )
        for customer, product in purchases:
            bought[customer].append(product)
    return {customer: products[:HISTORY] for customer, products in bought.items()}


def connect(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{database}?mode=ro", uri=True)


@model.predict
def predict(learned: Weights, visits: list[Visit]) -> list[Suggestions]:
    numbers, names, weights, bias = learned
    basket, history = features(visits, numbers)
    known = np.hstack([basket, history])
    used = np.flatnonzero(known.any(axis=0))  # of one visit, a tenth
    chance = known[:, used] @ weights[used] + bias
    chance[basket > 0] = -np.inf
    best = np.argsort(-chance, axis=1, kind="stable")[:, :ANSWERS]
    rows = np.arange(len(visits))[:, np.newaxis]
    columns = numbers[best], names[best], chance[rows, best].clip(0, 1), history[rows, best] > 0
    return [
        {
            "products": [
                {"product_id": number, "name": name, "score": score, "bought_before": before}
                for number, name, score, before in zip(*row, strict=True)
            ]
        }
        for row in zip(*(column.tolist() for column in columns), strict=True)
    ]


def features(visits: Sequence[Visit], numbers: Any) -> tuple[Any, Any]:
    """Visits × products: whether each is in the basket, and how often it was bought, lately above all."""
    basket = count([visit.basket for visit in visits], numbers, np.ones(BASKET))
    history = count([visit.bought[:HISTORY] for visit in visits], numbers, RECENCY)
    return np.minimum(basket, 1), history


def count(lists: Sequence[list[int]], numbers: Any, worth: Any) -> Any:
    """Lists × products: the sum of what each mention of a product is worth, by its place in the list."""
    lengths = np.array([len(products) for products in lists])
    mentioned = np.fromiter(chain.from_iterable(lists), dtype=np.int64, count=lengths.sum())
    row = np.repeat(np.arange(len(lists)), lengths)
    place = np.arange(len(mentioned)) - np.repeat(lengths.cumsum() - lengths, lengths)
    column = np.minimum(np.searchsorted(numbers, mentioned), len(numbers) - 1)
    known = numbers[column] == mentioned  # the shop may have products that are newer than the model
    cells = (row * len(numbers) + column)[known]
    return np.bincount(cells, worth[place[known]], len(lists) * len(numbers)).reshape(len(lists), len(numbers))


if __name__ == "__main__":
    model.main()
