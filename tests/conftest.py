"""What holds for all tests."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.objects import S3Server

ROOT = Path(__file__).parents[1]

# A shell has what it starts beside itself ignore Ctrl-C; what tests start from there would ignore it, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# how long an example takes is the machine's affair, not the test's
settings.register_profile("sereno", deadline=None)
settings.load_profile("sereno")


@pytest.fixture(autouse=True)
def where_all_start() -> Iterator[None]:
    """A server or worker that a test has in its own process works in its home's folder and sets variables; the next test has
    neither."""
    before = {**os.environ}
    yield
    os.chdir(ROOT)
    for name in {*os.environ} - {*before, "PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def shared_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server, for all tests that do not end it, as it takes seconds to start. Each makes a bucket of its own."""
    from tests.objects import s3_server

    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def leaves_no_model_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process imports a name once: model files that tests have written are forgotten, as others share their names."""
    yield
    written = str(tmp_path_factory.getbasetemp())
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", None)).startswith(written):
            del sys.modules[name]
    sys.path[:] = [entry for entry in sys.path if not entry.startswith(written)]
