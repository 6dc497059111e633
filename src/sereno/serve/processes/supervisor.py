"""The process that was started: it holds the sockets, and keeps workers behind them.

It imports nothing that a model needs, so it is small, starts the first worker at once, and dies of nothing that a model
does. Workers are new interpreters, never forks. Each is in one of these states:

    starting ──ready──► ready ──drain──► draining ──► gone
        └──failed, died──► gone ◄──died, killed──┘

A *generation* is the set of workers that were started together. A reload starts the next generation beside the one in
service, which drains once every worker of the next is ready. Connections that no worker takes wait in the sockets.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Callable
from dataclasses import replace

import msgspec

from sereno import exceptions
from sereno.backoff import BackOff
from sereno.exceptions import SerenoError, WorkerError
from sereno.orphans import reap
from sereno.serve.options import Options
from sereno.serve.processes.board import State
from sereno.serve.processes.compacting import Compacting
from sereno.serve.processes.control import (
    RESERVE,
    Belongs,
    Drain,
    Failed,
    Job,
    Ready,
    close_all,
    from_worker,
)
from sereno.serve.processes.indexing import Indexing
from sereno.serve.processes.process import Phase, Worker
from sereno.serve.processes.sockets import Listening, refuse_openness
from sereno.serve.processes.watching import Watcher
from sereno.serve.processes.workers import Workers
from sereno.settings import Settings
from sereno.signals import OTHER, Signals, has_terminal

PATIENCE = 0.5  # seconds between two looks at the heartbeats
LATE = 60.0  # a worker that takes longer to start is worth a word
ACCEPTING = {signal.SIGTERM: 5.0, signal.SIGINT: 1.0}  # seconds; balancers are slower to learn of it than people

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class Supervisor:
    """Runs until it is told to end. One thread, which waits for signals, messages and times."""

    def __init__(
        self,
        options: Options,
        settings: Settings,
        listening: Listening,
        *,
        first: Worker | None = None,
        watch: bool = False,
        verbose: bool = False,
        announce: Callable[[Ready], None],
        note: Callable[[str], None],
    ) -> None:
        self._options, self._settings = options, settings
        self._listening = listening
        self._announce, self._note = announce, note
        self._verbose = verbose
        self._count = len(listening.places) if not listening.is_shared else settings.workers or 1
        self._workers = Workers(self._count, first)
        self._board = self._workers.board
        self._generation = self._newest = 1
        self._next: int | None = None  # the generation that starts beside the one in service
        self._next_settings = settings
        self._again = False  # a reload was asked for while one was under way
        self._reload_since = 0.0
        self._models: dict[str, str] = {}  # name → fingerprint, in service
        self._is_announced = False
        self._back_offs = [BackOff() for _ in range(self._count)]  # of each place
        self._due: dict[int, float] = {}  # place → when its next worker starts
        self._told_to_end: set[signal.Signals] = set()
        self._ends_at: float | None = None  # when whoever is left is killed
        self._error: SerenoError | None = None
        self._was_killed = False
        self._has_terminal = False
        self._selector = selectors.DefaultSelector()
        self._signals = Signals()
        self._watcher = Watcher(self._signals.wake) if watch else None
        self._compacting = Compacting(note)
        self._indexing = Indexing(note, self._indexing_failed)

    def run(self) -> int:
        """Serve until a signal ends it: 0, or 1 where workers had to be killed. Raises what kept the first from starting."""
        import sereno.serve.metrics  # noqa: F401  # later there may be no descriptor to read it with

        with self._signals.caught(SIGNALS) as before:
            self._selector.register(self._signals, selectors.EVENT_READ, self._on_signals)
            self._has_terminal = has_terminal() and before[signal.SIGHUP] is not signal.SIG_IGN  # else under nohup
            try:
                for place in range(self._count):
                    self._start(place, self._generation)
                while self._ends_at is None or self._workers:
                    for key, _ in self._selector.select(self._pause()):
                        key.data()
                    self._look()
            finally:
                self._end()
        if self._error is not None:
            raise self._error
        return 1 if self._was_killed else 0

    # Workers come

    def _start(self, place: int, generation: int) -> None:
        """Raises WorkerError where there is no room for another process."""
        worker = self._workers.start(place, generation)
        self._selector.register(worker.control, selectors.EVENT_READ, lambda: self._hear(worker))
        options = self._options
        job = Job(
            files=[str(file) for file in options.files],
            home=str(options.home) if options.home is not None else None,
            env=options.env,
            overrides=dict(options.overrides),
            slot=worker.slot,
            workers=self._count,
            watch=self._watcher is not None,
            verbose=self._verbose,
        )
        worker.send(job, [self._board.descriptor])

    def _hear(self, worker: Worker) -> None:
        """Every message that waits from a worker."""
        while worker in self._workers:
            try:
                content, descriptors = worker.control.receive()
            except BlockingIOError:
                return
            close_all(descriptors)
            if not content:
                with contextlib.suppress(KeyError):
                    self._selector.unregister(worker.control)
                return
            try:
                message = from_worker(content)
            except msgspec.DecodeError:  # no word of ours: what runs there is not what was started
                self._note(f"worker {worker.pid} sent what is no message; it is killed.")
                worker.kill()
                return
            if isinstance(message, Belongs):
                self._belongs(worker, message)
            elif isinstance(message, Ready):
                self._is_ready(worker, message)
            else:
                worker.failed = message

    def _belongs(self, worker: Worker, message: Belongs) -> None:
        worker.belongs = message.paths
        if self._watcher is not None:
            self._watcher.belong(message.paths)

    def _is_ready(self, worker: Worker, ready: Ready) -> None:
        if worker.phase is not Phase.STARTING or self._ends_at is not None:
            return
        worker.phase, worker.ready, worker.ready_at = Phase.READY, ready, time.monotonic()
        if worker.generation == self._next:
            if len(self._workers.of(self._next, Phase.READY)) == self._count:
                self._switch()
            return
        if worker.generation != self._generation:
            return  # it was refused, and has not ended yet
        models = {model.name: model.fingerprint for model in ready.models}
        if not self._is_announced:
            self._listening.open()
        self._spread()
        if not self._is_announced:
            self._is_announced = True
            self._serves(worker, models)
            self._announce(ready)
            if self._watcher is not None:
                self._watcher.start()
            if self._again:
                self._reload()
        elif models != self._models:
            self._note(f"worker {worker.pid} has read files that were changed since the others read them.")
            self._reload()

    def _serves(self, worker: Worker, models: dict[str, str]) -> None:
        """What a worker read is in service."""
        assert worker.ready is not None
        if self._watcher is not None:
            # A load that writes among its own files must not be told to load again for ever.
            seen = None if models == self._models and not worker.ready.seen else worker.ready.seen
            self._watcher.serve(worker.belongs, seen)
        self._models = models
        self._compacting.serve(worker.ready.models)
        looked_up = [model for model in worker.ready.models if model.is_looked_up]
        self._indexing.serve((model.lookup_home or model.home, model.name, model.where) for model in looked_up)

    def _spread(self) -> None:
        """Have every socket looked after by the generation in service."""
        if self._ends_at is None:
            self._workers.spread(self._generation, self._listening)

    # Reload

    def _reload(self) -> None:
        """Start the next generation; once, however often it is asked for."""
        if self._ends_at is not None:
            return
        draining = sum(worker.phase is Phase.DRAINING for worker in self._workers)
        if self._next is not None or not self._is_announced or draining > self._count:
            self._again = True  # when that is over
            return
        self._again = False
        self._reload_since = time.monotonic()
        self._newest += 1  # numbers do not come again: of a generation that was refused, some may still be ending
        self._next = self._newest
        try:
            self._next_settings = self._options.settings()
            # what listens is what was opened at the start
            opened = {name: getattr(self._settings.serve, name) for name in ("host", "port", "unix")}
            refuse_openness(replace(self._next_settings, serve=replace(self._next_settings.serve, **opened)))
        except SerenoError as error:
            self._refuse(str(error))
            return
        try:
            for place in range(self._count):
                self._start(place, self._next)
        except WorkerError as error:
            self._refuse(str(error))

    def _switch(self) -> None:
        """The next generation is the one in service; the old one finishes what it has."""
        old = self._workers.of(self._generation, Phase.READY, Phase.STARTING)
        assert self._next is not None
        self._generation, self._next = self._next, None
        before, self._settings = self._settings, self._next_settings
        self._due.clear()
        self._back_offs = [BackOff() for _ in range(self._count)]
        self._spread()
        for worker in old:
            if worker.phase is Phase.READY:
                self._drain(worker)
            else:
                worker.kill()
        new = self._workers.of(self._generation, Phase.READY)[0]
        assert new.ready is not None
        models = {model.name: model.fingerprint for model in new.ready.models}
        changed = [f"{name} {print_[:12]}" for name, print_ in models.items() if self._models.get(name) != print_]
        self._note(
            f"reloaded in {time.monotonic() - self._reload_since:.1f} s: {', '.join(changed) or 'the same models'}."
        )
        fixed = [
            name
            for name in ("host", "port", "unix", "unix_mode")
            if getattr(before.serve, name) != getattr(self._settings.serve, name)
        ]
        if (self._settings.workers or 1) != self._count:
            fixed.append("workers")
        if fixed:
            self._note(f"what is new in {', '.join(fixed)} needs a restart.")
        self._serves(new, models)
        if self._again:
            self._reload()

    def _refuse(self, why: str) -> None:
        """The next generation cannot be; the one in service goes on."""
        generation, self._next = self._next, None
        for worker in self._workers:
            if worker.generation == generation:
                worker.kill()
        serving = ", ".join(f"{name} {print_[:12]}" for name, print_ in self._models.items())
        self._note(f"the reload was refused, {serving} stays in service: {why}")
        if self._again:
            self._reload()

    # Workers go

    def _drain(self, worker: Worker, *, accept_seconds: float | None = None) -> None:
        seconds = self._settings.serve.drain_seconds
        worker.phase = Phase.DRAINING
        worker.kill_at = time.monotonic() + seconds
        worker.send(Drain(seconds=max(0.0, seconds - RESERVE), accept_seconds=accept_seconds))

    def _bury(self) -> None:
        """Take leave of the processes that have ended."""
        for worker in [w for w in self._workers if w.has_ended()]:
            self._hear(worker)  # its last word
            with contextlib.suppress(KeyError):
                self._selector.unregister(worker.control)
            worker.control.close()
            self._workers.remove(worker)
            self._fold(worker)
            self._is_gone(worker)
        if self._again:
            self._reload()
        if os.getpid() == 1:  # of a container: what others have started there is its child once they are gone
            reap({*self._workers.pids, *self._compacting.pids, *self._indexing.pids})

    def _is_gone(self, worker: Worker) -> None:
        code = worker.process.returncode
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if self._ends_at is not None or worker.is_hung:
            return
        if worker.phase is Phase.DRAINING:
            if code:
                self._note(f"worker {worker.pid} {how} while it drained.")
            return
        moment = "while it loaded" if worker.phase is Phase.STARTING else "before the others were ready"
        why = worker.failed.says if worker.failed is not None else f"A worker {how} {moment}."
        if worker.generation == self._next:
            self._refuse(why)
        elif worker.generation == self._generation:
            if not self._is_announced and not self._workers.of(self._generation, Phase.STARTING):
                self._error = _error(worker.failed, why)
                self._stop()
                return
            self._spread()
            was_ready = worker.phase is Phase.READY
            pause = self._start_later(worker.place, time.monotonic() - worker.ready_at if was_ready else None)
            what = f"worker {worker.pid} {how}." if was_ready else why
            when = f"in {pause:.2g} s" if pause else "now"
            self._note(f"{what} Another one starts {when}.")

    def _start_later(self, place: int, worked: float | None = None) -> float:
        """Have a worker started, the later the more often it failed there; the pause."""
        pause = self._back_offs[place].pause(worked)
        self._due[place] = time.monotonic() + pause
        return pause

    def _replace(self, place: int) -> None:
        try:
            self._start(place, self._generation)
        except WorkerError as error:
            pause = self._start_later(place)
            self._note(f"{error} The next try is in {pause:.2g} s.")

    def _fold(self, worker: Worker) -> None:
        """Keep what it has counted, and free its slot."""
        from sereno.serve.metrics import Ended, fold

        is_replaced = worker.generation == self._generation and worker.phase is not Phase.DRAINING
        has_died = is_replaced and worker.process.returncode != 0 and self._ends_at is None
        ended: Ended = "hung" if worker.is_hung else "died" if has_died else "drained"
        try:
            fold(self._board, worker.slot, ended)
        except (msgspec.MsgspecError, ValueError, RuntimeError) as error:  # it may have written anything
            self._note(f"what worker {worker.pid} has counted is lost: {error}.")
        self._board.clear(worker.slot)

    def _replace_hung(self, worker: Worker, why: str) -> None:
        """Another worker in its place, then an end to it: at once if nothing of it moves, else when its callers know."""
        self._note(f"worker {worker.pid} hangs: {why} It is replaced.")
        worker.is_hung = True
        can_answer = self._board.state(worker.slot) is State.HUNG
        if can_answer:
            self._drain(worker)
        else:
            worker.phase = Phase.DRAINING
            worker.kill_at = time.monotonic()
        self._board.set_state(worker.slot, State.HUNG)
        self._spread()
        self._replace(worker.place)

    # Times and signals

    def _pause(self) -> float:
        now = time.monotonic()
        times = [worker.kill_at for worker in self._workers if worker.kill_at is not None]
        if self._is_announced:
            times += self._due.values()
        return max(0.0, min(PATIENCE, min(times, default=now + PATIENCE) - now))

    def _look(self) -> None:
        """What has come due, and who does not move."""
        now = time.monotonic()
        for worker in self._workers:
            if worker.kill_at is not None and worker.kill_at <= now:
                worker.kill_at = None
                self._was_killed |= self._ends_at is not None
                worker.kill()
        if self._is_announced:  # if none ever gets ready, none is started again
            for place in [place for place, due in self._due.items() if due <= now]:
                del self._due[place]
                self._replace(place)
        for worker in self._workers:
            if worker.phase is Phase.STARTING and not worker.is_late and now - worker.started_at > LATE:
                worker.is_late = True
                self._note(f"worker {worker.pid} has been loading for {LATE:g} s.")
        if self._ends_at is None:
            for worker in [w for w in self._workers if w.phase is Phase.READY]:
                self._look_at(worker)
            self._compacting.look()
            self._indexing.look()

    def _indexing_failed(self, model: str) -> None:
        from sereno.serve.metrics import count_failed_index

        count_failed_index(self._board, model)

    def _look_at(self, worker: Worker) -> None:
        why = self._workers.why_hung(worker)
        if not why:
            return
        if worker.generation == self._next:
            self._refuse(f"worker {worker.pid} hangs: {why}")
        elif worker.generation == self._generation:
            self._replace_hung(worker, why)

    def _on_signals(self) -> None:
        numbers = self._signals.read()
        if signal.SIGCHLD in numbers:
            self._bury()
        for number in numbers:
            if number in ACCEPTING:
                self._is_told_to_end(signal.Signals(number))
        if signal.SIGHUP in numbers and self._has_terminal and not has_terminal():
            self._stop()  # whoever started it has closed the window
        elif signal.SIGHUP in numbers or OTHER in numbers:
            self._reload()

    # The end

    def _is_told_to_end(self, number: signal.Signals) -> None:
        """Drain; if it is the same signal again, kill whoever is left.

        The other signal says nothing new: whatever wraps us may pass a SIGTERM on as well as the terminal's SIGINT.
        """
        if number in self._told_to_end:
            for worker in self._workers:
                worker.kill_at = time.monotonic()
        self._told_to_end.add(number)
        self._stop(ACCEPTING[number])

    def _stop(self, accept_seconds: float = 0.0) -> None:
        """Drain all that serve, once."""
        if self._ends_at is not None:
            return
        self._ends_at = time.monotonic() + self._settings.serve.drain_seconds
        self._due.clear()
        # Only those who take connections from a socket hold it now: what waits in it is theirs, to the last one.
        self._listening.close()
        for worker in self._workers:
            if worker.phase is Phase.STARTING:
                worker.kill()
            elif worker.phase is Phase.READY and worker.generation == self._generation:
                self._drain(worker, accept_seconds=accept_seconds)
            elif worker.phase is Phase.READY:
                worker.kill()
            else:
                worker.kill_at = min(worker.kill_at or self._ends_at, self._ends_at)
        self._indexing.stop()  # compactors have to see what the workers leave

    def _end(self) -> None:
        """Nothing that was started is left, whatever ended us."""
        if self._watcher is not None:
            self._watcher.stop()
        self._listening.close()
        self._workers.end()
        for beside in (self._compacting, self._indexing):
            beside.stop()
            beside.wait()
        self._selector.close()
        self._signals.close()
        self._board.close()
        self._listening.held.close()


def _error(failed: Failed | None, why: str) -> SerenoError:
    kind = getattr(exceptions, failed.kind, WorkerError) if failed is not None else WorkerError
    return kind(why) if issubclass(kind, SerenoError) else WorkerError(why)
