"""docs/notices.md: its rules are YAML and name metrics that exist; its settings are settings; its lines name commands."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from sereno.cli import parser_of
from sereno.config import load_settings
from sereno.operate import health
from sereno.serve.metrics import FAMILIES
from sereno.settings import NOTICE_KINDS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "notices.md").read_text(encoding="utf-8")


def blocks(kind: str, page: str = PAGE) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["notices.md", "metrics.md"])
def test_rules_are_rules_over_metrics_that_exist(page: str) -> None:
    found: list[dict[str, Any]] = [
        rule
        for block in blocks("yaml", (DOCS / page).read_text(encoding="utf-8"))
        for group in yaml.safe_load(block).get("groups", ())
        for rule in group["rules"]
    ]
    assert len(found) >= 4
    for rule in found:
        assert rule.keys() <= {"alert", "expr", "for", "annotations", "labels"}
        names = re.findall(r"\b(?:sereno_\w+|up)\b", rule["expr"])
        assert names, rule
        for name in names:
            assert name == "up" or re.sub(r"_(bucket|sum|count)$", "", name) in FAMILIES, name
        for labels in re.findall(r"\{\{ \$labels\.(\w+) \}\}", str(rule.get("annotations", ""))):
            assert labels in {label for name in names for label in FAMILIES[name.removesuffix("_bucket")].labels}


def test_the_settings_of_the_page_are_settings(tmp_path: Path) -> None:
    (block,) = blocks("toml")
    (tmp_path / "sereno.toml").write_text(block)
    assert tomllib.loads(block)["notify"] == list(load_settings(tmp_path, environ={}).notify)


def test_every_kind_has_its_row() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) >= set(NOTICE_KINDS)


def test_everything_that_may_be_wrong_has_its_row() -> None:
    source = Path(health.__file__).read_text(encoding="utf-8")
    named = set(re.findall(r'what="(\w+)"', source)) | {"failed", "held"}
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ", PAGE.split("| `what` is wrong")[1], re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"\w+", row)} == named


def test_lines_name_commands_that_exist() -> None:
    lines = [line for block in (*blocks("sh"), *blocks("crontab")) for line in block.splitlines()]
    found = [command for line in lines for command in re.findall(r"\bsereno ((?:health|notify)[^>|&#]*)", line)]
    assert len(found) >= 5
    for command in found:
        parser_of().parse_args(shlex.split(command))
