"""The pages name what there is: commands, settings, public names, errors, words; and their links lead somewhere."""

import argparse
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

import sereno
from sereno import exceptions
from sereno.cli import parser_of
from sereno.failpoints import POINTS
from sereno.settings import SETTINGS

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *(ROOT / "docs").rglob("*.md"),
    *(p for p in (ROOT / "examples").rglob("*.md")),
    *(ROOT / "benchmarks").glob("*.md"),
]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")

# What pages call their readers' own files.
USERS_FILES = {"churn.py", "train.py", "credit_scoring.py", "features.py"}

# The product's words (those of later versions, such as drift, come with what they name).
WORDS = (
    "age, answer log, arrangement, arrival, artefact, attempt, backfill, baseline, batch, behind, builder, catch up, "
    "challenger, compactor, data date, data time, deadline, discard, disposition, drift, due, environment, erase, "
    "executor, export, failpoint, fingerprint, freshness, gate, hold, home, in service, index, interval, kept, key, "
    "late, lease, ledger, lookup, manifest, model, model file, notice, part, pause, predict, prediction, profile, "
    "PSI, publication, publish, reject, release, repair, report, retention, revision, roll back, row type, run, "
    "run key, schedule, scheduler, script block, secret, segment, skipped, snapshot, source, spool, stale, storage, "
    "store, table's version, task, token, transition, unknown, up, value, version, waiting, warn, withdrawn, worker"
)


def option_rows() -> dict[str, set[str]]:
    """Command → its options, as the README's table of commands has them."""
    table = README.split("## Commands")[1].split("\n## ")[0]
    rows = {}
    for first, options in re.findall(r"^\| (.+?) \| (.*?) \|", table, re.MULTILINE):
        name = re.match(r"`sereno (\w+(?: [a-z]+)?)", first)
        rows[name[1] if name else first.strip("`")] = set(re.findall(r"(?<![\w-])--?[a-z-]+", options))
    return rows


def parsers(parser: argparse.ArgumentParser | None = None, before: str = "") -> dict[str, argparse.ArgumentParser]:
    """Command → its parser; of a group, those of its commands: `deploy server`."""
    groups = [a for a in (parser or parser_of())._actions if isinstance(a, argparse._SubParsersAction)]
    found = {}
    for name, one in groups[0].choices.items() if groups else ():
        found |= parsers(one, f"{before}{name} ") or {f"{before}{name}": one}
    return found


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]  # else it is not for people
    return {option for action in shown for option in action.option_strings}


def test_every_command_is_in_the_readme() -> None:
    assert set(option_rows()) - {"command", "---", "each of them", "sereno"} == set(parsers())


@pytest.mark.parametrize("command", sorted(parsers()))
def test_every_option_is_in_the_readme(command: str) -> None:
    rows = option_rows()
    assert options_of(parsers()[command]) == rows[command] | rows["each of them"]


def test_the_options_of_sereno_itself_are_in_the_readme() -> None:
    assert options_of(parser_of()) == option_rows()["sereno"]


@pytest.mark.parametrize("command", sorted(parsers()))
def test_arguments_are_named_as_in_the_readme(command: str) -> None:
    shown = re.search(rf"^\| `sereno {command} ?([^`]*)`", README, re.MULTILINE)
    assert shown is not None
    positional = [a for a in parsers()[command]._actions if not a.option_strings]
    forms = {"+": "{}...", "*": "[{}...]"}
    assert shown[1].split() == [forms.get(str(a.nargs), "{}").format(a.metavar) for a in positional]


def test_every_setting_has_its_row() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE))
    assert rows == set(SETTINGS)


@pytest.mark.parametrize("name", sereno.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    pages = README + "".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs").glob("*.md"))
    in_code = re.findall(r"`[^`\n]+`", pages)
    assert any(re.search(rf"\b{name}\b", text) for text in in_code), f"no page names `{name}`"


def all_errors() -> list[type[BaseException]]:
    found = [e for e in vars(exceptions).values() if isinstance(e, type) and issubclass(e, exceptions.SerenoError)]
    return [e for e in found if e is not exceptions.SerenoError]


@cache
def code() -> str:
    files = (p for p in (ROOT / "src").rglob("*.py") if p.name != "exceptions.py")
    return "\n".join(p.read_text(encoding="utf-8") for p in files)


@pytest.mark.parametrize("error", all_errors(), ids=lambda e: e.__name__)
def test_every_error_is_raised_somewhere_and_stands_in_the_tree(error: type[BaseException]) -> None:
    # those that stand for a whole group are caught, and need not be raised themselves
    is_made = bool(re.search(rf"\b{error.__name__}\(", code()))
    assert is_made or error.__subclasses__(), f"{error.__name__} is never raised"
    assert f"─ {error.__name__} " in str(exceptions.__doc__)


@pytest.mark.parametrize("word", WORDS.split(", "))
def test_every_word_is_in_the_glossary(word: str) -> None:
    defined = re.findall(r"^- \*\*.*?: |\*\*[^*]+\*\*", GLOSSARY, re.MULTILINE)
    assert any(re.search(rf"\*\*{re.escape(word)}\*\*", text, re.IGNORECASE) for text in defined), word


def headings(page: Path) -> set[str]:
    """The anchors of a page, as code forges make them from headings."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target}"
        assert there.is_relative_to(ROOT), f"{page.name}: {target} leaves the repository"
        if anchor:
            assert anchor in headings(there), f"{page.name}: {target}"


@pytest.mark.parametrize("page", [*(ROOT / "docs").rglob("*.md")], ids=lambda p: str(p.relative_to(ROOT)))
def test_source_files_that_a_page_names_are_there(page: Path) -> None:
    source = ROOT / "src" / "sereno"
    named = re.findall(
        r"`((?:(?:answers|batch|adapters|check|new|serve|examples|src)/)?[\w/]+\.py)`", page.read_text(encoding="utf-8")
    )
    for name in named:
        if name not in USERS_FILES:
            assert any((folder / name).exists() for folder in (ROOT, source, source / "adapters", source / "serve")), (
                name
            )


def test_the_architecture_is_read_in_order() -> None:
    pages = sorted((ROOT / "docs" / "architecture").glob("[0-9]-*.md"))
    assert [p.name[0] for p in pages] == ["1", "2", "3", "4", "5", "6", "7"]
    assert "](scale.md)" in pages[-1].read_text(encoding="utf-8").splitlines()[-1]
    for page, following in pairwise(pages):
        assert f"]({following.name})" in page.read_text(encoding="utf-8").splitlines()[-1]


def test_decisions_are_dated_and_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    contents = (folder / "README.md").read_text(encoding="utf-8")
    pages = sorted(p for p in folder.glob("*.md") if p.name != "README.md")
    for number, page in enumerate(pages, 1):
        lines = page.read_text(encoding="utf-8").splitlines()
        assert page.name.startswith(f"{number:04}-")
        assert lines[0].startswith(f"# {number}. ")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", lines[2])
        assert f"]({page.name})" in contents


def test_failpoints_are_as_many_as_the_page_says() -> None:
    page = (ROOT / "docs" / "architecture" / "4-faults.md").read_text(encoding="utf-8")
    assert f"names {len(POINTS)} places" in page


def test_the_changelog_begins_with_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first = re.search(r"^## (\d+\.\d+\.\d+)", changelog, re.MULTILINE)
    assert first is not None
    assert first[1] == sereno.__version__
