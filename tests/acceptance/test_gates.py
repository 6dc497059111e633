"""Gates through the command line: profiles kept with snapshots, drift against the last data date, gates of the model file."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sereno.baseline import Baseline
from sereno.batch.judging import held_against
from sereno.config import load_settings
from sereno.home import Home
from sereno.snapshots import Keep, State
from tests.acceptance.project import DAY, NEXT_DAY, THIRD_DAY, Project

ROWS = 3_000
FOURTH_DAY = "2024-05-04"

MODEL = """
from datetime import date
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
import pandas as pd

from sereno import Key, Model, Profile, Warn


class Customer(TypedDict):
    id: Key[int]
    income: float
    age: int | None
    job: Literal["clerk", "nurse", "pilot"]
    remark: str
    opened: date


class Score(TypedDict):
    risk: float
    band: str


model = Model("total", inputs=Customer, outputs=Score, artifacts={"weight": "weight.txt"},
              source="input/{data_date}/*.parquet")


@model.load
def load(weight: Path):
    return float(weight.read_text())


@model.predict
def predict(weight, rows: pd.DataFrame) -> pd.DataFrame:
    risk = 1 / (1 + np.exp(weight * (rows["income"] - 3_000) / 1_000))
    return pd.DataFrame({"risk": risk, "band": np.where(risk > 0.5, "high", "low")})

# gates
"""


def customers(
    day: str, *, seed: int = 0, income: float = 3_000, unemployed: float = 0, rows: int = ROWS
) -> dict[str, Any]:
    """Invented customers: so many, with this mean income, and this share of them of the last job."""
    random = np.random.default_rng([seed, int(day[-2:])])
    age = random.integers(18, 80, rows)
    return {
        "id": np.arange(rows),
        "income": random.normal(income, 800, rows),
        "age": pa.array(age, mask=random.random(rows) < 0.05),
        "job": random.choice(["clerk", "nurse", "pilot"], rows, p=[0.5 - unemployed, 0.3, 0.2 + unemployed]),
        "remark": [f"{day} {i}" for i in range(rows)],
        "opened": pa.array(np.datetime64(day) - np.arange(rows) % 50, pa.date32()),
    }


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project.new(tmp_path)
    project.within = True
    project.write("total.py", MODEL)
    project.settings(exports=[])
    for number, day in enumerate((DAY, NEXT_DAY, THIRD_DAY, FOURTH_DAY)):
        project.table(day, customers(day, seed=number))
    return project


def gates(report: dict[str, Any]) -> dict[str, Any]:
    return {gate["name"]: gate for gate in report["gates"]}


def run(project: Project, day: str, *arguments: str, code: int = 0, **changes: Any) -> dict[str, Any]:
    if changes:
        project.table(day, customers(day, **changes))
    report: dict[str, Any] = project.run(day, *arguments, code=code)
    return report


def test_the_first_night_has_nothing_to_drift_from(project: Project) -> None:
    first = run(project, DAY)
    assert (first["state"], first["baseline"]) == ("published", None)
    assert not [name for name in gates(first) if "drift" in name]
    again = run(project, DAY, "--force")  # nor has a rerun of the only date
    assert (again["version"], again["baseline"]) == (2, None)
    second = run(project, NEXT_DAY)
    assert (second["state"], second["baseline"]) == ("published", 2)
    assert gates(second)["drift of risk"]["level"] == "passed"
    assert gates(second)["drift of band"]["value"] < 0.1
    assert "3 features against version 2" in gates(second)["drift of inputs"]["says"]  # not remark, nor opened
    assert set(second["inputs_profile"]) == {"income", "age", "job", "remark", "opened"}
    third = run(project, THIRD_DAY)
    assert third["baseline"] == 3
    # a rerun of the date in service is compared with the date before, not with itself
    assert run(project, THIRD_DAY, "--force")["baseline"] == 3


def test_an_output_that_drifts_is_held_and_an_input_that_does_is_warned_of(project: Project) -> None:
    run(project, DAY)
    options = "--set lookup_versions=3"  # as typed: what is to be typed next needs the same
    held = run(project, NEXT_DAY, *options.split(), code=3, income=3_900)
    assert held["state"] == "held"
    show, release, discard = (f"`sereno {what} {held['attempt']} {options}`" for what in ("show", "release", "discard"))
    assert held["says"].endswith(f" Look at it ({show}), then {release} or {discard}.")
    gate = gates(held)["drift of risk"]
    assert (gate["level"], gate["column"], gate["side"], gate["limit"]) == ("held", "risk", "output", 0.25)
    assert gate["value"] > 0.25
    assert f"drift of risk: PSI {gate['value']:.3f} against version 1 (2024-05-01); at most 0.25" in held["says"]
    assert gates(held)["drift of input income"]["level"] == "warned"
    assert project.in_service() == [1]

    warned = run(project, THIRD_DAY, unemployed=0.35)  # which the model does not look at
    assert (warned["state"], warned["version"]) == ("published", 2)
    assert gates(warned)["drift of input job"]["level"] == "warned"
    assert gates(warned)["drift of input job"]["passed"]
    # what was held, and then released, is what later dates are compared with
    held_again = run(project, FOURTH_DAY, code=3, income=3_900)
    released = project.json("release", held_again["attempt"])
    assert (released["state"], released["version"], gates(released)["drift of risk"]["level"]) == (
        "published",
        3,
        "held",
    )
    project.table("2024-05-05", customers("2024-05-05", income=3_900))
    assert run(project, "2024-05-05")["baseline"] == 3


def test_limits_of_columns_change_the_verdict(project: Project) -> None:
    run(project, DAY)
    project.settings(exports=[], columns__risk__hold_psi=20, columns__band__hold_psi=20, columns__income__warn_psi=20)
    lenient = run(project, NEXT_DAY, income=3_900)
    assert (gates(lenient)["drift of risk"]["level"], lenient["state"]) == ("warned", "published")
    assert "drift of input income" not in gates(lenient)
    project.settings(
        exports=[], columns__job__hold_psi=0.01, columns__age__max_null_share=0.01, columns__age__constant="hold"
    )
    strict = run(project, THIRD_DAY, code=3, unemployed=0.3, income=3_900)
    failed = {name for name, gate in gates(strict).items() if not gate["passed"]}
    assert failed == {"drift of input job", "nulls of input age"}
    assert gates(strict)["constant input age"]["passed"]
    # the same by the command line, for one run
    options = ["--set", "models.total.columns.job.hold_psi=20", "--set", "models.total.columns.age.max_null_share=0.5"]
    assert run(project, THIRD_DAY, *options)["state"] == "published"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"columns__incme__warn_psi": 1}, "'models.total.columns.incme', from {file}, is no output or feature of it. Did you mean 'inc"),
        ({"columns__id__max_null_share": 1}, "'models.total.columns.id', from {file}, is a key, and keys are not judged."),
        ({"columns__opened__hold_psi": 1}, "has a limit for drift, but opened is of kind date, whose drift is not judged."),
    ],
)  # fmt: skip
def test_columns_that_are_not_there(project: Project, settings: dict[str, Any], says: str) -> None:
    project.settings(exports=[], **settings)
    done = project.sereno("run", "total.py", "--date", DAY, code=2)
    assert says.format(file=project.folder / "sereno.toml") in done.stderr
    assert not project.predictions.exists()


def test_few_rows_are_not_judged(project: Project) -> None:
    run(project, DAY, rows=999)
    second = run(project, NEXT_DAY, rows=1_200, income=5_000)
    assert gates(second)["drift"]["says"] == "not judged: it takes 1,000 rows here and in version 1 (2024-05-01)"
    run(project, THIRD_DAY, code=3, rows=1_000)  # judged against the 1,200


@pytest.mark.parametrize("damage", ["removed", "changed"])
def test_a_profile_that_cannot_be_read_holds_the_next_run(project: Project, damage: str) -> None:
    first = run(project, DAY)
    file = project.predictions / first["profile_file"]
    whole = file.read_bytes()
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(whole.replace(b'"rows":3000', b'"rows":9999'))
    held = run(project, NEXT_DAY, code=3)
    says = gates(held)["drift"]["says"]
    assert says.startswith(f"drift could not be judged: The profile of {first['attempt']} in {file} is ")
    file.write_bytes(whole)  # from a backup
    assert run(project, NEXT_DAY)["state"] == "published"
    # a held run's own profile has to be there when it is released: later runs would be compared with it
    other = run(project, THIRD_DAY, code=3, income=3_900)
    kept = project.predictions / other["profile_file"]
    aside = kept.rename(kept.with_suffix(".aside"))
    refused = project.sereno("release", other["attempt"], "--home", ".", code=None)
    assert refused.returncode == 1
    assert "is missing. Run the data date again." in refused.stderr
    assert project.json("show", other["attempt"])["inputs_profile"] == {}
    aside.rename(kept)
    assert project.json("release", other["attempt"])["state"] == "published"


def test_what_was_published_before_there_were_profiles(project: Project) -> None:
    run(project, DAY)
    log = project.predictions / "_delta_log" / f"{0:020d}.json"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        for name in ("sereno.profile_file", "sereno.profile_sha256", "profile_file", "profile_sha256"):
            line.get("commitInfo", {}).pop(name, None)
    log.write_text("\n".join(map(json.dumps, lines)) + "\n")
    second = run(project, NEXT_DAY, income=3_900)
    assert second["state"] == "published"
    assert gates(second)["drift"]["says"].startswith("not judged, as version 1 (2024-05-01) has no profile")


def test_what_was_withdrawn_is_no_baseline(project: Project) -> None:
    run(project, DAY)
    run(project, NEXT_DAY)
    project.sereno("rollback", "total", "--home", ".")
    assert run(project, THIRD_DAY)["baseline"] == 1


def test_partitions_are_compared_with_the_date_before(project: Project) -> None:
    project.settings(exports=[], disposition="partition")
    run(project, THIRD_DAY)
    assert run(project, DAY)["baseline"] is None  # a backfill has no earlier date
    assert run(project, NEXT_DAY)["baseline"] == 2
    assert run(project, THIRD_DAY, "--force")["baseline"] == 3
    held = run(project, NEXT_DAY, code=3, income=3_900)
    assert (held["baseline"], gates(held)["drift of risk"]["level"]) == (2, "held")


def test_profiles_stay_when_parts_go_and_of_failed_runs_nothing_stays(project: Project) -> None:
    project.settings(exports=[], keep_snapshots=1, keep_hours=0)
    versions = [run(project, day) for day in (DAY, NEXT_DAY, THIRD_DAY)]
    there = {f"_profiles/{f.name}" for f in (project.predictions / "_profiles").iterdir()}
    assert there == {v["profile_file"] for v in versions}
    assert len([f for f in project.predictions.glob("2024-*") if f.is_dir()]) == 1
    project.write("total.py", MODEL + "\n@model.gate\ndef broken(profile: Profile):\n    raise ValueError('no')\n")
    project.sereno("run", "total.py", "--date", FOURTH_DAY, code=1)
    project.write("total.py", MODEL)
    run(project, FOURTH_DAY)
    assert len([*(project.predictions / "_profiles").iterdir()]) == 4


def test_what_is_not_ours_beside_the_table_stays(project: Project) -> None:
    first = run(project, DAY)
    others, left = [], []
    for name in ("_profiles", "_rejects"):
        folder = project.predictions / name
        others += [folder / "notes", folder / "notes" / "why.txt", folder / "2024-05-01 of Ann.json"]
        (folder / "notes").mkdir(parents=True)
        for file in others[-2:]:
            file.write_text("mine")
        left += [folder / "2024-04-30-abcdef.json", folder / ".2024-04-30-abcdef.json.tmp"]  # of a crash
        for file in left[-2:]:
            file.write_text("{}")
    (project.predictions / first["attempt"] / "notes").mkdir()
    assert run(project, NEXT_DAY)["state"] == "published"
    assert all(file.exists() for file in others)
    assert not any(file.exists() for file in left)
    assert (project.predictions / first["profile_file"]).exists()


def test_profiles_go_after_their_days(project: Project) -> None:
    """But not those that runs will be compared with; without a baseline of its own a backfill is not judged."""
    project.settings(exports=[], disposition="partition")
    files = [run(project, day)["profile_file"] for day in (DAY, NEXT_DAY, THIRD_DAY)]
    home = Home(load_settings(project.folder, environ={}), "total")
    state = home.store.state()
    later = datetime.now(UTC) + timedelta(days=401)
    assert state.profiled(datetime.now(UTC), home.keep) == {1, 2, 3}
    only = Keep(snapshots=1, young=timedelta(0), profiles=timedelta(days=400))
    assert replace(state, served=state.served[-1:]).profiled(later, only) == {2, 3}
    (project.predictions / files[0]).unlink()
    judged = judge_as_if(home, replace(state, served=state.served[-1:]), only, NEXT_DAY, later)
    assert judged is not None
    assert (judged.version, judged.has_profile, judged.trouble) == (1, False, "")


def judge_as_if(home: Home, state: State, keep: Keep, day: str, now: datetime) -> Baseline | None:
    with (
        mock.patch("sereno.batch.judging.datetime", mock.Mock(now=lambda zone: now)),
        mock.patch.object(Home, "keep", keep),
    ):
        return held_against(home, state, date.fromisoformat(day))


OWN = '''
@model.gate
def enough_low(profile: Profile, predictions: pd.DataFrame, least: float):
    """At least so many are of low risk, and none is negative."""
    share = (predictions["band"] == "low").mean()
    assert list(predictions) == ["id", "risk", "band"], list(predictions)
    if share < least:
        return f"{share:.0%} are of low risk; at least {least:.0%} must be"
    if share < 2 * least:
        return Warn(f"only {share:.0%} are of low risk")


@model.gate
def ages(profile: Profile):
    return profile.inputs["age"].greatest < 100 and profile.inputs["age"].nulls < 1_000


@model.gate
def broken(profile: Profile):
    if profile.outputs["risk"].quantile(0.5) > 0.9:
        raise ValueError("the median of the risk is odd")
'''


def test_gates_of_the_model_file(project: Project) -> None:
    project.write("total.py", MODEL + OWN)
    project.write("sereno.toml", "[values]\nleast = 0.1\n[models.total.gates]\nhold_output_psi = 100\n")
    fine = run(project, DAY)
    assert [(g["name"], g["level"]) for g in fine["gates"][-3:]] == [
        ("gate enough_low", "passed"), ("gate ages", "passed"), ("gate broken", "passed"),
    ]  # fmt: skip
    warned = run(project, DAY, "--force", "--set", "values.least=0.3")
    assert (warned["state"], gates(warned)["gate enough_low"]["level"]) == ("published", "warned")
    held = run(project, NEXT_DAY, "--set", "values.least=0.9", code=3)
    says = gates(held)["gate enough_low"]["says"]
    assert says.endswith("are of low risk; at least 90% must be")
    assert f"gate enough_low: {says}" in held["says"]
    released = project.json("release", held["attempt"])
    assert gates(released)["gate enough_low"] == gates(held)["gate enough_low"]  # the output is what it was
    project.table(THIRD_DAY, customers(THIRD_DAY, income=-9_000))
    error = project.sereno("run", "total.py", "--date", THIRD_DAY, code=1).stderr
    line = next(i for i, text in enumerate((MODEL + OWN).splitlines(), 1) if "raise ValueError" in text)
    assert (
        f"total.py:{line}: gate broken raised ValueError: the median of the risk is odd. Nothing was published."
        in error
    )
    assert project.in_service() == [3]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('},\n              source="input/{data_date}/*.parquet")', "})\n\n@model.read\ndef read():\n    sys.exit(0)"),
        ("    return float(weight.read_text())", "    sys.exit(0)"),
        ("    return pd.DataFrame(", "    sys.exit(0)\n    return pd.DataFrame("),
        ("# gates", "@model.gate\ndef ending(profile: Profile):\n    sys.exit(0)"),
    ],
    ids=["read", "load", "predict", "gate"],
)
def test_code_of_the_model_file_that_ends_the_program_fails_the_run(project: Project, before: str, after: str) -> None:
    assert before in MODEL
    project.write("total.py", "import sys\n" + MODEL.replace(before, after))
    done = project.sereno("run", "total.py", "--date", DAY, code=1)
    assert re.search(r"sereno: total\.py:\d+: .*raised SystemExit: 0\.", done.stderr)
    assert project.in_service() == []
    kept = (project.folder / ".sereno" / "runs" / "total").glob("*/report.json")
    assert [json.loads(file.read_bytes())["state"] for file in kept] == ["failed"]


@pytest.mark.parametrize(("ends", "code"), [(0, 1), (None, 1), (5, 5)])
def test_a_run_that_something_else_ends_does_not_say_it_is_done(project: Project, ends: int | None, code: int) -> None:
    with mock.patch("sereno.batch.run.run", side_effect=SystemExit(ends)):
        done = project.sereno("run", "total.py", "--date", DAY, code=code)
    assert ("did not come to its end" in done.stderr) == (code == 1)


def test_what_a_gate_lacks_is_told_before_anything_is_scored(project: Project) -> None:
    scoring = MODEL.replace(
        "    return pd.DataFrame(", "    raise ValueError('it was scored')\n    return pd.DataFrame("
    )
    project.write("total.py", scoring + "@model.gate\ndef shares(profile, predictions):\n    return True\n")
    for command in (("run", "total.py", "--date", DAY), ("check", "total.py", "--date", DAY)):
        done = project.sereno(*command, code=2)
        assert "nothing gives shares its parameter 'predictions'" in done.stderr
        assert "annotate it: `def shares(profile, predictions: pd.DataFrame)`" in done.stderr
    kept = (project.folder / ".sereno" / "runs" / "total").glob("*/report.json")
    assert [json.loads(file.read_bytes())["seconds"].keys() for file in kept] == [{"plan"}]


def test_a_profile_names_what_it_holds(project: Project) -> None:
    """The stored file is plain JSON, and its SHA-256 is in the commit."""
    report = run(project, DAY)
    stored = json.loads((project.predictions / report["profile_file"]).read_bytes())
    assert stored["attempt"] == report["attempt"]
    assert stored["outputs"]["risk"]["rows"] == ROWS
    assert stored["inputs"]["job"]["categories"].keys() == {"clerk", "nurse", "pilot"}
    assert stored["inputs"]["remark"]["others"] > 0
    assert "id" not in stored["inputs"]
    # every run reads all reports: what is in the file beside is not in them, too
    kept = project.folder / ".sereno" / "runs" / "total" / report["attempt"] / "report.json"
    assert json.loads(kept.read_bytes())["inputs_profile"] == {}
    assert project.json("show", report["attempt"])["inputs_profile"].keys() == stored["inputs"].keys()
    published = pq.read_table(project.predictions / report["attempt"])
    assert published.num_rows == ROWS
