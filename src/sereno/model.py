"""Model: what a model file declares. Nothing here is read, loaded or checked beyond the declaration itself."""

from __future__ import annotations

import inspect
import os
import re
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from sereno.exceptions import ModelFileError
from sereno.schema import RowType, row_type

if TYPE_CHECKING:
    from sereno.frames import Form
    from sereno.scoring import Scores

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
F = TypeVar("F", bound=Callable[..., Any])
BATCH_NAMES = ("data_date", "interval")  # what `read` and `ready` may ask for beside values


class Secret(str):
    """A text that is never shown: a parameter annotated `Secret` gets `SERENO_SECRET_<NAME>`, or a file of the secrets folder."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Secret('***')"


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a user's function that is filled by name."""

    name: str
    annotation: Any
    default: Any = inspect.Parameter.empty

    @property
    def is_secret(self) -> bool:
        return self.annotation is Secret


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """An artefact that was fetched."""

    path: Path
    origin: str  # what it was then, which does not change: "s3://bank/net.onnx#sha256=…", "models:/credit/7"


class Model:
    """A trained model, and what it takes to run it.

    Args:
        name: `[a-z0-9][a-z0-9_-]{0,63}`; names the table, the exports and the settings.
        inputs: row type of what the model reads: TypedDict, dataclass or pydantic model; `Key[…]` marks its keys.
        outputs: row type of one prediction.
        artifacts: name → path, relative to the model file, or a URL that is fetched: `s3://…`, `gs://…`, `az://…`, or
            `models:/credit@champion` of an MLflow registry. `"credit.joblib#sha256=…"` pins the content of a file.
        schedule: cron text; daily at midnight if not given.
        time_zone: of the schedule and of data dates; UTC if not given.
        source: where rows come from, in place of `@model.read`: a path with `{data_date}` and `{value}` of Parquet,
            CSV, JSON lines or Delta; or a SQL query (`SELECT …`), with `database`.
        database: `postgresql://…` or a path of an SQLite file.
        tolerance: relative difference between two predictions of the same row that `sereno check` lets pass.

    Raises ModelFileError, or RowTypeError where a row type cannot be enforced on columns.
    """

    def __init__(
        self,
        name: str,
        *,
        inputs: type,
        outputs: type,
        artifacts: Mapping[str, str] | None = None,
        schedule: str | None = None,
        time_zone: str | None = None,
        source: str | None = None,
        database: str | None = None,
        tolerance: float = 1e-9,
    ) -> None:
        if not NAME.fullmatch(name):
            raise ModelFileError(
                f"The model name {name!r} is not valid: use small letters, digits, - and _, at most 64."
            )
        self.name = name
        self.file, self.place = _calling_place()
        self.inputs: RowType = row_type(inputs)
        self.outputs: RowType = row_type(outputs)
        self.artifacts = dict(artifacts or {})
        self.fetched: dict[str, Fetched] = {}  # of those that lie elsewhere: what this process has
        self.tolerance = tolerance
        declared = {"schedule": schedule, "time_zone": time_zone, "source": source, "database": database}
        self.declared: dict[str, str] = {k: v for k, v in declared.items() if v is not None}
        self.load_function: Callable[..., Any] | None = None
        self.read_function: Callable[..., Any] | None = None
        self.predict_function: Callable[..., Any] | None = None
        self.fetch_function: Callable[..., Any] | None = None
        self.ready_function: Callable[..., Any] | None = None
        self.gate_functions: list[Callable[..., Any]] = []  # in declared order
        self._check_columns()

    def load(self, function: F) -> F:
        """Decorator: what loads the model, once in each process. Artefacts arrive by name, as checked local paths."""
        return self._register("load", function)

    def read(self, function: F) -> F:
        """Decorator: what reads an interval's rows, once a run: returns a frame, or yields frames."""
        return self._register("read", function)

    def predict(self, function: F) -> F:
        """Decorator: `predict(loaded, rows)` or `predict(loaded, rows, keys)` answers one prediction a row, in order."""
        return self._register("predict", function)

    def fetch(self, function: F) -> F:
        """Decorator: `fetch(keys)` gets the features of the given keys; may be async."""
        return self._register("fetch", function)

    def ready(self, function: F) -> F:
        """Decorator: what says whether an interval's input has arrived, as True or False. Asked until it has."""
        return self._register("ready", function)

    def gate(self, function: F) -> F:
        """Decorator, for any number of functions: a check of a run's whole output before it is published.

        `gate(profile)` or `gate(profile, predictions: pd.DataFrame)`, then values by name.
        """
        given: object = function
        if not callable(given):
            raise TypeError(f"`model.gate` takes a function, not {type(function).__name__}.")
        name = gate_name(function)
        first = next((one for one in self.gate_functions if gate_name(one) == name), None)
        if first is not None:
            raise ModelFileError(
                f"{place(function)}: model {self.name!r} has two gates named {name!r}; the first is at {place(first)}. "
                "Give this one another name."
            )
        self.gate_functions.append(function)
        return function

    def score(self, rows: Any) -> Scores:
        """Predictions and rejects of some rows, for a notebook or the user's own tests.

        `rows` is a pandas or polars DataFrame, a pyarrow Table, or a list of mappings or row-type instances. The
        model is loaded at the first call, with the settings of the model file's home.
        """
        from sereno.scoring import score_rows

        return score_rows(self, rows)

    def main(self) -> NoReturn:
        """The command line of this one model: `python credit_scoring.py run`."""
        from sereno.cli import main_of

        sys.exit(main_of(self, sys.argv[1:]))

    @property
    def form(self) -> Form:
        """How rows arrive: by the annotation of predict's second parameter."""
        return self._form_of(1)

    @property
    def keys_form(self) -> Form | None:
        """How keys arrive; None: predict does not ask for them."""
        assert self.predict_function is not None
        return self._form_of(2) if len(_positional(self.predict_function)) > 2 else None

    @property
    def fetch_form(self) -> Form | None:
        """How keys reach fetch; None: as a list, since its first parameter is not annotated."""
        from sereno.frames import form_of

        function = self.fetch_function
        assert function is not None
        first = next(iter(_positional(function)), None)
        if first is None:
            raise ModelFileError(f"{place(function)}: fetch takes no keys. Write `def fetch(keys: list[int], …): …`.")
        annotation = _hints(function).get(first.name)
        form = form_of(annotation)
        if (form is None and annotation is not None) or form == "numpy":
            raise ModelFileError(
                f"{place(function)}: parameter {first.name!r} of fetch is annotated {annotation}; it says how keys arrive. "
                "Valid are list[…], pandas.DataFrame, polars.DataFrame and pyarrow.Table."
            )
        return form

    def gate_form(self, function: Callable[..., Any]) -> Form | None:
        """How a gate gets the predictions, keys and outputs; None: it does not ask for them, it gets the profile only."""
        from sereno.frames import form_of

        taken = _positional(function)
        if not taken:
            raise ModelFileError(
                f"{place(function)}: the gate takes no profile. Write `def {gate_name(function)}(profile): …`."
            )
        if len(taken) == 1:
            return None
        annotation = _hints(function).get(taken[1].name)
        form = form_of(annotation)
        if form == "numpy":
            raise ModelFileError(
                f"{place(function)}: parameter {taken[1].name!r} of the gate is annotated {annotation}; it says how the "
                "predictions arrive. Valid are pandas.DataFrame, polars.DataFrame and pyarrow.Table."
            )
        return None if form == "rows" else form  # a list is a value, as any other annotation

    def parameters(self, function: Callable[..., Any], *, given: int = 0) -> list[Parameter]:
        """The parameters of a user's function that are filled by name, after the first `given`."""
        hints = _hints(function)
        named = list(inspect.signature(function).parameters.values())[given:]
        for p in named:
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY):
                raise ModelFileError(
                    f"{place(function)}: parameter {p} of {function.__name__} cannot be filled by name. Name each value."
                )
        return [Parameter(name=p.name, annotation=hints.get(p.name), default=p.default) for p in named]

    def check(self) -> None:
        """Raise ModelFileError unless every declared function can be called as Sereno calls it."""
        for name in ("load", "predict"):
            if getattr(self, f"{name}_function") is None:
                shown = {
                    "load": "def load(pipeline: Path): …",
                    "predict": "def predict(pipeline, rows: pd.DataFrame): …",
                }
                raise ModelFileError(
                    f"{self.place}: model {self.name!r} has no {name} function. Write one under `@model.{name}`: "
                    f"`{shown[name]}`."
                )
        assert self.load_function is not None
        assert self.predict_function is not None
        asked = self.parameters(self.load_function)
        unused = set(self.artifacts) - {p.name for p in asked}
        if unused:
            raise ModelFileError(
                f"{place(self.load_function)}: load does not take the artefact {min(unused)!r}. "
                f"Write `def load({', '.join(f'{a}: Path' for a in self.artifacts)}): …`."
            )
        sync = (self.load_function, self.read_function, self.predict_function, self.ready_function)
        for function in (*sync, *self.gate_functions):
            if function is not None and inspect.iscoroutinefunction(function):
                raise ModelFileError(
                    f"{place(function)}: {function.__name__} is async; only fetch may be. Write `def`."
                )
        taken = _positional(self.predict_function)
        others = [p for p in inspect.signature(self.predict_function).parameters.values() if p not in taken]
        if [p.name for p in taken[2:]] not in ([], ["keys"]) or len(taken) < 2 or any(_is_required(p) for p in others):
            raise ModelFileError(
                f"{place(self.predict_function)}: predict takes {inspect.signature(self.predict_function)}; "
                "it is called as predict(loaded, rows) or predict(loaded, rows, keys)."
            )
        _ = self.form, self.keys_form
        if self.read_function is not None:
            if "source" in self.declared:
                raise ModelFileError(
                    f"{place(self.read_function)}: model {self.name!r} has both read and source=. Leave one out."
                )
            self.parameters(self.read_function)
        if self.ready_function is not None:
            self.parameters(self.ready_function)
        for gate in self.gate_functions:
            self.parameters(gate, given=1 if self.gate_form(gate) is None else 2)
        if self.fetch_function is not None:
            _ = self.fetch_form
            self.parameters(self.fetch_function, given=1)
            if not any(c.role == "fetched" for c in self.inputs.columns):
                raise ModelFileError(
                    f"{place(self.fetch_function)}: {self.inputs.name} has no Fetched column, so there is nothing to fetch. "
                    "Mark what a live request may leave out, e.g. `bought: Fetched[list[int]]`."
                )

    def _register(self, what: str, function: F) -> F:
        given: object = function
        if not callable(given):
            hint = " To score rows call `model.score(rows)`." if what == "predict" else ""
            raise TypeError(f"`model.{what}` takes a function, not {type(function).__name__}.{hint}")
        if getattr(self, f"{what}_function") is not None:
            first = getattr(self, f"{what}_function")
            raise ModelFileError(
                f"{place(function)}: model {self.name!r} has two {what} functions; the first is at {place(first)}."
            )
        setattr(self, f"{what}_function", function)
        return function

    def _form_of(self, position: int) -> Form:
        from sereno.frames import form_of

        function = self.predict_function
        assert function is not None
        parameter = _positional(function)[position]
        annotation = _hints(function).get(parameter.name)
        if position == 2 and annotation is None:
            return self.form
        form = form_of(annotation)
        if form is None:
            shown = "has no annotation" if annotation is None else f"is annotated {annotation}"
            raise ModelFileError(
                f"{place(function)}: parameter {parameter.name!r} of predict {shown}; it says how rows arrive. Valid are "
                f"pandas.DataFrame, polars.DataFrame, pyarrow.Table, numpy.ndarray and list[{self.inputs.name}]."
            )
        columns = self.inputs.keys if position == 2 else self.inputs.features
        texts = [c.name for c in columns if c.kind not in ("int", "float", "bool", "decimal")]
        texts += [c.name for c in columns if c.choices and isinstance(c.choices[0], str) and c.name not in texts]
        if form == "numpy" and texts:
            raise ModelFileError(
                f"{place(function)}: a numpy.ndarray holds numbers only, but {texts[0]!r} is none. Ask for pandas.DataFrame."
            )
        return form

    def _check_columns(self) -> None:
        if not self.inputs.keys:
            raise ModelFileError(
                f"{self.inputs.name} has no key: mark the column that identifies a row, e.g. `customer_id: Key[int]`."
            )
        if not self.inputs.features:
            raise ModelFileError(f"{self.inputs.name} has keys only; a model needs at least one feature.")
        for column in self.outputs.columns:
            if column.role != "feature":
                raise ModelFileError(f"{self.outputs.name}.{column.name}: an output is neither Key nor Fetched.")
            if column.name in {k.name for k in self.inputs.keys}:
                raise ModelFileError(
                    f"{self.outputs.name}.{column.name} is also a key; keys are published with each prediction. Leave it out of "
                    f"{self.outputs.name}, or give the output another name."
                )
        for column in (*self.inputs.keys, *self.outputs.columns):
            if column.name == "data_date":
                raise ModelFileError(
                    "Neither a key nor an output can be named data_date: the table has a column of that name."
                )


def place(function: Callable[..., Any]) -> str:
    """`credit_scoring.py:41`, for messages."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return getattr(function, "__name__", repr(function))
    return f"{os.path.basename(code.co_filename)}:{code.co_firstlineno}"


def gate_name(function: Callable[..., Any]) -> str:
    """What a gate is called in reports: its function's name."""
    return str(getattr(function, "__name__", type(function).__name__))


def _positional(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return [
        p
        for p in inspect.signature(function).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(inspect.unwrap(function))
    except NameError as error:
        raise ModelFileError(
            f"{place(function)}: an annotation of {function.__name__} cannot be read: {error}. Import it at the top of the file."
        ) from error
    except TypeError:  # a callable object, which has no hints of its own
        return typing.get_type_hints(type(function).__call__)


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty


def _calling_place() -> tuple[Path | None, str]:
    """The file whose code called Model(…) and the place for messages; no file in a notebook or an interpreter."""
    frame = sys._getframe(2)
    name = frame.f_globals.get("__file__")
    return (Path(name).resolve(), f"{Path(name).name}:{frame.f_lineno}") if name else (None, "The model")
