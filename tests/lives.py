"""What the tests of protocols ask: models in service without a server, and requests as the server hands them on."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import sys
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import httpx
from annotated_types import Ge

from sereno import Key, Model
from sereno.rows import RowDecoder
from sereno.schema import RowType
from sereno.scoring import Scorer
from sereno.serve.app import create_app
from sereno.serve.live import Live
from sereno.serve.metrics import Metrics
from sereno.serve.service import Service
from sereno.serve.wire import Request
from sereno.settings import ModelSettings, ServeSettings

MODEL = '''
"""Adds up what is there."""
from typing import Annotated, TypedDict
import numpy as np
from annotated_types import Ge
from sereno import Key, Model


class Row(TypedDict):
    id: Key[int]
    a: Annotated[int, Ge(0)]
    b: float | None


class Answer(TypedDict):
    total: float
    is_large: bool


model = Model("total", inputs=Row, outputs=Answer)


@model.load
def load() -> None: ...


@model.predict
def predict(loaded: None, rows: np.ndarray) -> dict:
    if (rows[:, 0] == 13).any():
        raise ValueError("thirteen")
    total = np.nansum(rows, axis=1)
    return {"total": total, "is_large": total > 10}
'''


class Applicant(TypedDict):
    id: Key[int]
    age: Annotated[int, Ge(18)]
    income: float | None
    purpose: Literal["car", "boat"]
    since: date
    tags: list[str] | None


class Score(TypedDict):
    score: float


def live_of(inputs: Any, outputs: Any, **limits: int) -> Live:
    """A model that reads requests and writes replies, but is not asked in between."""
    model = Model("m", inputs=inputs, outputs=outputs)
    model.load(lambda: None)

    @model.predict
    def predict(loaded: None, rows: list) -> Any:  # type: ignore[type-arg]
        raise AssertionError("these tests do not predict")

    async def make() -> Live:
        limit = ServeSettings(**limits)  # type: ignore[arg-type]
        return Live(Scorer(model, None), "0123456789abcdef" * 4, ModelSettings(), limit, metrics=Metrics())

    return asyncio.run(make())


def live_with(like: Live, row: RowType) -> Live:
    """One that reads requests for rows of any type, as property tests draw them."""
    live = copy.copy(like)
    live.row = live.inputs = row
    live.decoder = RowDecoder(row)
    return live


def request_of(body: Any, headers: Mapping[str, str] | None = None, path: str = "/invocations") -> Request:
    """A POST; what is neither bytes nor text goes as JSON."""
    raw = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    sent = [(b"host", b"localhost"), *((k.lower().encode(), v.encode()) for k, v in (headers or {}).items())]
    return Request(b"POST", path.encode(), b"", sent, raw, b"id-1")


class Served:
    """The application of some model files, asked without a socket."""

    def __init__(self, *files: Path) -> None:
        self._app = create_app(*files)
        self._runner = asyncio.Runner()
        try:
            self._runner.run(self._open())
        except BaseException:
            self._runner.close()
            raise

    @property
    def service(self) -> Service:
        return self._app.opened()

    def ask(self, method: str, path: str, content: Any = None, **headers: str) -> httpx.Response:
        """One request; header names have `_` for `-`."""
        if content is not None and not isinstance(content, bytes | str):
            content = json.dumps(content)
        return self._runner.run(self._ask(method, path, content, {k.replace("_", "-"): v for k, v in headers.items()}))

    def close(self) -> None:
        self._runner.run(self._app.close())
        self._runner.close()

    async def _open(self) -> None:
        self._app.opened()

    async def _ask(self, method: str, path: str, content: Any, headers: dict[str, str]) -> httpx.Response:
        transport = httpx.ASGITransport(app=self._app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, content=content, headers=headers)


@contextlib.contextmanager
def served(*files: Path) -> Iterator[Served]:
    """Their application. What opening models changes is put back: the working folder, and modules of their names."""
    before = Path.cwd()
    try:
        one = Served(*files)
        try:
            yield one
        finally:
            one.close()
    finally:
        os.chdir(before)
        for file in files:
            sys.modules.pop(file.stem, None)
