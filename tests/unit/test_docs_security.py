"""docs/security.md tells what the guard and the access log do."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from sereno.serve.access import CHUNK, MOST_ERRORS, Line
from sereno.serve.guard import _LINE, _LOOPBACK, FREE, KEY_START
from sereno.serve.metrics import FAMILIES
from sereno.settings import SETTINGS

PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")


def test_what_is_free() -> None:
    sentence = re.search(r"Only (.*?), *\nspelled exactly so|Only (.*?),\s+spelled exactly so", PAGE, re.DOTALL)
    assert sentence is not None
    assert {p.encode() for p in re.findall(r"`([^`]+)`", sentence[0])} == FREE


def test_own_names() -> None:
    for name in _LOOPBACK:
        assert f"`{name}`" in PAGE


def test_the_line_of_a_key_looks_like_one() -> None:
    shown = re.search(r"^sha256:.*", PAGE, re.MULTILINE)
    assert shown is not None
    assert _LINE.fullmatch(shown[0].replace("9f86d081…", "9f86d081" * 8))
    assert re.search(rf"^{KEY_START}", PAGE, re.MULTILINE)


def test_settings_are_those_that_there_are() -> None:
    for block in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL):
        for name in tomllib.loads(block)["serve"]:
            assert f"serve.{name}" in SETTINGS


def test_the_line_of_the_access_log_is_whole() -> None:
    block = re.search(r"```json\n(.*?)\n```", PAGE, re.DOTALL)
    assert block is not None
    assert list(json.loads(block[1])) == list(Line.__struct_fields__)
    told = [
        name for cells in re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE) for name in re.findall(r"`(\w+)`", cells)
    ]
    assert told == list(Line.__struct_fields__)


def test_numbers_and_names() -> None:
    assert f"{MOST_ERRORS:,} a second" in PAGE
    assert f"{CHUNK >> 10} KiB" in PAGE
    for name in re.findall(r"sereno_\w+_total", PAGE):
        assert name in FAMILIES
