"""The workers of a server, as the supervisor has them: their processes, their slots of the board, and who holds which sockets."""

from __future__ import annotations

from collections.abc import Iterator

from sereno.exceptions import WorkerError
from sereno.serve.processes.board import Board, State
from sereno.serve.processes.control import Accept, Release
from sereno.serve.processes.process import Phase, Worker, start_worker
from sereno.serve.processes.sockets import Listening

BEAT_GRACE = 2.0  # seconds on top of what predict may take; the loop beats several times a second


class Workers:
    """Those that were started, until they are removed. When one starts and when it ends is the supervisor's to say."""

    def __init__(self, count: int, first: Worker | None) -> None:
        """`count`: of those that serve at once. `first`: one that waits for its job already."""
        # two generations, two that drain, and workers that hung
        self.board = Board.create(8 + 8 * count)
        self._first = first
        self._workers: list[Worker] = []

    def __iter__(self) -> Iterator[Worker]:
        return iter([*self._workers])  # some may come or go meanwhile

    def __len__(self) -> int:
        return len(self._workers)

    def of(self, generation: int | None, *phases: Phase) -> list[Worker]:
        return [w for w in self._workers if w.generation == generation and w.phase in phases]

    @property
    def pids(self) -> Iterator[int]:
        yield from (worker.pid for worker in self._workers)
        if self._first is not None:
            yield self._first.pid

    def start(self, place: int, generation: int) -> Worker:
        """One that waits for its job. Raises WorkerError where there is no room for another process."""
        taken = {worker.slot for worker in self._workers}
        slot = next((slot for slot in range(1, self.board.slots) if slot not in taken), None)
        if slot is None:
            raise WorkerError(f"No worker can be started: {len(taken)} of them are still ending.")
        worker, self._first = self._first or start_worker(), None
        worker.place, worker.generation, worker.slot = place, generation, slot
        self._workers.append(worker)
        self.board.set_state(slot, State.STARTING)
        self.board.set_pid(slot, worker.pid)
        return worker

    def remove(self, worker: Worker) -> None:
        """Its slot is free once the board is cleared there."""
        self._workers.remove(worker)

    def spread(self, generation: int, listening: Listening) -> None:
        """Have the sockets of every place looked after by that generation: by the place's own worker, else by another one."""
        ready = self.of(generation, Phase.READY)
        if not ready:
            return
        own = {worker.place: worker for worker in ready}
        places = listening.places
        wanted: dict[Worker, set[int]] = {worker: set() for worker in ready}
        for place in range(len(places)):
            if listening.is_shared:
                for worker in ready:
                    wanted[worker].add(place)
            else:
                wanted[own.get(place) or ready[place % len(ready)]].add(place)
        for worker in ready:
            for place in wanted[worker] - worker.accepts:
                worker.send(Accept(place), [sock.fileno() for sock in places[place]])
        for worker in ready:
            for place in worker.accepts - wanted[worker]:
                worker.send(Release(place))
            worker.accepts = wanted[worker]

    def why_hung(self, worker: Worker) -> str:
        """What of a worker that is ready does not move; empty: all does."""
        assert worker.ready is not None
        seconds = worker.ready.hang_seconds
        if self.board.state(worker.slot) is State.HUNG:
            return f"predict has not returned for {seconds:g} s (predict_timeout_seconds)."
        if self.board.age(worker.slot) > seconds + BEAT_GRACE:
            return f"it has not moved for {seconds + BEAT_GRACE:g} s."
        return ""

    def end(self) -> None:
        """Kill all that are left, and wait until they are gone."""
        if self._first is not None:
            self._first.end()
        for worker in self._workers:
            worker.end()
