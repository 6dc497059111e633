"""Placement, simulated: whatever is lost when, each task is answered once, and few are in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.scale.placement import Cluster, Outcome, Simulation
from sereno.adapters.executors.dispatch import IN_FLIGHT, MOST_TRIES
from sereno.exceptions import WorkerError

SMALL = Cluster(nodes=10, workers_each=3)


def check(outcome: Outcome, cluster: Cluster) -> None:
    assert outcome.answers == outcome.tasks
    assert outcome.twice == 0
    assert outcome.most_losses < MOST_TRIES
    assert outcome.most_open <= IN_FLIGHT * cluster.workers


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("lost_per_node_hour", [0, 1, 20])
def test_each_task_is_answered_once_whatever_is_lost(seed: int, lost_per_node_hour: float) -> None:
    cluster = replace(SMALL, lost_per_node_hour=lost_per_node_hour)
    outcome = Simulation(400, cluster, seed).go()
    check(outcome, cluster)
    assert bool(outcome.nodes_lost) == bool(lost_per_node_hour) or lost_per_node_hour == 1
    if not lost_per_node_hour:
        assert outcome.tries_lost == 0


def test_nodes_that_are_lost_cost_time_and_little_more_than_theirs() -> None:
    calm = Simulation(2_000, SMALL).go()
    stormy = Simulation(
        2_000, replace(SMALL, lost_per_node_hour=6)
    ).go()  # 600 s away each: a third of the nodes at a time
    assert stormy.nodes_lost > 5
    assert stormy.tries_lost <= stormy.nodes_lost * SMALL.workers_each
    assert calm.seconds < stormy.seconds < 3 * calm.seconds


def test_a_task_that_is_lost_again_and_again_ends_the_run() -> None:
    with pytest.raises(WorkerError, match=f"was tried {MOST_TRIES} times") as caught:
        Simulation(400, replace(SMALL, lost_per_node_hour=100, seconds_each=100)).go()
    assert str(caught.value).count("was lost.") == MOST_TRIES


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("nodes", "lost_per_node_hour"), [(100, 1), (100, 5), (1_000, 1), (1_000, 5)])
def test_100_000_tasks(nodes: int, lost_per_node_hour: float, seed: int) -> None:
    cluster = Cluster(nodes=nodes, lost_per_node_hour=lost_per_node_hour)
    outcome = Simulation(100_000, cluster, seed).go()
    check(outcome, cluster)
    assert outcome.nodes_lost > 0
