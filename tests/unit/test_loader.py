"""A model file becomes a Model; each mistake in it is told with file, line, what is wrong and what would be right."""

# ruff: noqa: E501 - a mistake beside what is said of it reads better on one line

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sereno.config import load_settings
from sereno.exceptions import ArtifactError, ModelFileError, RowTypeError, SettingsError
from sereno.loader import bind, checked_artifacts, fingerprint, load_model, script_block, script_requirements, siblings
from sereno.model import Model, Secret
from sereno.scoring import open_scorer
from sereno.settings import Settings, Value

GOOD = """
from typing import TypedDict

import pyarrow as pa

from sereno import Key, Model


class Row(TypedDict):
    id: Key[int]
    x: float


class Out(TypedDict):
    y: float


model = Model("sum", inputs=Row, outputs=Out)


@model.load
def load():
    return 1


@model.predict
def predict(loaded, rows: pa.Table):
    return {"y": rows["x"]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder of its own, whose modules are forgotten at the end."""
    modules, path = set(sys.modules), list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


Write = Callable[[str, str], Path]


@pytest.fixture
def write(folder: Path) -> Write:
    def write(name: str, text: str) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def line_of(text: str, what: str) -> int:
    return next(n for n, line in enumerate(text.splitlines(), 1) if what in line)


def test_a_good_file(write: Write) -> None:
    path = write("a_good_one.py", GOOD)
    model = load_model(path)
    assert (model.name, model.file, model.form, model.keys_form) == ("sum", path, "arrow", None)
    assert load_model(path) is model
    assert open_scorer(model, Settings(home=path.parent)).loaded == 1


def change(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


FIELD = "    x: float\n"
PYDANTIC = 'class Row(pydantic.BaseModel):\n    id: Key[int]\n    x: float\n\n    @pydantic.field_validator("x")\n    @classmethod\n    def check(cls, v):\n        return v\n'  # fmt: skip
# what is written, the line that is named, and what is said
MISTAKES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "no model": ("x = 1\n", "", ("there is no model in the file", 'Write `model = Model("name"')),
    "two models": (
        GOOD + 'other = Model("other", inputs=Row, outputs=Out)\n', "other = ", ("there are 2 models in the file ('sum', 'other')", "The first is at"),
    ),
    "no predict": (GOOD[: GOOD.index("@model.predict")], "model = Model", ("has no predict function", "Write one under `@model.predict`")),
    "no load": (change("@model.load\n", ""), "model = Model", ("has no load function", "`def load(pipeline: Path): …`")),
    "two functions": (GOOD + "\n@model.predict\ndef again(loaded, rows: pa.Table): ...\n", "@model.predict\ndef again", ("two predict functions", "the first is at")),
    "one parameter": (change("predict(loaded, rows: pa.Table)", "predict(rows: pa.Table)"), "@model.predict", ("it is called as predict(loaded, rows)",)),
    "another third parameter": (
        change("rows: pa.Table)", "rows: pa.Table, threshold=0.5)"), "@model.predict", ("predict takes (loaded, rows: ", "or predict(loaded, rows, keys)"),
    ),
    "a required keyword": (change("rows: pa.Table)", "rows: pa.Table, *, threshold)"), "@model.predict", ("it is called as",)),
    "async predict": (change("def predict", "async def predict"), "@model.predict", ("predict is async; only fetch may be",)),
    "no annotation": (change("rows: pa.Table)", "rows)"), "@model.predict", ("parameter 'rows' of predict has no annotation", "list[Row]")),
    "another annotation": (change("rows: pa.Table)", "rows: dict)"), "@model.predict", ("is annotated <class 'dict'>", "Valid are pandas.DataFrame")),
    "an unknown annotation": (change("rows: pa.Table)", "rows: 'pd.DataFrame')"), "@model.predict", ("annotation of predict cannot be read", "Import it at the top")),
    "numpy with text": (change(FIELD, "    x: str\n").replace("rows: pa.Table", "rows: 'np.ndarray'").replace("import pyarrow as pa", "import numpy as np"), "@model.predict", ("holds numbers only, but 'x' is none", "Ask for pandas.DataFrame")),
    "load with too little": (change("outputs=Out)", 'outputs=Out, artifacts={"net": "net.bin"})'), "@model.load", ("load does not take the artefact 'net'", "`def load(net: Path): …`")),
    "load with the rest": (change("def load()", "def load(**values)"), "@model.load", ("parameter **values of load cannot be filled by name",)),
    "async ready": (GOOD + "\n@model.ready\nasync def ready(): ...\n", "@model.ready", ("ready is async; only fetch may be",)),
    "two ready": (GOOD + "\n@model.ready\ndef ready(): ...\n@model.ready\ndef again(): ...\n", "@model.ready\ndef again", ("two ready functions",)),
    "ready of many": (GOOD + "\n@model.ready\ndef ready(*days): ...\n", "@model.ready", ("parameter *days of ready cannot be filled by name",)),
    "async gate": (GOOD + "\n@model.gate\nasync def sane(profile): ...\n", "@model.gate", ("sane is async; only fetch may be",)),
    "gates of one name": (GOOD + "\n@model.gate\ndef sane(p): ...\n@model.gate\ndef sane(p): ... # 2\n", "@model.gate\ndef sane(p): ... # 2", ("two gates named 'sane'", "the first is at", "another name")),
    "gate of nothing": (GOOD + "\n@model.gate\ndef sane(): ...\n", "@model.gate", ("the gate takes no profile", "def sane(profile)")),
    "gate of a matrix": (GOOD + "\nimport numpy as np\n@model.gate\ndef sane(profile, rows: np.ndarray): ...\n", "@model.gate", ("parameter 'rows' of the gate is annotated", "Valid are pandas.DataFrame")),
    "gate of many": (GOOD + "\n@model.gate\ndef sane(profile, **values): ...\n", "@model.gate", ("parameter **values of sane cannot be filled by name",)),
    "read and source": (change("outputs=Out)", 'outputs=Out, source="x.parquet")') + "\n@model.read\ndef read(): ...\n", "@model.read", ("has both read and source=",)),
    "bytes": (change(FIELD, "    x: bytes\n"), "    x: bytes", ("Row.x: bytes cannot be a column", "pass a path or an id")),
    "several types": (change(FIELD, "    x: int | str | None\n"), "    x: int", ("Row.x: int | str | None has several types",)),
    "not required": (change(FIELD, "    x: NotRequired[float]\n").replace("import TypedDict", "import NotRequired, TypedDict"), "    x: Not", ("Row.x may be left out",)),
    "not required, from the future": ("from __future__ import annotations\n" + change(FIELD, "    x: NotRequired[float]\n").replace("import TypedDict", "import NotRequired, TypedDict"), "    x: Not", ("Row.x may be left out",)),
    "decimal without digits": ("from decimal import Decimal\n" + change(FIELD, "    x: Decimal\n"), "    x: Decimal", ("a Decimal needs its precision",)),
    "a naive bound": ("from datetime import datetime\nfrom typing import Annotated\nfrom annotated_types import Ge\n" + change(FIELD, "    x: Annotated[datetime, Ge(datetime(2026, 1, 1))]\n"), "    x: Ann", ("has no time zone",)),
    "in an output": (change("    y: float\n", "    y: dict[str, float]\n"), "    y: dict", ("Out.y: dict[str, float] cannot be a column", "Write a row type")),
    "in a list": (change(FIELD, "    x: list[bytes]\n"), "    x: list", ("Row.x[]: bytes cannot be",)),
    "a validator": ("import pydantic\n" + change("class Row(TypedDict):\n    id: Key[int]\n    x: float\n", PYDANTIC), "model = Model", ("Row has the validator `check`", "Write the rule with annotated_types")),
    "no key": (change("id: Key[int]", "id: int"), "model = Model", ("Row has no key", "customer_id: Key[int]")),
    "only keys": (change(FIELD, ""), "model = Model", ("Row has keys only",)),
    "a key that is an output": (change("    y: float\n", "    id: int\n"), "    id: int", ("Out.id is also a key",)),
    "a key of the table": (change("    y: float\n", "    data_date: float\n"), "model = Model", ("can be named data_date",)),
    "a key in an output": (change("    y: float\n", "    y: Key[int]\n"), "    y: Key", ("an output is neither Key nor Fetched",)),
    "a bad name": (change('"sum"', '"Sum!"'), "model = Model", ("The model name 'Sum!' is not valid", "small letters, digits")),
    "syntax": (GOOD + "def (\n", "def (", ("invalid syntax",)),
    "return outside": (GOOD + "return  1\n", "return  1\n", ("'return' outside function",)),
    "raising": (GOOD + "1 / 0\n", "1 / 0", ("ZeroDivisionError: division by zero",)),
    "exit": (GOOD + "import sys\nsys.exit(3)\n", "sys.exit(3)", ("the file ends the program (exit 3)", 'Put that under `if __name__ == "__main__":`')),
    "predict called": (GOOD + "model.predict([1])\n", "model.predict([1])", ("takes a function, not list", "call `model.score(rows)`")),
    "a module of no block": (GOOD + "import no_such_module\n", "import no_such", ("the module 'no_such_module' is not installed", "name that in the script block, which has none")),
    "a module of the block": ('# /// script\n# dependencies = ["Sereno", "no_such_module>=1"]\n# ///\n' + GOOD + "import no_such_module\n", "import no_such", ("The script block asks for it: `pip install no_such_module`",)),
    "a module of another name": ('# /// script\n# dependencies = ["no-such"]\n# ///\n' + GOOD + "import no_such_module\n", "import no_such", ("Install its package", "which has no-such")),
    "the block": ('# /// script\n# dependencies = [\n# ///\n' + GOOD + "import no_such_module\n", "", ("the script block is no TOML",)),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_by_file_and_line(write: Write, name: str) -> None:
    text, where, words = MISTAKES[name]
    path = write(f"mistake_{abs(hash(name))}.py", text)
    with pytest.raises(ModelFileError) as caught:
        load_model(path)
    said = str(caught.value)
    for word in words:
        assert word in said
    if where:
        line = text[: text.index(where)].count("\n") + 1
        assert said.startswith(f"{path.name}:{line}: "), (said, line)
    else:
        assert said.startswith(f"{path.name}: ")
    assert said.count(path.name) <= 2


def test_row_type_errors_keep_their_kind(write: Write) -> None:
    with pytest.raises(RowTypeError):
        load_model(write("kept_kind.py", change(FIELD, "    x: bytes\n")))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.ipynb", "is a notebook; a model in production is one plain Python file. `jupyter nbconvert --to script model.ipynb`"),
        ("model.txt", "is no Python file: a model file ends in .py"),
        ("nowhere.py", "There is no file"),
    ],
)  # fmt: skip
def test_what_is_no_model_file(write: Write, folder: Path, name: str, words: str) -> None:
    if name != "nowhere.py":
        write(name, "{}")
    with pytest.raises(ModelFileError) as caught:
        load_model(folder / name)
    assert words in str(caught.value)


def test_files_that_others_can_write_are_refused(write: Write, folder: Path) -> None:
    path = write("open_to_all.py", GOOD)
    path.chmod(0o666)
    with pytest.raises(ArtifactError, match=r"can be changed by every user .* `chmod o-w .*open_to_all.py`"):
        load_model(path)
    path.chmod(0o644)
    folder.chmod(0o777)
    with pytest.raises(ArtifactError, match="has mode 777"):
        load_model(path)
    folder.chmod(0o1777)  # as /tmp
    assert load_model(path).name == "sum"


def test_names_that_are_taken(write: Write) -> None:
    with pytest.raises(
        ModelFileError, match=r"json.py: a module named 'json' is loaded already. Rename the model file"
    ):
        load_model(write("json.py", GOOD))
    write("one/shared_by_two.py", "")
    write("two/shared_by_two.py", "")
    load_model(write("one/first_of_two.py", "import shared_by_two\n" + GOOD))
    with pytest.raises(
        ModelFileError, match=r"a module named 'shared_by_two' is loaded already from .*one/shared_by_two.py"
    ):
        load_model(write("two/second_of_two.py", "import shared_by_two\n" + GOOD))


def test_models_of_the_future_and_of_siblings(write: Write) -> None:
    write("far_rows.py", "from __future__ import annotations\nfrom typing import TypedDict\nfrom sereno import Key\nclass Row(TypedDict):\n    id: Key[int]\n    x: float\n")  # fmt: skip
    text = "from __future__ import annotations\n" + change("class Row(TypedDict):\n    id: Key[int]\n    x: float\n", "from far_rows import Row\n")  # fmt: skip
    model = load_model(write("of_the_future.py", text))
    assert [c.name for c in model.inputs.keys] == ["id"]
    assert model.form == "arrow"


# Siblings and fingerprint


@pytest.fixture
def project(write: Write) -> Path:
    write("features/__init__.py", "from . import scaling\n")
    write("features/scaling.py", "from .deep.inner import thing\nfrom ..outside import nothing\n")
    write("features/deep/__init__.py", "")
    write("features/deep/inner.py", "from ..other import y\nthing = 1\n")
    write("features/other.py", "import math\ny = 1\n")
    write("features/unused.py", "")
    write("lazily.py", "from features.other import y\n")
    write("space/inside.py", "")
    write("unused.py", "")
    write("net.bin", "weights")
    write("table/a.txt", "1")
    write("table/deep/b.txt", "2")
    text = change("    return 1\n", "    import lazily\n    from space import inside\n    return 1\n").replace(
        "def load()", "def load(net, table)"
    )
    return write(
        "whole_project.py",
        "import features\n"
        + text.replace("outputs=Out)", 'outputs=Out, artifacts={"net": "net.bin", "table": "table"})'),
    )


BELONGS = ["features/__init__.py", "features/deep/__init__.py", "features/deep/inner.py", "features/other.py", "features/scaling.py", "lazily.py", "space/inside.py"]  # fmt: skip


def test_siblings_are_what_is_imported_anywhere(project: Path) -> None:
    assert [str(s.relative_to(project.parent)) for s in siblings(project)] == BELONGS


def declared(project: Path) -> Model:
    """As the file declares it, without running it (its siblings import each other wrongly on purpose)."""
    return run(project.read_text().replace("import features\n", "\n"), str(project))


@pytest.mark.parametrize("name", [*BELONGS, "whole_project.py", "net.bin", "table/a.txt", "table/deep/b.txt"])
def test_the_fingerprint_changes_with_what_belongs_to_the_model(project: Path, name: str) -> None:
    before = fingerprint(declared(project))
    path = project.parent / name
    path.write_text(path.read_text() + "\n# changed")
    assert fingerprint(declared(project)) != before


def test_the_fingerprint_stays_for_everything_else(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    import shutil

    before = fingerprint(declared(project))
    for name in ("unused.py", "features/unused.py", "features/__pycache__/x.pyc", "new.py"):
        (project.parent / name).parent.mkdir(exist_ok=True)
        (project.parent / name).write_text("changed")
    (project.parent / "net.bin").touch()
    assert fingerprint(declared(project)) == before
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(project.parent, elsewhere)
    assert fingerprint(declared(elsewhere / project.name)) == before
    (project.parent / "table/a.txt").rename(project.parent / "table/c.txt")
    assert fingerprint(declared(project)) != before


def test_a_sibling_with_a_mistake(write: Write) -> None:
    write("broken_sibling.py", "x = 1\ndef (\n")
    with pytest.raises(ModelFileError, match=r"broken_sibling.py:2: invalid syntax"):
        load_model(write("has_broken.py", "import broken_sibling\n" + GOOD))


# Artefacts


def model_with(folder: Path, **artifacts: str) -> Model:
    model = run(GOOD)
    model.file = folder / "m.py"
    model.artifacts = artifacts
    return model


def run(text: str, file: str = "") -> Model:
    module = sys.modules["run_by_a_test"] = ModuleType("run_by_a_test")
    if file:
        module.__file__ = file
    exec(compile(text, file, "exec"), vars(module))
    model: Model = module.model
    return model


def test_artefacts_are_checked(folder: Path) -> None:
    (folder / "net.bin").write_bytes(b"weights")
    right = hashlib.sha256(b"weights").hexdigest()
    assert checked_artifacts(model_with(folder, net=f"net.bin#sha256={right}")) == {"net": folder / "net.bin"}
    assert checked_artifacts(model_with(folder, net="net.bin")) == {"net": folder / "net.bin"}
    wrong = "0" * 64
    for declared_as, words in {
        "gone.bin": f"Artefact 'net' is missing: there is no {folder}/gone.bin. Train the model first",
        f"net.bin#sha256={wrong}": f"has SHA-256 {right}, but the model file pins {wrong}",
        "net.bin#md5=1": "should end in `#sha256=` and 64 digits",
        f".#sha256={wrong}": "a SHA-256 pins a file",
    }.items():
        with pytest.raises(ArtifactError) as caught:
            checked_artifacts(model_with(folder, net=declared_as))
        assert words in str(caught.value)
    (folder / "net.bin").chmod(0o666)
    with pytest.raises(ArtifactError, match="The artefact 'net' can be changed by every user"):
        checked_artifacts(model_with(folder, net="net.bin"))


# The script block


def test_the_script_block(write: Write) -> None:
    block = '# /// script\n# requires-python = ">=3.11"\n# dependencies = [\n#   "sereno",\n#\n#   "pandas>=2",\n# ]\n# ///\n'
    path = write("has_block.py", block + GOOD)
    assert script_block(path) == {"requires-python": ">=3.11", "dependencies": ["sereno", "pandas>=2"]}
    assert script_requirements(path) == ["sereno", "pandas>=2"]
    assert script_requirements(write("has_none.py", GOOD)) == []
    with pytest.raises(ModelFileError, match="there are 2 script blocks"):
        script_block(write("has_two.py", block + "\n" + block))


# Values by name


def read(
    data_date: date,
    warehouse: str,
    folder: Path,
    least: int,
    share: float,
    strict: bool,
    api_key: Secret,
    extra: str = "none",
) -> None:
    """A function as users write it."""


def test_parameters_are_filled_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sereno.toml").write_text(
        '[values]\nwarehouse = "data"\nfolder = "in"\nleast = 3\nshare = 1\nstrict = true\n'
    )
    monkeypatch.setenv("SERENO_SECRET_API_KEY", "hidden")
    monkeypatch.setenv("SERENO_VALUES__LEAST", "5")
    arguments = bind(run(GOOD), read, load_settings(folder), given={"data_date": date(2026, 5, 1)})
    assert arguments == {
        "data_date": date(2026, 5, 1), "warehouse": "data", "folder": folder / "in", "least": 5, "share": 1.0, "strict": True,
        "api_key": "hidden",
    }  # fmt: skip
    assert "hidden" not in repr(arguments)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "nothing gives read its parameter 'warehouse'. Add it to [values] in sereno.toml, or set SERENO_VALUES__WAREHOUSE. Known here: data_date"),
        ({"warehouse": 3}, "the value warehouse is 3, but read wants str"),
        ({"warehouse": "w", "folder": "f", "least": "many"}, "the value least is 'many', but read wants int"),
        ({"warehouse": "w", "folder": "f", "least": 1, "share": "1", "strict": "yes"}, "the value strict is 'yes', but read wants bool"),
        ({"warehouse": "w", "folder": "f", "least": 1, "share": "0.5", "strict": "true"}, "There is no secret 'api_key'"),
    ],
)  # fmt: skip
def test_a_value_that_no_setting_gives(folder: Path, values: dict[str, Any], words: str) -> None:
    settings = Settings(home=folder, values={n: Value(value=v, base=folder) for n, v in values.items()})
    with pytest.raises(SettingsError) as caught:
        bind(run(GOOD), read, settings, given={"data_date": date(2026, 5, 1)})
    assert str(caught.value).startswith(f"test_loader.py:{read.__code__.co_firstlineno}: ")
    assert words in str(caught.value)


def test_texts_of_variables_become_what_parameters_want(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(
        names: list[str],
        sizes: list[int],
        bare: list,
        least: int | None,
        since: datetime,
        shares: list[float] | None = None,  # type: ignore[type-arg]
    ) -> None: ...

    given = {
        "NAMES": "a,b",
        "SIZES": "[1, 2]",
        "BARE": "x",
        "LEAST": "3",
        "SINCE": "2026-05-01T00:00+00:00",
        "SHARES": "1,0.5",
    }
    for name, text in given.items():
        monkeypatch.setenv(f"SERENO_VALUES__{name}", text)
    settings = load_settings(folder)
    assert bind(run(GOOD), load, settings, given={}) == {
        "names": ["a", "b"], "sizes": [1, 2], "bare": ["x"], "least": 3, "since": datetime(2026, 5, 1, tzinfo=UTC),
        "shares": [1.0, 0.5],
    }  # fmt: skip
    monkeypatch.setenv("SERENO_VALUES__SIZES", "[1")
    with pytest.raises(SettingsError, match=r"the value sizes is '\[1', but load wants list\[int\]"):
        bind(run(GOOD), load, load_settings(folder), given={})


def test_data_date_is_for_read_only(folder: Path) -> None:
    def load(data_date: date) -> None: ...

    with pytest.raises(SettingsError, match="data_date and interval are given to read and ready only"):
        bind(run(GOOD), load, Settings(home=folder), given={})
