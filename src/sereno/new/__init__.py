"""`sereno new`: a model file to start from, which passes `check` and `run` as it is written.

Its row types follow the user's data, or an example that is written beside it.
"""

from __future__ import annotations

import glob
import importlib.util
import json
import keyword
import os
import random
import re
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sereno.config import find_home
from sereno.exceptions import ModelFileError
from sereno.model import NAME
from sereno.new.infer import Guesses, guess
from sereno.schema import Column
from sereno.settings import FILE_NAME
from sereno.storage import told

WIDTH = 88  # of a line, from which on a Literal stands below itself
EXAMPLE_ROWS = 200
PLANS = ("basic", "family", "premium")


def new(name: str, folder: Path, data: Path | None) -> Path:
    """Write `name`.py (a dash becomes _) into the folder, and what it needs to run; the path of the model file.

    Without data, an example is written too; without a `sereno.toml` upwards, a short one. Nothing is overwritten.
    Raises ModelFileError for a name that cannot be; SourceError and InputError for data that cannot be guessed from.
    """
    stem = _stem(name, folder)
    file = folder / f"{stem}.py"
    _refuse_existing(file, "Choose another name, or move it away")
    example = None
    if data is None:
        data = example = folder / f"{stem}_data.csv"
        _refuse_existing(example, "Use it: add `--from-data` and its path")
    settings = folder / FILE_NAME
    with told("The model file could not be written"):
        folder.mkdir(parents=True, exist_ok=True)
        if example is not None:
            example.write_text(_example(), encoding="utf-8")
        try:
            text = _model_file(name, stem, folder, data, guess(data))
            with file.open("x", encoding="utf-8") as stream:
                stream.write(text)
        except BaseException:
            if example is not None:
                example.unlink()
            raise
        if not (find_home(folder) / FILE_NAME).is_file():
            settings.write_text(SETTINGS_FILE.format(name=name, file=file.name), encoding="utf-8")
    return file


def _stem(name: str, folder: Path) -> str:
    """The file's name without .py. It is a module while it runs, so it must be able to be one, and hide no other."""
    if not NAME.fullmatch(name):
        plain = re.sub(r"[^a-z0-9_-]+", "-", name.lower().removesuffix(".py")).strip("-_")[:64]
        hint = f" `sereno new {plain}` would do." if plain else ""
        raise ModelFileError(
            f"The model name {name!r} is not valid: use small letters, digits, - and _, at most 64.{hint}"
        )
    stem = name.replace("-", "_")
    if not stem.isidentifier() or keyword.iskeyword(stem):
        raise ModelFileError(
            f"A model named {name!r} would stand in {stem}.py, which Python cannot import. Begin with a letter and use no "
            f"word of Python's own: `sereno new model-{name}`."
        )
    found = importlib.util.find_spec(stem)
    if found is not None and (
        found.origin is None or Path(found.origin).resolve() != (folder / f"{stem}.py").resolve()
    ):
        raise ModelFileError(
            f"A model named {name!r} would stand in {stem}.py, which hides the Python package {stem!r}. Choose another "
            f"name: `sereno new {name}-model`."
        )
    return stem


def _refuse_existing(path: Path, instead: str) -> None:
    if path.exists():
        raise ModelFileError(f"{path} exists already, and was left as it is. {instead}.")


def _example() -> str:
    """Customers that never were, as CSV."""
    rng = random.Random(2026)
    lines = ["customer_id,age,plan,monthly_spend,customer_since"]
    for number in range(1, EXAMPLE_ROWS + 1):
        spend = "" if rng.random() < 0.05 else f"{rng.lognormvariate(3.5, 0.6):.2f}"
        since = date(2018, 1, 1) + timedelta(days=rng.randrange(3000))
        lines.append(f"{1000 + number},{rng.randint(18, 90)},{rng.choice(PLANS)},{spend},{since}")
    return "\n".join(lines) + "\n"


SETTINGS_FILE = """\
# Settings of the models in this folder. docs/settings.md of Sereno has all of them.

[models.{name}]
file = "{file}"
"""


# The file


def _model_file(name: str, stem: str, folder: Path, data: Path, guesses: Guesses) -> str:
    nested: list[str] = []
    row, needed = _row_class(guesses, nested)
    output = "prediction" if guesses.key == "score" else "score"
    rest = [
        *nested,
        row,
        f"class Prediction(TypedDict):\n    {output}: float  # TODO: what the model answers for a row",
        MODEL.format(name=name, source=_source(folder, data)),
        LOAD.format(stem=stem),
        _predict(guesses, output),
        MAIN,
    ]
    about = f'"""TODO: what {name} predicts, and for whom.\n\n{_origin(data, guesses)}\n"""\n'
    return "\n".join([BLOCK, about, _imports("\n".join(rest), needed)]) + "\n\n\n" + "\n\n\n".join(rest) + "\n"


BLOCK = """\
# /// script
# requires-python = ">=3.11"
# dependencies = ["sereno", "pyarrow"]
# ///"""

MODEL = """\
model = Model(
    "{name}",
    inputs=Row,
    outputs=Prediction,
    source={source},  # or one a day: "rows/{{data_date}}.parquet"
)"""

LOAD = """\
@model.load
def load():
    # TODO: load the trained model, once per process. Name its file in Model(…) above,
    #     artifacts={{"pipeline": "{stem}.joblib"}},
    # and it arrives here as a checked path:
    #     def load(pipeline: Path):
    #         return joblib.load(pipeline)
    return None"""

PREDICT = """\
@model.predict
def predict(pipeline, rows: pa.Table{keys}) -> pa.Table:
    # STAND-IN, to be replaced: a made-up number between 0 and 1{about}.
    # `rows` has the feature columns, in the order of Row. With `import pandas as pd`, ask
    # for them as a DataFrame:
    #     def predict(pipeline, rows: pd.DataFrame) -> pd.DataFrame:
    #         return pd.DataFrame({{"{output}": pipeline.predict_proba(rows)[:, 1]}})
    # One answer for each row, in the order given, and independent of the other rows.
{body}
    return pa.table({{"{output}": {answer}}})"""

MAIN = """\
if __name__ == "__main__":
    model.main()\
"""


def _origin(data: Path, guesses: Guesses) -> str:
    looked = f"its {guesses.rows:,} rows" if guesses.all_rows else f"its first {guesses.rows:,} rows"
    return f"The row type Row was inferred from {_plain(data.name)}, {looked}.\nSee that it is true of tomorrow's data too."


def _plain(text: str) -> str:
    """Text that can stand in a comment or docstring."""
    return "".join(c if c.isprintable() else "?" for c in text).replace("\\", "?").replace('"', "'")


def _source(folder: Path, data: Path) -> str:
    """The source as code: relative to the model file where the data is below it."""
    base, path = Path(os.path.abspath(folder)), Path(os.path.abspath(data))
    shown = path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path)
    pattern = glob.escape(shown) if any(c in shown for c in "*?[") else shown
    return _quoted(pattern.replace("{", "{{").replace("}", "}}"))


def _imports(code: str, needed: set[str]) -> str:
    lines = ["import zlib"] if "zlib." in code else []
    if "@dataclass" in code:
        lines.append("from dataclasses import dataclass")
    dates = [kind for kind in ("date", "datetime") if kind in needed]
    if dates:
        lines.append(f"from datetime import {', '.join(dates)}")
    if "decimal" in needed:
        lines.append("from decimal import Decimal")
    typed = [word for word in ("Annotated", "Literal") if f"{word}[" in code] + ["TypedDict"]
    lines += [f"from typing import {', '.join(typed)}", "", "import pyarrow as pa"]
    if "pc." in code:
        lines.append("import pyarrow.compute as pc")
    ours = ["Digits"] if "Digits(" in code else []
    return "\n".join([*lines, "", f"from sereno import {', '.join([*ours, 'Key', 'Model'])}"])


# Row types


def _row_class(guesses: Guesses, nested: list[str]) -> tuple[str, set[str]]:
    """The code of Row, and the kinds of value that it names; classes of nested rows are added to `nested`."""
    needed: set[str] = set()
    fields: list[_Field] = []
    left_out = []
    plain_names = all(_is_plain(name) for name, g in guesses.columns if g.column)
    annotations = {name: _annotation(g.column, nested, needed) for name, g in guesses.columns if g.column}
    words = set(re.findall(r"\w+", " ".join(annotations.values())))
    for name, found in guesses.columns:
        comment = found.comment
        # in a class, the default of a column named `date` would hide the type of the columns after it
        if found.has_default and (not plain_names or name in words):
            comment = f"{comment}; give it in every row, as null"
        if found.column is None or comment != found.comment:
            shown = _plain(name) or "a column without a name"
            left_out.append(f"# left out: {shown}" + (f" ({_plain(comment)})" if comment else ""))
            continue
        if name == guesses.key:
            comment = "the key: inferred, for it differs in every row"
        fields.append(_Field(name, annotations[name], comment, found.has_default))
    return "\n".join(_class_lines("Row", fields, left_out)), needed


@dataclass(frozen=True)
class _Field:
    name: str
    annotation: str
    comment: str
    has_default: bool


def _class_lines(name: str, fields: list[_Field], left_out: list[str]) -> list[str]:
    if not all(_is_plain(f.name) for f in fields):
        lines = [f"{name} = TypedDict(  # this form holds names that are none of Python's", f'    "{name}",', "    {"]
        for field in fields:
            lines += _field_lines(f"        {_quoted(field.name)}: ", field, ",")
        return [*lines, *(f"        {line}" for line in left_out), "    },", ")"]
    if any(f.has_default for f in fields):
        lines = ["@dataclass(kw_only=True)", f"class {name}:"]
    else:
        lines = [f"class {name}(TypedDict):"]
    for field in fields:
        lines += _field_lines(f"    {field.name}: ", field, " = None" if field.has_default else "")
    return [*lines, *(f"    {line}" for line in left_out)]


def _field_lines(start: str, field: _Field, end: str) -> list[str]:
    """One line, or a long Literal with a choice in each."""
    comment = f"  # {_plain(field.comment)}" if field.comment else ""
    line = f"{start}{field.annotation}{end}{comment}"
    choices = re.fullmatch(r"Literal\[(.*)\](.*)", field.annotation)
    if len(line) <= WIDTH or choices is None:
        return [line]
    indent = " " * (len(start) - len(start.lstrip()))
    items = [f"{indent}    {item}," for item in re.findall(r'"(?:[^"\\]|\\.)*"', choices[1])]
    return [f"{start}Literal[{comment}", *items, f"{indent}]{choices[2]}{end}"]


def _is_plain(name: str) -> bool:
    """Whether the name can stand in a class: two underscores in front would become others there."""
    return name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("__")


def _annotation(column: Column, nested: list[str], needed: set[str]) -> str:
    needed.add(column.kind)
    if column.choices:
        text = f"Literal[{', '.join(_quoted(str(c)) for c in column.choices)}]"
    elif column.kind == "decimal":
        text = f"Annotated[Decimal, Digits({column.precision}, {column.scale})]"
    elif column.kind == "list":
        assert column.item is not None
        text = f"list[{_annotation(column.item, nested, needed)}]"
    elif column.kind == "row":
        text = _nested_class(column, nested, needed)
    else:
        text = column.kind
    if column.role == "key":
        return f"Key[{text}]"
    return f"{text} | None" if column.nullable else text


def _nested_class(column: Column, nested: list[str], needed: set[str]) -> str:
    assert column.row is not None
    fields = [_Field(c.name, _annotation(c, nested, needed), "", False) for c in column.row.columns]
    base = "".join(part.capitalize() for part in re.findall(r"[A-Za-z0-9]+", column.name)) or "Item"
    base = base if base.isidentifier() else f"Item{base}"
    taken = {m[1] for text in nested if (m := re.match(r"(?:class )?(\w+)", text))} | TAKEN
    name = next(n for n in [base, *(f"{base}{i}" for i in range(2, 10_000))] if n not in taken)
    nested.append("\n".join(_class_lines(name, fields, [])))
    return name


TAKEN = {"Row", "Prediction", "Key", "Model", "Digits", "Literal", "Annotated", "TypedDict", "Decimal"}


def _quoted(text: str) -> str:
    """A text as Python code in double quotes, for which JSON's will do."""
    return json.dumps(text, ensure_ascii=False)


# The stand-in


def _predict(guesses: Guesses, output: str) -> str:
    """predict with a number that differs from row to row, of the first column that does."""
    for column, values in guesses.feature():
        found = _number_of(column, values)
        if found is None:
            continue
        expression, numbers = found
        middle, width = float(np.mean(numbers)), float(np.std(numbers))
        if not (np.isfinite(middle) and np.isfinite(width) and width > 1e-6 * max(abs(middle), 1e-300)):
            continue
        body = (
            "    # Statistics are constants here, for they belong in training.\n"
            f"    x = pc.fill_null({expression}, {middle:.6g})\n"
            f"    away = pc.divide(pc.subtract(x, {middle:.6g}), {width:.6g})"
        )
        answer = "pc.divide(1.0, pc.add(1.0, pc.exp(pc.negate(away))))"
        about = f", of {_plain(column.name)!r} alone"
        return PREDICT.format(keys="", about=about, body=body, output=output, answer=answer)
    body = f"    numbers = [zlib.crc32(str(key).encode()) / 2**32 for key in keys[{_quoted(guesses.key)}].to_pylist()]"
    about = ", of the key alone, for no other column differs"
    return PREDICT.format(keys=", keys: pa.Table", about=about, body=body, output=output, answer="numbers")


def _number_of(column: Column, values: pa.Array) -> tuple[str, npt.NDArray[np.float64]] | None:
    """Code for a number from a column, and these numbers; None where it has none, or always the same."""
    cell = f"rows[{_quoted(column.name)}]"
    match column.kind:
        case "int" | "float" | "bool" | "decimal":
            code, numbers = f"pc.cast({cell}, pa.float64())", pc.cast(values, pa.float64())
        case "date":
            code, numbers = f"pc.cast(pc.cast({cell}, pa.int32()), pa.float64())", pc.cast(values, pa.int32())
        case "datetime":
            code, numbers = f"pc.cast(pc.cast({cell}, pa.int64()), pa.float64())", pc.cast(values, pa.int64())
        case "str":
            code, numbers = f"pc.cast(pc.utf8_length({cell}), pa.float64())", pc.utf8_length(values)
        case _:
            return None
    found = np.asarray(pc.cast(numbers.drop_null(), pa.float64(), safe=False))
    return (code, found) if len(found) and found.min() < found.max() else None
