"""What model files declare, for a process that loads none of them: another one reads them, and ends.

`python -P -m sereno.operate.declared` is that process; it is told what to read on its standard input. Not for people.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from sereno.config import find_home, load_settings
from sereno.exceptions import SerenoError, WorkerError
from sereno.operate.awaited import Awaited, awaited
from sereno.operate.tied import tied
from sereno.settings import FILE_NAME

if TYPE_CHECKING:
    from sereno.model import Model

LONGEST = 300.0  # seconds that one file may take


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
    has_input: bool  # there is a source or a `read`; without one there is nothing to run
    has_ready: bool  # there is a function under `@model.ready`
    awaited: Awaited
    belongs: tuple[str, ...]  # the files whose change may change all this: sereno.toml, the file, the modules beside it

    @property
    def has_arrival(self) -> bool:
        """Whether there is something to wait for before a run."""
        return self.awaited.how != "nothing"


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """A model file that declares nothing, and why."""

    file: str
    says: str
    belongs: tuple[str, ...]  # the files to look at: another try is worth while once one of them has changed
    hung: bool = False  # it was given up


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
    request = Request(
        files=[os.path.abspath(file) for file in files],
        home=None if home is None else os.path.abspath(home),
        env=env,
        overrides=dict(overrides),
    )
    found: dict[str, Declared | Failed] = {}
    left = list(dict.fromkeys(request.files))
    while left:
        answers = _ask(msgspec.structs.replace(request, files=left), longest)
        for number, (file, answer) in enumerate(answers):
            left.remove(file)
            if number and isinstance(answer, Failed) and not answer.hung:  # perhaps for what another file has loaded
                [(_, answer)] = _ask(msgspec.structs.replace(request, files=[file]), longest)
            found[file] = answer
    models: dict[str, Declared] = {}
    failed = []
    for file in dict.fromkeys(request.files):
        one = found[file]
        if isinstance(one, Declared) and one.name in models:
            says = f"The model of {file} has the name {one.name!r}, as has that of {models[one.name].file}. Rename one of them."
            one = Failed(file=file, says=says, belongs=one.belongs)
        if isinstance(one, Declared):
            models[one.name] = one
        else:
            failed.append(one)
    return Declarations(models=tuple(models.values()), failed=tuple(failed))


def _ask(request: Request, longest: float) -> list[tuple[str, Declared | Failed]]:
    """What one process reads: all of the files, or those up to the one on which it ended. At least one."""
    found: list[tuple[str, Declared | Failed]] = []
    try:
        process = subprocess.Popen(
            tied([sys.executable, "-P", "-m", "sereno.operate.declared"]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # what a model file starts when it is imported ends with it; Ctrl-C is not for it
        )
    except OSError as error:
        raise WorkerError(f"No process could be started to read model files: {error.strerror}.") from error
    assert process.stdin is not None
    assert process.stdout is not None
    reading, why = request.files[0], ""
    try:
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(msgspec.json.encode(request))
        for line in _lines(process.stdout.fileno(), longest):
            match msgspec.json.decode(line, type=Word):
                case Begun(file):
                    reading = file
                case Read(one):
                    found.append((reading, one))
                case Refused(other):
                    found.append((reading, other))
    except TimeoutError:
        why = f"was not read within {longest:g} s. Load what takes long under `@model.load`"
    finally:
        _end(process)
    if len(found) < len(request.files):
        code = process.returncode
        if not why:
            how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
            why = f"ended the process that read it ({how}). Import it in a Python of your own to see why"
        says, hung = f"{Path(reading).name} {why}.", why.startswith("was not read")
        found.append((reading, Failed(file=reading, says=says, belongs=_belonging(reading), hung=hung)))
    return found


def _lines(descriptor: int, longest: float) -> Iterator[bytes]:
    """The whole lines that come. Raises TimeoutError where none comes for so long."""
    heard = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        until = time.monotonic() + longest
        while True:
            if not selector.select(max(0.0, until - time.monotonic())):
                raise TimeoutError
            content = os.read(descriptor, 1 << 16)
            if not content:
                return
            *lines, heard = (heard + content).split(b"\n")
            if lines:
                until = time.monotonic() + longest
            yield from lines


def _end(process: subprocess.Popen[bytes]) -> None:
    """Not by what it says: a model file may have left threads behind that never end."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, 9)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


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
    from sereno.loader import siblings

    model, before = _loaded(file)
    assert model.file is not None
    settings = load_settings(
        model.file,
        home=None if request.home is None else Path(request.home),
        env=request.env,
        overrides=request.overrides,
    )
    chosen = settings.model(model.name, model.declared, model.file.parent)
    there = Declared(
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
        has_input=model.read_function is not None or chosen.source is not None,
        has_ready=model.ready_function is not None,
        awaited=awaited(model, settings, chosen),
        belongs=_belonging(str(file)),
    )
    _forget(model, before, siblings(model.file))
    return there


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
