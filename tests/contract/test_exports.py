"""What `interfaces.Export` promises, asked of every adapter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sereno.adapters import durable, export_objects, exports, rendering
from sereno.exceptions import SettingsError
from tests.contract.export_targets import (
    MODEL,
    NONE,
    FolderTarget,
    Maker,
    ObjectTarget,
    PostgresqlTarget,
    Target,
    assert_shows,
)

POINTS = ["export_before", "half written", "export_copied", "export_swapped"]


FOLDERS = ["parquet", "csv", "jsonl"]
OBJECTS = [f"{kind} in a bucket" for kind in FOLDERS]


@pytest.fixture(params=[*FOLDERS, *OBJECTS, pytest.param("postgresql", marks=pytest.mark.service)])
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    if request.param == "postgresql":
        return PostgresqlTarget(tmp_path, request.getfixturevalue("postgresql_url"))
    if request.param in OBJECTS:
        monkeypatch.setattr(export_objects, "YOUNG_SECONDS", -60)  # there is no other pod
        return ObjectTarget(tmp_path, request.param.partition(" ")[0], request.getfixturevalue("storage"))
    return FolderTarget(tmp_path, request.param)


def test_first_publication(target: Target, maker: Maker) -> None:
    assert target.export.follow([maker.snapshot(1)], NONE)
    assert_shows(target, 1)


def test_a_second_look_changes_nothing(target: Target, maker: Maker) -> None:
    snapshot = maker.snapshot(1)
    target.export.follow([snapshot], NONE)
    assert not target.export.follow([snapshot], NONE)
    assert_shows(target, 1)


def test_a_new_snapshot_replaces_and_prunes(target: Target, maker: Maker) -> None:
    for number in (1, 2, 3):
        assert target.export.follow([maker.snapshot(number)], frozenset({number - 1}))
    assert_shows(target, 3)
    assert target.held() == {2, 3}


def test_rollback_to_a_kept_one_and_back(target: Target, maker: Maker) -> None:
    first, second = maker.snapshot(1), maker.snapshot(2)
    target.export.follow([first], NONE)
    target.export.follow([second], frozenset({1}))
    assert target.export.follow([first], frozenset({2}))
    assert_shows(target, 1)
    assert target.export.follow([second], frozenset({1}))
    assert_shows(target, 2)


def test_rollback_to_one_that_was_pruned(target: Target, maker: Maker) -> None:
    first, second = maker.snapshot(1), maker.snapshot(2)
    target.export.follow([first], NONE)
    target.export.follow([second], NONE)
    assert target.held() == {2}
    assert target.export.follow([first], NONE)
    assert_shows(target, 1)


def test_several_dates_served(target: Target, maker: Maker) -> None:
    days = [maker.snapshot(number, day=number, disposition="partition") for number in (1, 2, 3)]
    for last in (1, 2, 3):
        assert target.export.follow(days[:last], NONE)
        assert_shows(target, *range(1, last + 1))
    again = maker.snapshot(4, day=2, disposition="partition")
    assert target.export.follow([days[0], again, days[2]], frozenset({2}))
    assert_shows(target, 1, 4, 3)
    assert target.held() == {1, 2, 3, 4}
    assert target.export.follow([days[0], again, days[2]], NONE)
    assert target.held() == {1, 3, 4}


@pytest.mark.parametrize("point", POINTS)
def test_whoever_comes_next_finishes_what_a_crash_left(
    target: Target, maker: Maker, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = maker.snapshot(1), maker.snapshot(2)
    target.export.follow([first], NONE)
    with monkeypatch.context() as patch:
        _crash_at(patch, target, point)
        with pytest.raises(Crash):
            target.export.follow([second], NONE)
    assert_shows(target, 2 if point == "export_swapped" else 1)
    assert target.export.follow([second], NONE)
    assert_shows(target, 2)
    assert target.held() == {2}
    assert not target.export.follow([second], NONE)


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_of_the_first_publication(
    target: Target, maker: Maker, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _crash_at(patch, target, point)
        with pytest.raises(Crash):
            target.export.follow([maker.snapshot(1)], NONE)
    target.export.follow([maker.snapshot(1)], NONE)
    assert_shows(target, 1)


def test_columns_may_change_and_change_back(target: Target, maker: Maker) -> None:
    old = maker.snapshot(1)
    other = maker.snapshot(2, tables=[pa.table({"customer_id": ["a", "b"], "limit": [100, None], "score": [2.5, 2.5]})])
    target.export.follow([old], NONE)
    assert target.export.follow([other], frozenset({1}))
    seen, rows = target.read()
    assert seen == {2}
    assert [list(row) for row in rows] == [["customer_id", "limit", "score"]] * 2
    assert [row["customer_id"] for row in rows] == ["a", "b"]
    assert target.export.follow([old], frozenset({2}))
    assert_shows(target, 1)
    assert not target.export.follow([old], frozenset({2}))
    assert target.export.follow([old], NONE)
    assert target.held() == {1}
    assert_shows(target, 1)


def test_a_table_that_began_anew_has_the_same_numbers(target: Target, maker: Maker) -> None:
    target.export.follow([maker.snapshot(1)], NONE)
    table = pa.table({"customer_id": [1, 2], "score": [9.5, 9.5], "band": ["B", "B"]})
    assert target.export.follow([maker.snapshot(1, tables=[table], attempt="2026-05-01-ffffff")], NONE)
    seen, rows = target.read()
    assert seen == {1}
    assert [row["band"] for row in rows] == ["B", "B"]


def test_every_type_comes_through(target: Target, maker: Maker) -> None:
    moment = datetime(2026, 5, 1, 1, 2, 3, 4, tzinfo=UTC)
    schema = pa.schema(
        {
            "customer_id": pa.int64(),
            "f": pa.float64(),
            "b": pa.bool_(),
            "s": pa.string(),
            "d": pa.date32(),
            "t": pa.timestamp("us", "UTC"),
            "n": pa.decimal128(20, 8),
            "l": pa.list_(pa.string()),
            "o": pa.struct({"a": pa.int64(), "t": pa.timestamp("us", "UTC")}),
            "c": pa.dictionary(pa.int32(), pa.string()),
        }
    )
    awkward = 'ñ "quoted", \\ back\nslash\t\x01 \u2028 null'
    full = {"f": 0.1, "b": True, "s": awkward, "d": date(2026, 5, 1), "t": moment, "n": Decimal("-12.3")}
    full |= {"customer_id": 2**63 - 1, "l": ["x", None, 'y"'], "o": {"a": 1, "t": moment}, "c": "car"}
    nothing: dict[str, Any] = {**dict.fromkeys(schema.names), "customer_id": -(2**63)}
    empty = {**nothing, "customer_id": 1, "s": "", "f": 1e-300, "n": Decimal("0.00000001"), "l": [], "b": False}
    target.export.follow([maker.snapshot(1, tables=[pa.Table.from_pylist([full, nothing, empty], schema)])], NONE)

    rows = {int(row["customer_id"]): row for row in target.read()[1]}
    got = [{name: _value(row[name], name) for name in schema.names} for row in rows.values()]
    assert sorted(got, key=_key) == sorted([full, nothing, empty], key=_key)


def test_an_unknown_export_names_the_valid_ones(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="There is no export 'xml'. Valid are 'parquet', 'csv', 'jsonl' and 'post"):
        exports.make_export("xml", home=tmp_path, model=MODEL)
    with pytest.raises(SettingsError) as caught:
        exports.make_export("mysql://u:sekret@h/d", home=tmp_path, model=MODEL)
    assert "mysql://…" in str(caught.value)
    assert "sekret" not in str(caught.value)


class Crash(BaseException):
    """As a signal would end the process: no `except Exception` sees it."""


def _crash_at(patch: pytest.MonkeyPatch, target: Target, point: str) -> None:
    if point != "half written":

        def failpoint(name: str) -> None:
            if name == point:
                raise Crash

        patch.setattr(target.module, "failpoint", failpoint)
        return

    def crash(*_: object) -> None:
        raise Crash

    def half(path: Path) -> Iterator[pa.RecordBatch]:
        yield pa.RecordBatch.from_pydict({"customer_id": [1], "score": [0.5], "band": ["X"]})
        raise Crash

    patch.setattr(rendering, "read_batches", half)
    patch.setattr(durable, "link_or_copy", crash)
    patch.setattr(export_objects, "copy_part", crash)


def _key(row: dict[str, Any]) -> int:
    return int(row["customer_id"])


def _value(value: Any, name: str) -> Any:
    """From what a reader of text sees to what was written."""
    if name == "o" and isinstance(value, dict) and isinstance(value["t"], str):
        return {**value, "t": datetime.fromisoformat(value["t"])}
    if not isinstance(value, str) or name in ("s", "c"):
        return value
    if name in ("l", "o"):
        return _value(json.loads(value), name)
    parse: dict[str, Any] = {
        "customer_id": int,
        "f": float,
        "b": "true".__eq__,
        "d": date.fromisoformat,
        "t": datetime.fromisoformat,
        "n": Decimal,
    }
    return parse[name](value)
