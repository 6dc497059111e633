"""Asks Sereno for recommendations, as a web developer's code would.

    python ask.py 1104                     for customer 1104, with an empty basket: computed now
    python ask.py 1104 1210 1213           with two products in the basket
    python ask.py 1104 --home              what last night's run computed, for the home page
    python ask.py 1104 --again 500         500 times over one connection, and how long that takes

1210 is spaghetti and 1213 a good sauce for it: data/products.csv has all numbers.
"""

import argparse
import json
import sys
import time
from typing import Any

import sereno


def describe(found: sereno.Lookup) -> str:
    """Where an answer comes from."""
    if found.origin == "live":
        return "computed just now: of this customer nothing is published, or what is there is too old"
    return f"of the run for {found.data_date}: version {found.version}, {found.age_seconds / 3600:.1f} hours old"


def main() -> int:
    parser = argparse.ArgumentParser(description="Ask Sereno for recommendations.")
    parser.add_argument("customer", type=int)
    parser.add_argument("basket", type=int, nargs="*", help="numbers of products")
    parser.add_argument("--home", action="store_true", help="look up what last night's run computed")
    parser.add_argument("--again", type=int, default=0, metavar="N", help="ask N times more, and say how long it takes")
    parser.add_argument("--sereno", default="http://127.0.0.1:8000", metavar="ADDRESS")
    options = parser.parse_args()
    if options.home and options.basket:
        parser.error("the run by night knows of no basket; leave out --home, or the products")
    visit = {"customer_id": options.customer, "basket": options.basket}

    with sereno.Client(options.sereno, model="recommender") as client:

        def ask() -> tuple[dict[str, Any], str]:
            """The answer, and a word about it."""
            if not options.home:
                return client.predict(visit), "computed just now"
            found = client.lookup(options.customer)
            return found.prediction, describe(found)

        try:
            answer, origin = ask()
        except sereno.SerenoError as error:
            print(error, file=sys.stderr)
            if isinstance(error, sereno.UnavailableError):
                print("`sereno serve`, in this folder, starts a server; --sereno names another one.", file=sys.stderr)
            return 1
        address = f"{options.sereno}/models/recommender"
        if options.home:
            print(f"GET {address}/predictions/{options.customer}")
        else:
            print(f"POST {address}/predict  {json.dumps(visit)}")
        for product in answer["products"]:
            known = "bought before" if product["bought_before"] else ""
            print(f"{product['product_id']:>6}  {product['name']:<40} {product['score']:>6.1%}  {known}".rstrip())
        print(origin)

        seconds = []
        for _ in range(options.again):
            started = time.perf_counter()
            ask()
            seconds.append(time.perf_counter() - started)
    if seconds:
        seconds.sort()
        half, most = seconds[len(seconds) // 2], seconds[len(seconds) * 99 // 100]
        print(f"{len(seconds)} times more: half within {1000 * half:.2f} ms, 99 % within {1000 * most:.2f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
