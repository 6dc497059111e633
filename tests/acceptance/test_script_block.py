"""A machine that has nothing but uv: the wheel is built, and `uv run FILE` installs what the script block names.

Uses the package registry that uv is configured for, or what uv's cache has of it. Without either the test fails, and
says so: what it holds is a promise of the README.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "credit_scoring"
NO_REGISTRY = ("failed to fetch", "dns error", "error sending request", "network was disabled", "connection refused")


def uv() -> str:
    ours = ROOT / ".tools" / "bin" / "uv"
    found = str(ours) if ours.exists() else shutil.which("uv")
    assert found is not None, "there is no uv: `make setup` brings it"
    return found


def run_uv(*arguments: str, folder: Path) -> str:
    """What `uv …` printed. Fails the test with uv's own words."""
    hidden = ("SERENO_", "PYTHON", "VIRTUAL_ENV")  # nothing of this environment helps
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    done = subprocess.run([uv(), *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = f"uv {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        if any(words in done.stderr.lower() for words in NO_REGISTRY):
            said = f"NO PACKAGE REGISTRY CAN BE REACHED, so the script block could not be tried.\n{said}"
        pytest.fail(said)
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel, as `make build` makes it."""
    folder = tmp_path_factory.mktemp("dist")
    run_uv(
        *("build", "--wheel", "--no-build-isolation", "--python", sys.executable, "--out-dir", str(folder), str(ROOT)),
        folder=folder,
    )
    assert [p.suffix for p in folder.glob("*.whl")] == [".whl"]
    return folder


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Path]:
    """The example in a fresh folder. What uv installed for it goes at the end."""
    folder = tmp_path / "credit"
    made = shutil.ignore_patterns("*.joblib", "warehouse", ".sereno", "predictions", "exports")
    shutil.copytree(EXAMPLE, folder, ignore=made)
    yield folder
    python = Path(run_uv("python", "find", "--script", "credit_scoring.py", folder=folder).strip())
    environment = python.parents[1]
    if environment.parent.name.startswith("environments-"):
        shutil.rmtree(environment)


def test_uv_runs_a_model_file_by_its_script_block(wheels: Path, example: Path) -> None:
    # uv's choice of versions for training too, so that the model is loaded by what wrote it
    with_packages = [word for name in ("pandas", "scikit-learn", "joblib", "pyarrow") for word in ("--with", name)]
    for program in ("train.py", "prepare_nights.py"):
        run_uv("run", "--no-project", *with_packages, program, folder=example)

    def sereno(*arguments: str) -> str:
        found = ("--find-links", str(wheels), "--reinstall-package", "sereno")
        return run_uv("run", *found, "credit_scoring.py", *arguments, folder=example)

    printed = sereno("run", "--date", "2026-05-01")
    assert "published as version 1" in printed
    assert (example / "exports" / "credit-scoring" / "parquet" / "latest" / "manifest.json").is_file()
    assert "in service" in sereno("versions")
    assert "problem" not in sereno("check", "--date", "2026-05-01", "--rows", "50")

    # It was the wheel that ran, in an environment of its own.
    python = run_uv("python", "find", "--script", "credit_scoring.py", folder=example).strip()
    where = subprocess.run(
        [python, "-P", "-c", "import sereno; print(sereno.__file__)"], capture_output=True, text=True, check=True
    )
    assert not Path(where.stdout.strip()).is_relative_to(ROOT / "src")
    assert Path(where.stdout.strip()).is_relative_to(Path(python).parents[1])


def test_a_missing_registry_is_told(tmp_path: Path) -> None:
    """The test above must not pass, nor fail with a riddle, where nothing can be installed."""
    nowhere = ("--offline", "--python", sys.executable, "--target", str(tmp_path), "a-package-that-nobody-has")
    with pytest.raises(pytest.fail.Exception, match="NO PACKAGE REGISTRY CAN BE REACHED"):
        run_uv("pip", "install", *nowhere, folder=tmp_path)
