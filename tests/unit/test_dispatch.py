"""Which worker is given which task, where workers come and are lost."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from sereno.adapters.executors.dispatch import IN_FLIGHT, MOST_TRIES, Dispatch
from sereno.adapters.files import Piece
from sereno.batch.tasks import Task
from sereno.exceptions import WorkerError


def tasks(count: int) -> Iterator[Task]:
    return (Task(index=i, pieces=(Piece(kind="parquet", path=f"/in/{i}.parquet"),), rows=10) for i in range(count))


def with_all(count: int, *workers: str) -> Dispatch[str]:
    """All tasks drawn, those workers ready."""
    dispatch: Dispatch[str] = Dispatch(tasks(count))
    while dispatch.draw(count + 1):
        pass
    for worker in workers:
        dispatch.join(worker)
    return dispatch


def given(dispatch: Dispatch[str], coming: int = 0) -> list[tuple[str, int]]:
    found = []
    while (one := dispatch.give(coming)) is not None:
        found.append((one[0], one[1].index))
    return found


def test_tasks_are_drawn_one_at_a_time_and_no_more_than_asked_for() -> None:
    drawn: list[int] = []
    dispatch: Dispatch[str] = Dispatch(task for task in tasks(9) if drawn.append(task.index) is None)
    assert dispatch.draw(2)
    assert drawn == [0]
    assert dispatch.draw(2)
    assert not dispatch.draw(2)
    assert (drawn, dispatch.open) == ([0, 1], 2)
    dispatch.join("a")
    for _ in range(2):
        worker, task = dispatch.give() or ("", None)
        assert task is not None
        dispatch.done(worker, task)
    assert dispatch.draw(1)
    assert drawn == [0, 1, 2]


def test_nobody_has_more_in_store_than_is_of_use() -> None:
    assert given(with_all(9, "a", "b")) == [("a", 0), ("b", 1), ("a", 2), ("b", 3)]
    assert given(with_all(3, "a", "b")) == [("a", 0), ("b", 1)]  # whoever is done first has the third
    assert given(with_all(9, "a"), coming=8) == [("a", 0)]  # eight others are about to be there
    assert IN_FLIGHT == 2


def test_what_a_lost_worker_had_is_given_to_another_first() -> None:
    dispatch = with_all(9, "a", "b")
    given(dispatch)
    assert [task.index for task in dispatch.lose("a", "gone")] == [0, 2]
    assert (dispatch.ready, dispatch.open) == (1, 9)
    assert given(dispatch) == []  # b has as much as it may have
    dispatch.join("a")
    dispatch.join("c")
    assert given(dispatch) == [("c", 0), ("a", 2), ("c", 4), ("a", 5)]  # not again to the one that was lost over it


def test_whoever_was_lost_over_a_task_has_it_again_where_there_is_no_other() -> None:
    dispatch = with_all(1, "a")
    for _ in range(MOST_TRIES - 1):
        assert given(dispatch) == [("a", 0)]
        dispatch.lose("a", "gone")
        dispatch.join("a")
    assert given(dispatch) == [("a", 0)]


def test_a_task_is_not_tried_for_ever() -> None:
    """The one that was being scored is counted, not the one that waited behind it."""
    dispatch = with_all(6, "a")
    assert given(dispatch) == [("a", 0), ("a", 1)]
    for number in range(1, MOST_TRIES):
        dispatch.lose("a", f"on host{number}, gone.")
        dispatch.join("a")
        assert given(dispatch) == [("a", 0), ("a", 1)]
    with pytest.raises(WorkerError) as raised:
        dispatch.lose("a", "on host4, gone")
    assert str(raised.value).startswith(
        "Task 0 (/in/0.parquet, 10 rows) was tried 4 times, and each time its worker was lost: (1) on host1, gone. "
        "(2) on host2, gone. (3) on host3, gone. (4) on host4, gone. A batch of it may take more memory"
    )
    assert "start the run again and it goes on where it was" in str(raised.value)


def test_files_of_a_task_that_has_many() -> None:
    pieces = tuple(Piece(kind="json", path=f"/in/{i}.jsonl") for i in range(5))
    dispatch: Dispatch[str] = Dispatch(iter([Task(index=7, pieces=pieces)]))
    dispatch.draw(1)
    for number in range(1, MOST_TRIES + 1):
        dispatch.join("a")
        dispatch.give()
        if number < MOST_TRIES:
            dispatch.lose("a", "gone")
    with pytest.raises(WorkerError, match=r"^Task 7 \(/in/0\.jsonl, /in/1\.jsonl, /in/2\.jsonl and 2 more\) was tried"):
        dispatch.lose("a", "gone")


@pytest.mark.parametrize("seed", range(20))
def test_every_task_is_done_once_whoever_comes_and_goes(seed: int) -> None:
    dice = random.Random(seed)
    dispatch: Dispatch[int] = Dispatch(tasks(300))
    at_work: dict[int, list[Task]] = {}
    done: Counter[int] = Counter()
    number = losses = 0
    more = True
    while more or dispatch.open:
        while len(at_work) < 5 and dice.random() < 0.5:
            number += 1
            at_work[number] = []
            dispatch.join(number)
        while dispatch.draw(IN_FLIGHT * 5):
            pass
        more = dispatch.open == IN_FLIGHT * 5
        while (one := dispatch.give()) is not None:
            at_work[one[0]].append(one[1])
            assert len(at_work[one[0]]) <= IN_FLIGHT
        if not at_work:
            continue
        worker = dice.choice([*at_work])
        if dice.random() < 0.05:
            assert dispatch.lose(worker, "gone") == at_work.pop(worker)
            losses += 1
        elif at_work[worker]:
            task = at_work[worker].pop(0)
            dispatch.done(worker, task)
            done[task.index] += 1
    assert losses > 5
    assert done == dict.fromkeys(range(300), 1)
