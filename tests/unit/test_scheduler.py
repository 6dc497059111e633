"""The scheduler, against an oracle: months of nights in which everything happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from sereno.adapters.ledger import sqlite
from tests.nights import Night, Simulation, World, fast, make_world, oracle

MODELS = [
    Night(name="latest", time_zone="Europe/Madrid"),
    Night(name="skips", time_zone="America/New_York", late="skip", schedule="30 2 * * *"),
    Night(name="runs", time_zone="Asia/Kolkata", late="run"),
    Night(name="asks-nothing", time_zone="America/Santiago", has_arrival=False),
    Night(name="dates", time_zone="Europe/Madrid", disposition="partition"),
    Night(name="weekly", time_zone="Australia/Sydney", disposition="partition", schedule="0 6 * * MON", late="skip"),
]


def simulated(world: World, home: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> Simulation:
    simulation = Simulation(world, home, seed)
    monkeypatch.setattr(sqlite._Transaction, "now", lambda _: simulation.ticks())
    fast(simulation.ledger._database)  # type: ignore[attr-defined]
    simulation.go()
    return simulation


def compare(world: World, simulation: Simulation) -> None:
    for name, story in world.stories.items():
        expected = oracle(story, world)
        entries = {entry.run_key: entry for entry in simulation.ledger.entries(model=name)}
        states = {key: "due" if entry.state == "waiting" else entry.state for key, entry in entries.items()}
        assert states == expected.states, name
        told = [(notice.run_key, notice.kind) for notice in simulation.ledger.notices(name, 10_000)]
        assert sorted(told) == sorted(expected.notices), name
        published = [key for model, key in simulation.published if model == name]
        assert sorted(published) == sorted(key for key, state in expected.states.items() if state == "published")


@pytest.mark.parametrize("seed", [1, 2])
def test_nights_end_as_the_oracle_says(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(seed, 80, MODELS)
    compare(world, simulated(world, tmp_path, seed, monkeypatch))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3, 53))
def test_four_hundred_nights_end_as_the_oracle_says(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(seed, 400, MODELS)
    compare(world, simulated(world, tmp_path, seed, monkeypatch))
