"""Lines in a log that several processes write to: each in one piece."""

from __future__ import annotations

import io
from typing import TextIO


def whole_lines(*streams: TextIO) -> None:
    """From now on each of these writes a line at once, when it is whole.

    Python writes to stderr at once whatever it is given, the end of a line apart, and to a pipe when some pages are full:
    the words of another process come in between.
    """
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper) and not stream.isatty():
            stream.reconfigure(line_buffering=True, write_through=False)
