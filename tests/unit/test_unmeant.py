"""Variables that set what nothing asks for: told where they are nearly what something does."""

from __future__ import annotations

from pathlib import Path

import pytest

from sereno.cli import main
from sereno.config import load_settings
from sereno.model import Model
from sereno.unmeant import unmeant, unmeant_models
from tests.models.weighted import Row, Score

HEAD = '[models.churn]\nfile = "churn.py"\n'


@pytest.fixture
def model() -> Model:
    model = Model("churn", inputs=Row, outputs=Score, source="{warehouse}/day.csv")
    model.load(lambda min_age, factor=1: None)
    model.predict(lambda loaded, rows: rows)
    return model


@pytest.mark.parametrize(
    ("file", "variables", "told"),
    [
        ("", {"VALUES__WAREHOUS": "x"}, [("SERENO_VALUES__WAREHOUS is set, but model 'churn' asks for no value 'warehous'. "
                                         "Did you mean SERENO_VALUES__WAREHOUSE?")]),
        ("", {"VALUES__FACTR": "x"}, [("SERENO_VALUES__FACTR is set, but model 'churn' asks for no value 'factr'. Did you "
                                      "mean SERENO_VALUES__FACTOR?")]),
        ("[values]\nwarehous = 1\n", {}, []),  # the file may be of several models
        ("", {"VALUES__WAREHOUSE": "x", "VALUES__MIN_AGE": "3", "VALUES__FACTOR": "2"}, []),
        ("", {"VALUES__WAREHOUSES": "x", "VALUES__WAREHOUSE": "x"}, []),  # of another model
        ("", {"VALUES__MAX_AGE": "3", "VALUES__OTHER": "x"}, []),
        ("", {"MODELS__CHRUN__EXPORTS": "csv", "MODELS__CHRUN__RETRIES": "1"},
         ["SERENO_MODELS__CHRUN__EXPORTS is set, but no model 'chrun' is known. Did you mean SERENO_MODELS__CHURN__EXPORTS?"]),
        ("", {"MODELS__CHRUN__GATES__MAX_REJECT_SHARE": "1"},
         [("SERENO_MODELS__CHRUN__GATES__MAX_REJECT_SHARE is set, but no model 'chrun' is known. Did you mean "
          "SERENO_MODELS__CHURN__GATES__MAX_REJECT_SHARE?")]),
        ("", {"MODELS__CHURN__EXPORTS": "csv", "MODELS__OFFERS__EXPORTS": "csv"}, []),
        ("", {"MODELS__CHRUN__FILE": "chrun.py"}, []),
        ("[models.chrun]\nretries = 1\n", {"MODELS__CHRUN__EXPORTS": "csv"}, []),
    ],
)  # fmt: skip
def test_what_nothing_asks_for(
    tmp_path: Path, model: Model, file: str, variables: dict[str, str], told: list[str]
) -> None:
    (tmp_path / "sereno.toml").write_text(HEAD + file)
    settings = load_settings(tmp_path, environ={f"SERENO_{name}": text for name, text in variables.items()})
    assert list(unmeant(model, settings)) == told
    assert list(unmeant_models(settings, [])) == [one for one in told if "MODELS__" in one]


def test_a_hyphen_is_no_other_name(tmp_path: Path) -> None:
    settings = load_settings(tmp_path, environ={"SERENO_MODELS__CREDIT_SCORING__RETRIES": "1"})
    assert list(unmeant_models(settings, ["credit-scoring"])) == []


def test_commands_tell_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "churn"]) == 0
    monkeypatch.setenv("SERENO_MODELS__CHRUN__EXPORTS", "csv")
    main(["check", "churn.py", "--source", "nowhere.csv"])
    assert "sereno: SERENO_MODELS__CHRUN__EXPORTS is set, but no model 'chrun' is known." in capsys.readouterr().err
