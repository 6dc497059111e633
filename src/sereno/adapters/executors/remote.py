"""A worker elsewhere: what Ray and Spark call in their processes, on whatever node they started them.

Everything goes in and out as bytes with a fixed schema, errors too: a cluster would wrap an exception, and try again what
cannot help. No row comes along: a worker reads its own, and what it writes lies on the folder that all nodes share.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import msgspec

from sereno.adapters.executors.bundle import load_bundle
from sereno.adapters.executors.local import Answer, error_answer, loaded_with
from sereno.adapters.executors.spawn import THREAD_VARIABLES
from sereno.adapters.executors.worker import load_for
from sereno.batch.tasks import Job, Task, score_task
from sereno.config import find_home
from sereno.loader import load_model
from sereno.scoring import Scorer
from sereno.shared import confirm

MOST_PRINTED = 65_536  # letters of what a model prints that come along with an answer


class RemoteWorker:
    """Loads the model of a job once, and scores its tasks one after another."""

    def __init__(self, job: bytes, check: bytes, threads: int, bundle: Path | None = None) -> None:
        """`job`: a Job, as msgpack. `check`: what `shared.announce` gave. `threads`: of the model's libraries.

        `bundle`: where the model was unpacked on this node; else its file is read where the job says.
        """
        self._job = msgspec.msgpack.decode(job, type=Job)
        self._check, self._threads, self._bundle = check, threads, bundle
        self._loaded = contextlib.ExitStack()
        self._scorer: Scorer | None = None
        self._shared = b""
        self._printed = _Printed()
        for name in THREAD_VARIABLES:  # of libraries that the model file is the first to import
            os.environ.setdefault(name, str(threads))

    def ready(self) -> bytes:
        """Check the shared folders and load the model. An Answer: an empty one, or the error.

        Where it is not asked first, the first task does it.
        """
        with self._listening():
            try:
                self._load()
                answer = Answer()
            except BaseException as error:  # noqa: BLE001 - told to the process that asked, which raises it
                answer = self._told(error)
        return self._encoded(answer)

    def score(self, task: bytes) -> bytes:
        """Score a Task (msgpack). An Answer with its result, light, or with the error."""
        with self._listening():
            try:
                scorer = self._load()
                result = score_task(self._job, msgspec.msgpack.decode(task, type=Task), scorer, lambda rows: None)
                answer = Answer(rows=result.rows_in, result=result.light)
            except BaseException as error:  # noqa: BLE001 - as above
                answer = self._told(error)
        return self._encoded(answer)

    def _load(self) -> Scorer:
        if self._scorer is None:
            self._shared = confirm(self._check)
            file = Path(self._job.model_file)
            folder = find_home(file)  # where the functions of the model file run, in every process
            os.chdir(folder if folder.is_dir() else self._job.home)  # not there: the model came as a bundle
            model = load_model(file) if self._bundle is None else load_bundle(self._bundle)
            scorer = loaded_with(self._job, self._threads, lambda: load_for(self._job, model))
            self._scorer = self._loaded.enter_context(scorer)
        return self._scorer

    def _told(self, error: BaseException) -> Answer:
        answer = error_answer(error)
        return msgspec.structs.replace(answer, message=f"{answer.message} (On host {socket.gethostname()}.)")

    def _encoded(self, answer: Answer) -> bytes:
        answer.host, answer.shared, answer.printed = socket.gethostname(), self._shared, _whole(self._printed.taken())
        answer.message = _whole(answer.message)
        return msgspec.msgpack.encode(answer)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """What is printed goes to the cluster's own logs, as ever, and to whoever waits for the answer."""
        streams: list[Any] = [_Heard(stream, self._printed) for stream in (sys.stdout, sys.stderr)]
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            yield


def show_printed(answer: Answer) -> None:
    """In the process that asked: what the model printed there, as if it had been here."""
    if answer.printed:
        here = answer.host in ("", socket.gethostname())
        for line in answer.printed.splitlines():
            sys.stderr.write(f"{line}\n" if here else f"({answer.host}) {line}\n")
        sys.stderr.flush()


def _whole(text: str) -> str:
    """A text that can be sent: what Python calls one may hold halves of letters."""
    return text.encode(errors="backslashreplace").decode()


class _Printed:
    """What was printed since it was taken last, up to a bound."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._room = MOST_PRINTED

    def add(self, text: str) -> None:
        if self._room > 0:
            self._texts.append(text if len(text) <= self._room else f"{text[: self._room]} …\n")
            self._room -= len(text)

    def taken(self) -> str:
        texts, self._texts, self._room = self._texts, [], MOST_PRINTED
        return "".join(texts)


class _Heard:
    """A stream that keeps what is written to it, and writes it on."""

    def __init__(self, stream: TextIO, kept: _Printed) -> None:
        self._stream, self._kept = stream, kept

    def write(self, text: str) -> int:
        self._kept.add(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
