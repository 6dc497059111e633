"""`/docs`: all that the page needs comes from this server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sereno.serve import snippets
from sereno.settings import ServeSettings
from tests.lives import Served
from tests.lives import served as served_of

PLAIN = Path(__file__).parents[1] / "models" / "plain.py"


@pytest.fixture(scope="module")
def plain() -> Iterator[Served]:
    with served_of(PLAIN) as served:
        yield served


def test_the_page_is_made_of_this_servers_files(plain: Served) -> None:
    page = plain.ask("GET", "/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert '<meta charset="utf-8">' in page.text
    needed = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert sorted(needed) == [
        "data:,", "docs/docs.css", "docs/docs.js", "docs/swagger-ui-bundle.js", "docs/swagger-ui.css", "openapi.json",
    ]  # fmt: skip
    for address in needed:
        if address != "data:,":
            answer = plain.ask("GET", f"/{address}")
            assert answer.status_code == 200
            assert answer.headers["x-content-type-options"] == "nosniff"
    assert len(plain.ask("GET", "/docs/swagger-ui-bundle.js").content) > 1_000_000


def test_the_browser_is_told_to_reach_nothing_else(plain: Served) -> None:
    policy = plain.ask("GET", "/docs").headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; ")
    assert "http" not in policy
    assert "unsafe" not in policy
    assert "validatorUrl: null" in plain.ask("GET", "/docs/docs.js").text


@pytest.mark.parametrize("name", ["swagger-ui.js", "swagger-ui-bundle.js.map", "..%2fpage.py", "%2e%2e", "index.html"])
def test_no_other_file_is_given(plain: Served, name: str) -> None:
    assert plain.ask("GET", f"/docs/{name}").status_code == 404


def test_each_model_has_its_curl_line_and_its_program(plain: Served) -> None:
    page = unescape(plain.ask("GET", "/docs").text)
    live = plain.service.live("plain")
    assert snippets.curl(plain.service, live) in page
    assert snippets.python(plain.service, live) in page
    assert snippets.curl(plain.service, live, "http://here").startswith("curl http://here/predict -H 'Content-Type")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"host": "10.1.2.3", "port": 80}, "http://10.1.2.3:80"),
        ({"host": "::1"}, "http://[::1]:8000"),
        ({"host": "0.0.0.0"}, "http://localhost:8000"),
        ({"host": "::", "allowed_hosts": ("*", "api.example.com"), "tls_certificate": Path("x")}, "https://api.example.com:8000"),
        ({"unix": Path("/run/x.sock")}, "http://localhost:8000"),
        ({"port": 0}, "http://127.0.0.1:8000"),
    ],
)  # fmt: skip
def test_the_address_in_snippets(settings: Any, expected: str) -> None:
    assert snippets.address(ServeSettings(**settings)) == expected


def test_quotes_survive_the_shell(plain: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snippets, "example_row", lambda live: {"plan": "it's"})
    service: Any = SimpleNamespace(only=None, guard=SimpleNamespace(wants_keys=True), limits=ServeSettings(), lives={})
    line = snippets.curl(service, plain.service.live("plain"))
    assert line == (
        'curl http://127.0.0.1:8000/models/plain/predict -H "Authorization: Bearer $SERENO_KEY" '
        "-H 'Content-Type: application/json' -d '{\"plan\":\"it'\\''s\"}'"
    )
