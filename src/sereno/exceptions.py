"""Every error that Sereno raises on purpose.

    SerenoError
    ├── ModelFileError          the model's author: the model file declares something that cannot be
    │   ├── RowTypeError        an annotation that cannot be enforced on a column
    │   └── ArtifactError       an artefact that is missing, has another hash, or can be written by others
    ├── PredictError            the model's author: `predict` or `load` does not do what was declared
    │   └── OutputError         the answer of `predict` has other columns, types or rows than declared
    ├── SettingsError           the operator: a setting, variable or option that is unknown, missing or impossible
    │   └── MissingExtraError   the operator: a feature that needs a package which is not installed
    ├── DataError               the data engineer: the input of a run cannot be a result
    │   ├── SourceError         it is missing, empty, truncated or of another kind
    │   ├── InputError          a column is missing or mistyped
    │   └── DuplicateKeysError  two rows have the same key
    ├── RunError                the operator: a run that cannot go on
    │   ├── BusyError           another process has this run key, or publishes to this table, right now
    │   ├── ChangedError        what it reads is not what it was when it began: another try goes by what is there now
    │   ├── StorageError        a disk that is full, read-only or broken
    │   │   └── NotSharedError  a folder that is not the same on every node of a cluster
    │   ├── LedgerError         the ledger cannot be read or written
    │   ├── LeaseLostError      somebody else has taken this run over
    │   └── WorkerError         a worker process died
    ├── PublishError            the operator: what was asked of a table cannot be done
    │   ├── NotFoundError       no such model, snapshot, run or key
    │   ├── OlderDataError      a newer data date is already in service
    │   ├── ExportError         an export could not follow the table; the publication stands
    │   └── IndexingError       nor could the index of lookups
    └── ServerError             the caller of a server: it gave no prediction
        ├── InvalidRowsError    rows do not fit the model's row type, or keys are none
        ├── UnknownKeyError     nothing is published under a key
        └── UnavailableError    it cannot be reached, has too much to do, or was not in time

A message says what happened, with the value; what would be valid; what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sereno.serve.wire import Mistake


MOST_TOLD = 100  # mistakes of a row, and of a request: a small one must not have a large reply


class SerenoError(Exception):
    """Something went wrong that Sereno foresaw."""


class ModelFileError(SerenoError):
    """The model file declares something that cannot be."""


class RowTypeError(ModelFileError):
    """A row type has an annotation that cannot be enforced on a column."""


class ArtifactError(ModelFileError):
    """An artefact is missing, has another SHA-256 than declared, or lies where others can write."""


class PredictError(SerenoError):
    """`predict` or `load` raised, or `predict` raised on too many rows to go on."""


class OutputError(PredictError):
    """The answer of `predict` has other columns, types or rows than declared."""


class SettingsError(SerenoError):
    """A setting, variable or option is unknown, missing or impossible."""


class MissingExtraError(SettingsError):
    """A feature needs a package that is not installed."""


class DataError(SerenoError):
    """The input of a run cannot be a result."""


class SourceError(DataError):
    """The source is missing, empty, truncated or of another kind than it seems."""


class InputError(DataError):
    """A column of the input is missing or mistyped."""


class DuplicateKeysError(DataError):
    """Two rows have the same key."""


class RunError(SerenoError):
    """A run cannot go on."""


class BusyError(RunError):
    """Another process holds this run key, or publishes to this table, right now."""


class ChangedError(RunError):
    """The model, the source or the schedule is not what it was when the run began; another try goes by what is there now."""


class StorageError(RunError):
    """A disk is full, read-only or broken."""


class NotSharedError(StorageError):
    """A folder is not the same on every node of a cluster."""


class LedgerError(RunError):
    """The ledger of runs cannot be read or written."""

    def __init__(self, message: str = "", *, damaged: bool = False) -> None:
        super().__init__(message)
        self.damaged = damaged  # what it holds is not as it was written: `sereno repair` makes another


class LeaseLostError(RunError):
    """Another process has taken this run over, because this one did not move for too long."""


class WorkerError(RunError):
    """A worker process died."""


class PublishError(SerenoError):
    """What was asked of a published table cannot be done."""


class NotFoundError(PublishError):
    """There is no such model, snapshot, run or key."""


class OlderDataError(PublishError):
    """A newer data date is already in service."""


class ExportError(PublishError):
    """An export could not follow the table; the publication stands."""


class IndexingError(PublishError):
    """The index of lookups could not follow the table; the publication stands."""


class ServerError(SerenoError):
    """A server gave no prediction. `sereno.Client` raises it."""

    def __init__(
        self,
        message: str = "",
        *,
        status: int | None = None,  # the HTTP status; None: there was no answer
        mistakes: Sequence[Mistake] = (),  # of an InvalidRowsError: up to 100, with row, column and what is expected
        error_id: str | None = None,  # the server's log tells the cause under it
        request_id: str | None = None,  # that of all tries of the call, as the server's log has it
    ) -> None:
        super().__init__(message)
        self.status = status
        self.mistakes = tuple(mistakes)
        self.error_id = error_id
        self.request_id = request_id


class InvalidRowsError(ServerError):
    """Rows do not fit the model's row type, or keys are none of the model's. The same call will always fail."""


class UnknownKeyError(ServerError):
    """Nothing is published under a key. A prediction of nulls is one, and no error."""


class UnavailableError(ServerError):
    """A server cannot be reached, has too much to do, or did not answer in time. The same call may succeed later."""
