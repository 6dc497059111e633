"""What model files declare, for a process that loads none of them: another one reads them, and ends.

`python -P -m sereno.operate.declared` is that process; it is told what to read on its standard input. Not for people.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from sereno.config import find_home, load_settings
from sereno.exceptions import SerenoError, WorkerError
from sereno.operate.arrivals.awaited import Awaited, awaited
from sereno.operate.tied import tied
from sereno.settings import FILE_NAME

if TYPE_CHECKING:
    from sereno.model import Model

LONGEST = 300.0  # seconds that one file may take
LONG = 10.0  # seconds after which others are read beside it
MOST_ALONE = 4  # files that take long, at once
PATIENCE = 5.0  # seconds, for a process that was killed


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """What the scheduler needs to know of a model: what its file declares, and what its settings then say."""

    name: str
    file: str  # absolute
    schedule: str
    time_zone: str
    disposition: str
    scheduled: bool
    catch_up: int
    retries: int
    retry_seconds: float
    deadline_seconds: float
    late: str
    run_seconds: float | None = None
    run_cores: int | None = None
    run_memory_bytes: int | None = None
    has_input: bool  # there is a source or a `read`; without one there is nothing to run
    has_ready: bool  # there is a function under `@model.ready`
    awaited: Awaited
    belongs: tuple[str, ...]  # the files whose change may change all this: sereno.toml, the file, the modules beside it
    artifacts: dict[str, str] = {}  # name → path or URL, as the file has it

    @property
    def has_arrival(self) -> bool:
        """Whether there is something to wait for before a run."""
        return self.awaited.how != "nothing"


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """A model file that declares nothing, and why."""

    file: str
    says: str
    belongs: tuple[str, ...]  # the files to look at: another try is worth while once one of them has changed


class Declarations(msgspec.Struct, frozen=True, kw_only=True):
    """What some model files declare, in the order of the files."""

    models: tuple[Declared, ...] = ()
    failed: tuple[Failed, ...] = ()

    @property
    def belongs(self) -> frozenset[str]:
        """All files whose change may change this."""
        return frozenset(path for paths in self._belonging() for path in paths)

    def _belonging(self) -> Iterator[tuple[str, ...]]:
        yield from (one.belongs for one in self.models)
        yield from (one.belongs for one in self.failed)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the other process is told. Not by its command line, which everybody may read."""

    files: list[str]
    home: str | None = None
    env: str | None = None
    overrides: dict[str, str] = {}


class Begun(msgspec.Struct, frozen=True, tag=True):
    file: str


class Read(msgspec.Struct, frozen=True, tag=True):
    declared: Declared


class Refused(msgspec.Struct, frozen=True, tag=True):
    failed: Failed


Word = Begun | Read | Refused  # one line each


def declared(
    files: Sequence[Path],
    *,
    home: Path | None = None,
    env: str | None = None,
    overrides: Mapping[str, str] = MappingProxyType({}),
    longest: float = LONGEST,
) -> Declarations:
    """What these model files declare, with the settings that `sereno run` would have.

    Each file is either among the models or has failed, with the reason; one that fails, hangs, or ends its process does
    not keep the others from being read. Blocks until all are read: the time that it takes to import them, in another process.
    Of two models with one name the second has failed. Raises WorkerError where no process can be started.
    """
    found: dict[str, Declared | Failed] = {}
    with contextlib.closing(Reading(files, home=home, env=env, overrides=overrides, longest=longest)) as reading:
        while not reading.is_done:
            found |= reading.step(reading.pause)
    return settled(reading.files, found)


def settled(files: Sequence[str], found: Mapping[str, Declared | Failed]) -> Declarations:
    """What was found of these files, as far as it was: in their order, and of two models with one name the first."""
    models: dict[str, Declared] = {}
    failed = []
    for file in files:
        one = found.get(file)
        if isinstance(one, Declared) and one.name in models:
            says = f"The model of {file} has the name {one.name!r}, as has that of {models[one.name].file}. Rename one of them."
            one = Failed(file=file, says=says, belongs=one.belongs)
        if isinstance(one, Declared):
            models[one.name] = one
        elif one is not None:
            failed.append(one)
    return Declarations(models=tuple(models.values()), failed=tuple(failed))


class Reading:
    """Model files that are read by other processes, one after the other in one of them. A file that takes long is left
    alone in its own: another process reads the others meanwhile. For one thread, which lives as long as its process."""

    def __init__(
        self,
        files: Sequence[Path],
        *,
        home: Path | None = None,
        env: str | None = None,
        overrides: Mapping[str, str] = MappingProxyType({}),
        longest: float = LONGEST,
    ) -> None:
        self.files = list(dict.fromkeys(os.path.abspath(file) for file in files))
        self._request = Request(
            files=[], home=None if home is None else os.path.abspath(home), env=env, overrides=dict(overrides)
        )
        self._longest, self._long = longest, LONG
        self._selector = selectors.DefaultSelector()
        self._readers: list[_Reader] = []
        self._todo = [self.files] if self.files else []  # each for a process of its own
        self.long: set[str] = set()  # files that take long, or took long

    def fileno(self) -> int:
        """Readable when there are words."""
        return self._selector.fileno()

    @property
    def is_done(self) -> bool:
        return not self._readers and not self._todo

    @property
    def left(self) -> list[str]:
        """The files of which nothing is known yet."""
        return [file for files in (*self._todo, *(reader.files for reader in self._readers)) for file in files]

    @property
    def pause(self) -> float:
        """Seconds after which `step` has something to do, even if there are no words."""
        if self._todo:
            return 0.0
        now = time.monotonic()
        limits = [
            reader.since + (self._longest if reader.files[0] in self.long else min(self._long, self._longest)) - now
            for reader in self._readers
        ]
        return max(0.0, min(limits, default=0.0))

    def step(self, seconds: float = 0.0) -> dict[str, Declared | Failed]:
        """What has become known of files within so many seconds. Raises WorkerError where no process can be started."""
        while self._todo:
            self._readers.append(_Reader(msgspec.structs.replace(self._request, files=self._todo[0])))
            self._selector.register(self._readers[-1].descriptor, selectors.EVENT_READ, self._readers[-1])
            del self._todo[0]
        found: dict[str, Declared | Failed] = {}
        for key, _ in self._selector.select(seconds):
            self._hear(key.data, found)
        now = time.monotonic()
        for reader in [*self._readers]:
            if now - reader.since >= self._longest:
                self._give_up(reader, found)
            elif now - reader.since >= self._long:
                self.long.add(reader.files[0])
                self._leave_alone(reader)
        return found

    def _hear(self, reader: _Reader, found: dict[str, Declared | Failed]) -> None:
        words = reader.words()
        for word in words or ():
            match word:
                case Begun(file):  # they come in the order of its files
                    assert file == reader.files[0]
                    continue
                case Read(one):
                    found[reader.files[0]] = one
                case Refused(other) if reader.has_read:  # perhaps for what another file has loaded
                    self._todo.append([other.file])
                case Refused(other):
                    found[reader.files[0]] = other
            reader.has_read = True
            del reader.files[0]
            if not reader.files:
                self._end(reader)
                return
        if words is None:
            how = self._end(reader)
            file, *others = reader.files
            if reader.has_read:
                self._todo.append([file])
            else:
                why = f"ended the process that read it ({how}). Import it in a Python of your own to see why"
                found[file] = _failed(file, why)
            self._todo += [others] if others else []

    def _give_up(self, reader: _Reader, found: dict[str, Declared | Failed]) -> None:
        self._end(reader)
        file, *others = reader.files
        found[file] = _failed(
            file, f"was not read within {self._longest:g} s. Load what takes long under `@model.load`"
        )
        self._todo += [others] if others else []

    def _leave_alone(self, reader: _Reader) -> None:
        alone = sum(len(one.files) == 1 and one.files[0] in self.long for one in self._readers)
        if len(reader.files) > 1 and alone < MOST_ALONE:
            self._todo.append(reader.files[1:])
            del reader.files[1:]

    def _end(self, reader: _Reader) -> str:
        self._selector.unregister(reader.descriptor)
        self._readers.remove(reader)
        return reader.end()

    def close(self) -> None:
        """Nobody wants to know any more. Nothing is asked of it afterwards."""
        for reader in [*self._readers]:
            self._end(reader)
        self._todo.clear()
        self._selector.close()


class _Reader:
    """One process that reads."""

    def __init__(self, request: Request) -> None:
        """Raises WorkerError."""
        self.files = [*request.files]  # that it has not read yet; the first one it is reading
        self.has_read = False  # another one
        self.since = time.monotonic()  # since when it has said nothing
        self._heard = b""
        try:
            with tempfile.TemporaryFile() as told:  # a pipe may be full before anybody reads it
                told.write(msgspec.json.encode(request))
                told.seek(0)
                self._process = subprocess.Popen(
                    tied([sys.executable, "-P", "-m", "sereno.operate.declared"]),
                    stdin=told,
                    stdout=subprocess.PIPE,
                    # what a model file starts when it is imported ends with it; Ctrl-C is not for it
                    start_new_session=True,
                )
        except OSError as error:
            raise WorkerError(f"No process could be started to read model files: {error.strerror}.") from error
        assert self._process.stdout is not None
        self._stdout = self._process.stdout
        self.descriptor = self._stdout.fileno()

    def words(self) -> list[Word] | None:
        """What it says; None: it has ended. To be asked when there is something to read."""
        content = os.read(self.descriptor, 1 << 16)
        if not content:
            return None
        *lines, self._heard = (self._heard + content).split(b"\n")
        if lines:
            self.since = time.monotonic()
        return [msgspec.json.decode(line, type=Word) for line in lines]

    def end(self) -> str:
        """Not by what it says: a model file may have left threads behind that never end. How it ended, in words."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, 9)
        self._stdout.close()
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:  # it waits for a disk that does not answer
            return "it does not end"
        return f"ended by signal {-code}" if code < 0 else f"exit code {code}"


def _failed(file: str, why: str) -> Failed:
    return Failed(file=file, says=f"{Path(file).name} {why}.", belongs=_belonging(file))


# In the other process


def main() -> None:
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    words = os.dup(1)
    os.dup2(2, 1)  # what a model file prints is no word of ours

    def say(word: Word) -> None:
        os.write(words, msgspec.json.encode(word) + b"\n")

    for file in request.files:
        say(Begun(file))
        try:
            say(Read(read(Path(file), request)))
        except SerenoError as error:
            say(Refused(Failed(file=file, says=str(error), belongs=_belonging(file))))
        except OSError as error:
            says = f"{Path(file).name} cannot be read: {error.strerror or error} ({error.filename})."
            say(Refused(Failed(file=file, says=says, belongs=_belonging(file))))
    os._exit(0)  # nothing of what was imported has a say in how we end


def read(file: Path, request: Request) -> Declared:
    """What one model file declares. Raises SerenoError."""
    with loaded(file) as model:
        return _declared(file, model, request)


def _declared(file: Path, model: Model, request: Request) -> Declared:
    assert model.file is not None
    settings = load_settings(
        model.file,
        home=None if request.home is None else Path(request.home),
        env=request.env,
        overrides=request.overrides,
    )
    chosen = settings.model(model.name, model.declared, model.file.parent)
    return Declared(
        name=model.name,
        file=str(file),
        schedule=chosen.schedule,
        time_zone=chosen.time_zone,
        disposition=chosen.disposition,
        scheduled=chosen.scheduled,
        catch_up=chosen.catch_up,
        retries=chosen.retries,
        retry_seconds=chosen.retry_seconds,
        deadline_seconds=chosen.deadline_seconds,
        late=chosen.late,
        run_seconds=chosen.run_seconds,
        run_cores=chosen.run_cores,
        run_memory_bytes=chosen.run_memory_bytes,
        has_input=model.read_function is not None or chosen.source is not None,
        has_ready=model.ready_function is not None,
        awaited=awaited(model, settings, chosen),
        belongs=_belonging(str(file)),
        artifacts=model.artifacts,
    )


@contextlib.contextmanager
def loaded(file: Path) -> Iterator[Model]:
    """The model of a file; after it the process knows nothing of it. Raises ModelFileError."""
    from sereno.loader import siblings

    model, before = _loaded(file)
    assert model.file is not None
    try:
        yield model
    finally:
        _forget(model, before, siblings(model.file))


def _loaded(file: Path) -> tuple[Model, set[str]]:
    """The model, and which modules there were before it. Raises ModelFileError."""
    from sereno.loader import load_model

    before, path, here = set(sys.modules), [*sys.path], os.getcwd()
    os.chdir(find_home(file))  # where the functions of the model file run
    try:
        return load_model(file), before
    finally:
        os.chdir(here)  # against which paths of variables and of the command line resolve
        sys.path[:] = path


def _forget(model: Model, before: set[str], beside: list[Path]) -> None:
    """Unload the file and the modules beside it, so that the next file may have a module of the same name."""
    assert model.file is not None
    own = {str(path) for path in (model.file, *beside)}
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) in own:
            del sys.modules[name]


def _belonging(file: str) -> tuple[str, ...]:
    from sereno.loader import siblings

    path = Path(file)
    paths = [find_home(path) / FILE_NAME, path]
    with contextlib.suppress(SerenoError, OSError):
        paths += siblings(path)
    return tuple(str(one) for one in paths)


if __name__ == "__main__":
    main()
