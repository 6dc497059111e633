"""Checks of ours that schemathesis runs on every answer."""

import re

import schemathesis
from schemathesis import Case, CheckContext, GenerationMode, Response

OURS = re.compile(r"(/models/[^/]+)?/predict")
LOOKUPS = re.compile(r"(/models/[^/]+)?/predictions(/.+)?")
# rules of rows that JSON Schema cannot say; see sereno/json_schema.py
UNSAID = re.compile(
    r"a float cannot hold it exactly|must be a decimal number|must be (at least|more than|at most|less than) "
    r"(\d{4}-\d\d-\d\d|-?\d+\.\d+$)"
)


@schemathesis.check
def valid_rows_are_answered(ctx: CheckContext, response: Response, case: Case) -> None:
    """On our own paths, rows that fit the schema get predictions, unless they break a rule that it only describes."""
    if not OURS.fullmatch(case.path) or case.method.upper() != "POST":
        return
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    if response.status_code == 422:
        broken = [error for error in response.json()["errors"] if not UNSAID.search(error["expected"])]
        assert not broken, f"Rows that fit the schema were refused: {broken}"
    else:
        assert response.status_code in (200, 401), f"Rows that fit the schema got {response.status_code}"


@schemathesis.check
def valid_keys_are_looked_up(ctx: CheckContext, response: Response, case: Case) -> None:
    """What fits the schema of a key is one."""
    if not LOOKUPS.fullmatch(case.path) or case.method.upper() not in ("GET", "POST"):
        return
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    valid = (200, 304, 401, 404) if case.method.upper() == "GET" else (200, 401)
    assert response.status_code in valid, f"A key that fits the schema got {response.status_code}"


@schemathesis.check
def errors_tell_no_secrets(ctx: CheckContext, response: Response, case: Case) -> None:
    """No error holds a path of the machine or a traceback."""
    if response.status_code >= 400:
        text = response.content.decode("utf-8", "replace")
        assert not re.search(r"Traceback|\.py\b|/(usr|home|tmp|root|work)/", text), text
