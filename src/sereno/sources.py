"""What a `source` names: `{data_date}` and `{value}`s filled in, and the files that are there.

Light to import. What waits for data and what reads it are different processes, and both come here: else a run could
start that finds nothing, or one could wait for what lies there.
"""

from __future__ import annotations

import glob
import os
import re
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sereno.exceptions import SettingsError, SourceError

if TYPE_CHECKING:
    from sereno.config import Settings
    from sereno.schedule import Interval

OF_THE_INTERVAL = ("data_date", "interval_start", "interval_end")  # they count more than values of the same name


def values_of_interval(interval: Interval) -> dict[str, Any]:
    """What an interval gives to the text of a source."""
    return {"data_date": interval.data_date, "interval_start": interval.start, "interval_end": interval.end}


def values_for(settings: Settings, interval: Interval) -> dict[str, Any]:
    """Everything that may stand in braces in the text of a source."""
    return {name: value.value for name, value in settings.values.items()} | values_of_interval(interval)


def fill_path(template: str, values: Mapping[str, Any], settings: Settings, base: Path, what: str = "source") -> str:
    """The path with `{data_date}` and `{values}` filled in; a relative one resolves against what names it.

    Raises SettingsError where a name is unknown, or the path is none of this machine.
    """
    path = fill(template, values, what)
    if "://" in path:
        valid = "Valid is a path, or a SQL query with database=." if what == "source" else "Valid is a path."
        raise SettingsError(f"The {what} {path!r} is not on a disk of this machine. {valid}")
    return str(base_of(template, settings, base) / path)


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


def find_files(source: str) -> list[Path]:
    """The data files of a path, a folder (with what is below it) or a glob, sorted. Raises SourceError if there is none."""
    files = sorted(iter_files(source))
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


def fixed_part(pattern: str) -> Path:
    """The folder that a pattern names before it says `*`, `?` or `[`."""
    return Path(re.split(r"[*?[]", pattern)[0] + "x").parent


def is_hidden(path: Path) -> bool:
    """Whether a part of the path begins as what programs keep for themselves: `.part-0.crc`, `_temporary`."""
    return any(part.startswith((".", "_")) for part in path.parts)


def is_delta_table(source: str) -> bool:
    return os.path.isdir(os.path.join(source, "_delta_log"))
