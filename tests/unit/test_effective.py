"""`sereno config`: every setting by its variable alone, where each comes from, and no secret in what is printed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sereno.cli import main
from sereno.config import variable_of
from sereno.operate.effective import lines_of
from sereno.settings import SETTINGS, Setting

MODEL = """
from typing import TypedDict

import pyarrow as pa

from sereno import Key, Model, Secret


class Row(TypedDict):
    id: Key[int]
    x: float


class Out(TypedDict):
    Risk: float


model = Model("credit-scoring", inputs=Row, outputs=Out, time_zone="Asia/Tokyo", source="in/{data_date}.csv")


@model.load
def load(token: Secret, other: Secret):
    return 1


@model.predict
def predict(loaded, rows: pa.Table) -> pa.Table:
    return pa.table({"Risk": rows["x"]})


if __name__ == "__main__":
    model.main()
"""

# By the kind of a setting: what its variable says, and what JSON has then.
SAMPLES: dict[str, tuple[str, object]] = {
    "a path": ("/srv/x", "/srv/x"),
    'a path or a URL, "s3://…", "gs://…" or "az://…"': ("s3://bank/sereno", "s3://bank/sereno"),
    "a path or a query": ("SELECT * FROM t", "SELECT * FROM t"),
    "the address of a database": ("postgresql://u:hunter2@h/db", "postgresql://u:***@h/db"),
    "five fields of cron": ("0 5 * * *", "0 5 * * *"),
    'a time zone, like "Europe/Madrid"': ("Europe/Madrid", "Europe/Madrid"),
    "text, a number, true or false, a date or a list": ("abc", "abc"),
    'an address, "postgresql://…"': ("postgresql://u:hunter2@h/db", "postgresql://u:***@h/db"),
    'an address, "redis://…", "rediss://…" or "unix://…"': ("redis://:hunter2@h:6379/0", "redis://:***@h:6379/0"),
    'an address, "host:6379"': ("node1.bank:6379", "node1.bank:6379"),
    'a master, "spark://host:7077" or "yarn"': ("yarn", "yarn"),
    "an address": ("0.0.0.0", "0.0.0.0"),
    "letters, digits and ._-": ("bank", "bank"),
    '"auto", "off" or a path': ("marks/{data_date}", "marks/{data_date}"),
    "a list of texts": ("a.bank, b.bank", ["a.bank", "b.bank"]),
    'the mode of a file, like "0660"': ("0660", "0660"),
    'a list of addresses, "mailto://…", or "secret:NAME"': (
        "json://u:hunter2@h/x, secret:slack",
        ["json://***", "secret:slack"],
    ),
    'a list of "failed", "held", "late", "recovered"': ("held,late", ["held", "late"]),
    'a list of "parquet", "csv", "jsonl" or "postgresql://…"': (
        '["csv", "postgresql://u:hunter2@h/db"]',
        ["csv", "postgresql://u:***@h/db"],
    ),
    "true or false": ("", None),  # the other one than the default
    "a number from 0 to 1": ("0.25", 0.25),
    "a number, 0 or more": ("3", 3.0),
    "a whole number from 0 to 19": ("7", 7),
}

Config = Callable[..., dict[str, Any]]


def sample(setting: Setting) -> tuple[str, object]:
    kind = setting.kind.name
    if kind == "true or false":
        return str(not setting.default).upper(), not setting.default
    if kind.startswith('"') and " or " in kind and kind not in SAMPLES:
        chosen = next(one for one in kind.replace('"', "").split(" or ") if one != setting.default)
        return chosen, chosen
    if kind.startswith("a whole number, "):
        least = int(kind.split()[3])
        return str(least + 7), least + 7
    assert kind in SAMPLES, f"Say in SAMPLES what a variable may give to {setting.name}: {kind}."
    return SAMPLES[kind]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def config(folder: Path, capsys: pytest.CaptureFixture[str]) -> Config:
    """What `sereno config --json` says, its settings by name."""

    def ask(*options: str, code: int = 0) -> dict[str, Any]:
        done = main(["config", "--json", *options])
        said = capsys.readouterr()
        assert done == code, said
        assert "hunter2" not in said.out + said.err
        data: dict[str, Any] = json.loads(said.out)
        return data | {"by_name": {one["name"]: one for one in data["settings"]}}

    return ask


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=list(SETTINGS))
def test_every_setting_by_its_variable_alone(
    setting: Setting, config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, value = sample(setting)
    name = setting.name.replace("models.NAME", "models.credit-scoring").replace("NAME", "warehouse")
    name = name.replace("COLUMN", "income")
    variable = variable_of(name)
    assert variable == variable.upper()
    assert "-" not in variable
    (folder / "credit_scoring.py").write_text(MODEL)
    if setting.name != "models.NAME.file":
        monkeypatch.setenv("SERENO_MODELS__CREDIT_SCORING__FILE", "credit_scoring.py")
    else:
        text = value = str(folder / "credit_scoring.py")
    monkeypatch.setenv(variable, text)
    # of stale = "refuse" alone, say, it tells too that it has no effect: that is no reason not to show it
    alone = {"models.NAME.stale", "models.NAME.lookup"} & {setting.name}
    found = config(code=1 if alone and value != "required" else 0)["by_name"]
    assert found[name] == {
        "name": name,
        "value": value,
        "origin": "variable",
        "where": variable,
        "variable": variable,
    }

    # and as container platforms hand over secrets: the same from a file that a variable names
    if not setting.name.startswith("values."):
        monkeypatch.delenv(variable)
        (folder / "given").write_text(text + "\n")
        monkeypatch.setenv(f"{variable}_FILE", str(folder / "given"))
        found = config(code=1 if alone and value != "required" else 0)["by_name"]
        assert (found[name]["value"], found[name]["origin"]) == (value, "variable")
        assert found[name]["where"] == f"{variable}_FILE={folder / 'given'}"


def test_no_setting_is_the_file_of_another() -> None:
    assert not {name for name in SETTINGS if name.removesuffix("_file") in SETTINGS and name.endswith("_file")}


def test_what_counts_and_where_it_comes_from(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "credit_scoring.py").write_text(MODEL)
    toml = folder / "sereno.toml"
    toml.write_text(
        'workers = 2\nserve.port = 1\n\n[models.credit-scoring]\nfile = "credit_scoring.py"\n# a note\n'
        'exports = [\n  "csv",\n  "parquet",\n]\nbatch_rows = 8\n\n[env.prod.models.credit-scoring.gates]\nconstant = "allow"\n'
    )
    monkeypatch.setenv("SERENO_ENV", "prod")
    monkeypatch.setenv("SERENO_LOOKUP_VERSIONS", "3")
    found = config("--set", "up.max_runs=4")["by_name"]

    def shown(name: str) -> tuple[object, ...]:
        return tuple(found[name][key] for key in ("value", "origin", "where"))

    assert shown("workers") == (2, "sereno.toml", f"{toml}:1")
    assert shown("serve.port") == (1, "sereno.toml", f"{toml}:2")
    assert shown("models.credit-scoring.exports") == (["csv", "parquet"], "sereno.toml", f"{toml}:7")
    assert shown("models.credit-scoring.batch_rows") == (8, "sereno.toml", f"{toml}:11")
    assert shown("models.credit-scoring.gates.constant") == ("allow", "environment", f"[env.prod] {toml}:14")
    assert shown("models.credit-scoring.time_zone") == ("Asia/Tokyo", "model file", str(folder / "credit_scoring.py"))
    assert shown("lookup_versions") == (3, "variable", "SERENO_LOOKUP_VERSIONS")
    assert shown("up.max_runs") == (4, "command line", None)
    assert shown("models.credit-scoring.retries") == (3, "default", None)
    assert shown("home") == (str(folder), "default", None)


def test_all_settings_are_shown(config: Config, folder: Path) -> None:
    (folder / "credit_scoring.py").write_text(MODEL)
    found = config("credit_scoring.py", "--set", "models.credit-scoring.columns.Risk.warn_psi=1")["by_name"]
    named = {
        name.replace("models.NAME", "models.credit-scoring").replace("COLUMN", "Risk")
        for name in SETTINGS
        if not name.startswith("values.")
    }
    assert set(found) == named


def test_secrets_are_told_by_where_they_are(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "credit_scoring.py").write_text(MODEL)
    (folder / "other").write_text("hunter2")
    (folder / "keys").write_text("hunter2")
    monkeypatch.setenv("SERENO_SECRETS_FOLDER", ".")
    monkeypatch.setenv("SERENO_SECRET_TOKEN", "hunter2")
    monkeypatch.setenv("SERENO_SECRET_API_KEYS_FILE", str(folder / "keys"))
    monkeypatch.setenv("SERENO_NOTIFY", "secret:slack")
    monkeypatch.setenv("SERENO_VALUES__DB_PASSWORD", "hunter2")
    monkeypatch.setenv("SERENO_VALUES__WAREHOUSE", '["postgresql://u:hunter2@h/x"]')
    found = config("credit_scoring.py")
    assert [(one["name"], one["wanted_by"], one["where"]) for one in found["secrets"]] == [
        ("api_keys", "the API", f"the variable SERENO_SECRET_API_KEYS_FILE, which names {folder / 'keys'}"),
        ("slack", "notify", None),
        ("token", "credit-scoring", "the variable SERENO_SECRET_TOKEN"),
        ("other", "credit-scoring", f"the file {folder / 'other'}"),
    ]
    assert found["by_name"]["values.db_password"]["value"] == "***"
    assert found["by_name"]["values.warehouse"]["value"] == '["postgresql://u:***@h/x"]'


def test_what_cannot_be_read_is_told_beside_the_rest(
    config: Config, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "sereno.toml").write_text('[models.churn]\nfile = "churn.py"\nstale = "live"\n')
    found = config(code=1)
    assert found["by_name"]["models.churn.stale"]["value"] == "live"
    assert [one.split(":")[0] for one in found["troubles"]] == [
        f"{folder / 'churn.py'} cannot be read, so what it declares is not shown",
        f"'models.churn.stale' is 'live', from {folder / 'sereno.toml'}, but nothing is ever stale, as "  # noqa: ISC004
        "'models.churn.max_age_seconds' is not set. Set it, e.g. to 129600 (36 hours), or leave stale out.",
    ]
    assert main(["config"]) == 1
    said = capsys.readouterr()
    assert "models.churn.stale" in said.out
    assert f"sereno: {folder / 'churn.py'} cannot be read" in said.err


def test_the_table_for_people(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "credit_scoring.py").write_text(MODEL)
    assert main(["config", "credit_scoring.py", "--set", "ledger=postgresql://u:hunter2@h/db"]) == 0
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines()]
    assert rows[0] == ["setting", "value", "from"]
    assert ["ledger", "postgresql://u:***@h/db", "command", "line"] in rows
    assert ["models.credit-scoring.scheduled", "true", "default"] in rows
    assert ["token", "credit-scoring", "nowhere"] in rows
    assert "hunter2" not in said


def test_what_a_platform_says_is_named_by_its_own_variable(
    config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "sereno.toml").write_text("serve.port = 9000\n")
    monkeypatch.setenv("K_SERVICE", "churn")
    monkeypatch.setenv("PORT", "8085")
    monkeypatch.setenv("SERENO_SERVE__DRAIN_SECONDS", "5")
    found = config()["by_name"]

    def shown(name: str) -> tuple[object, ...]:
        return found[name]["value"], found[name]["origin"], found[name]["where"]

    assert shown("serve.port") == (8085, "platform", "K_SERVICE")
    assert shown("serve.host") == ("0.0.0.0", "platform", "K_SERVICE")
    assert shown("serve.drain_seconds") == (5.0, "variable", "SERENO_SERVE__DRAIN_SECONDS")
    assert "SERENO_SERVE__PORT" not in os.environ  # it is as it was
    monkeypatch.delenv("K_SERVICE")
    found = config("--set", "serve.host=0.0.0.0")["by_name"]
    assert shown("serve.port") == (8085, "platform", "PORT")


def test_lines_of_toml(tmp_path: Path) -> None:
    file = tmp_path / "sereno.toml"
    file.write_text(
        '# the top\na = 1\n\n[t."x.y"] # a table\nb = """\nc = 2\n"""\nc.d = [ # a list\n  [1],\n]\n\n[t.z]\ne = {f = 1}\n'
    )
    assert lines_of(file) == {"a": 2, "t.x.y.b": 5, "t.x.y.c.d": 8, "t.z.e.f": 13}
