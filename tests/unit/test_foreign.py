"""Texts that others wrote: nothing in them is obeyed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sereno.foreign import harmless


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plan – básico 10 %", "plan – básico 10 %"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("two\nlines\r", "two\\x0alines\\x0d"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("x" * 300, "x" * 199 + "…"),
    ],
)
def test_harmless(text: str, shown: str) -> None:
    assert harmless(text) == shown


@given(st.text())
def test_it_is_one_line_that_can_be_printed(text: str) -> None:
    shown = harmless(text, 1_000)
    assert shown.isprintable()
    assert len(shown.splitlines()) < 2
