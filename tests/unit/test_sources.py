"""What a source names: the same files for what waits for them and for what reads them."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path, PurePath
from typing import Any

import pytest

from sereno import Interval
from sereno.cli.named import from_here
from sereno.exceptions import SettingsError, SourceError
from sereno.settings import Settings, Value
from sereno.sources import (
    _fits,
    base_of,
    fill_path,
    find_files,
    iter_files,
    joined,
    values_for,
    values_of_interval,
    without_values,
)

INTERVAL = Interval(start=datetime(2026, 5, 1, tzinfo=UTC), end=datetime(2026, 5, 2, tzinfo=UTC))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "b.parquet",
        "a.parquet",
        "_SUCCESS",
        ".hidden.parquet",
        "day=1/c.parquet",
        "_temporary/d.parquet",
        ".x/e.parquet",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("", ["a.parquet", "b.parquet", "day=1/c.parquet"]),
        ("a.parquet", ["a.parquet"]),
        ("*.parquet", ["a.parquet", "b.parquet"]),
        ("**/*.parquet", ["a.parquet", "b.parquet", "day=1/c.parquet"]),
        ("day=*", []),
        ("day=*/*", ["day=1/c.parquet"]),
        ("[ab].parquet", ["a.parquet", "b.parquet"]),
        ("_temporary/*", ["_temporary/d.parquet"]),
        ("*/d.parquet", []),
        ("nothing", []),
        ("*.csv", []),
    ],
)
def test_which_files_a_source_has(folder: Path, source: str, found: list[str]) -> None:
    if found:
        assert [str(f.relative_to(folder)) for f in find_files(f"{folder}/{source}")] == found
    else:
        with pytest.raises(
            SourceError, match=r"The source .* is missing: .* start the run again then; .* mend source="
        ):
            find_files(f"{folder}/{source}")


def test_a_file_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "a[1].csv").write_text("id\n")
    assert [*find_files(str(tmp_path / "a[1].csv"))] == [tmp_path / "a[1].csv"]


def test_paths_resolve_against_what_names_them(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, values={"warehouse": Value(value="w", base=tmp_path / "of-value")})
    values = {"warehouse": "w", "data_date": date(2026, 5, 1)}
    base = tmp_path / "of-source"
    assert (
        fill_path("{warehouse}/{data_date:%Y/%m}.csv", values, settings, base) == f"{tmp_path}/of-value/w/2026/05.csv"
    )
    assert fill_path("in/{warehouse}", values, settings, base) == f"{base}/in/w"
    assert fill_path("/in/{warehouse}", values, settings, base) == "/in/w"


@pytest.mark.parametrize(
    "template",
    [
        "in/{data_date}.csv",
        "{warehouse}/{data_date:%Y/%m}/{name}-{number:03d}.csv",
        "{data_date!s:>12}{interval_start:%H%M}-{interval_end:%H%M}",
        "{{meant}}/{name}/{odd}/{since:%Y}",
        "{data_date:{name}{form}}",
        "{many[1]}/{data_date.year}",
        "plain",
        "",
    ],
)
def test_values_first_and_the_interval_later_is_the_same_path(tmp_path: Path, template: str) -> None:
    values: dict[str, Any] = {
        "warehouse": "w", "name": "a b", "number": 7, "odd": "{data_date}", "since": date(2020, 1, 1), "form": "%d",
        "many": ["x", "y"], "data_date": "never",
    }  # fmt: skip
    base = tmp_path / "of-value"
    settings = Settings(home=tmp_path, values={n: Value(value=v, base=base) for n, v in values.items()})
    at_once = fill_path(template, values_for(settings, INTERVAL), settings, tmp_path)
    later = without_values(template, settings).format(**values_of_interval(INTERVAL))
    assert str(base_of(template, settings, tmp_path) / later) == at_once


def test_a_url_is_as_it_stands_and_none_of_another_kind(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, values={"warehouse": Value(value="s3://bank/w", base=tmp_path)})
    values = {"warehouse": "s3://bank/w", "data_date": date(2026, 5, 1)}
    assert fill_path("{warehouse}/{data_date}/*", values, settings, tmp_path) == "s3://bank/w/2026-05-01/*"
    assert joined("/home", "s3://bank/w") == "s3://bank/w"
    assert joined("/home", "w") == "/home/w"
    with pytest.raises(
        SettingsError,
        match=r"The source 'ftp://a/b' cannot be read: ftp://… is no place for files\. Valid are a path, az://…, .* database=",
    ):
        fill_path("ftp://a/b", {}, settings, tmp_path)
    with pytest.raises(SettingsError, match=r"The 'models.m.ready' 'ftp://a' cannot be read: .* s3://…\.$"):
        fill_path("ftp://a", {}, settings, tmp_path, "'models.m.ready'")
    with pytest.raises(SettingsError, match=r"The source 's3:///a' cannot be read: s3://… needs the name of a bucket"):
        fill_path("s3:///a", {}, settings, tmp_path)


def test_what_the_command_line_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert from_here("in/a.csv") == f"{tmp_path}/in/a.csv"
    for source in ("s3://bank/in", "{warehouse}/in", "select 1", "/in"):
        assert from_here(source) == source


@pytest.mark.parametrize(
    ("name", "pattern", "fits"),
    [
        ("a.parquet", "*.parquet", True),
        ("a/b.parquet", "*.parquet", False),
        ("a/b.parquet", "*/*.parquet", True),
        ("a/b.parquet", "**/*.parquet", True),
        ("b.parquet", "**/*.parquet", True),
        ("day=1/x/b.parquet", "day=*/**", True),
        ("day=1/x/b.parquet", "day=?/*", False),
        ("day=1/x/b.parquet", "**/[a-c].parquet", True),
        ("day=1/x/b.parquet", "**/x", False),
    ],
)
def test_patterns_of_objects_are_those_of_files(tmp_path: Path, name: str, pattern: str, fits: bool) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert _fits(PurePath(name).parts, PurePath(pattern).parts) is fits
    assert [*iter_files(f"{tmp_path}/{pattern}")] == [path] * fits
