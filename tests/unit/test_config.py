"""Settings: who counts more, what is refused, and what is said then."""

# ruff: noqa: E501 - a message beside what causes it reads better on one line

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sereno.cli.named import from_here
from sereno.config import find_home, load_settings, secret, secret_origin, variable_of
from sereno.exceptions import SettingsError
from sereno.predictions import read_predictions
from sereno.serve.options import Options
from sereno.settings import SETTINGS, ColumnSettings, GateSettings, ModelSettings, Settings, is_secret_name, redact
from sereno.sources import fill_path
from sereno.typed import options_given

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"

TOML = """
workers = 2
secrets_folder = "secrets"

[values]
warehouse = "data"
least = 3
share = 0.5
columns = ["a"]

[models.credit-scoring]
file = "models/credit_scoring.py"
time_zone = "Europe/Madrid"

[models.credit-scoring.gates]
max_reject_rows = 5

[env.prod]
workers = 8

[env.prod.values]
warehouse = "s3://bank/warehouse"

[env.prod.models.credit-scoring]
exports = ["csv", "postgresql://bank/offers"]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder = tmp_path / "project"
    (folder / "models").mkdir(parents=True)
    (folder / "sereno.toml").write_text(TOML)
    return folder


def write(folder: Path, text: str) -> Path:
    (folder / "sereno.toml").write_text(text)
    return folder


def refused(folder: Path, **given: object) -> str:
    with pytest.raises(SettingsError) as error:
        load_settings(folder, **{"environ": {}, **given})  # type: ignore[arg-type]
    return str(error.value)


# Where settings come from


def test_defaults_without_a_file(tmp_path: Path) -> None:
    settings = load_settings(tmp_path / "model.py", environ={})
    assert settings == Settings(home=tmp_path)
    assert settings.origins == {}
    model = settings.model("churn", {})
    assert model == ModelSettings()
    assert (model.schedule, model.time_zone, model.exports) == ("0 0 * * *", "UTC", ("parquet",))
    assert (model.disposition, model.duplicates, model.batch_rows) == ("replace", "fail", 32_768)
    assert (model.gates.max_reject_rows, model.gates.max_reject_share) == (10, 0.01)
    assert (model.gates.max_row_change, model.gates.max_null_share, model.gates.constant) == (0.5, 0.5, "hold")


def test_the_nearest_file_upwards_is_home(project: Path) -> None:
    (project / "models" / "deep").mkdir()
    assert find_home(project / "models" / "deep" / "model.py") == project
    assert find_home(project / "models") == project
    write(project / "models", "")
    assert find_home(project / "models" / "deep") == project / "models"
    assert find_home(project.parent / "elsewhere" / "model.py") == project.parent / "elsewhere"


def test_the_file(project: Path) -> None:
    settings = load_settings(project / "models" / "credit_scoring.py", environ={})
    model = settings.model("credit-scoring", {})
    assert (settings.home, settings.workers, settings.secrets_folder) == (project, 2, project / "secrets")
    assert (settings.values["warehouse"].value, settings.values["warehouse"].base) == ("data", project)
    assert (model.file, model.time_zone) == (project / "models" / "credit_scoring.py", "Europe/Madrid")
    assert model.gates.max_reject_rows == 5
    assert settings.origins["workers"] == str(project / "sereno.toml")


def test_each_source_counts_more_than_the_next(project: Path) -> None:
    def workers(**given: object) -> tuple[int | None, str]:
        settings = load_settings(project, **{"environ": {}, **given})  # type: ignore[arg-type]
        return settings.workers, settings.origins["workers"]

    variables = {"SERENO_ENV": "prod", "SERENO_WORKERS": "16"}
    assert workers() == (2, f"{project}/sereno.toml")
    assert workers(env="prod") == (8, f"[env.prod] of {project}/sereno.toml")
    assert workers(environ={"SERENO_ENV": "prod"})[0] == 8
    assert workers(environ=variables) == (16, "the variable SERENO_WORKERS")
    assert workers(environ=variables, overrides={"workers": "32"}) == (32, "the command line")


def test_an_environment_changes_only_what_it_names(project: Path) -> None:
    settings = load_settings(project, env="prod", environ={})
    assert settings.values["warehouse"].value == "s3://bank/warehouse"
    assert settings.values["least"].value == 3
    model = settings.model("credit-scoring", {})
    assert (model.exports, model.time_zone) == (("csv", "postgresql://bank/offers"), "Europe/Madrid")


def test_the_option_counts_more_than_the_variable_for_the_environment(project: Path) -> None:
    write(project, "[env.a]\nworkers = 1\n[env.b]\nworkers = 2")
    assert load_settings(project, env="a", environ={"SERENO_ENV": "b"}).workers == 1


def test_the_model_file_counts_least(project: Path) -> None:
    settings = load_settings(project, environ={"SERENO_MODELS__CHURN__TIME_ZONE": "Asia/Tokyo"})
    declared = {"time_zone": "UTC", "schedule": "0 6 * * *", "source": "in/{data_date}.csv", "database": None}
    folder = project / "models"
    model = settings.model("credit-scoring", declared, folder)
    assert (model.time_zone, model.schedule, model.source) == ("Europe/Madrid", "0 6 * * *", "in/{data_date}.csv")
    assert model.source_base == folder
    assert model.database is None
    assert settings.model("churn", declared).time_zone == "Asia/Tokyo"
    assert settings.model("churn", {}).source_base is None
    with pytest.raises(SettingsError) as error:
        settings.model("churn", {"schedule": "daily"})
    assert str(error.value) == (
        "'models.churn.schedule' is 'daily', from the file of model 'churn'. Valid: five fields of cron. "
        "The schedule 'daily' has 1 fields, not 5. "
        "Write minute, hour, day, month and weekday, as in '0 0 * * *' for every midnight."
    )


def test_relative_paths_resolve_against_who_names_them(project: Path) -> None:
    elsewhere = Path.cwd()
    settings = load_settings(
        project,
        environ={"SERENO_VALUES__WAREHOUSE": "wh", "SERENO_SECRETS_FOLDER": "../s"},
        overrides={"models.credit-scoring.source": "rows.csv", "models.credit-scoring.file": "m.py"},
    )
    model = settings.model("credit-scoring", {"source": "other.csv"})
    assert settings.values["warehouse"].base == elsewhere
    assert settings.secrets_folder == project.parent / "s"
    assert (model.source, model.source_base, model.file) == ("rows.csv", elsewhere, elsewhere / "m.py")


def test_home(project: Path, tmp_path: Path) -> None:
    write(project, 'home = "../state"')
    assert load_settings(project, environ={}).home == tmp_path / "state"
    assert load_settings(project, environ={"SERENO_HOME": "v"}).home == Path.cwd() / "v"
    assert load_settings(project, environ={"SERENO_HOME": "v"}, overrides={"home": "/o"}).home == Path("/o")
    assert load_settings(project, environ={"SERENO_HOME": "v"}, home=Path("x")).home == Path.cwd() / "x"


def test_what_must_last_lies_where_the_storage_is(project: Path) -> None:
    def root(text: str) -> str:
        return str(load_settings(project, environ={"SERENO_STORAGE": text}).root)

    assert load_settings(project, environ={}).root == project
    assert root("s3://bank/sereno/") == "s3://bank/sereno"
    assert root("kept") == f"{Path.cwd()}/kept"
    write(project, 'storage = "../kept"')
    assert load_settings(project, environ={}).root == project.parent / "kept"
    assert "'storage' is 's3://', from the variable SERENO_STORAGE. Valid: a path or a URL" in refused(
        project, environ={"SERENO_STORAGE": "s3://"}
    )
    assert refused(project, environ={"SERENO_STORAGE": "ftp://bank"}).endswith(
        'Valid: a path or a URL, "s3://…", "gs://…" or "az://…". ftp://… is no place for files.'
    )


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("s3:/bank/x", "s3://bank/x"),
        ("s3//bank/x", "s3://bank/x"),
        ("s3:bank/x", "s3://bank/x"),
        ("S3://bank/x", "s3://bank/x"),
        ("s3a://bank/x", "s3://bank/x"),
        ("gcs://bank", "gs://bank"),
        ("az:/", "az://…"),
    ],
)
def test_a_misspelt_url_is_no_path(project: Path, text: str, meant: str) -> None:
    told = f"{text!r} is none of an object store: did you mean {meant}?"
    assert told in refused(project, environ={"SERENO_STORAGE": text})
    with pytest.raises(SettingsError, match=re.escape(told)):
        read_predictions("churn", home=text)
    with pytest.raises(SettingsError, match=re.escape(told)):
        fill_path(from_here(text), {}, load_settings(project), project)
    assert "Valid: a path. That is a URL" in refused(project, environ={"SERENO_HOME": text})


def test_what_looks_a_little_like_a_url_is_a_path(project: Path) -> None:
    for text in ("s3/bank", "s3", "azure-files/x", "gs.parquet", "/s3://bank"):
        assert load_settings(project, environ={"SERENO_STORAGE": text}).root == Path.cwd() / text


def test_the_file_in_home_is_read_where_there_is_no_other(project: Path) -> None:
    assert load_settings(Path.cwd(), home=project, environ={}).workers == 2
    assert load_settings(Path.cwd(), home=project, environ={}).home == project
    by_variable = load_settings(Path.cwd(), environ={"SERENO_HOME": str(project)})
    assert (by_variable.home, by_variable.workers, by_variable.folder) == (project, 2, project)


@pytest.mark.parametrize("by_variable", [False, True])
def test_a_server_reads_the_file_that_other_commands_read(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_variable: bool
) -> None:
    """By --home or by SERENO_HOME: the one from the working folder upwards, and only without it that of the home."""
    other = tmp_path / "other"
    other.mkdir()
    write(other, "workers = 7")
    if by_variable:
        monkeypatch.setenv("SERENO_HOME", str(other))
    options = Options(files=[], home=None if by_variable else other)
    monkeypatch.chdir(project)
    assert (options.settings().workers, options.settings().home) == (2, other)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert (options.settings().workers, options.settings().home) == (7, other)


def test_variables_spell_names_in_capitals(project: Path) -> None:
    environ = {
        "SERENO_MODELS__CREDIT_SCORING__TIME_ZONE": "UTC",
        "SERENO_MODELS__CREDIT_SCORING__GATES__MAX_REJECT_SHARE": "0.2",
        "SERENO_MODELS__NEW_MODEL__BATCH_ROWS": "64",
        "SERENO_MODELS__A__B__BATCH_ROWS": "32",
        "SERENO_TESTING": "1",
        "SERENO_FAILPOINT": "plan:kill",
        "SERENO_SECRET_TOKEN": "t",
        "PATH": "/bin",
    }
    settings = load_settings(project, environ=environ)
    model = settings.model("credit-scoring", {})
    assert (model.time_zone, model.gates.max_reject_share, model.gates.max_reject_rows) == ("UTC", 0.2, 5)
    assert settings.model("new-model", {"batch_rows": 1}).batch_rows == 64
    assert settings.model("new_model", {}).batch_rows == 64
    assert settings.model("a__b", {}).batch_rows == 32


def test_the_model_file_spells_a_name_that_variables_alone_know(project: Path) -> None:
    write(project, "")
    file = project / "models" / "churn.py"
    given = {"SERENO_MODELS__CHURN_RISK__FILE": str(file), "SERENO_MODELS__CHURN_RISK__RETRIES": "7"}
    assert list(load_settings(project, environ=given).models) == ["churn_risk"]  # there is no such file yet
    file.write_text('model = sereno.Model(\n    name = "churn-risk", inputs=Row)\n')
    settings = load_settings(project, environ=given)
    assert list(settings.models) == ["churn-risk"]
    assert settings.model("churn-risk", {}).retries == 7
    assert settings.origin("churn-risk", "retries") == "the variable SERENO_MODELS__CHURN_RISK__RETRIES"
    file.write_text('model = Model("churn_risk", inputs=Row)\n')
    assert list(load_settings(project, environ=given).models) == ["churn_risk"]
    file.write_text("model = Model(name_of_it(), inputs=Row)\n")
    assert load_settings(project, environ=given).model("churn-risk", {}).retries == 7


def test_names_that_are_not_all_capitals_are_meant_as_they_are(project: Path) -> None:
    environ = {
        "SERENO_VALUES__maxAge": "3",
        "SERENO_VALUES__WAREHOUSE": "x",
        "SERENO_MODELS__M__COLUMNS__maxIncome__WARN_PSI": "1",
        "SERENO_MODELS__credit-scoring__RETRIES": "1",
    }
    settings = load_settings(project, environ=environ)
    assert (settings.values["maxAge"].value, settings.values["warehouse"].value) == ("3", "x")
    assert list(settings.models["m"].columns) == ["maxIncome"]
    assert settings.models["credit-scoring"].retries == 1
    assert [variable_of(f"values.{name}") for name in ("maxAge", "least")] == [
        "SERENO_VALUES__maxAge",
        "SERENO_VALUES__LEAST",
    ]


def test_a_variable_may_name_a_file_that_has_the_text(project: Path) -> None:
    file = Path("ledger")
    file.write_text("postgresql://u:hunter2@bank/operations\n")
    settings = load_settings(project, environ={"SERENO_LEDGER_FILE": "ledger", "SERENO_VALUES__A_FILE": "x"})
    assert settings.ledger == "postgresql://u:hunter2@bank/operations"
    assert settings.origins["ledger"] == "the variable SERENO_LEDGER_FILE, which names ledger"
    assert settings.values["a_file"].value == "x"  # a value may be called so
    assert refused(project, environ={"SERENO_LEDGER_FILE": "ledger", "SERENO_LEDGER": "postgresql://h/x"}) == (
        "SERENO_LEDGER and SERENO_LEDGER_FILE are both set, and mean the same setting. Unset one of them."
    )
    assert refused(project, environ={"SERENO_LEDGER_FILE": "missing"}) == (
        "'ledger' cannot be read from missing, which the variable SERENO_LEDGER_FILE names: No such file or directory. Write "
        "it there, or set SERENO_LEDGER instead."
    )
    file.write_text("hunter2")
    assert refused(project, environ={"SERENO_LEDGER_FILE": "ledger"}) == (
        "'ledger' is not valid in ledger, which the variable SERENO_LEDGER_FILE names. Valid: an address, \"postgresql://…\". "
        "What is there now is not shown."
    )
    file.write_bytes(b"hunter2\xff")
    assert "it is not UTF-8" in refused(project, environ={"SERENO_LEDGER_FILE": "ledger"})
    assert "no setting 'ledgr_file'" in refused(project, environ={"SERENO_LEDGR_FILE": "ledger"})


@pytest.mark.parametrize(
    "name", ["PORT", "SERVICE_HOST", "SERVICE_PORT", "PORT_8000_TCP_ADDR", "API_SERVICE_PORT_HTTP", "API_PORT"]
)
def test_what_kubernetes_sets_for_a_service_of_that_name_is_told_as_such(project: Path, name: str) -> None:
    said = refused(project, environ={f"SERENO_{name}": "tcp://10.0.0.1:8000"})
    assert said.startswith(f"There is no setting '{name.lower()}', which the variable SERENO_{name} sets.")
    assert said.endswith("whose name begins with 'sereno': set enableServiceLinks: false in the pod.")
    assert "Kubernetes" not in refused(project, environ={"SERENO_PROT": "1"})


def test_columns_have_settings_of_their_own(project: Path) -> None:
    write(
        project, "[models.m.columns.Income]\nwarn_psi = 0.5\nconstant = 'hold'\n[models.m.columns.'a.b']\nhold_psi = 1"
    )
    environ = {
        "SERENO_MODELS__M__COLUMNS__INCOME__MAX_NULL_SHARE": "0.2",
        "SERENO_MODELS__M__COLUMNS__A__B__MAX_NULL_SHARE": "0.3",
        "SERENO_MODELS__COLUMNS__COLUMNS__COLUMNS__HOLD_PSI": "0.4",
    }
    settings = load_settings(project, environ=environ, overrides={"models.m.columns.Age.warn_psi": "0.3"})
    model = settings.model("m", {})
    assert model.columns == {
        "Income": ColumnSettings(warn_psi=0.5, constant="hold", max_null_share=0.2),
        "a.b": ColumnSettings(hold_psi=1),
        "a__b": ColumnSettings(max_null_share=0.3),
        "Age": ColumnSettings(warn_psi=0.3),
    }
    assert settings.model("columns", {}).columns == {"columns": ColumnSettings(hold_psi=0.4)}
    assert model.gates == GateSettings()
    assert settings.origin("m", "columns.Age.warn_psi") == "the command line"


@pytest.mark.parametrize(
    ("text", "exports"),
    [
        ("csv", ("csv",)),
        ("csv, jsonl", ("csv", "jsonl")),
        ('["parquet", "postgresql://a,b/c"]', ("parquet", "postgresql://a,b/c")),
        ("[]", ()),
    ],
)
def test_lists_as_text(project: Path, text: str, exports: tuple[str, ...]) -> None:
    settings = load_settings(project, environ={"SERENO_MODELS__CREDIT_SCORING__EXPORTS": text})
    assert settings.model("credit-scoring", {}).exports == exports


def test_values_keep_the_type_that_the_file_gives(project: Path) -> None:
    overrides = {"values.least": "7", "values.share": "1", "values.columns": "b,c", "values.other": "12"}
    settings = load_settings(project, environ={}, overrides=overrides)
    assert {name: value.value for name, value in settings.values.items()} == {
        "warehouse": "data",
        "least": 7,
        "share": 1.0,
        "columns": ["b", "c"],
        "other": "12",
    }
    assert refused(project, overrides={"values.least": "many"}) == (
        f"'values.least' is 'many', from the command line. Valid: int, as in {project}/sereno.toml."
    )


# What is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "wrokers = 2",
            "There is no setting 'wrokers', which {file} sets. Did you mean 'workers'? Valid there: 'home', 'storage', 'executor', 'workers', ",
        ),
        ("[models.churn]\ntimezone = 'UTC'", "There is no setting 'models.churn.timezone', which {file} sets. Did you mean 'time_zone'?"),
        ("[models.m.columns.x]\nwarn_ps = 1", "There is no setting 'models.m.columns.x.warn_ps', which {file} sets. Did you mean 'warn_psi'?"),
        ("[models.m.columns]\nx = 1", "'models.m.columns.x' in {file} is 1; it is a table. Write [models.m.columns.x]."),
        ("[models.m.columns.x]\nmax_null_share = 2", "'models.m.columns.x.max_null_share' is 2, from {file}. Valid: a number from 0 to 1."),
        ("[models.churn.gates]\nnulls = 1", "Valid there: 'max_reject_rows', 'max_reject_share', 'max_row_change', 'max_null_share', 'constant', 'warn_output_psi', 'hold_output_psi', 'warn_input_psi', 'hold_input_psi'."),
        ("[env.prod]\nworkerz = 1", "There is no setting 'workerz', which [env.prod] of {file} sets. Did you mean 'workers'?"),
        ("[env.prod.env.dev]\nworkers = 1", "There is no setting 'env', which [env.prod] of {file} sets."),
        ("workers = 0", "'workers' is 0, from {file}. Valid: a whole number, 1 or more."),
        ("workers = true", "'workers' is True, from {file}. Valid: a whole number, 1 or more."),
        ("workers = '2'", "'workers' is '2', from {file}."),
        ("home = ''", "'home' is '', from {file}. Valid: a path."),
        ("home = 's3://bank/x'", "'home' is 's3://bank/x', from {file}. Valid: a path. That is a URL: what is read"),
        ("models = 3", "'models' in {file} is 3; it is a table. Write [models]."),
        ("[models]\nchurn = 3", "'models.churn' in {file} is 3; it is a table. Write [models.churn]."),
        ("env = 3", "'env' in {file} is 3; it holds tables. Write [env.prod], say."),
        ("[env]\nprod = 3", "'env.prod' in {file} is 3; it is a table. Write [env.prod]."),
        ("[models.Churn]\nsource = 'a'", "'Churn' from {file} cannot be the name of a model. Use up to 64 of a-z, 0-9, '-' and '_'"),
        ("[values]\nmy-value = 1", "'my-value' from {file} cannot be the name of a value: it fills a parameter of that name."),
        ("[values.a]\nb = 1", "'values.a' is {{'b': 1}}, from {file}. Valid: text, a number, true or false, a date or a list."),
        ("workers =", "{file} cannot be read as TOML: Invalid value (at end of document)."),
    ],
)  # fmt: skip
def test_the_file_is_checked(project: Path, text: str, message: str) -> None:
    assert message.format(file=project / "sereno.toml") in refused(write(project, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("disposition = 'append'", """is 'append', from {file}. Valid: "replace" or "partition"."""),
        ("duplicates = 'firts'", """Valid: "fail" or "first" or "last". Did you mean 'first'?"""),
        ("batch_rows = 0", "'models.churn.batch_rows' is 0, from {file}. Valid: a whole number, 1 or more."),
        ("time_zone = 'Europe/Madird'", """Valid: a time zone, like "Europe/Madrid". Did you mean 'Europe/Madrid'?"""),
        ("time_zone = 'Europe'", "'models.churn.time_zone' is 'Europe', from"),
        ("time_zone = '../UTC'", "'models.churn.time_zone' is '../UTC', from"),
        ("schedule = '0 25 * * *'", "is not cron: bad hour."),
        ("schedule = 5", "'models.churn.schedule' is 5, from {file}. Valid: five fields of cron."),
        ("exports = 'csv'", "Write a list: ['csv']."),
        ("exports = ['parket']", "'parket' is none of these. Did you mean 'parquet'?"),
        ("exports = ['postgres://bank/x']", "'postgres://bank/x' is none of these. Did you mean 'postgresql'?"),
        ("exports = ['csv', 'csv']", "One of them is there twice."),
        ("exports = [1]", "1 is none of these."),
        ("file = 1", "'models.churn.file' is 1, from {file}. Valid: a path."),
        ("gates.max_null_share = 1.5", "'models.churn.gates.max_null_share' is 1.5, from {file}. Valid: a number from 0 to 1."),
        ("gates.max_row_change = nan", "'models.churn.gates.max_row_change' is nan, from {file}. Valid: a number, 0 or more."),
        ("gates.constant = 'no'", """Valid: "hold" or "allow"."""),
    ],
)  # fmt: skip
def test_models_are_checked(project: Path, text: str, message: str) -> None:
    assert message.format(file=project / "sereno.toml") in refused(write(project, f"[models.churn]\n{text}"))


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("SERENO_WROKERS", "2", "There is no setting 'wrokers', which the variable SERENO_WROKERS sets. Did you mean SERENO_WORKERS?"),
        ("SERENO_WORKERS", "two", "'workers' is 'two', from the variable SERENO_WORKERS. Valid: a whole number, 1 or more."),
        ("SERENO_WORKERS", "0", "'workers' is 0, from the variable SERENO_WORKERS."),
        ("SERENO_MODELS__CREDIT_SCORING__TIMEZONE", "UTC", "Did you mean SERENO_MODELS__CREDIT_SCORING__TIME_ZONE?"),
        ("SERENO_MODELS__CREDIT_SCORING__GATES", "1", "'models.credit-scoring.gates', which the variable SERENO_MODELS__CREDIT_SCORING__GATES sets, is a table."),
        ("SERENO_VALUES", "1", "'values', which the variable SERENO_VALUES sets, is a table. Name one of its settings after a dot."),
        ("SERENO_WORKERS__X", "1", "There is no setting 'workers.x', which the variable SERENO_WORKERS__X sets. 'workers' is itself a setting."),
        ("SERENO_MODELS__CREDIT_SCORING__EXPORTS", "[1", "'models.credit-scoring.exports' is '[1', from the variable"),
    ],
)  # fmt: skip
def test_variables_are_checked(project: Path, variable: str, text: str, message: str) -> None:
    assert message in refused(project, environ={variable: text})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'stale = "refuse"',
            "'models.a-b.stale' is 'refuse', from {toml}, but nothing is ever stale, as 'models.a-b.max_age_seconds' is not set. Set it, e.g.",
        ),
        ('stale = "live"\nunknown = "live"', "'models.a-b.stale' is 'live', from {toml}, but nothing is ever stale"),
        (
            'stale = "flag"\nlookup = "off"',
            "'models.a-b.stale', from {toml}, has no effect, as 'models.a-b.lookup' is 'off', from {toml}. Leave stale out, or set lookup",
        ),
        ('unknown = "404"\nlookup = "off"', "'models.a-b.unknown', from {toml}, has no effect"),
        ('max_age_seconds = 60\nlookup = "off"', "'models.a-b.max_age_seconds', from {toml}, has no effect"),
        ('cache_seconds = 0\nlookup = "off"', "'models.a-b.cache_seconds', from {toml}, has no effect"),
    ],
)
def test_settings_of_lookups_that_would_have_no_effect(project: Path, text: str, message: str) -> None:
    settings = load_settings(write(project, f"[models.a-b]\n{text}\n"), environ={})
    with pytest.raises(SettingsError) as error:
        settings.model("a-b", {})
    assert str(error.value).startswith(message.format(toml=project / "sereno.toml"))


def test_settings_of_lookups_from_several_places(project: Path) -> None:
    variables = {"SERENO_MODELS__A_B__STALE": "refuse", "SERENO_MODELS__A_B__MAX_AGE_SECONDS": "60"}
    settings = load_settings(write(project, ""), environ=variables)
    assert settings.model("a-b", {}).stale == "refuse"
    settings = load_settings(project, environ=variables, overrides={"models.a-b.lookup": "off"})
    assert settings.model("a-b", {}).lookup == "off"  # switched off for this once


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'ready = "off"\nquiet_seconds = 60',
            (
                "'models.a-b.quiet_seconds', from {toml}, has no effect, as 'models.a-b.ready' is 'off' there, and nothing is waited "
                "for. Leave quiet_seconds out, or ready."
            ),
        ),
        ('ready = "off"\nready_seconds = 60', "'models.a-b.ready_seconds', from {toml}, has no effect"),
        ('ready = "off"\nlate = "run"', "'models.a-b.late', from {toml}, has no effect"),
        (
            "quiet_seconds = 60\ndeadline_seconds = 60",
            (
                "'models.a-b.quiet_seconds' is 60, from {toml}, but 'models.a-b.deadline_seconds' is 60, so that all data is late. "
                "Set it to more."
            ),
        ),
        ("quiet_seconds = 21600", "'models.a-b.quiet_seconds' is 21600, from {toml}, but"),
    ],
)
def test_settings_of_arrivals_that_would_have_no_effect(project: Path, text: str, message: str) -> None:
    settings = load_settings(write(project, f"[models.a-b]\n{text}\n"), environ={})
    with pytest.raises(SettingsError) as error:
        settings.model("a-b", {})
    assert str(error.value).startswith(message.format(toml=project / "sereno.toml"))
    # what one environment switches off, another may wait for
    off = {"models.a-b.ready": "off"}
    assert load_settings(project, overrides=off, environ={}).model("a-b", {}).ready == "off"


def test_ready_is_not_taken_for_a_path_where_it_is_misspelled(project: Path) -> None:
    assert 'Valid: "auto", "off" or a path. Did you mean \'off\'?' in refused(
        project, overrides={"models.a-b.ready": "Off"}
    )


def test_a_variable_that_may_mean_two_models_is_refused(project: Path) -> None:
    write(project, "[models.a-b]\nbatch_rows = 1\n[models.a_b]\nbatch_rows = 1")
    assert refused(project, environ={"SERENO_MODELS__A_B__SOURCE": "x"}) == (
        "The variable SERENO_MODELS__A_B__SOURCE may mean 'a-b', 'a_b'. Use --set or sereno.toml instead."
    )


def test_the_command_line_is_checked(project: Path) -> None:
    assert "There is no setting 'wrokers', which the command line sets. Did you mean 'workers'?" in refused(
        project, overrides={"wrokers": "1"}
    )
    assert "'models', which the command line sets, is a table." in refused(project, overrides={"models": "1"})
    assert "There is no setting '', which the command line sets." in refused(project, overrides={"": "1"})


def test_unknown_environments_name_the_nearest(project: Path) -> None:
    file = project / "sereno.toml"
    assert (
        refused(project, env="prd") == f"There is no environment 'prd' in {file}. Did you mean 'prod'? It has 'prod'."
    )
    assert refused(write(project, ""), environ={"SERENO_ENV": "prod"}) == (
        f"There is no environment 'prod' in {file}. Add [env.prod] there, or name no environment."
    )


@pytest.mark.parametrize("name", ["", "-a", "A", "a/b", "..", "a" * 65, "ñ"])
def test_names_of_models_are_checked(project: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="cannot be the name of a model"):
        load_settings(project, environ={}).model(name, {})


# Secrets


def test_secrets_come_from_a_variable_or_a_file(project: Path) -> None:
    settings = load_settings(project, environ={})
    (project / "secrets").mkdir()
    (project / "secrets" / "token").write_text("from file\n")
    assert secret("token", settings, {}) == "from file"
    assert secret("token", settings, {"SERENO_SECRET_TOKEN": "from variable"}) == "from variable"


def test_a_variable_may_name_the_file_of_a_secret(project: Path) -> None:
    settings = load_settings(project, environ={})
    (project / "given").write_text("from file\n")
    named = {"SERENO_SECRET_TOKEN_FILE": str(project / "given")}
    assert secret("token", settings, named) == "from file"
    assert secret_origin("token", settings, named) == (
        f"the variable SERENO_SECRET_TOKEN_FILE, which names {project / 'given'}"
    )
    both = named | {"SERENO_SECRET_TOKEN": "from variable"}
    assert secret("token", settings, both) == "from variable"
    assert secret_origin("token", settings, both) == "the variable SERENO_SECRET_TOKEN"
    with pytest.raises(SettingsError, match="Set the variable SERENO_SECRET_TOKEN, or write it to /nowhere"):
        secret("token", settings, {"SERENO_SECRET_TOKEN_FILE": "/nowhere"})
    assert secret_origin("token", settings, {}) is None
    (project / "secrets").mkdir()
    (project / "secrets" / "token").touch()
    assert secret_origin("token", settings, {}) == f"the file {project / 'secrets' / 'token'}"


def test_a_missing_secret_names_both_places(project: Path) -> None:
    settings = load_settings(project, environ={})
    with pytest.raises(SettingsError) as error:
        secret("token", settings, {"SERENO_SECRET_TOKEN": ""})
    assert str(error.value) == (
        "There is no secret 'token'. Set the variable SERENO_SECRET_TOKEN, "
        f"or write it to {project / 'secrets' / 'token'}."
    )


def test_an_unreadable_secret_is_told_without_showing_it(project: Path) -> None:
    settings = load_settings(project, environ={})
    (project / "secrets" / "folder").mkdir(parents=True)
    (project / "secrets" / "binary").write_bytes(b"hunter2\xff")
    with pytest.raises(
        SettingsError, match="The secret 'folder' cannot be read from .*: Is a directory. Or set SERENO_SECRET_FOLDER"
    ):
        secret("folder", settings, {})
    with pytest.raises(SettingsError, match="it is not UTF-8") as error:
        secret("binary", settings, {})
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("name", ["../token", "a/b", "", "a-b"])
def test_names_of_secrets_cannot_leave_the_folder(project: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="cannot be the name of a secret"):
        secret(name, load_settings(project, environ={}), {})


def test_passwords_are_in_no_message_and_no_repr(project: Path) -> None:
    address = "postgresql://sereno:hunter2@bank/offers?password=hunter2"
    write(
        project,
        f"[values]\na = '{address}'\n[models.m]\ndatabase = '{address}'\nexports = ['{address}']\nsource = '{address}'",
    )
    settings = load_settings(project, environ={})
    assert settings.models["m"].database == address
    assert "hunter2" not in repr(settings)
    assert "bank/offers" in repr(settings.values["a"])
    bad = address.replace("postgresql", "postgrsql")
    for text in (
        f"exports = ['{bad}']",
        f"exports = '{bad}'",
        f"database = ['{bad}']",
        f"gates = '{bad}'",
        f"file = ['{bad}']",
    ):
        assert "hunter2" not in refused(write(project, f"[models.m]\n{text}"))
    for text in ("ledger = 'sereno:hunter2@bank/x'", "lookup_store = ':hunter2@bank'", "ledger = 'hunter2'"):
        assert "is ***, from " in refused(write(project, text))
    for text in ("database = ['hunter2']",):
        assert "hunter2" not in refused(write(project, f"[models.m]\n{text}"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:p@w@host/db", "postgresql://u:***@host/db"),
        ("postgresql://host/db", "postgresql://host/db"),
        ("host=a password=b dbname=c", "host=a password=*** dbname=c"),
        ("s3://bank/warehouse", "s3://bank/warehouse"),
        ("models:/churn@champion", "models:/churn@champion"),
        ("redis://:p@host:6379/0", "redis://:***@host:6379/0"),
        ("https://token@host/x", "https://***@host/x"),
        (
            "postgresql://u@host/db?sslpassword=p&sslmode=require",
            "postgresql://u@host/db?sslpassword=***&sslmode=require",
        ),
        ("https://h/x?X-Amz-Signature=p&X-Amz-Expires=5", "https://h/x?X-Amz-Signature=***&X-Amz-Expires=5"),
        ("https://h/x?sv=1&sig=p%3D&se=2", "https://h/x?sv=1&sig=***&se=2"),
        ("mssql://h?odbc_connect=UID%3Du%3BPWD%3Dp", "mssql://h?odbc_connect=UID%3Du%3BPWD%3D***"),
        ("Server=h;PWD = p;Database=d", "Server=h;PWD = ***;Database=d"),
        ("AccountName=a;AccountKey=p==;x=1", "AccountName=a;AccountKey=***;x=1"),
        ("aws_access_key_id=a aws_secret_access_key=p", "aws_access_key_id=a aws_secret_access_key=***"),
        ("DB_PASS=p private-key=p Auth=p", "DB_PASS=*** private-key=*** Auth=***"),
        ("author=a key=b max_tokens=5 bypassed=c sig=d", "author=a key=b max_tokens=5 bypassed=c sig=d"),
    ],
)
def test_redact(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        ("db_password", True), ("PWD", True), ("api_key", True), ("apikey", True), ("key", True), ("values.key", True),
        ("private_key", True), ("encryption_key", True), ("credentials", True), ("basic_auth", True), ("passphrase", True),
        ("author", False), ("key_columns", False), ("models.keyword.source", False), ("access_key_id", False),
        ("warehouse", False),
    ],
)  # fmt: skip
def test_what_is_secret_by_its_name_is_shown_by_no_command(name: str, is_secret: bool) -> None:
    assert is_secret_name(name) is is_secret
    assert options_given(None, None, {name: "a"}) == (() if is_secret else ("--set", f"{name}=a"))


# The page


def test_every_setting_is_on_the_page() -> None:
    page = PAGE.read_text()
    for setting in SETTINGS.values():
        default = ", ".join(setting.default) if isinstance(setting.default, tuple) else setting.default
        shown = "" if default in (None, "") else f"`{default}`"
        row = f"| `{setting.name}` | {setting.kind.name} | {shown} | {setting.about} |"
        assert row in page, f"docs/settings.md lacks this row: {row}"
    assert page.count("\n| `") == len(SETTINGS)


def test_the_example_on_the_page_is_valid(tmp_path: Path) -> None:
    example = PAGE.read_text().split("```toml\n")[1].split("```")[0]
    settings = load_settings(write(tmp_path, example), env="prod", environ={})
    assert settings.values["warehouse"].value == "s3://bank/warehouse"
    assert settings.model("credit-scoring", {}).time_zone == "Europe/Madrid"


def test_importing_reads_nothing_and_loads_nothing_heavy() -> None:
    code = "import sys, sereno.config; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"SERENO_WROKERS": "1"}, capture_output=True, text=True, check=True
    )
    heavy = {"pyarrow", "pandas", "polars", "deltalake", "numpy", "msgspec", "cronsim", "tomllib", "zoneinfo"}
    assert not heavy & set(done.stdout.split())


# Addresses of people


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("mailto://u:p@h?to=a,b", ("mailto://u:p@h?to=a,b",)),
        ("mailto://u:p@h?to=a,b, slack://A/B/C json://h", ("mailto://u:p@h?to=a,b", "slack://A/B/C", "json://h")),
        ("secret:alerts,json://h/x", ("secret:alerts", "json://h/x")),
        ('["json://a,b/c"]', ("json://a,b/c",)),
        ("[]", ()),
        ("", ()),
    ],
)
def test_addresses_as_text(project: Path, text: str, addresses: tuple[str, ...]) -> None:
    environ = {"SERENO_NOTIFY": text, "SERENO_MODELS__CHURN__NOTIFY": text}
    settings = load_settings(project, environ=environ)
    assert settings.notify == addresses
    assert settings.model("churn", {}).notify == addresses
    assert settings.model("other", {}).notify is None


@pytest.mark.parametrize(
    "given",
    [
        'notify = "slack://hunter2/B/C"',
        'notify = ["json://h", "hunter2"]',
        'notify = ["slack://hunter2/B/C", "slack://hunter2/B/C"]',
        'notify = ["secret:hunter2-"]',
        'notify = {hunter2 = "x"}',
        'models.churn.notify = ["hunter2"]',
        'env.prod.notify = [2, "hunter2"]',
    ],
)
def test_what_may_be_a_secret_of_an_address_is_never_shown(project: Path, given: str) -> None:
    said = refused(write(project, given))
    assert "notify' is ***, from " in said
    assert "hunter2" not in said


def test_addresses_are_in_no_repr(project: Path) -> None:
    settings = load_settings(
        project, environ={"SERENO_NOTIFY": "slack://hunter2/B/C", "SERENO_MODELS__CHURN__NOTIFY": "json://u:hunter2@h"}
    )
    assert "hunter2" not in repr(settings)
    said = refused(project, environ={"SERENO_NOTIFY": "[hunter2"})
    assert "hunter2" not in said
    assert "hunter2" not in refused(project, overrides={"notify": "hunter2"})


def test_what_people_are_told(project: Path) -> None:
    assert load_settings(project, environ={}).notify_on == ("failed", "held", "late", "recovered")
    settings = load_settings(write(project, 'notify_on = ["held"]\nmodels.churn.notify_on = []'), environ={})
    assert (settings.notify_on, settings.model("churn", {}).notify_on) == (("held",), ())
    assert refused(write(project, 'notify_on = ["hold"]')) == (
        f'\'notify_on\' is [\'hold\'], from {project}/sereno.toml. Valid: a list of "failed", "held", "late", '
        "\"recovered\". 'hold' is none of these. Did you mean 'held'?"
    )


def test_a_model_that_a_variable_means_is_found_by_its_own_name() -> None:
    settings = Settings(home=Path("/srv"), models={"credit_scoring": ModelSettings(retries=7)})
    assert settings.given_for("credit-scoring").retries == settings.given_for("credit_scoring").retries == 7
    assert settings.given_for("other") == ModelSettings()
