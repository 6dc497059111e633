"""What a user's gate is given, and what it may answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sereno.batch.profile import ColumnProfile


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What was counted of a run: the first parameter of a function under `@model.gate`.

    A column has `rows`, `nulls`, `least`, `greatest`, `mean`, `quantile(0.9)`, `distinct` and `categories`; what it
    cannot have is None or empty, as the mean of texts.
    """

    inputs: Mapping[str, ColumnProfile]  # the features of all rows that fit the input type
    outputs: Mapping[str, ColumnProfile]  # of the predictions


class Warn(str):
    """`return Warn("few new customers")`: the gate lets the run be published, and people are told why it hesitated."""

    __slots__ = ()
