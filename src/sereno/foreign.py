"""Texts that others wrote (names of columns, categories, reasons), made fit to be shown in a line."""

from __future__ import annotations


def harmless(text: str, most: int = 200) -> str:
    """The text in one line, no longer than `most`, with nothing in it that a terminal would obey.

    Colours and cursor movements, line ends, and characters that turn the direction of writing are shown as escapes.
    """
    shown = text if len(text) <= most else f"{text[: most - 1]}…"
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else _escape(c) for c in shown)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
