"""What every store of lookups promises: `interfaces.LookupStore`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from sereno import failpoints
from sereno.exceptions import IndexingError
from sereno.failpoints import FailpointError
from sereno.interfaces import LookupIndex
from sereno.lookup.keys import KeyCodec
from tests.contract.lookup_stores import ALL, KEPT, PLACES, SERVERS, Kept, Table, answer, scores
from tests.valkey import valkey


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with valkey() as one:
        SERVERS.append(one)
        yield
        SERVERS.remove(one)


@pytest.fixture(params=list(KEPT))
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kept]:
    if request.param == "objects":
        PLACES[:] = [request.getfixturevalue("storage")]
    made: Kept = KEPT[request.param](tmp_path)
    yield made
    PLACES.clear()


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Have a failpoint raise; nothing: none does."""

    def arm(what: str = "") -> None:
        monkeypatch.setenv("SERENO_TESTING", "1")
        monkeypatch.setenv("SERENO_FAILPOINT", what)
        failpoints.reset()

    yield arm
    monkeypatch.undo()
    failpoints.reset()


def opened(kept: Kept) -> LookupIndex:
    index = kept.store.open()
    assert index is not None
    return index


def assert_serves(kept: Kept, number: int) -> None:
    index = opened(kept)
    assert index.number == number
    assert index.get(index.keys.encode((2,))) == answer(number)
    index.close()


def test_there_is_nothing_at_first(kept: Kept) -> None:
    assert kept.store.open() is None
    assert kept.store.mark() == kept.store.mark()


def test_an_index_of_what_is_published(table: Table, kept: Kept) -> None:
    before = kept.store.mark()
    snapshot = table.publish(day=4)
    assert kept.store.is_behind()
    assert kept.store.mark() == before
    assert kept.store.follow(table.state, ALL)
    assert not kept.store.is_behind()
    assert kept.store.mark() != before
    index = opened(kept)
    assert (index.number, index.rows, index.keys) == (1, 3, KeyCodec(("id",), ("int",)))
    assert (index.data_date, index.data_time) == (date(2026, 5, 4), datetime(2026, 5, 5, tzinfo=UTC))
    assert index.data_time == snapshot.data_time
    one, two, four = (index.keys.encode((n,)) for n in (1, 2, 4))
    assert (index.get(one), index.get(four)) == (answer(1), None)
    assert index.get_many([four, two, one, two]) == [None, answer(1), answer(1), answer(1)]
    assert index.get_many([]) == []
    index.close()
    index.close()


def test_following_again_changes_nothing(table: Table, kept: Kept) -> None:
    table.publish()
    kept.store.follow(table.state, ALL)
    mark = kept.store.mark()
    assert not kept.store.follow(table.state, ALL)
    assert not kept.again.follow(table.state, ALL)
    assert kept.store.mark() == kept.again.mark() == mark
    assert_serves(kept, 1)


def test_a_newer_snapshot_takes_over(table: Table, kept: Kept) -> None:
    table.publish()
    kept.store.follow(table.state, ALL)
    old, mark = opened(kept), kept.store.mark()
    table.publish(scores(2, range(500)))
    assert kept.store.is_behind()
    assert kept.again.follow(table.state, ALL)
    assert kept.store.mark() != mark
    new = opened(kept)
    key = old.keys.encode((2,))
    assert (old.get(key), new.get(key)) == (answer(1), answer(2))
    assert (old.rows, new.rows) == (3, 500)
    old.close()
    assert new.get(key) == answer(2)
    new.close()


def test_the_same_index_is_opened_as_often_as_one_likes(table: Table, kept: Kept) -> None:
    table.publish()
    kept.store.follow(table.state, ALL)
    one, two = opened(kept), opened(kept)
    key = one.keys.encode((2,))
    one.close()
    assert two.get(key) == answer(1)
    three = kept.again.open()
    two.close()
    assert three is not None
    assert three.get(key) == answer(1)
    three.close()


def test_a_rollback(table: Table, kept: Kept) -> None:
    marks = []
    for _ in range(3):
        table.publish()
        kept.store.follow(table.state, ALL)
        marks.append(kept.store.mark())
    table.store.rollback()
    assert kept.store.is_behind()
    assert kept.store.follow(table.state, ALL)
    marks.append(kept.store.mark())
    assert_serves(kept, 2)
    assert marks[3] == marks[1]
    table.store.rollback(to=3)
    kept.store.follow(table.state, ALL)
    assert_serves(kept, 3)
    assert len(set(marks)) == 3
    assert not kept.store.is_behind()


def test_what_was_rolled_back(table: Table, kept: Kept) -> None:
    assert not kept.store.was_rolled_back(1)
    for _ in range(2):
        table.publish()
        kept.store.follow(table.state, ALL)
    assert not kept.store.was_rolled_back(2)
    assert not kept.store.was_rolled_back(1)
    table.store.rollback()
    kept.store.follow(table.state, ALL)
    assert kept.store.was_rolled_back(2)
    assert not kept.store.was_rolled_back(1)


def test_a_rollback_to_what_was_never_indexed(table: Table, kept: Kept) -> None:
    table.publish()
    table.publish()
    kept.store.follow(table.state, ALL)
    table.store.rollback()
    kept.store.follow(table.state, ALL)
    assert_serves(kept, 1)


def test_every_kept_snapshot_has_an_index(table: Table, kept: Kept) -> None:
    for _ in range(4):
        table.publish()
    table.store.rollback()
    table.publish()
    assert kept.store.follow(table.state, frozenset({2, 3, 4, 5}))
    assert kept.held() == {2, 3, 5}  # 4 was withdrawn
    assert_serves(kept, 5)
    assert not kept.store.follow(table.state, frozenset({2, 3, 4, 5}))
    table.store.rollback()
    kept.store.follow(table.state, frozenset({2, 3}))
    assert kept.held() == {2, 3}
    assert_serves(kept, 3)


@pytest.mark.parametrize("what", ["is damaged", "is missing"])
def test_one_that_is_not_in_service_and_cannot_be_built_is_left_out(what: str, table: Table, kept: Kept) -> None:
    table.publish()
    snapshot = table.publish()
    table.publish()
    snapshot.parts[0].path.write_bytes(b"") if what == "is damaged" else snapshot.parts[0].path.unlink()
    assert kept.store.follow(table.state, ALL)
    assert kept.held() == {1, 3}
    assert not kept.store.is_behind()
    assert not kept.again.follow(table.state, ALL)
    assert_serves(kept, 3)


def test_indexes_go_with_their_snapshots(table: Table, kept: Kept) -> None:
    for _ in range(5):
        table.publish()
        kept.store.follow(table.state, ALL)
    assert kept.held() == {1, 2, 3, 4, 5}
    assert kept.store.follow(table.state, frozenset({3, 4, 5}))
    assert kept.held() == {3, 4, 5}
    assert kept.store.follow(table.state, frozenset())
    assert kept.held() == {5}
    assert_serves(kept, 5)
    table.publish()
    kept.store.follow(table.state, frozenset())
    assert kept.held() == {6}
    assert_serves(kept, 6)


def test_one_that_is_open_answers_though_it_was_removed(table: Table, kept: Kept) -> None:
    table.publish()
    kept.store.follow(table.state, ALL)
    index = opened(kept)
    table.publish()
    kept.store.follow(table.state, frozenset())
    assert kept.held() == {2}
    assert index.get(index.keys.encode((1,))) == answer(1)
    index.close()
    assert_serves(kept, 2)


def test_an_older_state_does_not_win(table: Table, kept: Kept) -> None:
    states = []
    for _ in range(3):
        table.publish()
        states.append(table.state)
    kept.store.follow(states[2], ALL)
    for state in (states[1], states[0]):
        assert not kept.again.follow(state, ALL)
        assert_serves(kept, 3)
        assert not kept.store.is_behind()
    table.store.rollback()
    kept.store.follow(table.state, ALL)
    assert not kept.again.follow(states[2], ALL)  # which it served before
    assert_serves(kept, 2)


def test_a_commit_of_somebody_else(table: Table, kept: Kept) -> None:
    table.publish(scores(1, [1, 2]), scores(1, [3]))
    kept.store.follow(table.state, ALL)
    mark = kept.store.mark()
    DeltaTable(table.store.folder).optimize.compact()
    assert kept.store.is_behind()
    assert not kept.store.follow(table.state, ALL)
    assert not kept.store.is_behind()
    assert kept.store.mark() == mark
    assert_serves(kept, 1)


def test_a_new_table_in_the_place_of_another(table: Table, kept: Kept, tmp_path: Path) -> None:
    for _ in range(3):
        table.publish()
        kept.store.follow(table.state, ALL)
    table.store.folder.rename(tmp_path / "moved")
    assert kept.store.is_behind()
    assert kept.store.follow(table.state, ALL)
    assert kept.store.open() is None
    assert kept.held() == set()
    table.publish(scores(7))
    assert kept.store.is_behind()
    kept.store.follow(table.state, ALL)
    index = opened(kept)
    assert (index.number, index.get(index.keys.encode((1,)))) == (1, answer(7))
    index.close()


def test_a_new_table_that_nobody_saw_begin(table: Table, kept: Kept, tmp_path: Path) -> None:
    for _ in range(3):
        table.publish()
        kept.store.follow(table.state, ALL)
    shutil.rmtree(table.store.folder)
    table.publish(scores(7))
    assert kept.store.is_behind()
    assert kept.store.follow(table.state, ALL)


DAYS = [date(1969, 12, 31), date(1970, 1, 1), date(2026, 5, 1), date.min, date.max]
KEYS: dict[str, tuple[list[pa.DataType], list[tuple[Any, ...]]]] = {
    "whole numbers": ([pa.int64()], [(0,), (-1,), (256,), (2**63 - 1,), (-(2**63),), (10,), (9,)]),
    "texts": ([pa.string()], [("",), ("\0",), ("\0\0",), ("a",), ("é",), ("日本/%?",), ("x" * 506,), ("10",), ("9",)]),
    "long texts": ([pa.string()], [("x" * 507,), ("x" * 5_000,), ("x" * 4_999 + "y",), ("y" + "x" * 4_999,)]),
    "dates": ([pa.date32()], [(day,) for day in DAYS]),
    "composite": (
        [pa.string(), pa.date32(), pa.int64()],
        [(name, day, n) for name in ("", "a", "ab", "z" * 600) for day in DAYS for n in (-1, 0, 1)],
    ),
    "texts that begin each other": ([pa.string(), pa.string()], [("a", "bc"), ("ab", "c"), ("abc", ""), ("", "abc")]),
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_every_kind(kind: str, table: Table, kept: Kept) -> None:
    types, keys = KEYS[kind]
    names = [f"k{i}" for i in range(len(types))]
    columns = [pa.array(c, t) for c, t in zip(zip(*keys, strict=True), types, strict=True)]
    table.publish(pa.table([*columns, pa.array(range(len(keys)))], names=[*names, "n"]), keys=names)
    kept.store.follow(table.state, ALL)
    index = opened(kept)
    assert index.keys.names == tuple(names)
    for n, key in enumerate(keys):
        as_texts = index.keys.of_texts([str(value) for value in key])
        assert index.get(index.keys.encode(as_texts)) == b'{"n":%d}' % n
    index.close()


def test_predictions_of_every_shape(table: Table, kept: Kept) -> None:
    offers = [[{"id": 7, "name": 'a "b"\n'}, {"id": 8, "name": None}], [], None]
    rows = pa.table({"id": [1, 2, 3], "score": [0.1, None, None], "offers": offers})
    table.publish(rows)
    kept.store.follow(table.state, ALL)
    index = opened(kept)
    assert index.get_many([index.keys.encode((n,)) for n in (1, 2, 3, 4)]) == [
        b'{"score":0.1,"offers":[{"id":7,"name":"a \\"b\\"\\n"},{"id":8,"name":null}]}',
        b'{"score":null,"offers":[]}',
        b'{"score":null,"offers":null}',
        None,  # an unknown key is something else than a prediction of null
    ]
    index.close()


def test_a_table_of_dates_serves_the_newest(table: Table, kept: Kept) -> None:
    def publish(number: int, day: int) -> None:
        table.publish(scores(number), day=day, disposition="partition")
        kept.store.follow(table.state, table.state.kept(datetime.now(UTC)))
        assert not kept.store.is_behind()

    publish(1, day=1)
    publish(2, day=3)
    assert_serves(kept, 2)
    mark = kept.store.mark()
    publish(3, day=2)  # late data
    assert_serves(kept, 2)
    assert kept.store.mark() == mark
    publish(4, day=3)
    assert_serves(kept, 4)
    table.store.rollback()
    kept.store.follow(table.state, ALL)
    assert_serves(kept, 2)
    table.store.rollback()  # the newest date is empty then
    kept.store.follow(table.state, ALL)
    assert_serves(kept, 3)


def test_a_table_of_dates_whose_columns_grew(table: Table, kept: Kept) -> None:
    table.publish(pa.table({"id": [1], "score": [0.5]}), day=1, disposition="partition")
    table.publish(pa.table({"id": [1], "score": [0.6], "why": ["x"]}), day=2, disposition="partition")
    kept.store.follow(table.state, ALL)
    key = KeyCodec(("id",), ("int",)).encode((1,))
    index = opened(kept)
    assert index.get(key) == b'{"score":0.6,"why":"x"}'
    index.close()
    table.store.rollback()
    kept.store.follow(table.state, ALL)
    index = opened(kept)
    assert index.get(key) == b'{"score":0.5}'
    index.close()


@pytest.mark.parametrize("point", ["lookup_build", "lookup_swap_before", "lookup_swapped"])
def test_who_follows_next_finishes_what_was_left(point: str, table: Table, kept: Kept, fail: Any) -> None:
    table.publish()
    kept.store.follow(table.state, ALL)
    table.publish()
    fail(f"{point}:raise")
    with pytest.raises(FailpointError):
        kept.store.follow(table.state, ALL)
    fail()
    assert_serves(kept, 2 if point == "lookup_swapped" else 1)
    kept.again.follow(table.state, frozenset())
    assert_serves(kept, 2)
    assert kept.held() == {2}
    assert not kept.store.is_behind()


def test_what_was_served_stays_where_the_next_cannot_be_built(table: Table, kept: Kept) -> None:
    table.publish()
    kept.store.follow(table.state, ALL)
    mark = kept.store.mark()
    snapshot = table.publish()
    content = snapshot.parts[0].path.read_bytes()
    snapshot.parts[0].path.unlink()
    with pytest.raises(IndexingError, match="Version 2 of model 'scores' cannot be looked up: .* is missing"):
        kept.store.follow(table.state, ALL)
    assert kept.store.mark() == mark
    assert kept.store.is_behind()
    assert_serves(kept, 1)
    snapshot.parts[0].path.write_bytes(content)
    assert kept.store.follow(table.state, ALL)
    assert_serves(kept, 2)
