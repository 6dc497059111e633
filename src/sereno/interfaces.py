"""The seams: what the core asks of the outside, each with its promises and errors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from datetime import date, datetime

    from sereno.batch.tasks import Job, Task, TaskResult
    from sereno.exceptions import StorageError
    from sereno.ledger import Entry, Lease, Notice, NoticeKind, Pause, RunState, Transition
    from sereno.lookup.keys import KeyCodec
    from sereno.snapshots import Snapshot, State


class Executor(Protocol):
    """Scores tasks somewhere. One executor serves one run."""

    @property
    def workers(self) -> int:
        """How many tasks it scores at once."""
        ...

    def map(self, job: Job, tasks: Iterable[Task], progress: Callable[[int], None]) -> Iterator[TaskResult]:
        """Score every task once and yield its result as it is done, in any order.

        `tasks` is drawn lazily, so scoring starts before planning ends. `progress` is told how many
        rows were scored: of each batch, or of each task that was scored elsewhere. Each task is yielded once, also one that
        was tried again because its worker was lost. Raises what `score_task` raised, WorkerError when a process died (for
        good, on a cluster), and on a cluster NotSharedError.
        """
        ...

    def close(self) -> None:
        """End what was started for the run, whether any task was scored or not. It may be called again."""
        ...


class Export(Protocol):
    """A copy of what is published, in a form that other systems read."""

    @property
    def name(self) -> str:
        """As in the setting `exports`, without secrets: "parquet", "postgresql://bank/offers"."""
        ...

    def follow(self, served: Sequence[Snapshot], keep: frozenset[int]) -> bool:
        """Make the outside show exactly the served snapshots, atomically; say whether anything changed.

        `served` is one snapshot (disposition `replace`) or one per data date, oldest first (`partition`).
        Idempotent: it looks at what is there and does what is missing, so whoever calls it next finishes what
        a crash left. Snapshots that are neither served nor in `keep` are removed afterwards.
        A reader sees what was served before or what is served now, never a mixture, never nothing.
        Raises ExportError.
        """
        ...


class LookupIndex(Protocol):
    """The predictions of one snapshot, by key; open for reading, verified, and never changed."""

    number: int  # of the snapshot: the version
    data_date: date
    data_time: datetime  # UTC
    rows: int
    keys: KeyCodec  # what a key of this snapshot is
    mark: (
        object  # of the store, as it was when this was opened: `open` may have found another than who asked for it saw
    )

    def get(self, key: bytes) -> bytes | None:
        """The prediction of a key (as `keys` encodes it), as a JSON object; None: the snapshot does not have the key."""
        ...

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The same for many keys, in their order."""
        ...

    def close(self) -> None:
        """Let go of it. Nothing may be asked of it afterwards."""
        ...


class FarIndex(LookupIndex, Protocol):
    """An index on another machine. `get` and `get_many` wait for it, and raise StorageError where it does not answer.

    None of its predictions is ever missing: where the index was lost there, that is an error, and no unknown key.
    """

    is_gone: bool  # it was found to be no longer there: the store is to be opened anew

    def ask(self, keys: Sequence[bytes], then: Callable[[list[bytes | None] | StorageError], None]) -> None:
        """What `get_many` gives, told later: for event loops, where nothing may wait. Answers come in the order of questions.

        Soon, whatever becomes of the other machine: what does not answer in time is an error.
        """
        ...


class Seen(NamedTuple):
    """What a look at a store shows."""

    mark: object
    is_behind: bool
    was_rolled_back: bool  # the index that was asked about


class LookupStore(Protocol):
    """Where the lookups of one model find what its table serves: an index for each kept snapshot, and which one is served.

    Readers and the one who follows may be different processes, and any of them may die at any point: a reader finds what
    was served before or what is served now, whole, and whoever follows next finishes what the other left.
    """

    @property
    def is_far(self) -> bool:
        """Whether it is on another machine (a FarStore, of FarIndexes): whatever is asked of it may have to wait."""
        ...

    def follow(self, state: State, keep: frozenset[int]) -> bool:
        """Make lookups answer from the served snapshot of the newest data date; say whether anything changed.

        Builds its index where there is none, in bounded memory, then switches to it in one step. Then come the indexes of
        the others in `keep` that were not withdrawn, newest first: a rollback to one of them is a switch and nothing else.
        One of those that cannot be built is left out, with a warning. Indexes of snapshots that are neither served nor in
        `keep` are removed. Idempotent. Raises StorageError where it cannot be written (what was served stays), and
        IndexingError where the served one cannot be built.
        """
        ...

    def mark(self) -> object:
        """Something that differs from what it was once another index is served. Cheap: asked several times a second."""
        ...

    def is_behind(self) -> bool:
        """Whether the table has moved on, or an index is missing: whether `follow` has something to do. Cheap, too."""
        ...

    def was_rolled_back(self, number: int) -> bool:
        """Whether this snapshot is newer than the one that is served: an index of it must not go on answering."""
        ...

    def open(self) -> LookupIndex | None:
        """The index that is served, verified; None: there is none (yet).

        One that is damaged is put aside, so that the next `follow` builds it again, and the newest older one that was
        not rolled back is opened in its place, until then. May take a second: it reads the whole index once, so that
        answers from it need not wait for the disk.
        """
        ...


class FarStore(LookupStore, Protocol):
    """A store on another machine. Everything may wait, a second or two, and raise StorageError where it does not answer."""

    def look(self, number: int | None) -> Seen:
        """`mark`, `is_behind`, and `was_rolled_back` of this snapshot (None: of none), in one."""
        ...

    def close(self) -> None:
        """Let go of connections. What waits for an answer gets an error."""
        ...


class RunLedger(Protocol):
    """What is known of every run of a home. Several processes, on several hosts, use one ledger at once.

    Every method is one transaction (`prune` takes several, so that others need not wait), and may be called from any
    thread. Each raises LedgerError: what failed, why (the disk is full, it is locked, it is damaged, it cannot be reached),
    and what to do.
    """

    def began(self) -> int:
        """Which ledger this is: another number says that it was removed, or replaced, and made again."""
        ...

    def versions(self) -> dict[str, int]:
        """The greatest version of each model of which it knows that it was published."""
        ...

    def add(self, entries: Iterable[Entry]) -> int:
        """Runs that it does not know yet, as they are; how many those were. The others stay. Several transactions."""
        ...

    def move(
        self,
        entry: Entry,
        *,
        expected: Collection[RunState | None] | None = None,
        lease: Lease | None = None,
    ) -> bool:
        """Bring a run into the state of `entry`, with all that it says, and keep the transition.

        `expected`: only from one of these states (None: the ledger does not know the run); else nothing changes and the
        answer is False. `lease`: only while its holder still has it; else nothing changes and the answer is False. (Its time
        may be over, as long as nobody else has had it since.)
        The transition's time is `entry.since`. An entry in the very state it had is updated, without a transition: unless
        it is published, for another reason (it was rolled back, its exports cannot follow).
        """
        ...

    def entry(self, model: str, run_key: str) -> Entry | None:
        """One run."""
        ...

    def entries(
        self,
        *,
        model: str | None = None,
        states: Collection[RunState] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = None,
    ) -> list[Entry]:
        """Runs, newest data time first: of a model, in one of these states, whose data time is in [since, until)."""
        ...

    def newest(self, until: datetime) -> dict[str, Entry]:
        """The run with the newest data time at or before `until`, of each model. Fast: asked every second."""
        ...

    def open_entries(self) -> list[Entry]:
        """Every run that is due, waiting or running, or has a `not_before`; oldest data time first. Fast, too."""
        ...

    def transitions(self, model: str, run_key: str) -> list[Transition]:
        """All that happened to a run, oldest first."""
        ...

    def forget(self, model: str, run_key: str) -> None:
        """The ledger does not know this run any more, nor what happened to it, nor its notices."""
        ...

    def prune(self, before: datetime, *, model: str | None = None, dry_run: bool = False) -> int:
        """Forget runs (of a model) that ended before, and whose data time is before; and their notices. How many runs.

        What is held stays, as somebody is to decide; so does the newest run of each model.
        """
        ...

    def acquire(self, name: str, holder: str, seconds: float, *, by_force: bool = False) -> Lease | None:
        """The lease of that name, for so long; None: another holder has it and its time is not over.

        `by_force`: even then; the caller knows that the other one is dead. Times are those of the ledger's own clock.
        The token is greater than any before, also after `release`.
        """
        ...

    def renew(self, lease: Lease, seconds: float) -> bool:
        """Have it so long from now on; False: it was lost, another holder has had it since."""
        ...

    def release(self, lease: Lease) -> None:
        """Give it back, if it is still held."""
        ...

    def holder(self, name: str) -> Lease | None:
        """Who has a lease whose time is not over."""
        ...

    def pause(self, pause: Pause) -> bool:
        """The model is paused; False: it was already, by whoever did it first."""
        ...

    def resume(self, model: str) -> Pause | None:
        """The model is no longer paused; the pause that ended."""
        ...

    def pauses(self) -> dict[str, Pause]:
        """Which models are paused."""
        ...

    def add_notice(
        self, model: str, run_key: str, kind: NoticeKind, says: str, at: datetime, attempt: str = ""
    ) -> bool:
        """Something is to be told; False: of this run, kind and attempt it was told, or is about to be, already."""
        ...

    def untold(self) -> list[Notice]:
        """Notices that nobody was told yet, oldest first."""
        ...

    def notices(self, model: str, limit: int) -> list[Notice]:
        """The newest notices of a model, newest first."""
        ...

    def tried(self, number: int, *, told_at: datetime | None, error: str = "") -> None:
        """A notice was told, or a try failed."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...
