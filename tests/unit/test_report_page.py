"""The page of a report: one file without script and network, in which every text is text."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sereno.baseline import Baseline
from sereno.ledger import Transition
from sereno.report_page import add_page, report_page
from sereno.settings import Settings
from tests.profiles import HOSTILE, baseline, gate, profile_of, report_of

VOID = {"meta", "link", "br", "img"}
UP, DOWN = [i / 1000 for i in range(1000)], [(i / 1000) ** 3 for i in range(1000)]


class Read(HTMLParser):
    """A page, taken apart. Fails where elements do not nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page(report: Any = None, **given: Any) -> str:
    return report_page(report or report_of(), **given)


def words(text: str) -> str:
    return re.sub(r"\s+", " ", " ".join(Read(text).text))


def drifted(**given: Any) -> str:
    report = report_of(
        gates=[gate("passed", "rejects"), gate(column="score", side="output"), gate("warned", "drift of age", column="age", side="input")],
        profile={"score": profile_of("float", UP), "band": profile_of("str", ["A", "B", None])},
        inputs_profile={"age": profile_of("int", range(18, 90)), "since": profile_of("date", [0, 9_000])},
        **given,
    )  # fmt: skip
    before = Baseline(
        version=2,
        data_date=baseline().data_date,
        outputs={"score": profile_of("float", DOWN), "gone": profile_of("float", UP)},
        inputs={"age": profile_of("int", range(20, 60))},
    )
    return page(report, baseline=before)


def test_it_needs_nothing_beside_it() -> None:
    read = Read(drifted())
    for tag, attributes in read.tags:
        assert tag not in ("script", "iframe", "object", "form", "img", "base")
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        for name in ("src", "href", "action", "srcset"):
            assert attributes.get(name) in (None, "data:,")
    style = re.search(r"<style>(.*?)</style>", drifted(), re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_the_browser_is_told_to_load_and_run_nothing() -> None:
    shown = drifted()
    policy = next(m["content"] for m in Read(shown).all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "script-src" not in policy  # so none at all
    style = re.search(r"<style>(.*?)</style>", shown, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy


def test_where_its_artefacts_lay() -> None:
    assert "artefact net s3://bank/net.onnx#sha256=ab" in words(
        drifted(artifacts={"net": "s3://bank/net.onnx#sha256=ab"})
    )


def test_what_did_not_pass_comes_first() -> None:
    shown = words(drifted())
    order = [shown.index(w) for w in ("What did not pass", "Rows", "Gates", "Predictions", "Inputs", "Time", "Parts")]
    assert order == sorted(order)
    first = shown[order[0] : order[1]]
    assert first.index("drift of score") < first.index("drift of age")
    assert "rejects" not in first
    assert "sereno release 2026-05-03-abcdef" in first
    published = words(report_page(report_of(gates=[gate()]), state="published"))
    assert "sereno release" not in published


def test_all_is_well() -> None:
    shown = words(page(report_of(gates=[gate("passed")], state="published", version=3, says="")))
    assert "What did not pass" not in shown
    assert "published as version 3" in shown


def test_each_column_lies_over_that_of_its_baseline() -> None:
    shown = drifted()
    drawn = re.findall(r"<svg role.*?</svg>", shown, re.DOTALL)
    assert len(drawn) == 4  # score and age, among what did not pass and in their places
    for one in drawn:
        assert one.count('class="before"') == 1
        assert one.count('class="now"') > 10
        assert one.count("<title>") == 40
    assert "of this run, " in drawn[0]
    assert "of version 2" in drawn[0]
    assert "Only version 2 has gone ." in words(shown)


def test_numbers_beside_each_other() -> None:
    shown = words(drifted())
    at = shown.index("Predictions")
    assert "rows 1,000 1,000" in shown[at:]
    assert re.search(r"50% are below 0\.(499|5)\d* 0\.12\d* ", shown[at:])
    assert "least 1970-01-01" in shown


def test_header() -> None:
    shown = words(page())
    for what in (
        "churn, 2026-05-03",
        "held",
        "Held by 1 gate.",
        "run 2026-05-03-abcdef",
        "started 2026-05-04 01:00 UTC",
        "source read",
    ):
        assert what in shown
    assert "rows in 1,010 predictions 1,000 rejects 10 (0.99%)" in shown
    assert "7 age: must be at least 18" in shown
    assert "part-00000.parquet 1,000 99 abababababab" in shown


def test_what_happened() -> None:
    at = datetime(2026, 5, 4, 7, tzinfo=UTC)
    move = Transition(
        model="churn", run_key="k", at=at, before="held", after="published", reason="looked at it", who="ana <b>"
    )
    shown = words(page(history=[move]))
    assert "2026-05-04 07:00:00 published ana <b> looked at it" in shown
    assert "History" not in words(page())


def test_a_run_that_failed_before_it_had_rows() -> None:
    failed = report_of(
        state="failed", says="It broke.\nMend it.", rows_in=0, reasons={}, gates=[], parts=[], seconds={}
    )
    shown = words(page(failed))
    assert "It broke. Mend it." in shown
    for part in ("Rows", "Gates", "Predictions", "Time", "Parts"):
        assert part not in shown


def test_many_reasons() -> None:
    shown = words(page(report_of(reasons={f"reason {i}": 2 for i in range(60)})))
    assert "2 reason 49" in shown
    assert "reason 50" not in shown
    assert "20 other reasons" in shown


def test_every_text_is_text() -> None:
    texts = profile_of("str", [HOSTILE, HOSTILE, "B"])
    numbers = profile_of("float", UP)
    hostile = report_of(
        model=HOSTILE, says=HOSTILE, source=HOSTILE, fingerprint=HOSTILE, revision=HOSTILE, rejects_file=HOSTILE,
        artifacts={HOSTILE: HOSTILE},
        attempt=HOSTILE, reasons={HOSTILE: 3}, profile={HOSTILE: texts, f"{HOSTILE}2": numbers},
        inputs_profile={HOSTILE: texts}, worker_seconds={HOSTILE: 1.0}, seconds={HOSTILE: 1.0},
        gates=[
            gate(name=HOSTILE, says=HOSTILE, column=HOSTILE, side="output"),
            gate("warned", HOSTILE, column=f"{HOSTILE}2", side="output"),
        ],
    )  # fmt: skip
    move = Transition(
        model="m",
        run_key="k",
        at=datetime(2026, 5, 4, tzinfo=UTC),
        before=None,
        after="held",
        reason=HOSTILE,
        who=HOSTILE,
    )
    before = baseline(**{HOSTILE: texts, f"{HOSTILE}2": numbers, f"{HOSTILE}3": numbers})
    shown = page(hostile, state=HOSTILE, baseline=before, history=[move])
    read = Read(shown)
    clean = Read(drifted())
    assert {tag for tag, _ in read.tags} <= {tag for tag, _ in clean.tags} | {"pre"}
    assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "<img src=x" in "".join(read.text)  # as text
    shown.encode()


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("float", []), ("float", [None, None]), ("float", [1.0] * 3), ("float", [-1.7e308, 1.7e308]), ("int", [2**63 - 1, -(2**63)]),
        ("str", []), ("str", [None]), ("str", [""]), ("bool", [True, None]), ("date", [None]), ("date", [0]),
    ],
)  # fmt: skip
def test_columns_of_every_shape(kind: Any, values: list[Any]) -> None:
    column = profile_of(kind, values)
    other = profile_of(kind, [v for v in values if v is not None][:1])
    for before in (baseline(), baseline(x=other), baseline(x=profile_of("str", ["A"]))):
        found = page(report_of(profile={"x": column}, gates=[gate(column="x", side="output")]), baseline=before)
        assert "nan" not in found.lower().replace("tenant", "")
        assert "inf" not in re.sub(r"<style>.*?</style>", "", found, flags=re.DOTALL)
        Read(found)


def test_a_column_that_is_large_stays_small_on_the_page() -> None:
    names = [f"column {i}" for i in range(200)]
    numbers = profile_of("float", UP)
    shown = page(report_of(profile=dict.fromkeys(names, numbers)), baseline=baseline(**dict.fromkeys(names, numbers)))
    assert len(shown) < 5_000_000


# Beside the report of a run that is held


class Attempts:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def lasting(self, report: Any) -> Path:
        return self.folder / report.attempt


class Store:
    def state(self) -> Any:
        return SimpleNamespace(snapshots={})


def test_a_page_beside_the_report(tmp_path: Path) -> None:
    home: Any = SimpleNamespace(attempts=Attempts(tmp_path), store=Store(), settings=Settings(home=tmp_path))
    report = replace(report_of(), attempt="a")
    assert add_page(home, report) == ""
    assert Read((tmp_path / "a" / "report.html").read_text()).tags


def test_a_page_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file, where a folder should be")
    home: Any = SimpleNamespace(attempts=Attempts(tmp_path), store=Store(), settings=Settings(home=tmp_path))
    says = add_page(home, replace(report_of(), attempt="a"))
    assert says.startswith("Its page report.html could not be written (")
