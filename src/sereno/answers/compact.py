"""From segments to the table, exactly once; and what keeps the table small: old days, small files, erased persons.

One at a time works on a model's table: the holder of its lock. What it is about to commit is *pending*: written down,
with the table's version, before the first file of it is. Whoever holds the lock next looks whether the table has that
commit. It has: the segments in it are removed, if that is still to be done. It has not: its files are removed, and
the segments go into another. So an answer is in the table once, wherever the process was killed.

Hosts that share a home need not share its locks. So what is pending is made as a name that nobody has yet, which one of two
hosts can do; and what another host has pending is left to it, unless it is old.

Pods that share a table in an object store share nothing else: each puts its own segments there, and of two commits at once
one is refused, and made again on top of the other. A store may do minutes later what it was sent, so a commit that is not
there is not known to be none: before its files are removed, the version that it would be is taken, by a commit of nothing.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import secrets
import shutil
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from sereno.adapters import answer_table
from sereno.adapters.answer_table import CommitId, DataFile, TableState
from sereno.adapters.delta import NotTakenError
from sereno.answers.columns import EMPTY, OWN, key_columns, matches_key, place, tables_of
from sereno.answers.folder import (
    DAMAGE,
    LEFT_SECONDS,
    PENDING,
    finished_segments,
    known_keys,
    make_folder,
    segments_folder,
    writer_of,
)
from sereno.answers.parts import Parts, remove_parts
from sereno.answers.segments import Header, read_header, read_segment
from sereno.exceptions import BusyError, SerenoError, StorageError
from sereno.failpoints import failpoint
from sereno.places import ObjectPath, Place
from sereno.storage import age, exclusive, fsync, host_name, told, write_atomically

LOG = logging.getLogger("sereno.answers")

T = TypeVar("T")

COMMIT_BYTES = 512 << 20  # of segments in one commit
PATIENCE = 300.0  # seconds to wait for another process that works on the table
RACES, RACE_SECONDS = 10, 1.0  # how often a commit is tried in an object store, and the longest pause between
TRIED_AGAIN = (BusyError, NotTakenError)  # another pod was faster; the store does not say why
FORMAT = 1  # of segments


class Pending(msgspec.Struct):
    """What is about to be committed."""

    attempt: str
    version: int  # of the table before it
    segments: list[str] = []  # names, which the table will hold
    host: str = ""  # whose process it is
    writer: str = ""  # what the table calls whoever commits it

    @property
    def commit_id(self) -> CommitId:
        """What the table knows the commit by."""
        return CommitId(self.writer, int(self.attempt.rpartition("-")[2], 16))

    @classmethod
    def read(cls, folder: Path) -> Pending | None:
        try:
            return msgspec.json.decode((folder / PENDING).read_bytes(), type=cls)
        except FileNotFoundError:
            return None


@dataclass(kw_only=True)
class Done:
    """What a pass did."""

    answers: int = 0  # added to the table
    segments: int = 0  # put into the table
    erased: int = 0
    dropped_days: int = 0
    joined_files: int = 0


class Compactor:
    """Works on the answers of one model."""

    def __init__(self, home: Path, model: str, root: Place | None = None) -> None:
        """`root`: below which the table lies, if not below the home."""
        self.model = model
        self.home = home
        self.segments = segments_folder(home, model)
        self.table: Place = (root or home) / "answers" / model
        self.scratch = home / ".sereno" / "scratch" / f"{model}.answers"
        self._lock = home / ".sereno" / "locks" / f"{model}.answers"

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock, with what a crash left put right. Raises BusyError, and StorageError for what fails inside."""
        busy = f"Another process (pid {{pid}}) works on the answers of {self.model!r}. Try again when it is done."
        with (
            told(f"The answers of {self.model} cannot be put into their table", answer_table.THEN),
            exclusive(self._lock, busy, wait_seconds=PATIENCE),
        ):
            make_folder(self.segments)
            if isinstance(self.table, ObjectPath):
                shutil.rmtree(self.scratch, ignore_errors=True)  # what a crash left
            self._recover()
            yield

    @functools.cached_property
    def declared(self) -> list[list[str]]:
        """The keys as versions of the model have declared them, the newest last."""
        return known_keys(self.segments)

    def state(self) -> TableState | None:
        return answer_table.read_state(self.table)

    # Exactly once

    def _recover(self, *, may_come: bool = True) -> bool:
        """Finish what is pending, or undo it; whether the table has it. `may_come`: a store may be about to commit it."""
        pending = Pending.read(self.segments)
        if pending is not None and pending.host not in ("", host_name()):
            with contextlib.suppress(FileNotFoundError):
                if age(self.segments / PENDING) < LEFT_SECONDS:
                    raise self._busy(pending.host)
        answer_table.mend_log(self.table)
        if pending is None:
            return False
        is_committed = self.is_committed(pending)
        if not is_committed and may_come and isinstance(self.table, ObjectPath):
            self._take_next_version()
            is_committed = self.is_committed(pending)
        if is_committed:
            answer_table.flush_log(self.table, pending.version)
            self._remove_segments(pending.segments)
        else:
            remove_parts(self.table, pending.attempt)
        (self.segments / PENDING).unlink(missing_ok=True)
        return is_committed

    def _take_next_version(self) -> None:
        """Have the store refuse the commit that it was sent and has not done: no two have one version."""
        state = self.state()
        schema = EMPTY if state is None else state.schema
        with contextlib.suppress(BusyError):  # another one has taken it, or that commit has come
            answer_table.commit(self.table, state, schema=schema, metadata={"kind": "nothing"})

    def _announce(self, pending: Pending) -> None:
        """Write down what is about to be committed. Raises BusyError where another host has done so just now."""
        file, new = self.segments / PENDING, self.segments / f".{pending.attempt}.pending"
        write_atomically(new, msgspec.json.encode(pending))
        try:
            file.hardlink_to(new)
        except FileExistsError as error:
            there = Pending.read(self.segments)
            if there != pending:  # else the file server has done it, and its answer was lost
                raise self._busy(there.host if there else "") from error
        finally:
            new.unlink(missing_ok=True)
        fsync(self.segments)

    def _confirm(self, pending: Pending, files: Iterable[DataFile]) -> None:
        """Raise BusyError where another host took this one for dead, and has removed what is about to be committed."""
        there = Pending.read(self.segments)
        try:
            for file in files if isinstance(self.table, Path) else ():
                (self.table / file.path).open("rb").close()
        except FileNotFoundError:
            there = None
        if there != pending:
            raise self._busy(there.host if there else "")

    def _busy(self, host: str) -> BusyError:
        where = f"host {host}" if host else "another host"
        return BusyError(
            f"A process on {where} works on the answers of {self.model!r}. {answer_table.THEN} Should that host be gone for "
            "good, another one goes on after an hour."
        )

    def is_committed(self, pending: Pending) -> bool:
        return answer_table.has_commit(self.table, pending.commit_id)

    def _remove_segments(self, names: Iterable[str]) -> None:
        for name in names:
            (self.segments / name).unlink(missing_ok=True)
            failpoint("answers_segment_removed")
        # else a power cut could bring them back, after what says that they were committed is gone
        fsync(self.segments)

    def commit(
        self,
        state: TableState | None,
        write: Callable[[Parts], None],
        *,
        kind: str,
        schema: pa.Schema,
        columns: Container[str],
        remove: Sequence[DataFile] = (),
        segments: Sequence[str] = (),
        same_rows: bool = False,
    ) -> int:
        """Write files that have some columns of the table's schema, and commit them with what they replace.

        Returns the number of rows written. If anything fails, the table and the segments are as they were.
        """
        version = -1 if state is None else state.version
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        attempt = f"{stamp}-{secrets.token_hex(4)}"
        pending = Pending(
            attempt=attempt,
            version=version,
            segments=list(segments),
            host=host_name(),
            writer=writer_of(self.home),
        )
        self._announce(pending)
        failpoint("answers_pending")
        parts = Parts(self.table, pending.attempt, pa.schema([f for f in schema if f.name in columns]), self.scratch)
        is_sent = False
        try:
            write(parts)
            files = parts.close()
            failpoint("answers_commit_before")
            self._confirm(pending, files)
            if files or remove:
                said = {
                    "kind": kind,
                    "attempt": pending.attempt,
                    "segments": ",".join(segments),
                    "rows": str(parts.rows),
                }
                is_sent = True
                answer_table.commit(
                    self.table,
                    state,
                    schema=schema,
                    add=files,
                    remove=remove,
                    metadata=said,
                    commit_id=pending.commit_id,
                    same_rows=same_rows,
                )
                failpoint("answers_commit_after")
                answer_table.flush_log(self.table, version)
            self._remove_segments(segments)
            (self.segments / PENDING).unlink(missing_ok=True)
        except (OSError, SerenoError) as error:
            parts.abandon()
            try:  # what is not committed would fill the disk for nothing
                if self._recover(may_come=is_sent and not isinstance(error, BusyError)):
                    return parts.rows  # only the store's answer was lost
            except NotTakenError as left:  # it is pending still, and the next pass, no other try, has to begin with it
                raise StorageError(str(left)) from error
            except (OSError, SerenoError):
                if isinstance(error, TRIED_AGAIN):
                    raise
            raise
        return parts.rows

    # The pass

    def compact(self, *, days: int | None = None) -> Done:
        """Put all finished segments into the table; drop days that are older than so many; join small files.

        Raises BusyError and StorageError; then the segments stay, and the next pass takes them.
        """
        from sereno.answers.tidy import drop_old_days, join_small_files

        done = Done()
        with self.alone():
            self.take_segments(done)
            with self.unless_busy():
                drop_old_days(self, days, done)
                join_small_files(self, done)
        return done

    def take_segments(self, done: Done, without: Sequence[str] | None = None) -> None:
        """Put all finished segments into the table, but the answers of one key."""
        waiting = [(path, path.stat().st_size) for path in finished_segments(self.segments)]
        while waiting:
            some = [waiting.pop(0)]
            while waiting and sum(size for _, size in [*some, waiting[0]]) <= COMMIT_BYTES:
                some.append(waiting.pop(0))
            self.tried(functools.partial(self._put, [path for path, _ in some], done, without), done)

    def tried(self, work: Callable[[], T], done: Done) -> T:
        """Do what commits to the table; again where it is in an object store, and another try may succeed."""
        erased = done.erased
        for left in reversed(range(RACES)):
            try:
                return work()
            except TRIED_AGAIN:
                if not left or isinstance(self.table, Path):
                    raise
                done.erased = erased  # what was not committed was not erased
            time.sleep(random.uniform(0, RACE_SECONDS))
        raise AssertionError  # the last try returns or raises

    @contextlib.contextmanager
    def unless_busy(self) -> Iterator[None]:
        """What another pod does just as well, or does just now, can wait."""
        try:
            yield
        except BusyError:
            if isinstance(self.table, Path):
                raise

    def _put(self, paths: Sequence[Path], done: Done, without: Sequence[str] | None) -> None:
        state = self.state()
        schema = EMPTY if state is None else state.schema
        columns = set(OWN.names)
        readable: list[Path] = []
        damaged: list[tuple[Path, int, int]] = []
        for path in paths:
            header = read_header(path)
            if header is None or header.format != FORMAT:
                self._set_aside(path, header)
                continue
            placed = place(header, schema)
            schema = placed.schema
            columns.update(placed.names)
            readable.append(path)

        def write(parts: Parts) -> None:
            for path in readable:
                segment = read_segment(path)  # one at a time: all of them would fill the memory
                for table in tables_of(segment, schema):
                    parts.write(table if without is None else self.leave_out(table, schema, without, done))
                if segment.damaged or segment.lost:
                    damaged.append((path, segment.damaged, segment.lost))
                del segment  # before the next one is read

        if not readable:
            return
        done.answers += self.commit(
            state, write, kind="append", schema=schema, columns=columns, segments=[path.name for path in readable]
        )
        done.segments += len(readable)
        for damage in damaged:
            self._tell_damage(*damage)

    def _set_aside(self, path: Path, header: Header | None) -> None:
        """Keep a segment that cannot be read, out of the way."""
        if header is None and path.suffix == ".open" and not read_segment(path).answers:
            path.unlink()  # the machine died before the header was on the disk
            return
        aside = path.with_suffix(".unreadable")
        path.rename(aside)
        why = "its header is damaged"
        if header is not None:
            why = f"it has format {header.format}, of a later version of Sereno"
        LOG.error("Segment %s cannot be read: %s. It is kept there; its answers are not in the table.", aside, why)

    def _tell_damage(self, path: Path, damaged: int, lost: int) -> None:
        note = {
            "segment": path.stem,
            "bytes": damaged,
            "answers": lost,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with (self.segments / DAMAGE).open("ab") as stream:
            stream.write(msgspec.json.encode(note) + b"\n")
        LOG.error(
            "Segment %s was damaged: %s bytes were not as they had been written, %s answers could not be read. The rest of "
            "it is in the table. Look after the disk.",
            path.stem,
            damaged,
            lost,
        )

    def leave_out(self, table: pa.Table, schema: pa.Schema, key: Sequence[str], done: Done) -> pa.Table:
        """The rows that do not have this key; counted are those that have it."""
        gone = matches_key(table, key_columns(schema), key, self.declared)
        done.erased += pc.sum(gone).as_py() or 0
        return table.filter(pc.invert(gone))
