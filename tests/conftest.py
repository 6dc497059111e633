"""What holds for all tests."""

import os
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
