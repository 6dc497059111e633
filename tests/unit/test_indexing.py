"""Who starts the builders of lookups: when, how many at once, and how often again."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sereno.lookup.pointer import Pointer, commit_time, index_path, lookup_folder, manifest_path, pointer_path, work
from sereno.serve.processes.indexing import Indexing


class Builder:
    """A process that ends when the test says so."""

    def __init__(self, command: list[str], **_: object) -> None:
        self.home, self.model = Path(command[4]), command[5]
        self.code: int | None = None
        self.started = 0.0

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        self.code = -15

    def wait(self, timeout: float | None = None) -> int:
        assert self.code is not None
        return self.code


class World:
    """A home, a clock, and the builders that were started."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = home
        self.now = 1_000.0
        self.said: list[str] = []
        self.failed: list[str] = []
        self.builders: list[Builder] = []
        self.indexing = Indexing(self.said.append, self.failed.append)
        self._times = itertools.count(1)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(subprocess, "Popen", self._start)

    def _start(self, command: list[str], **options: object) -> Any:
        self.builders.append(Builder(command, **options))
        self.builders[-1].started = self.now
        return self.builders[-1]

    def serve(self, *models: str) -> None:
        self.indexing.serve((str(self.home), model, None) for model in models)

    def commit(self, model: str = "a") -> None:
        log = self.home / "predictions" / model / "_delta_log"
        log.mkdir(parents=True, exist_ok=True)
        path = log / f"{len(list(log.iterdir())):020}.json"
        path.write_bytes(b"")
        os.utime(path, ns=(0, next(self._times)))

    def build(self, model: str = "a", missing: list[str] | None = None) -> None:
        """What a builder leaves."""
        folder = lookup_folder(self.home, model)
        version = len(list((self.home / "predictions" / model / "_delta_log").iterdir())) - 1
        name = f"{version + 1:06}-x"
        for path in (index_path(folder, name), manifest_path(folder, name)):
            path.write_bytes(b"")
        commit = commit_time(self.home / "predictions" / model / "_delta_log", version)
        assert commit is not None
        pointer = Pointer(index=name, build="b", table_version=version, commit=commit, before=[], missing=missing or [])
        pointer_path(folder).write_bytes(msgspec.json.encode(pointer))

    def lose(self, model: str = "a") -> None:
        for path in lookup_folder(self.home, model).glob("0*.lmdb"):
            path.unlink()

    def passes(self, seconds: float) -> int:
        """How many builders were started meanwhile."""
        before = len(self.builders)
        until = self.now + seconds
        while self.now < until:
            self.indexing.look()
            self.now += 0.5
        return len(self.builders) - before

    def pauses(self, tries: int, end: Callable[[], object]) -> list[float]:
        """How long it takes until each next builder is started, where each ends like that at once."""
        seen = []
        for _ in range(tries):
            began, before = self.now, len(self.builders)
            end()
            while len(self.builders) == before:
                self.passes(0.5)
            seen.append(self.builders[-1].started - began)
        return seen

    def end(self, code: int) -> None:
        self.builders[-1].code = code


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_a_builder_is_started_once_the_table_is_ahead(world: World) -> None:
    world.serve("a")
    assert lookup_folder(world.home, "a").is_dir()
    assert world.passes(5) == 0
    world.commit()
    assert world.passes(5) == 1
    world.build()
    world.end(0)
    assert world.passes(100) == 0
    world.lose()
    assert world.passes(5) == 1
    assert world.said == ["the index 000001-x of the lookups of a is missing or damaged; it is built again."]
    assert world.failed == ["a"]


def test_a_builder_that_fails_is_started_later_each_time(world: World) -> None:
    world.commit()
    world.serve("a")
    world.passes(1)
    assert world.pauses(13, lambda: world.end(1)) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600, 600]
    assert world.said[0] == (
        "the builder of the lookups of a ended with 1. What is served stays; the next try is in 1 s."
    )
    assert world.said[-1].endswith("the next try is in 600 s.")
    assert len(world.failed) == 13


def test_a_builder_that_leaves_all_to_be_done_has_failed(world: World) -> None:
    world.commit()
    world.serve("a")
    world.passes(1)
    assert world.pauses(4, lambda: world.end(0)) == [1, 2, 4, 8]
    assert world.said == [
        "the builder of the lookups of a has ended, and left all to be done. What is served stays; the next try is in 1 s."
    ]


def test_another_commit_is_tried_at_once(world: World) -> None:
    world.commit()
    world.serve("a")
    world.passes(1)
    world.pauses(8, lambda: world.end(1))
    world.end(1)
    assert world.passes(60) == 0
    world.commit()
    assert world.passes(1) == 1
    assert world.pauses(2, lambda: world.end(1)) == [1, 2]


def test_a_table_that_moves_on_while_it_is_followed_is_no_failure(world: World) -> None:
    world.commit()
    world.serve("a")
    world.passes(1)
    for _ in range(5):
        world.build()
        world.commit()
        world.end(0)
        assert world.passes(2) == 1
    assert world.said == world.failed == []


def test_an_index_that_is_damaged_each_time_is_built_later_each_time(world: World) -> None:
    world.commit()
    world.serve("a")
    world.passes(1)

    def end() -> None:
        world.build()
        world.end(0)
        world.passes(0.5)
        world.lose()

    assert world.pauses(8, end) == [1, 1, 2, 4, 8, 16, 32, 64]
    assert len(world.said) == len(world.failed) == 8
    world.build()
    world.end(0)
    assert world.passes(100) == 0
    world.lose()
    assert world.passes(2) == 1  # all was well for long


def test_one_builder_at_a_time_and_who_waits_longest_is_next(world: World) -> None:
    models = [*"dacb"]
    world.serve(*models)
    for model in models:
        world.commit(model)
        world.passes(1)
    for n in range(4):
        assert world.passes(5) == (1 if n else 0)
        assert len(world.builders) == n + 1
        world.build(world.builders[-1].model)
        world.end(0)
    assert [builder.model for builder in world.builders] == models
    assert world.passes(10) == 0


def test_what_is_not_in_service_comes_last(world: World) -> None:
    for model in "ab":
        world.commit(model)
    world.serve("a", "b")
    world.passes(1)
    first = world.builders[-1].model
    other = "b" if first == "a" else "a"
    left = {first: ["000008-x", "000007-x"], other: ["000009-x"]}
    order = []
    while builder := next((b for b in world.builders if b.code is None), None):
        missing = left[builder.model]
        order.append(builder.model)
        if order.count(builder.model) > 1:
            missing.pop()
        world.build(builder.model, missing)
        builder.code = 0
        world.passes(2)
    assert order == [first, other, first, other, first]
    assert work(world.home, "a") is work(world.home, "b") is None
    assert world.said == []


def test_a_model_that_fails_keeps_no_other_waiting(world: World) -> None:
    for model in "ab":
        world.commit(model)
    world.serve("a", "b")
    world.passes(1)
    world.end(1)
    assert world.passes(0.5) == 1
    assert {builder.model for builder in world.builders} == {"a", "b"}


def test_stop_ends_the_one_that_works(world: World) -> None:
    world.commit()
    world.serve("a")
    world.passes(1)
    world.indexing.stop()
    world.indexing.wait()
    assert world.builders[0].code == -15
    assert world.passes(5) == 0


def test_a_model_that_is_no_longer_served_ends_with_its_builder(world: World) -> None:
    for model in "ab":
        world.commit(model)
    world.serve("a", "b")
    world.passes(1)
    first = world.builders[0]
    world.serve("b" if first.model == "a" else "a")
    assert first.code == -15
    assert [builder.model for builder in world.builders[1:]] == [*{"a", "b"} - {first.model}]


def test_no_folder_and_no_table_is_nothing_to_talk_about(world: World) -> None:
    (world.home / ".sereno").write_text("")
    world.serve("a")
    assert world.said == []
    world.commit("b")
    world.serve("a", "b")
    (said,) = world.said
    assert said.startswith(f"the lookups of b have no folder in {world.home}: Not a directory.")


def test_no_process_is_a_failure_like_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", fail)
    world.commit()
    world.serve("a")
    world.passes(1)
    (said,) = world.said
    assert said.startswith(
        "the builder of the lookups of a cannot be started: Resource temporarily unavailable. What is"
    )


def test_what_there_is_to_do(world: World) -> None:
    world.serve("a")
    assert work(world.home, "a") is None
    world.commit()
    first = work(world.home, "a")
    assert first is not None
    world.commit()
    second = work(world.home, "a")
    assert second not in (None, first)
    world.build(missing=["000001-x"])
    third = work(world.home, "a")
    assert third is not None
    assert third.missing == ("000001-x",)
    assert third.commit == second[0]
    world.build()
    assert work(world.home, "a") is None
    shutil.rmtree(world.home / "predictions")
    assert work(world.home, "a") == ((-1, None), ())
