"""Learns from a year of purchases what goes together, and saves it as recommender.npz.

    python train.py

Each basket is cut in two at random: what is in it already, and what is still to come. Two item–item matrices, one for
what is in the basket and one for what was bought before, are fitted together by ridge regression, so that they foretell
the rest best. The features are made by recommender.py, so they mean the same here and in production.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import pandas as pd
from recommender import ANSWERS, HISTORY, Visit, Weights, count, features, predict

HERE = Path(__file__).parent
WARM_UP = date(2017, 2, 1)  # before that day, nobody has a history worth learning from
TEST = date(2017, 12, 1)
EMPTY_SHARE = 0.2  # of the cuts leave the basket empty: the customer has only just come
RIDGE = 100.0  # this, HISTORY and HALF_LIFE were chosen on November, by models that had learned until October
SCALE = 2.0**30  # weights are multiples of 1 / SCALE; recommender.py says why
BLOCK = 2_000  # visits at a time

Recommend = Callable[[list[Visit]], list[list[int]]]


class Basket(NamedTuple):
    day: date
    customer: int
    products: list[int]
    past: list[int]  # all that this customer buys in the year, in order …
    position: int  # … and where this basket begins

    def cut(self, known: int, rng: Random) -> tuple[Visit, list[int]]:
        """A visit at the moment when `known` products are in the basket, and what is still to come."""
        products = rng.sample(self.products, len(self.products))
        bought = self.past[max(0, self.position - HISTORY) : self.position][::-1]
        return Visit(customer_id=self.customer, basket=products[:known], bought=bought), products[known:]


def read_baskets() -> list[Basket]:
    purchases = pd.read_parquet(HERE / "data" / "purchases.parquet")
    products = purchases["product_id"].tolist()
    first = np.flatnonzero(purchases["basket_id"].diff())  # the lines of a basket stand together
    heads = purchases.iloc[first]
    past: dict[int, list[int]] = {}
    baskets = []
    for day, customer, start, end in zip(
        heads["day"], heads["customer_id"].tolist(), first, [*first[1:], len(products)], strict=True
    ):
        own = past.setdefault(customer, [])
        baskets.append(Basket(day, customer, products[start:end], own, len(own)))
        own += products[start:end]
    return baskets


class Regression:
    """Ridge regression of what is still to come on what is known; baskets can be added."""

    def __init__(self, products: pd.DataFrame) -> None:
        self.products = products
        self.numbers = products["product_id"].to_numpy()
        size = 2 * len(products) + 1
        self.gram, self.target = np.zeros((size, size)), np.zeros((size, len(products)))
        self.rng = Random(0)

    def add(self, baskets: list[Basket]) -> None:
        for start in range(0, len(baskets), BLOCK):
            visits, rest = zip(*map(self.cut, baskets[start : start + BLOCK]), strict=True)
            known = np.hstack([*features(visits, self.numbers), np.ones((len(visits), 1))])
            self.gram += known.T @ known
            self.target += known.T @ count(rest, self.numbers, np.ones(1_000))

    def cut(self, basket: Basket) -> tuple[Visit, list[int]]:
        most = len(basket.products)
        has_just_come = most == 1 or self.rng.random() < EMPTY_SHARE
        return basket.cut(0 if has_just_come else self.rng.randrange(1, most), self.rng)

    def solve(self) -> Weights:
        penalty = np.full(len(self.gram), RIDGE)
        penalty[-1] = 0  # the constant: how often each product is bought at all
        weights = np.round(np.linalg.solve(self.gram + np.diag(penalty), self.target) * SCALE) / SCALE
        return Weights(self.numbers, self.products["name"].to_numpy(dtype=str), weights[:-1], weights[-1])


def bestsellers(baskets: list[Basket]) -> Recommend:
    ranking = [product for product, _ in Counter(p for basket in baskets for p in basket.products).most_common()]
    return lambda visits: [[p for p in ranking if p not in visit.basket][:ANSWERS] for visit in visits]


def own_favourites(baskets: list[Basket]) -> Recommend:
    """What the customer bought most often; then bestsellers."""
    others = bestsellers(baskets)

    def recommend(visits: list[Visit]) -> list[list[int]]:
        found = []
        for visit, more in zip(visits, others(visits), strict=True):
            own = [p for p, _ in Counter(visit.bought).most_common() if p not in visit.basket]
            found.append([*own, *(p for p in more if p not in own)][:ANSWERS])
        return found

    return recommend


def by_model(learned: Weights) -> Recommend:
    return lambda visits: [[p["product_id"] for p in row["products"]] for row in predict(learned, visits)]


def measure(recommend: Recommend, visits: list[Visit], rest: list[list[int]]) -> str:
    """Of what was still to come: the share that is among the ten; and visits where one of it is."""
    hits = [len(set(ten) & set(coming)) for ten, coming in zip(recommend(visits), rest, strict=True)]
    shares = [hit / len(coming) for hit, coming in zip(hits, rest, strict=True)]
    return f"{np.mean(shares):>7.1%} {np.mean(np.array(hits) > 0):>7.1%}"


def report(learned: Weights, before: list[Basket], december: list[Basket]) -> None:
    rng = Random(1)
    several = [basket for basket in december if len(basket.products) > 1]
    half = [basket.cut(len(basket.products) // 2, rng) for basket in several]
    situations = {
        "half of the basket is known": half,
        "the basket is still empty": [basket.cut(0, rng) for basket in december],
        "half is known, of a new customer": [(replace(visit, bought=[]), rest) for visit, rest in half],
    }
    recommenders = {
        "bestsellers": bestsellers(before),
        "own favourites": own_favourites(before),
        "the model": by_model(learned),
    }
    print(f"\n{'December, not learned from':<34}" + "".join(f"{name:>18}" for name in recommenders))
    for situation, cuts in situations.items():
        visits, rest = [visit for visit, _ in cuts], [rest for _, rest in cuts]
        found = "".join(f"   {measure(recommend, visits, rest)}" for recommend in recommenders.values())
        print(f"{situation:<34}{found}   {len(visits):,} visits")


def report_scores(learned: Weights, cuts: list[tuple[Visit, list[int]]]) -> None:
    """Whether scores are what they say they are: how likely it is."""
    answers = predict(learned, [visit for visit, _ in cuts])
    shown = [
        (p["score"], p["product_id"] in rest)
        for row, (_, rest) in zip(answers, cuts, strict=True)
        for p in row["products"]
    ]
    score, bought = np.mean(shown, axis=0)
    print(
        f"\nAt a random moment of a visit: ten products with a score of {score:.1%} on average, {bought:.1%} were bought."
    )


def main() -> None:
    products = pd.read_csv(HERE / "data" / "products.csv")
    baskets = read_baskets()
    before = [basket for basket in baskets if WARM_UP <= basket.day < TEST]
    december = [basket for basket in baskets if basket.day >= TEST]
    print(f"{len(baskets):,} baskets, {len(products)} products.")

    regression = Regression(products)
    regression.add(before)
    learned = regression.solve()
    report(learned, before, december)
    report_scores(learned, [regression.cut(basket) for basket in december])
    regression.add(december)
    np.savez_compressed(HERE / "recommender.npz", **regression.solve()._asdict())
    print("\nSaved recommender.npz, learned from the whole year.")


if __name__ == "__main__":
    main()
