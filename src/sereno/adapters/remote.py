"""A worker elsewhere: what Ray and Spark call in their processes, on whatever node they started them.

Everything goes in and out as bytes with a fixed schema, errors too: a cluster would wrap an exception, and try again what
cannot help. No row comes along: a worker reads its own, and what it writes lies on the folder that all nodes share.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import msgspec

from sereno.adapters.local import Answer, error_answer, loaded_with
from sereno.adapters.worker import load_for
from sereno.batch.tasks import Job, Task, score_task
from sereno.config import find_home
from sereno.loader import load_model
from sereno.scoring import Scorer
from sereno.shared import confirm


class RemoteWorker:
    """Loads the model of a job once, and scores its tasks one after another."""

    def __init__(self, job: bytes, check: bytes, threads: int) -> None:
        """`job`: a Job, as msgpack. `check`: what `shared.announce` gave. `threads`: of the model's libraries."""
        self._job = msgspec.msgpack.decode(job, type=Job)
        self._check, self._threads = check, threads
        self._loaded = contextlib.ExitStack()
        self._scorer: Scorer | None = None

    def ready(self) -> bytes:
        """Check the shared folders and load the model. An Answer: an empty one, or the error.

        Where it is not asked first, the first task does it.
        """
        try:
            self._load()
        except BaseException as error:  # noqa: BLE001 - told to the process that asked, which raises it
            return msgspec.msgpack.encode(self._told(error))
        return msgspec.msgpack.encode(Answer())

    def score(self, task: bytes) -> bytes:
        """Score a Task (msgpack). An Answer with its result, light, or with the error."""
        try:
            scorer = self._load()
            result = score_task(self._job, msgspec.msgpack.decode(task, type=Task), scorer, lambda rows: None)
        except BaseException as error:  # noqa: BLE001 - as above
            return msgspec.msgpack.encode(self._told(error))
        return msgspec.msgpack.encode(Answer(rows=result.rows_in, result=result.light))

    def _load(self) -> Scorer:
        if self._scorer is None:
            confirm(self._check)
            file = Path(self._job.model_file)
            os.chdir(find_home(file))  # where the functions of the model file run, in every process
            model = load_model(file)
            scorer = loaded_with(self._job, self._threads, lambda: load_for(self._job, model))
            self._scorer = self._loaded.enter_context(scorer)
        return self._scorer

    def _told(self, error: BaseException) -> Answer:
        answer = error_answer(error)
        return msgspec.structs.replace(answer, message=f"{answer.message} (On host {socket.gethostname()}.)")
