"""What readers get of the answer log, wherever the answers lie at that moment; and what `sereno log` makes of what it is asked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import sereno
from sereno.answers import read
from sereno.answers.command import log
from sereno.answers.compact import Compactor
from sereno.answers.folder import segments_folder
from sereno.answers.read import Wanted, find_answers
from sereno.config import load_settings
from sereno.exceptions import BusyError, NotFoundError, SettingsError
from sereno.moments import time_of
from tests.answers import NOON, keep


def at(second: int) -> datetime:
    return NOON + timedelta(seconds=second)


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same 100 answers, a second apart: in segments, in the table, in small files of it, and in both."""
    found = {}
    for where in ("segments", "table", "files", "both"):
        home = found[where] = tmp_path_factory.mktemp(where)
        for start in range(0, 100, 20):
            keep(home, range(start, start + 20), customer=lambda n: n % 10)
            if where == "files" or (where == "both" and start in (20, 60)):
                Compactor(home, "shop").compact()
        if where == "table":
            Compactor(home, "shop").compact()
    return found


@pytest.fixture(params=["segments", "table", "files", "both"])
def home(request: pytest.FixtureRequest, homes: dict[str, Path]) -> Path:
    return homes[request.param]


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (Wanted(), range(100)),
        (Wanted(newest=1), [99]),
        (Wanted(newest=30), range(70, 100)),
        (Wanted(newest=1000), range(100)),
        (Wanted(since=at(90)), range(90, 100)),
        (Wanted(until=at(3)), range(3)),
        (Wanted(since=at(50), until=at(60), newest=4), range(56, 60)),
        (Wanted(key=("7",)), range(7, 100, 10)),
        (Wanted(key=("7",), newest=2), [87, 97]),
        (Wanted(key=("7",), until=at(50)), [7, 17, 27, 37, 47]),
        (Wanted(key=("777",)), []),
        (Wanted(key=("seven",)), []),
        (Wanted(request="r42"), [42]),
        (Wanted(request="r42", newest=5), [42]),
    ],
)
def test_the_answers_that_are_wanted(home: Path, wanted: Wanted, numbers: Sequence[int]) -> None:
    found = find_answers(home, "shop", wanted)
    assert found["request_id"].to_pylist() == [f"r{n}" for n in numbers]
    assert found["answered_at"].to_pylist() == [at(n) for n in numbers]


def test_read_answers(homes: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    home = homes["both"]
    assert sereno.read_answers("shop", home=home).num_rows == 100
    assert sereno.read_answers("shop", key=7, home=str(home)).num_rows == 10
    assert sereno.read_answers("shop", key=(7,), since=at(50), home=home).num_rows == 5
    assert sereno.read_answers("shop", since=date(2026, 5, 1), until=date(2026, 5, 1), home=home).num_rows == 100
    assert sereno.read_answers("shop", since=date(2026, 5, 2), home=home).num_rows == 0
    assert sereno.read_answers("shop", until=date(2026, 4, 30), home=home).num_rows == 0
    monkeypatch.chdir(home)
    assert sereno.read_answers("shop", until=at(1)).num_rows == 1
    with pytest.raises(NotFoundError, match=r"has no time zone; write datetime\(…, tzinfo=timezone\.utc\)"):
        sereno.read_answers("shop", since=datetime(2026, 5, 1), home=home)
    with pytest.raises(NotFoundError, match=r"A key of model 'shop' has 1 value \(customer\), not 2\."):
        sereno.read_answers("shop", key=(1, 2), home=home)
    with pytest.raises(NotFoundError, match=r"No answers of model 'shoe' are kept in .* \(models with answers: shop\)"):
        sereno.read_answers("shoe", home=home)


@pytest.mark.parametrize("look", ["state", "pending", "segment", "version"])
def test_a_reader_never_sees_one_twice_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    """Whatever the compactor does between two looks of the reader."""
    keep(tmp_path, range(10))
    Compactor(tmp_path, "shop").compact()
    keep(tmp_path, range(10, 20))
    looks = []

    def compacting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def first_compact(*arguments: Any) -> Any:
            if name == look and name not in looks:
                looks.append(name)
                Compactor(tmp_path, "shop").compact()
            return original(*arguments)

        return first_compact

    monkeypatch.setattr(Compactor, "state", compacting("state", Compactor.state))
    monkeypatch.setattr(read.Pending, "read", compacting("pending", read.Pending.read))
    monkeypatch.setattr(read, "read_segment", compacting("segment", read.read_segment))
    monkeypatch.setattr(read, "current_version", compacting("version", read.current_version))
    found = find_answers(tmp_path, "shop", Wanted())
    assert looks == [look]
    assert found["request_id"].to_pylist() == [f"r{n}" for n in range(20)]


def test_a_table_that_never_rests(homes: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    versions = iter(range(100, 200))
    monkeypatch.setattr(read, "current_version", lambda table: next(versions))
    with pytest.raises(BusyError, match="The answers of shop are being put into their table all the time"):
        find_answers(homes["table"], "shop", Wanted())


def show(home: Path, *, compact: bool = False, without: Sequence[str] | None = None, **wanted: Any) -> Any:
    names = dict.fromkeys(("since", "until", "key", "request", "limit"))
    return log(load_settings(home), "shop", names | wanted, compact=compact, without=without)


def test_what_is_shown(homes: dict[str, Path]) -> None:
    data, lines, notes = show(homes["both"], key=["3"], limit=1)
    assert notes == []
    json.dumps(data)
    assert data == [
        {
            "answered_at": "2026-05-01T12:01:33Z",
            "request_id": "r93",
            "model_fingerprint": "ab" * 32,
            "inputs": {
                "customer": 3,
                "amount": 11.625,
                "count": 93,
                "is_new": False,
                "name": "naïve ☕ 93",
                "birth": "2013-02-28",
                "seen": "2026-04-01T01:02:03.000093Z",
                "income": "93.25",
                "basket": [],
                "bought": [0.0],
                "last": {"product": "cheese 93", "price": None, "since": "2020-01-10"},
            },
            "prediction": {
                "score": 0.093,
                "band": "B",
                "products": [{"product": "cheese 0", "price": None, "since": "2020-01-01"}],
            },
        }
    ]
    inputs = (
        "  inputs      customer=3  amount=11.625  count=93  is_new=false  name=naïve ☕ 93  birth=2013-02-28  "
        "seen=2026-04-01T01:02:03.000093Z  income=93.25  basket=[]  bought=[0.0]  "
        'last={"product":"cheese 93","price":null,"since":"2020-01-10"}'
    )
    assert lines == [
        "2026-05-01 12:01:33.000000 UTC  request r93  model abababababab",
        inputs,
        '  prediction  score=0.093  band=B  products=[{"product":"cheese 0","price":null,"since":"2020-01-01"}]',
    ]
    assert len(show(homes["both"])[0]) == 20
    assert show(homes["both"], request="none")[:2] == ([], ["No such answer of shop is kept."])


def test_erasing_nobody_is_no_success(tmp_path: Path) -> None:
    keep(tmp_path, range(3))
    says = r"Nothing was erased: no answer of shop has the key 7\. Its values are given in this order: customer\."
    with pytest.raises(NotFoundError, match=says):
        show(tmp_path, without=["7"])
    assert show(tmp_path, without=["1"])[0] == {"erased": 1}


def test_options_that_do_not_go_together(homes: dict[str, Path]) -> None:
    with pytest.raises(
        SettingsError, match="--since chooses answers to show; with --compact or --erase none are shown"
    ):
        show(homes["both"], since="1h", without=["7"])
    with pytest.raises(SettingsError, match="--limit chooses answers"):
        show(homes["both"], limit=3, compact=True)


@pytest.mark.parametrize(
    ("text", "end", "means"),
    [
        ("2026-05-01", False, datetime(2026, 5, 1, tzinfo=UTC)),
        ("2026-05-01", True, datetime(2026, 5, 2, tzinfo=UTC)),
        ("2026-05-01T12:30", True, datetime(2026, 5, 1, 12, 30, tzinfo=UTC)),
        ("2026-05-01T12:30:05.5Z", False, datetime(2026, 5, 1, 12, 30, 5, 500_000, UTC)),
        ("2026-05-01T12:30+02:00", False, datetime(2026, 5, 1, 10, 30, tzinfo=UTC)),
        ("2026-05-01 12:30", False, datetime(2026, 5, 1, 12, 30, tzinfo=UTC)),
    ],
)
def test_times_as_text(text: str, end: bool, means: datetime) -> None:
    assert time_of(text, "--since", end=end) == means


def test_times_ago() -> None:
    for text, ago in (("90s", 90), ("15m", 900), ("2h", 7200), ("3d", 259_200)):
        assert abs((datetime.now(UTC) - time_of(text, "--since")).total_seconds() - ago) < 60


@pytest.mark.parametrize("text", ["yesterday", "", "5", "5w", "2026-13-01", "9999999h", "2026-05-01T25:00", "999999d"])
def test_texts_that_are_no_time(text: str) -> None:
    with pytest.raises(SettingsError, match=r"--until '.*' is no time\. Write 2026-05-01"):
        time_of(text, "--until")


def test_a_serving_process_loads_nothing_of_tables() -> None:
    code = (
        "import sys, sereno.answers.log; assert not {'deltalake', 'pyarrow', 'numpy'} & set(sys.modules);"
        "print([m for m in sys.modules if m.startswith('sereno.answers')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert eval(done.stdout) == [
        "sereno.answers",
        "sereno.answers.folder",
        "sereno.answers.segments",
        "sereno.answers.log",
    ]


def test_the_compactor_that_waits_loads_next_to_nothing() -> None:
    code = (
        "import sys, sereno.answers.compactor, sereno.answers.folder, sereno.storage, sereno.exceptions;"
        "assert not {'deltalake', 'pyarrow', 'numpy', 'msgspec'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_segment_that_is_sealed_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, range(5))
    (sealed,) = segments_folder(tmp_path, "shop").glob("*.sealed")
    opened = sealed.with_suffix(".open")
    sealed.rename(opened)
    segment = read.read_segment

    def seal_first(path: Path) -> Any:
        if opened.exists():
            opened.rename(sealed)
        return segment(path)

    monkeypatch.setattr(read, "read_segment", seal_first)
    assert find_answers(tmp_path, "shop", Wanted()).num_rows == 5
