"""A worker of the local executor: `python -m sereno.adapters.executors.worker DESCRIPTOR MODEL_FILE WORKERS`. Not for people.

It inherits one end of a socket pair, reads the model file, waits for the job, loads the model, and scores tasks until
the other end closes.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from sereno.adapters.executors.local import Answer, Request, error_answer, loaded_with
from sereno.adapters.executors.spawn import threads_each
from sereno.batch.tasks import Job, received_values, score_task
from sereno.lines import whole_lines
from sereno.loader import load_model
from sereno.model import Fetched, Model
from sereno.scoring import Scorer, open_scorer
from sereno.settings import Settings, Value


def load_for(job: Job, model: Model) -> Scorer:
    """The job's model, loaded in this process."""
    settings = Settings(
        home=Path(job.home),
        secrets_folder=Path(job.secrets_folder),
        values={name: Value(value=value, base=Path(base)) for name, (value, base) in received_values(job).items()},
    )
    for name, path in job.artifacts.items():  # what the run has: an alias may mean another version by now
        model.fetched.setdefault(name, Fetched(path=Path(path), origin=""))
    return open_scorer(model, settings)


def end_with(descriptor: int) -> None:
    """End this process as soon as the other end closes: the run is over or dead, and another may be at work already."""

    def watch() -> None:
        poll = select.poll()
        poll.register(descriptor, select.POLLRDHUP)
        poll.poll()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def main(descriptor: int, model_file: str, workers: int) -> None:
    whole_lines(sys.stdout, sys.stderr)
    connection = Connection(descriptor)
    end_with(descriptor)

    def send(answer: Answer) -> None:
        connection.send_bytes(msgspec.msgpack.encode(answer))

    try:
        model = load_model(Path(model_file))
        job = msgspec.msgpack.decode(connection.recv_bytes(), type=Request).job
        assert job is not None
        with loaded_with(job, threads_each(workers), lambda: load_for(job, model)) as scorer:
            while True:
                task = msgspec.msgpack.decode(connection.recv_bytes(), type=Request).task
                assert task is not None
                send(Answer(result=score_task(job, task, scorer, lambda rows: send(Answer(rows=rows)))))
    except (EOFError, ConnectionResetError, BrokenPipeError):
        return  # the run is over, or its process is gone
    except BaseException as error:  # noqa: BLE001 - told to the process that asked, which raises it
        send(error_answer(error))
        sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
