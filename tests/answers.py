"""Answers to keep: a model with every kind of column, and a log that is written and handed over at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, TypedDict

from sereno import Digits, Fetched, Key
from sereno.answers.folder import segments_folder
from sereno.answers.log import AnswerLog, Mode
from sereno.schema import RowType, row_type


class Item(TypedDict):
    product: str
    price: Annotated[Decimal, Digits(8, 2)] | None
    since: date


class Asked(TypedDict):
    customer: Key[int]
    amount: float
    count: int | None
    is_new: bool
    name: str | None
    birth: date
    seen: datetime
    income: Annotated[Decimal, Digits(12, 2)]
    basket: list[Item]
    bought: Fetched[list[float]]
    last: Item | None


class Told(TypedDict):
    score: float
    band: str | None
    products: list[Item]


ASKED, TOLD = row_type(Asked), row_type(Told)
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
Rows = Sequence[tuple[Any, ...]]


def item(number: int) -> dict[str, Any]:
    return {
        "product": f"cheese {number}",
        "price": Decimal(f"{number}.50") if number % 3 else None,
        "since": date(2020, 1, 1 + number % 28),
    }


def asked(number: int, customer: int | None = None) -> tuple[Any, ...]:
    """A canonical row; `number` decides all of it."""
    return (
        number if customer is None else customer,
        number / 8,
        None if number % 4 == 0 else number,
        number % 2 == 0,
        None if number % 5 == 0 else f"naïve ☕ {number}",
        date(1970 + number % 50, 2, 28),
        datetime(2026, 4, 1, 1, 2, 3, number, UTC),
        Decimal(f"{number}.25"),
        [item(i) for i in range(number % 3)],
        [float(i) for i in range(number % 4)],
        item(number) if number % 2 else None,
    )


def told(number: int) -> tuple[Any, ...]:
    return (number / 1000, "ABCD"[number % 4] if number % 7 else None, [item(i) for i in range(number % 2)])


def expected(number: int, customer: int | None = None) -> dict[str, Any]:
    """The same as the table has it."""
    names = [c.name for c in (*ASKED.columns, *TOLD.columns)]
    return dict(zip(names, (*asked(number, customer), *told(number)), strict=True))


def open_log(home: Path, mode: Mode = "async", model: str = "shop", **options: Any) -> AnswerLog:
    options = {"fingerprint": "ab" * 32, "inputs": ASKED, "outputs": TOLD} | options
    return AnswerLog(segments_folder(home, model), model, mode, **options)


def nothing(error: Exception | None) -> None:
    assert error is None


def keep(
    home: Path,
    numbers: Sequence[int],
    *,
    when: datetime = NOON,
    customer: Callable[[int], int | None] = lambda number: None,
    **options: Any,
) -> None:
    """Write the answers of these numbers to a segment, and seal it. Each is a request of its own, a second apart."""

    async def main() -> None:
        log = open_log(home, **options)
        for number in numbers:
            row = asked(number, customer(number))
            log.append(when.timestamp() + number, [f"r{number}".encode()], [row], [told(number)], nothing)
        log.close()
        assert log.dropped == 0

    asyncio.run(main())


def keep_rows(
    home: Path, inputs: type, outputs: type, rows: Rows, answers: Rows, *, when: datetime = NOON, **options: Any
) -> None:
    """Write answers of another model version."""
    types: dict[str, RowType] = {"inputs": row_type(inputs), "outputs": row_type(outputs)}
    log = open_log(home, **types, **options)
    log.append(when.timestamp(), [b"r"] * len(rows), rows, answers, nothing)
    log.close()


def run_on_loop(log: AnswerLog, batches: Sequence[tuple[list[bytes], Rows, Rows]]) -> list[Exception | None]:
    """Append batches on an event loop, and wait until each may leave: what `then` was told."""

    async def main() -> list[Exception | None]:
        loop = asyncio.get_running_loop()
        waiting = []
        for ids, rows, answers in batches:
            future: asyncio.Future[Exception | None] = loop.create_future()

            def then(error: Exception | None, future: asyncio.Future[Exception | None] = future) -> None:
                assert threading.current_thread() is threading.main_thread()
                future.set_result(error)

            log.append(NOON.timestamp(), ids, rows, answers, then)
            waiting.append(future)
        return list(await asyncio.gather(*waiting))

    return asyncio.run(main())
