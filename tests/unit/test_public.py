"""What is public, and what importing it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sereno

SOURCE = Path(sereno.__file__).parent
HEAVY = {"adbc_driver_manager", "adbc_driver_postgresql", "deltalake", "pandas", "polars", "psycopg", "pyspark", "ray"}
HEAVY |= {"lightgbm", "pydantic", "sklearn", "uvicorn"}


def test_every_name_is_there_and_sorted() -> None:
    assert sereno.__all__ == sorted(sereno.__all__)
    assert sorted(sereno._HOME) == sereno.__all__ == dir(sereno)
    for name in sereno.__all__:
        assert getattr(sereno, name) is not None
    declared = {
        alias.asname
        for node in ast.walk(ast.parse((SOURCE / "__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sereno.")
        for alias in node.names
    }
    assert declared == set(sereno.__all__)


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(
        AttributeError, match="module 'sereno' has no attribute 'Modell'; it has AsyncClient, Client, Digits"
    ):
        sereno.Modell  # noqa: B018


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert sereno.__version__ == version("sereno")


def loaded_after(code: str) -> set[str]:
    show = f"import sys; before = set(sys.modules); {code}; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_loads_nothing_heavy() -> None:
    assert loaded_after("import sereno") <= {"sereno", "__future__", "importlib", "typing", "warnings"} | set(
        sys.stdlib_module_names
    )
    # a model file pays for what it uses
    third = loaded_after("from sereno import Key, Model, Secret") - set(sys.stdlib_module_names)
    assert third == {"sereno", "annotated_types", "typing_extensions"}


def modules() -> list[Path]:
    return sorted(p for p in SOURCE.rglob("*.py") if p.relative_to(SOURCE).parts[0] != "adapters")


def imported_at_once(tree: ast.Module) -> Iterator[str]:
    """Names of modules that are imported when the file is: outside functions and `if TYPE_CHECKING`."""
    queue: list[ast.AST] = [tree]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        for child in ast.iter_child_nodes(node):
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            if not inside and not typing_only:
                queue.append(child)


# The server's own library has the server's files: its protocol class, and the process that makes connections of it.
OWN = {"serve/lane.py": {"uvicorn"}, "serve/processes/worker.py": {"uvicorn"}, "check/service.py": {"uvicorn"}}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_heavy_packages_stay_in_their_adapters(path: Path) -> None:
    own = OWN.get(str(path.relative_to(SOURCE)), set())
    assert {name.split(".")[0] for name in imported_at_once(ast.parse(path.read_text()))} & HEAVY <= own


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_the_core_names_no_vendor_anywhere(path: Path) -> None:
    """Nor in functions, but for the data frames that users hand in and out."""
    if path.name in ("frames.py", "scoring.py"):
        return
    names = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert names & {"psycopg", "adbc_driver_manager", "adbc_driver_postgresql", "pyspark", "ray", "uvicorn"} <= OWN.get(
        str(path.relative_to(SOURCE)), set()
    )
