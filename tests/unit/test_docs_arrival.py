"""The page about waiting for data: its settings are settings, and its function can be asked."""

from __future__ import annotations

import re
import tomllib
from datetime import date
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa

from sereno import Key, Model
from sereno.config import load_settings
from sereno.loader import bind
from sereno.operate.arrivals import arrivals as arrival
from sereno.operate.arrivals import asking
from sereno.operate.arrivals.awaited import awaited

PAGE = (Path(__file__).parents[2] / "docs" / "arrival.md").read_text(encoding="utf-8")


class Row(TypedDict):
    id: Key[int]
    x: float


class Out(TypedDict):
    y: float


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def model_of() -> Model:
    model = Model("churn", inputs=Row, outputs=Out)

    @model.load
    def load() -> None: ...

    @model.predict
    def predict(loaded: None, rows: pa.Table) -> None: ...

    return model


def test_its_settings(tmp_path: Path) -> None:
    expected = [("landing/{data_date}/_SUCCESS", False, 5), ("landing/{data_date}.csv", True, 60)]
    for text, (path, is_source, quiet) in zip(blocks("toml"), expected, strict=True):
        assert tomllib.loads(text)
        (tmp_path / "sereno.toml").write_text(text)
        settings = load_settings(tmp_path, environ={})
        model = model_of()
        found = awaited(model, settings, settings.model("churn", model.declared, tmp_path))
        assert (found.template, found.is_source, found.quiet_seconds) == (path, is_source, quiet)


def test_its_function(tmp_path: Path) -> None:
    model = model_of()
    names: dict[str, Any] = {"model": model, "date": date, "Path": Path}
    (code,) = blocks("python")
    exec(code, names)
    model.check()
    ready = model.ready_function
    assert ready is not None
    settings = load_settings(tmp_path, environ={}, overrides={"values.warehouse": str(tmp_path)})
    arguments = bind(model, ready, settings, given={"data_date": date(2026, 5, 1)})
    assert ready(**arguments) is False
    (tmp_path / "loads.csv").write_text("2026-05-01,complete\n")
    assert ready(**arguments) is True


def test_its_numbers() -> None:
    assert (asking.HUNG, asking.MOST, asking.TURN, arrival.POLL_SECONDS) == (300, 4, 10, 10)
