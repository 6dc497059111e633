"""The page of a run that was held: it is there by itself, and a browser shows it without asking anybody for anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.browser import Browser
from tests.acceptance.project import DAY, MODEL, NEXT_DAY, Project
from tests.profiles import HOSTILE

CATEGORY = HOSTILE.replace('"', "'").replace("\\", "")
BANDS = (
    MODEL.replace("    y: float\n", "    y: float\n    band: str\n")
    .replace('rows["x"], weight)})', f'rows["x"], weight), "band": [{CATEGORY!r} if y > 100 else "low" for y in rows["x"].to_pylist()]}})')
)  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A model one of whose categories is markup; its second night has drifted, and is held."""
    project = Project.new(tmp_path / "project")
    project.within = True
    project.variables = {"SERENO_WORKERS": "1"}
    project.write("total.py", BANDS)
    project.rows(DAY, 2_000)
    project.rows(NEXT_DAY, [x / 20 for x in range(2_000)])
    project.run(DAY)
    return project


def page_of(project: Project, run: str) -> Path:
    return project.folder / ".sereno" / "runs" / "total" / run / "report.html"


def test_a_held_run_has_its_page(project: Project) -> None:
    assert not page_of(project, project.runs()[0]["attempt"]).exists()
    held = project.run(NEXT_DAY, code=3)
    page = page_of(project, held["attempt"]).read_text()
    assert "drift of y" in page
    assert "sereno release" in page
    assert page.count('class="before"') >= 3  # y twice, and x
    assert "Besides" not in held["says"]


def test_a_page_that_cannot_be_made_does_not_fail_the_run(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object, **more: object) -> str:
        raise ValueError("a mistake of ours")

    monkeypatch.setattr("sereno.report_page.report_page", broken)
    held = project.run(NEXT_DAY, code=3)
    assert held["state"] == "held"
    assert held["says"].endswith("Besides: Its page report.html could not be written (ValueError: a mistake of ours).")
    assert not page_of(project, held["attempt"]).exists()


def test_a_page_of_any_run(project: Project) -> None:
    shown = project.sereno("show", DAY, "--html", "report.html").stdout
    assert shown.splitlines()[-1] == "The page is in report.html."
    page = (project.folder / "report.html").read_text()
    assert "<h2>History</h2>" in page  # who did what, as the ledger has it
    assert "published" in page
    assert project.json("show", DAY, "--html", "again.html")["html"] == "again.html"
    says = project.sereno("show", DAY, "--html", "no/such/folder.html", code=1).stderr
    assert "The page no/such/folder.html could not be written" in says


def test_in_a_browser(project: Project, tmp_path: Path) -> None:
    held = project.run(NEXT_DAY, code=3)
    url = page_of(project, held["attempt"]).as_uri()
    project.write("total2.py", BANDS.replace("weight)", "weight + 1)"))
    project.sereno("compare", "total2.py", "--against", "served", "--html", "compared.html")
    with Browser(tmp_path / "browser") as browser:
        for address in (url, (project.folder / "compared.html").as_uri()):
            page = browser.open(address, width=400)
            assert page.requests == [address]
            assert page.complaints == []
            assert page.run("document.documentElement.scrollWidth <= innerWidth")
            assert page.run("document.querySelectorAll('img, script').length") == 0
            assert page.run("document.body.innerText.includes('<script>alert(2)</script>')")
            # the style sheet counts, though nothing else may: it is known by its hash
            assert page.run("getComputedStyle(document.querySelector('.now')).fill") == "rgb(62, 99, 221)"
            light = page.run("getComputedStyle(document.body).backgroundColor")
            page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
            assert page.run("getComputedStyle(document.body).backgroundColor") != light
            page.call("Emulation.setEmulatedMedia", media="print")
            assert page.run("getComputedStyle(document.body).backgroundColor") == light
            assert page.run(
                "[...document.querySelectorAll('svg[role=img]')].every(s => s.getBoundingClientRect().width > 200)"
            )
            assert all(name.startswith("Histogram of ") for name in page.names("image"))
        assert page.names("image")
