"""What holds for all tests."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]

# how long an example takes is the machine's affair, not the test's
settings.register_profile("sereno", deadline=None)
settings.load_profile("sereno")


@pytest.fixture(autouse=True)
def in_the_projects_folder() -> Iterator[None]:
    """A server that a test has in its own process works in its home's folder; the next test starts where all do."""
    yield
    os.chdir(ROOT)


@pytest.fixture(scope="module", autouse=True)
def leaves_no_model_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process imports a name once: model files that tests have written are forgotten, as others share their names."""
    yield
    written = str(tmp_path_factory.getbasetemp())
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", None)).startswith(written):
            del sys.modules[name]
    sys.path[:] = [entry for entry in sys.path if not entry.startswith(written)]
