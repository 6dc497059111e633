"""Row types become columns: the one description of rows that everything else reads.

A row type is an ordinary annotated class: TypedDict, dataclass or pydantic model. `row_type(cls)` reads it once,
when the model file is loaded, and refuses what cannot be enforced on a column. From the columns follow the Arrow
schema (`arrow_schema`), the checks (`checks.py`), the JSON decoder (`rows.py`) and the JSON Schema (`json_schema.py`).
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import annotated_types as at

from sereno.exceptions import RowTypeError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Role:
    """What a column is for; it stands in `Annotated`, where type checkers look past it."""

    name: Literal["feature", "key", "fetched"]


@dataclass(frozen=True)
class Digits:
    """`Annotated[Decimal, Digits(12, 2)]`: at most 12 digits in all, 2 of them behind the point."""

    precision: int
    scale: int


T = TypeVar("T")
Key = Annotated[T, Role("key")]
"""`Key[int]`: the column identifies the row, is no feature, and is published beside the prediction."""
Fetched = Annotated[T, Role("fetched")]
"""`Fetched[float]`: a live request may leave the column out; `@model.fetch` gets it by key. In batch `read` has it."""

Kind = Literal["int", "float", "bool", "str", "date", "datetime", "decimal", "list", "row"]
KINDS: dict[type, Kind] = {
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    datetime: "datetime",
    date: "date",
    Decimal: "decimal",
}
ABSENT: Any = type("Absent", (), {"__repr__": lambda self: "ABSENT", "__bool__": lambda self: False})()
"""No default: a row without the column is refused. (None would be a default of null.)"""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a row type, with everything that a value in it must satisfy."""

    name: str
    kind: Kind
    nullable: bool = False
    default: Any = ABSENT  # the value of a row that leaves the column out; absent is not null
    role: Literal["feature", "key", "fetched"] = "feature"
    choices: tuple[str | int, ...] = ()  # of a Literal or Enum: the values that may stand in the column
    enum: type[enum.Enum] | None = None  # rows given to `predict` as objects hold its members
    ge: Any = None
    gt: Any = None
    le: Any = None
    lt: Any = None
    multiple_of: Any = None
    min_length: int | None = None
    max_length: int | None = None
    pattern: str | None = None  # RE2 syntax, searched for anywhere in the text
    precision: int = 0  # of a Decimal: digits in all
    scale: int = 0  # of a Decimal: digits behind the point
    item: Column | None = None  # of a list
    row: RowType | None = None  # of a nested row

    @property
    def arrow_type(self) -> pa.DataType:
        import pyarrow as pa

        match self.kind:
            case "int":
                return pa.int64()
            case "float":
                return pa.float64()
            case "bool":
                return pa.bool_()
            case "str":
                return pa.string()
            case "date":
                return pa.date32()
            case "datetime":
                return pa.timestamp("us", "UTC")
            case "decimal":
                return pa.decimal128(self.precision, self.scale)
            case "list":
                assert self.item is not None
                return pa.list_(pa.field("item", self.item.arrow_type, self.item.nullable))
            case "row":
                assert self.row is not None
                return pa.struct(list(self.row.arrow_schema()))


@dataclass(frozen=True, kw_only=True)
class RowType:
    """The columns of one row type, in declared order."""

    name: str
    cls: type
    style: Literal["typeddict", "dataclass", "pydantic"]
    columns: tuple[Column, ...]

    @property
    def keys(self) -> tuple[Column, ...]:
        return tuple(c for c in self.columns if c.role == "key")

    @property
    def features(self) -> tuple[Column, ...]:
        return tuple(c for c in self.columns if c.role != "key")

    def arrow_schema(self, columns: Iterable[Column] | None = None) -> pa.Schema:
        import pyarrow as pa

        chosen = self.columns if columns is None else columns
        return pa.schema([pa.field(c.name, c.arrow_type, c.nullable) for c in chosen])


def row_type(cls: type) -> RowType:
    """Read a row type. Raises RowTypeError, which names class, field, what is wrong and what to write instead."""
    style, fields = _fields(cls)
    if not fields:
        raise RowTypeError(f"Row type {cls.__name__} has no fields; it needs at least one, e.g. `amount: float`.")
    columns = tuple(_column(cls.__name__, name, annotation, default) for name, annotation, default in fields)
    return RowType(name=cls.__name__, cls=cls, style=style, columns=columns)


def _fields(cls: type) -> tuple[Literal["typeddict", "dataclass", "pydantic"], list[tuple[str, Any, Any]]]:
    if not isinstance(cls, type):
        raise RowTypeError(f"{cls!r} is no row type. Write a TypedDict, a dataclass or a pydantic model.")
    if _is_pydantic(cls):
        return "dataclass" if dataclasses.is_dataclass(cls) else "pydantic", _pydantic_fields(cls)
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise RowTypeError(
            f"Row type {cls.__name__}: {error}. Import the name at the top of the file, outside functions and "
            "`if TYPE_CHECKING`: annotations are read when the file is loaded."
        ) from error
    if _is_typeddict(cls):
        optional: frozenset[str] = getattr(cls, "__optional_keys__", frozenset())
        for name, hint in hints.items():
            # the hint counts: `from __future__ import annotations` hides it from the class
            said = typing.get_origin(hint)
            if said is typing.NotRequired or (name in optional and said is not typing.Required):
                raise RowTypeError(
                    f"{cls.__name__}.{name} may be left out (NotRequired or total=False), but a column cannot be "
                    f"absent in one row only. Write `{name}: X | None`, or a dataclass with a default."
                )
        return "typeddict", [(name, hint, ABSENT) for name, hint in hints.items()]
    if dataclasses.is_dataclass(cls):
        if hasattr(cls, "__post_init__"):
            raise RowTypeError(
                f"{cls.__name__} has `__post_init__`, which cannot be enforced on a column. "
                "Write the rule with annotated_types in Annotated (Ge, Le, MinLen, …), or check it in `predict`."
            )
        fields = []
        for field in dataclasses.fields(cls):
            default: Any = ABSENT
            if field.default is not dataclasses.MISSING:
                default = field.default
            elif field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            fields.append((field.name, hints[field.name], default))
        return "dataclass", fields
    raise RowTypeError(
        f"{cls.__name__} is no row type: it is neither a TypedDict, nor a dataclass, nor a pydantic model. "
        f"Write `class {cls.__name__}(TypedDict): …`."
    )


def _pydantic_fields(cls: Any) -> list[tuple[str, Any, Any]]:
    decorators = cls.__pydantic_decorators__
    for what in ("field_validators", "model_validators", "validators", "root_validators"):
        for name in getattr(decorators, what, {}):
            raise RowTypeError(
                f"{cls.__name__} has the validator `{name}`, which cannot be enforced on a column. "
                "Write the rule with annotated_types in Annotated (Ge, Le, MinLen, …), or check it in `predict`."
            )
    config = getattr(cls, "model_config", {})
    for option in ("str_strip_whitespace", "str_to_lower", "str_to_upper", "str_min_length", "str_max_length"):
        if config.get(option):
            raise RowTypeError(f"{cls.__name__} sets {option}, which cannot be enforced on a column. Leave it out.")
    fields = []
    for name, info in cls.__pydantic_fields__.items():
        if info.alias is not None:
            raise RowTypeError(f"{cls.__name__}.{name} has an alias, which a column cannot have. Rename the field.")
        annotation = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
        default = ABSENT if info.is_required() else info.get_default(call_default_factory=True)
        fields.append((name, annotation, default))
    return fields


def _column(owner: str, name: str, annotation: Any, default: Any = ABSENT) -> Column:
    """The column that an annotation describes; Annotated, unions with None and Literal may nest in any order."""
    where = f"{owner}.{name}"
    settings: dict[str, Any] = {"name": name}
    base = _peel(where, annotation, settings)
    origin = typing.get_origin(base)
    if origin is Literal:
        choices = typing.get_args(base)
        settings |= _choices(where, tuple(c for c in choices if c is not None))
        settings["nullable"] = settings.get("nullable", False) or None in choices
    elif isinstance(base, type) and issubclass(base, enum.Enum):
        settings |= _choices(where, tuple(member.value for member in base))
        settings["enum"] = base
    elif base in KINDS:
        settings["kind"] = KINDS[base]
    elif origin is list:
        settings["kind"] = "list"
        settings["item"] = _column(owner, f"{name}[]", typing.get_args(base)[0])
    elif isinstance(base, type) and (_is_typeddict(base) or dataclasses.is_dataclass(base) or _is_pydantic(base)):
        settings["kind"] = "row"
        settings["row"] = row_type(base)
    else:
        raise RowTypeError(f"{where}: {_shown(base)} cannot be a column. {_instead(base)}")
    return _consistent(where, Column(**settings), default)


def _peel(where: str, annotation: Any, settings: dict[str, Any]) -> Any:
    """Take off Annotated and `| None`, noting in `settings` what they say; return what is left."""
    while True:
        origin = typing.get_origin(annotation)
        if origin is Annotated:
            annotation, *metadata = typing.get_args(annotation)
            for item in metadata:
                _note(where, item, settings)
        elif origin is typing.Required:
            annotation = typing.get_args(annotation)[0]
        elif hasattr(annotation, "__supertype__"):  # NewType
            annotation = annotation.__supertype__
        elif hasattr(annotation, "__value__"):  # type X = …
            annotation = annotation.__value__
        elif origin in (typing.Union, types.UnionType):
            some = [a for a in typing.get_args(annotation) if a is not type(None)]
            if len(some) != 1 or len(some) == len(typing.get_args(annotation)):
                raise RowTypeError(
                    f"{where}: {_shown(annotation)} has several types, but a column has one. Write one type, "
                    "with `| None` where it may be missing."
                )
            settings["nullable"] = True
            annotation = some[0]
        else:
            return annotation


BOUNDS = {at.Ge: "ge", at.Gt: "gt", at.Le: "le", at.Lt: "lt", at.MultipleOf: "multiple_of"}


def _note(where: str, item: Any, settings: dict[str, Any]) -> None:
    """Take down one object of Annotated's metadata."""
    if isinstance(item, Role):
        if "[]" in where:
            raise RowTypeError(f"{where}: only a column of its own is a key or fetched, not what a list holds.")
        settings["role"] = item.name
    elif isinstance(item, Digits):
        settings |= {"precision": item.precision, "scale": item.scale}
    elif type(item) in BOUNDS:
        name = BOUNDS[type(item)]
        settings[name] = getattr(item, name)
    elif isinstance(item, at.MinLen):
        settings["min_length"] = item.min_length
    elif isinstance(item, at.MaxLen):
        settings["max_length"] = item.max_length
    elif isinstance(item, at.GroupedMetadata):  # Interval, Len, and pydantic's FieldInfo are groups of the above
        for part in item:
            _note(where, part, settings)
    elif _is_pydantic_field(item):
        for part in item.metadata:
            _note(where, part, settings)
    elif type(item).__name__.lstrip("_") == "PydanticGeneralMetadata":
        for name, value in vars(item).items():
            _general(where, name, value, settings)
    elif item is None or isinstance(item, str) or type(item).__name__ in ("Doc", "DocInfo", "Unit"):
        pass  # a description, which restricts nothing; pydantic's conint() and the like leave None
    else:
        raise RowTypeError(
            f"{where}: {item!r} cannot be enforced on a column. Valid are Ge, Gt, Le, Lt, Interval, MultipleOf, MinLen, "
            "MaxLen and Len of annotated_types, and pydantic's Field with the same; other rules belong in `predict`."
        )


def _general(where: str, name: str, value: Any, settings: dict[str, Any]) -> None:
    """What pydantic's Field holds beyond annotated_types."""
    known = {"pattern": "pattern", "max_digits": "precision", "decimal_places": "scale"}
    if name in known:
        settings[known[name]] = value if isinstance(value, int) else getattr(value, "pattern", value)
    elif not (name in ("strict", "allow_inf_nan") and value is not True):
        raise RowTypeError(f"{where}: Field({name}={value!r}) cannot be enforced on a column. Leave it out.")


def _choices(where: str, values: tuple[Any, ...]) -> dict[str, Any]:
    kinds = {type(v) for v in values}
    if kinds not in ({str}, {int}):
        raise RowTypeError(f"{where}: the choices {list(values)!r} must be all text or all whole numbers.")
    return {"kind": KINDS[kinds.pop()], "choices": values}


def _consistent(where: str, column: Column, default: Any) -> Column:
    """The column with bounds and default as its kind has them. Raises RowTypeError for rules that do not fit the kind."""
    from sereno.values import Refused, admit, matches, plain_value

    def fitting(what: str, value: Any, like: Column) -> Any:
        try:
            return admit(like, plain_value(value))
        except Refused as reason:
            said = str(reason).removeprefix(f"{like.name}: ")
            raise RowTypeError(f"{where}: the {what} {value!r} does not fit: it {said}.") from None

    ordered = column.kind in ("int", "float", "date", "datetime", "decimal") and not column.choices
    plain = Column(name=column.name, kind=column.kind, precision=38, scale=column.scale)
    changes: dict[str, Any] = {}
    for name in ("ge", "gt", "le", "lt"):
        bound = getattr(column, name)
        if bound is None:
            continue
        if not ordered:
            raise RowTypeError(
                f"{where}: a bound ({name.capitalize()}) needs numbers, dates or decimals, not {column.kind}."
            )
        if column.kind == "decimal" and isinstance(bound, float):
            bound = Decimal(repr(bound))
        changes[name] = fitting("bound", bound, plain)
    for choice in column.choices:
        fitting("choice", choice, plain)
    if column.multiple_of is not None:
        if column.kind != "int":
            raise RowTypeError(f"{where}: MultipleOf is checked on whole numbers only; floats have no exact multiples.")
        changes["multiple_of"] = fitting("factor", column.multiple_of, Column(name=column.name, kind="int", ge=1))
    sized = column.kind in ("str", "list")
    if (column.min_length is not None or column.max_length is not None) and not sized:
        raise RowTypeError(f"{where}: a length needs text or a list, not {column.kind}.")
    if column.pattern is not None:
        if column.kind != "str":
            raise RowTypeError(f"{where}: a pattern needs text, not {column.kind}.")
        try:
            matches(column.pattern, "")
        except ValueError as error:
            raise RowTypeError(
                f"{where}: the pattern {column.pattern!r} is not RE2, which has no look-around and no back-references: "
                f"{error}."
            ) from None
    if column.kind == "decimal" and not max(column.scale, 1) <= column.precision <= 38:
        raise RowTypeError(
            f"{where}: a Decimal needs its precision (1 to 38 digits in all) and scale (how many of them). Write "
            "`Annotated[Decimal, Digits(12, 2)]` with `from sereno import Digits`, or pydantic's "
            "`Field(max_digits=12, decimal_places=2)`."
        )
    if column.role == "key" and (column.nullable or column.kind not in ("int", "str", "date")):
        raise RowTypeError(f"{where}: a key is int, str or date and never null; this is {_words(column)}.")
    if column.row is not None and any(c.role != "feature" for c in column.row.columns):
        raise RowTypeError(f"{where}: {column.row.name} is nested here, where nothing is a key or fetched.")
    if default is None and not column.nullable:
        raise RowTypeError(f"{where}: the default is None, so the type must allow it. Write `{column.kind} | None`.")
    column = dataclasses.replace(column, **changes)
    if default is ABSENT:
        return column
    if column.role == "key":
        raise RowTypeError(f"{where}: a key has no default; two rows without it would be one.")
    return dataclasses.replace(column, default=fitting("default", default, column))


def _is_typeddict(cls: type) -> bool:
    return hasattr(cls, "__required_keys__")  # also that of typing_extensions, which pydantic asks for before 3.12


def _is_pydantic(cls: type) -> bool:
    return hasattr(cls, "__pydantic_fields__") and hasattr(cls, "__pydantic_decorators__")


def _is_pydantic_field(item: Any) -> bool:
    return type(item).__module__.startswith("pydantic.") and hasattr(item, "metadata")


def _shown(annotation: Any) -> str:
    return annotation.__name__ if inspect.isclass(annotation) else str(annotation).replace("typing.", "")


def _words(column: Column) -> str:
    return f"{column.kind} | None" if column.nullable else column.kind


def _instead(base: Any) -> str:
    hints = {
        "bytes": "Binary data is not supported: pass a path or an id as `str`.",
        "timedelta": "Write the number of seconds as `float` and say so in the name (`wait_seconds`).",
        "time": "Write the minutes since midnight as `int`, or the whole `datetime`.",
        "dict": "Write a row type (TypedDict) with the keys that it has, or `list[Pair]`.",
        "list": "Say of what: `list[str]`, `list[float]`, `list[Item]`.",
        "tuple": "Write `list[float]`, or a row type with one field each.",
        "set": "Write `list[str]`.",
        "Any": "Say what it is.",
        "ndarray": "Write `list[float]`.",
    }
    plain = _shown(typing.get_origin(base) or base)
    valid = "Valid are int, float, bool, str, date, datetime, Decimal, Literal, Enum, list[…] and nested row types."
    return hints.get(plain, valid)
