"""Lines: whole ones in a log that several processes write to, tables and ages as the terminal shows them. Light."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TextIO


def whole_lines(*streams: TextIO) -> None:
    """From now on each of these writes a line at once, when it is whole.

    Python writes to stderr at once whatever it is given, the end of a line apart, and to a pipe when some pages are full:
    the words of another process come in between.
    """
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper) and not stream.isatty():
            stream.reconfigure(line_buffering=True, write_through=False)


def age(now: datetime, data_time: datetime) -> str:
    """How old data is: now − data time."""
    seconds = int((now - data_time).total_seconds())
    days, rest = divmod(max(seconds, 0), 86_400)
    return f"{days} d {rest // 3600} h" if days else f"{rest // 3600} h {rest % 3600 // 60} min"


def table_lines(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Rows of as many cells, in columns as wide as their widest."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
