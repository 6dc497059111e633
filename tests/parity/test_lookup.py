"""The first promise, for lookups: what is found under a key is what the run published and what live answers, to the byte."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pyarrow as pa
import pytest

import sereno
from sereno.loader import load_model
from sereno.madeup import made_up
from sereno.rows import encode
from tests.acceptance.server import Server
from tests.lookups import publish

EVERYTHING = Path(__file__).parents[1] / "models" / "everything.py"
# every fifth prediction is null, which is no unknown key
KEYED = '''
"""Tells a row by its key."""
from datetime import date
from typing import TypedDict
from sereno import Key, Model


class Row(TypedDict):
{keys}
    place: int


class Place(TypedDict):
    place: int | None
    share: float | None


model = Model("{name}", inputs=Row, outputs=Place)


@model.load
def load() -> None: ...


@model.predict
def predict(loaded: None, rows: list[Row]) -> list[Place]:
    return [
        {{"place": row["place"], "share": row["place"] / 7}} if row["place"] % 5 else {{"place": None, "share": None}}
        for row in rows
    ]
'''
WHOLE = [-(2**63), -(2**32), -257, -256, -255, -1, 0, 1, 2, 9, 10, 255, 256, 2**31, 2**53 + 1, 10**18, 2**63 - 1]
DAYS = [date.min, date(1969, 12, 31), date(1970, 1, 1), date(2024, 2, 29), date(2026, 5, 1), date.max]
LONG = "x" * 480  # beyond which a key is told by its SHA-256
TEXTS = [
    "", " ", "  ", ".", "..", "...", "/", "//", "a/b", "a%2Fb", "%", "%25", "+", "a+b", "a b", "?", "#", "a?b#c", ";", "&",
    "0", "00", "7", "07", "-7", "a", "A", "aa", "ab", "b", "null", "true", '"', "'", "\\", "\t", "\n", "\0", "a\0", "a\0b",
    "é", "e\u0301", "ß", "ss", "ı", "İ", "東京", "🙂", "\u2028", "\ufeff", "\u200b", "predictions",
    LONG, LONG + "a", LONG + "b" * 26, LONG + "b" * 27, LONG + "b" * 28, LONG * 9, LONG * 9 + "a",
]  # fmt: skip
FEW = ["", "a", "ab", "b", "/", "a/", "é", LONG]
KEYS: dict[str, dict[str, Sequence[Any]]] = {
    "whole": {"id: int": WHOLE},
    "days": {"id: date": DAYS},
    "texts": {"id: str": TEXTS},
    "pairs": {"first: str": FEW, "second: str": FEW},
    "mixed": {"day: date": DAYS, "text: str": FEW, "number: int": WHOLE[::4]},
}


def table_of(name: str) -> pa.Table:
    """The rows of one of KEYS, in no order of their keys."""
    every = sorted(product(*KEYS[name].values()), key=repr)
    names = [column.partition(":")[0] for column in KEYS[name]]
    return pa.table({**dict(zip(names, zip(*every, strict=True), strict=True)), "place": range(len(every))})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with keys of every kind, and one with values of every kind; published."""
    folder = tmp_path_factory.mktemp("keyed")
    for name, columns in KEYS.items():
        keys = "\n".join(f"    {c.partition(': ')[0]}: Key[{c.partition(': ')[2]}]" for c in columns)
        (folder / f"{name}.py").write_text(KEYED.format(name=name, keys=keys))
        publish(folder, f"{name}.py", rows=table_of(name))
    shutil.copy(EVERYTHING, folder)
    publish(folder, "everything.py", "--set", "models.everything.gates.max_null_share=1", rows=everything())
    return folder


def everything() -> pa.Table:
    """Made-up rows for that model, with keys that could be taken for each other."""
    pairs = list(product([t for t in TEXTS if 1 <= len(t) <= 40], WHOLE[::6]))
    inputs = load_model(EVERYTHING).inputs
    del sys.modules["everything"]  # other tests have a model file of that name too
    made = made_up(inputs, len(pairs))
    for i, values in enumerate(zip(*pairs, strict=True)):
        made = made.set_column(i, made.field(i), pa.array(values, made.field(i).type))
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with Server(folder, *(f"{name}.py" for name in (*KEYS, "everything"))) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[sereno.Client]:
    with sereno.Client(server.url, timeout_seconds=120) as client:
        yield client


class Connection:
    """A kept connection, on which a path is sent as it is."""

    def __init__(self, server: Server) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)

    def close(self) -> None:
        self._connection.close()

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> bytes:
        self._connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        response = self._connection.getresponse()
        content = response.read()
        assert response.status == 200, (path, content)
        return content


def published(folder: Path, name: str) -> tuple[list[tuple[Any, ...]], list[dict[str, Any]]]:
    """The keys of a table, and the predictions as JSON has them."""
    table = sereno.read_predictions(name, home=folder)
    count = len(KEYS.get(name, ("shop", "customer_id")))
    keys = list(zip(*(column.to_pylist() for column in table.columns[:count]), strict=True))
    rows = table.select(table.column_names[count:]).to_pylist()
    return keys, json.loads(msgspec.json.Encoder(decimal_format="string").encode(rows))


def path_of(name: str, key: tuple[Any, ...]) -> str:
    return f"/models/{name}/predictions/" + "/".join(quote(str(value), safe="") for value in key)


def prediction_in(content: bytes) -> bytes:
    start, end = b'{"prediction":', b',"version":1,"data_date":"2026-05-01",'
    assert content.startswith(start)
    assert content.count(end) == 1
    assert content.endswith(b'"stale":false,"origin":"lookup"}')
    return content[len(start) : content.index(end)]


@pytest.mark.parametrize("name", [*KEYS, "everything"])
def test_lookup_batch_and_live_agree(folder: Path, server: Server, name: str) -> None:
    keys, predictions = published(folder, name)
    rows = everything() if name == "everything" else table_of(name)
    assert len(keys) == len(predictions) == rows.num_rows
    key_columns = rows.column_names[: len(keys[0])]
    texts = dict(zip(zip(*(rows[c].to_pylist() for c in key_columns), strict=True), encode(rows), strict=True))
    with contextlib.closing(Connection(server)) as connection:
        for key, prediction in zip(keys, predictions, strict=True):
            path = path_of(name, key)
            found = prediction_in(connection.ask("GET", path))  # by the shortest path, from the second on
            assert json.loads(found) == prediction, key
            assert prediction_in(connection.ask("GET", path, x_request_id="one")) == found  # by the longer one
            # by the application
            assert prediction_in(connection.ask("GET", path, content_encoding="identity")) == found
            assert connection.ask("POST", f"/models/{name}/predict", texts[key]) == found, key


@pytest.mark.parametrize("name", [*KEYS, "everything"])
def test_many_keys_at_once_agree(folder: Path, client: sereno.Client, name: str) -> None:
    keys, predictions = published(folder, name)
    asked = [key if len(key) > 1 else key[0] for key in keys]
    found = client.lookup_many(asked, model=name)
    assert [one.prediction if one else None for one in found] == predictions
    backwards = client.lookup_many(asked[::-1], model=name)
    assert [one.prediction if one else None for one in backwards] == predictions[::-1]
    for key, prediction in list(zip(asked, predictions, strict=True))[::7]:
        assert client.lookup(key, model=name).prediction == prediction, key


@pytest.mark.parametrize("name", KEYS)
def test_keys_beside_those_that_are_there_are_unknown(folder: Path, client: sereno.Client, name: str) -> None:
    keys = set(published(folder, name)[0])
    beside = sorted({changed for key in keys for changed in changes(key)} - keys)
    assert len(beside) > 5
    for start in range(0, len(beside), 500):
        some = [key if len(key) > 1 else key[0] for key in beside[start : start + 500]]
        assert client.lookup_many(some, model=name) == [None] * len(some)


def changes(key: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Keys that differ from it by little."""
    yield key[::-1] if {type(value) for value in key} == {type(key[0])} else key
    for i, value in enumerate(key):
        others: list[Any]
        if isinstance(value, str):
            others = [value + " ", value + "\0", value[:-1], value.swapcase(), value.strip()]
        elif isinstance(value, int):
            others = [n for n in (value + 1, value - 1, -value, value ^ 1 << 32) if n in range(-(2**63), 2**63)]
        else:
            others = [date.fromordinal(n) for n in (value.toordinal() + 1, value.toordinal() - 1) if 0 < n < 3_652_060]
        for other in others:
            yield (*key[:i], other, *key[i + 1 :])
