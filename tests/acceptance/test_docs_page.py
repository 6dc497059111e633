"""`/docs` in a browser: it renders, a model can be tried, and nothing but the server is asked."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.browser import Browser, Page
from tests.acceptance.server import Server

PLAIN = Path(__file__).parents[1] / "models" / "plain.py"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("project")
    (folder / "plain.py").write_bytes(PLAIN.read_bytes())
    with Server(folder, "plain.py") as server:
        yield server


@pytest.fixture
def page(server: Server, tmp_path: Path) -> Iterator[Page]:
    with Browser(tmp_path / "browser") as browser:
        page = browser.open(f"{server.url}/docs")
        page.until("document.querySelector('#operations-plain-predict') !== null")
        yield page


def test_a_model_is_tried_in_the_page(server: Server, page: Page) -> None:
    assert page.run("document.title") == "plain · Sereno"
    page.click("#operations-plain-predict .opblock-summary-control")
    page.until("document.querySelector('.try-out__btn') !== null")
    page.click(".try-out__btn")
    page.until("document.querySelector('.execute') !== null")
    page.click(".execute")
    page.until("document.querySelector('.live-responses-table') !== null")
    assert '"probability": 0.9166666666666666' in page.run("document.querySelector('.live-responses-table').innerText")
    outside = [url for url in page.requests if not url.startswith((f"{server.url}/", "data:"))]
    assert outside == []
    assert f"{server.url}/predict" in page.requests
    assert page.complaints == []


def test_what_the_page_says_to_type_works(server: Server, page: Page, tmp_path: Path) -> None:
    """The address is the one under which the page was reached, which the server does not know."""
    line, program = page.run("[...document.querySelectorAll('main code')].map(code => code.textContent)")
    assert server.url in line
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert re.fullmatch(r'\{"probability":0\.9\d+\}', done.stdout)
    shown = done.stdout
    file = tmp_path / "ask.py"
    file.write_text(program)
    done = subprocess.run([sys.executable, "-W", "error", file], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == shown.replace('"', "'").replace(":", ": ")
