"""A .py file becomes a Model, mistakes told by file and line. And what belongs to it: siblings, artefacts, values."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import re
import stat
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from sereno.artifacts import is_elsewhere, pinned_as
from sereno.config import variable_of
from sereno.exceptions import ArtifactError, ModelFileError, SerenoError, SettingsError
from sereno.model import BATCH_NAMES, Model, Parameter, Secret, place
from sereno.settings import parse_list

if TYPE_CHECKING:
    from sereno.settings import Settings

SCRIPT_BLOCK = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")


def load_model(file: Path) -> Model:
    """Run the model file once in this process and return the one Model in it, checked.

    Raises ModelFileError with file and line.
    """
    path = file.resolve()
    if path.suffix == ".ipynb":
        raise ModelFileError(
            f"{file} is a notebook; a model in production is one plain Python file. "
            f"`jupyter nbconvert --to script {file.name}` makes a start of it."
        )
    if not path.is_file():
        where = "" if file.is_absolute() else f" in {Path.cwd()}"
        raise ModelFileError(
            f"There is no file {file}{where}. Give the path of a model file (.py), or make one: `sereno new NAME`."
        )
    if path.suffix != ".py":
        raise ModelFileError(f"{file} is no Python file: a model file ends in .py.")
    _refuse_shared(path, "model file")
    return the_model(_execute(path), path)


def the_model(module: Mapping[str, Any], path: Path) -> Model:
    """The one Model among a module's names, checked."""
    models = {id(v): v for v in module.values() if isinstance(v, Model) and v.file == path}
    if not models:
        raise ModelFileError(
            f'{path.name}: there is no model in the file. Write `model = Model("name", inputs=…, outputs=…)` at its top '
            "level."
        )
    model, *others = models.values()
    if others:
        raise ModelFileError(
            f"{others[0].place}: there are {len(models)} models in the file ({', '.join(repr(m.name) for m in models.values())}); "
            f"a model file has one. The first is at {model.place}: move the others to files of their own."
        )
    try:
        model.check()
    except ModelFileError as error:
        raise type(error)(_with_file(path, str(error))) from error
    return model


def _execute(path: Path) -> dict[str, Any]:
    """Import the file under its own name, so that artefacts pickled from it or its siblings are found again."""
    name = path.stem
    known = sys.modules.get(name)
    if known is not None:
        if getattr(known, "__file__", None) and Path(str(known.__file__)).resolve() == path:
            return vars(known)
        raise ModelFileError(f"{path.name}: a module named {name!r} is loaded already. Rename the model file.")
    for sibling in siblings(path):
        _refuse_namesake(path, sibling)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise _told(path, error) from error
    return vars(module)


def _refuse_namesake(path: Path, sibling: Path) -> None:
    """Python would take what it has loaded under that name from elsewhere, the sibling of another model, say."""
    name = ".".join(sibling.relative_to(path.parent).with_suffix("").parts).removesuffix(".__init__")
    known = getattr(sys.modules.get(name), "__file__", None)
    if known and Path(known).resolve() != sibling:
        raise ModelFileError(
            f"{path.name}: it imports {sibling.name} beside it, but a module named {name!r} is loaded already from {known}. "
            "Rename one of them."
        )


def _told(path: Path, error: BaseException) -> ModelFileError:
    """What went wrong while the file ran, with the line of the file."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename) == path:
        return ModelFileError(f"{path.name}:{error.lineno}: {error.msg}.")
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
    where = f"{path.name}:{lines[-1]}" if lines else path.name
    if isinstance(error, ModelFileError):
        text = str(error)
        for owner, field in re.findall(r"\b(\w+)\.(\w+)", text):
            if line := _line_of_field(path, owner, field):
                return type(error)(f"{path.name}:{line}: {text}")
        return type(error)(_with_file(path, text, where))
    if isinstance(error, ModuleNotFoundError):
        name = (error.name or "").split(".")[0]
        asked = script_requirements(path)
        if any(re.match(rf"{re.escape(name)}\b", r, re.IGNORECASE) for r in asked):
            hint = f"The script block asks for it: `pip install {name}`, or `uv run {path.name}`."
        else:  # the package's name is not always the module's: sklearn is scikit-learn
            hint = f"Install its package, and name that in the script block, which has {', '.join(asked) or 'none'}."
        return ModelFileError(f"{where}: the module {name!r} is not installed. {hint}")
    if isinstance(error, SystemExit):
        return ModelFileError(
            f"{where}: the file ends the program (exit {error.code}) when it is loaded. Put that under "
            '`if __name__ == "__main__":`.'
        )
    return ModelFileError(f"{where}: {type(error).__name__}: {error}")


def _with_file(path: Path, text: str, where: str | None = None) -> str:
    return text if text.startswith(path.name) else f"{where or path.name}: {text}"


def _line_of_field(path: Path, owner: str, field: str) -> int | None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name == owner:
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.target.id == field:
                    return item.lineno
    return None


def script_block(path: Path) -> dict[str, Any]:
    """The file's script block (PEP 723); empty without one. Raises ModelFileError where it is no TOML."""
    found = list(SCRIPT_BLOCK.finditer(path.read_text(encoding="utf-8")))
    if len(found) > 1:
        raise ModelFileError(f"{path.name}: there are {len(found)} script blocks; a file has one.")
    if not found:
        return {}
    text = "".join(
        line[2:] if line.startswith("# ") else line[1:] for line in found[0]["content"].splitlines(keepends=True)
    )
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ModelFileError(f"{path.name}: the script block is no TOML: {error}.") from error


def script_requirements(path: Path) -> list[str]:
    """The packages that the script block asks for."""
    return [str(r) for r in script_block(path).get("dependencies", [])]


def siblings(path: Path) -> list[Path]:
    """The modules beside the file that it imports, directly or through each other, anywhere in their code."""
    found: dict[Path, None] = {}
    queue = [path]
    while queue:
        file = queue.pop()
        try:
            tree = ast.parse(file.read_bytes())
        except SyntaxError as error:
            raise ModelFileError(f"{file.name}:{error.lineno}: {error.msg}.") from error
        for name in _imported(tree):
            for candidate in _files_of(path.parent, file.parent, name):
                if candidate != path and candidate not in found:
                    found[candidate] = None
                    queue.append(candidate)
    return sorted(found)


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            yield from (f"{start}.{alias.name}" if node.module else f"{start}{alias.name}" for alias in node.names)


def _files_of(root: Path, here: Path, name: str) -> Iterator[Path]:
    level = len(name) - len(name.lstrip("."))
    base = root if level == 0 else here.parents[level - 2] if level > 1 else here
    if not base.is_relative_to(root):
        return
    parts = [p for p in name.split(".") if p]
    for depth in range(1, len(parts) + 1):
        module = base.joinpath(*parts[:depth])
        if module.with_suffix(".py").is_file():
            yield module.with_suffix(".py")
        if (module / "__init__.py").is_file():
            yield module / "__init__.py"


def checked_artifacts(model: Model) -> dict[str, Path]:
    """Name → local path of every artefact, after its SHA-256 was compared with the declared one.

    Raises ArtifactError: missing, another hash, or in a place where others can write.
    """
    paths = {}
    for name, (path, pinned) in artifact_paths(model).items():
        if pinned and (found := file_digest(path)) != pinned:
            raise ArtifactError(
                f"Artefact {name!r} ({path}) has SHA-256 {found}, but the model file pins {pinned}. "
                "Restore the file, or pin the new hash after you have checked where it comes from."
            )
        paths[name] = path
    return paths


def artifact_paths(model: Model) -> dict[str, tuple[Path, str]]:
    """Name → path of every artefact, and the SHA-256 that the model file pins ("": none). Raises ArtifactError.

    Those that lie elsewhere were fetched before: `artifacts.fetch_artifacts`.
    """
    base = model.file.parent if model.file else Path.cwd()
    found = {}
    for name, declared in model.artifacts.items():
        text, pinned = pinned_as(name, declared)
        if name in model.fetched and is_elsewhere(text):
            path = model.fetched[name].path
        elif is_elsewhere(text):
            raise ArtifactError(
                f"Artefact {name!r} ({text}) was not fetched yet. `model.score` does, and every command."
            )
        else:
            path = (base / text).resolve()
        if not path.exists():
            raise ArtifactError(
                f"Artefact {name!r} is missing: there is no {path}. Train the model first, or mend artifacts= in the model file."
            )
        if pinned and path.is_dir():
            raise ArtifactError(f"Artefact {name!r} is a folder ({path}); a SHA-256 pins a file.")
        _refuse_shared(path, f"artefact {name!r}")
        found[name] = (path, pinned)
    return found


def _refuse_shared(path: Path, what: str) -> None:
    """Model files and artefacts are code: whoever can write them runs as us."""
    for place_ in (path, path.parent):
        mode = place_.stat().st_mode
        if mode & stat.S_IWOTH and not (place_.is_dir() and mode & stat.S_ISVTX):
            raise ArtifactError(
                f"The {what} can be changed by every user of this machine ({place_} has mode {stat.S_IMODE(mode):o}), and it "
                f"runs with your rights. `chmod o-w {place_}`."
            )


def fingerprint(model: Model) -> str:
    """SHA-256 (hex) of the model file, the sibling modules it imports, and its artefacts: names and content.

    Raises ArtifactError where others can write one of them.
    """
    assert model.file is not None
    digest = hashlib.sha256()
    for file in [model.file, *siblings(model.file)]:
        _refuse_shared(file, "module")
        digest.update(f"{file.relative_to(model.file.parent)}\0{file_digest(file)}\0".encode())
    for name, (path, _) in sorted(artifact_paths(model).items()):
        for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
            _refuse_shared(file, f"artefact {name!r}")
            digest.update(f"{name}\0{file.relative_to(path)}\0{file_digest(file)}\0".encode())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def bind(
    model: Model,
    function: Callable[..., Any],
    settings: Settings,
    *,
    given: Mapping[str, Any],
    skip: int = 0,
) -> dict[str, Any]:
    """The arguments of a user's function: what is given by name, then values and secrets of the settings.

    Raises SettingsError for a parameter that nothing fills.
    """
    return {
        p.name: given[p.name] if p.name in given else _value(function, p, settings, given)
        for p in model.parameters(function, given=skip)
        if p.name in given or p.default is p_empty or p.name in settings.values or p.is_secret
    }


p_empty = Parameter(name="", annotation=None).default


def _value(function: Callable[..., Any], parameter: Parameter, settings: Settings, given: Mapping[str, Any]) -> Any:
    name = parameter.name
    if parameter.is_secret:
        from sereno.config import secret

        try:
            return Secret(secret(name, settings, os.environ))
        except SettingsError as error:
            if parameter.default is not p_empty:
                return parameter.default
            raise SettingsError(f"{place(function)}: {error}") from error
    if name not in settings.values:
        known = sorted({*settings.values, *given})
        batch = " data_date and interval are given to read and ready only." if name in BATCH_NAMES else ""
        raise SettingsError(
            f"{place(function)}: nothing gives {function.__name__} its parameter {name!r}.{batch} Add it to [values] in "
            f"sereno.toml, or set {variable_of(f'values.{name}')}. Known here: {', '.join(known) or 'nothing'}."
        )
    value = settings.values[name]
    return _converted(function, parameter, value.value, value.base)


def _converted(function: Callable[..., Any], parameter: Parameter, value: Any, base: Path) -> Any:
    """A value as its parameter's annotation has it; text from a variable becomes a number or a path."""
    wanted = _without_none(parameter.annotation)
    if wanted is Path:
        return base / str(value)
    if wanted in (None, Any) or type(value) is wanted:
        return value
    try:
        if wanted is float and isinstance(value, int | str) and not isinstance(value, bool):
            return float(value)
        if wanted is int and isinstance(value, str):
            return int(value)
        if wanted is date and isinstance(value, str):
            return date.fromisoformat(value)
        if wanted is datetime and isinstance(value, str):
            return datetime.fromisoformat(value)
        if wanted is bool and isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if list in (wanted, get_origin(wanted)) and isinstance(value, str):
            each = replace(parameter, annotation=next(iter(get_args(wanted)), None))
            return [_converted(function, each, one, base) for one in parse_list(value)]
    except ValueError:
        pass
    if isinstance(wanted, type) or (get_origin(wanted) is list and isinstance(value, str)):
        shown = wanted.__name__ if type(wanted) is type else str(wanted)
        raise SettingsError(
            f"{place(function)}: the value {parameter.name} is {value!r}, but {function.__name__} wants "
            f"{shown}. Change it in [values] of sereno.toml, or the annotation."
        )
    return value


def _without_none(annotation: Any) -> Any:
    """The type of an annotation that allows None, too."""
    if get_origin(annotation) not in (Union, UnionType):
        return annotation
    others = [one for one in get_args(annotation) if one is not NoneType]
    return others[0] if len(others) == 1 else annotation


__all__ = ["SerenoError", "bind", "checked_artifacts", "fingerprint", "load_model", "script_requirements", "siblings"]
