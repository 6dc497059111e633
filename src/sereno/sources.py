"""What a `source` names: `{data_date}` and `{value}`s filled in, and the files that are there.

Light to import. What waits for data and what reads it are different processes, and both come here: else a run could
start that finds nothing, or one could wait for what lies there.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import string
from collections.abc import Iterator, Mapping
from operator import itemgetter
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from sereno.exceptions import SettingsError, SourceError
from sereno.places import ObjectPath, Place, is_url, place_of

if TYPE_CHECKING:
    from sereno.object_path import Object
    from sereno.schedule import Interval
    from sereno.settings import Settings

OF_THE_INTERVAL = ("data_date", "interval_start", "interval_end")  # they count more than values of the same name


def values_of_interval(interval: Interval) -> dict[str, Any]:
    """What an interval gives to the text of a source."""
    return {"data_date": interval.data_date, "interval_start": interval.start, "interval_end": interval.end}


def values_for(settings: Settings, interval: Interval) -> dict[str, Any]:
    """Everything that may stand in braces in the text of a source."""
    return {name: value.value for name, value in settings.values.items()} | values_of_interval(interval)


def fill_path(template: str, values: Mapping[str, Any], settings: Settings, base: Path, what: str = "source") -> str:
    """The path or URL with `{data_date}` and `{values}` filled in; a relative path resolves against what names it.

    Raises SettingsError where a name is unknown, or the URL is none of an object store.
    """
    path = fill(template, values, what)
    if is_url(path):
        try:
            return str(place_of(path))
        except SettingsError as error:
            query = " A SQL query needs database=." if what == "source" else ""
            raise SettingsError(f"The {what} {path!r} cannot be read: {error}{query}") from None
    return str(base_of(template, settings, base) / path)


def joined(base: str, path: str) -> str:
    """What a path or URL names that was filled in, seen from a folder."""
    return path if is_url(path) else os.path.join(base, path)


def base_of(template: str, settings: Settings, base: Path) -> Path:
    """The folder against which a relative path resolves: that of what names it, the template or the value it begins with."""
    first = re.match(r"\{(\w+)\}", template)
    return settings.values[first[1]].base if first and first[1] in settings.values else base


def fill(template: str, values: Mapping[str, Any], what: str) -> str:
    """A setting with `{names}` filled in. Raises SettingsError, which never shows more than the name that is missing."""
    try:
        return template.format(**values)
    except KeyError as error:
        raise SettingsError(
            f"The {what} asks for {error}, which nothing gives. Known are {', '.join(sorted(values))}; "
            "add it to [values] in sereno.toml."
        ) from None
    except (ValueError, IndexError, AttributeError) as error:
        raise SettingsError(
            f"The {what} cannot be filled in: {error}. Write {{{{ and }}}} for braces that are meant."
        ) from None


def without_values(template: str, settings: Settings) -> str:
    """The template with the values filled in, so that it asks for nothing but what an interval gives.

    It can be filled in (`fill_path` tells what is wrong with one that cannot). Filled in later it is the same text.
    """
    values = {name: value.value for name, value in settings.values.items()}
    text = ""
    for literal, name, form, conversion in string.Formatter().parse(template):
        text += _braced(literal)
        if name is None:
            continue
        whole = "{" + name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "") + "}"
        if re.split(r"[.\[]", name)[0] in OF_THE_INTERVAL:
            nested = without_values(form, settings) if form else ""
            text += whole[: len(whole) - len(form or "") - 1] + nested + "}"
        else:
            text += _braced(whole.format(**values))
    return text


def _braced(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def find_files(source: str) -> dict[Place, Object | None]:
    """The data files of a path or URL, a folder (with what is below it) or a glob, sorted; and what a store says of each.

    Raises SourceError if there is none, and StorageError where an object store cannot be asked.
    """
    files: dict[Place, Object | None] = (
        dict(sorted(iter_objects(source), key=itemgetter(0)))
        if is_url(source)
        else dict.fromkeys(sorted(iter_files(source)))
    )
    if not files:
        raise SourceError(
            f"The source {source} is missing: there is no such file, or the folder or pattern holds none. "
            "If it arrives later, start the run again then; if its place is another, mend source= or [values]."
        )
    return files


def iter_files(source: str) -> Iterator[Path]:
    """The data files of a path, a folder or a glob, as they are found: whoever needs to know of one reads no more."""
    path = Path(source)
    if path.is_dir():
        yield from (f for f in path.rglob("*") if f.is_file() and not is_hidden(f.relative_to(path)))
    elif path.is_file():
        yield path
    else:
        # what the pattern names itself may be hidden, what it finds may not
        fixed = len(fixed_part(source).parts)
        found = (Path(f) for f in glob.iglob(source, recursive=True))
        yield from (f for f in found if f.is_file() and not is_hidden(Path(*f.parts[fixed:])))


def iter_objects(source: str) -> Iterator[tuple[ObjectPath, Object]]:
    """The objects of a URL: itself, those below it, or a pattern's; as `iter_files` has them. Raises StorageError."""
    place = ObjectPath.of(source)
    fixed = place_before_pattern(place)
    if place.key:
        try:
            yield place, place.look()  # also one whose name looks like a pattern
            return
        except FileNotFoundError:
            pass
    for path, known in place.below() if fixed == place else match_objects(place):
        if not is_hidden(path.relative_to(fixed)) and not (known.size == 0 and path.name.endswith("_$folder$")):
            yield path, known


def place_before_pattern(place: ObjectPath) -> ObjectPath:
    """As `fixed_part`; the place itself, if it is no pattern."""
    if not glob.has_magic(place.key):
        return place
    return ObjectPath.of(str(place)[: len(str(place)) - len(place.key)]) / fixed_part(place.key).as_posix()


def match_objects(pattern: ObjectPath) -> Iterator[tuple[ObjectPath, Object]]:
    """The objects whose names have the form of a pattern, hidden ones too. Raises StorageError."""
    fixed = place_before_pattern(pattern)
    yield from _matches(fixed, pattern.relative_to(fixed).parts)


def _matches(folder: ObjectPath, pattern: tuple[str, ...]) -> Iterator[tuple[ObjectPath, Object]]:
    """Level by level, as folders that do not fit may hold a million objects; all that is below where it says `**`."""
    first, *rest = pattern
    if first == "**":
        for path, known in folder.below():
            if _fits(path.relative_to(folder).parts, pattern):
                yield path, known
        return
    folders, objects = folder.listed()
    if not rest:
        yield from ((path, known) for path, known in objects if _fits((path.name,), pattern))
    for below in folders if rest else []:
        if _fits((below.name,), (first,)):
            yield from _matches(below, tuple(rest))


def _fits(names: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a path has a pattern's form, `**` standing for any number of folders."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(_fits(names[i:], pattern[1:]) for i in range(len(names) + 1)) if pattern[1:] else True
    return bool(names) and fnmatch.fnmatchcase(names[0], pattern[0]) and _fits(names[1:], pattern[1:])


def fixed_part(pattern: str) -> Path:
    """The folder that a pattern names before it says `*`, `?` or `[`."""
    return Path(re.split(r"[*?[]", pattern)[0] + "x").parent


def is_hidden(path: PurePath) -> bool:
    """Whether a part of the path begins as what programs keep for themselves: `.part-0.crc`, `_temporary`."""
    return any(part.startswith((".", "_")) for part in path.parts)


def is_delta_table(source: str) -> bool:
    """Whether it names a Delta table. Raises StorageError where an object store cannot be asked."""
    if is_url(source):
        return not glob.has_magic(source) and (ObjectPath.of(source) / "_delta_log").is_dir()
    return os.path.isdir(os.path.join(source, "_delta_log"))
