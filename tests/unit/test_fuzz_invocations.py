"""Bodies that nobody should send, by the thousand: a RequestError or rows, nothing else, and no memory is kept."""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from pathlib import Path

import pytest

from sereno.serve.protocols import mlflow, vertex
from sereno.serve.protocols.invocations import Invocations
from sereno.serve.protocols.vertex import Instances
from sereno.serve.wire import RequestError
from tests.lives import Applicant, Score, live_of, request_of

LIVE = live_of(Applicant, Score, max_rows=20)
TYPES = ["application/json", "text/csv", "application/jsonlines"]
ACCEPTS = ["*/*", "application/json", "text/csv", "application/jsonlines"]
ROW = {"age": 40, "income": 2.5, "purpose": "car", "since": "2026-05-01", "tags": ["new"]}
NAMES, VALUES = list(ROW), list(ROW.values())
SEEDS = [
    *(json.dumps(form).encode() for form in (
        {"dataframe_split": {"columns": NAMES, "index": [0, 1], "data": [VALUES, VALUES]}},
        {"dataframe_split": {"data": [[1, *VALUES]]}},
        {"dataframe_records": [ROW, {**ROW, "id": 3}], "params": {"a": 1}},
        {"instances": [ROW, ROW]}, {"instances": [VALUES]},
        {"inputs": {name: [value, value] for name, value in ROW.items()}}, {"inputs": ROW},
    )),
    b"\n".join([json.dumps(ROW).encode(), json.dumps(VALUES).encode()] * 2),
    b"age,income,purpose,since,tags\n40,2.5,car,2026-05-01,\n",
    b'40,"2.5","car",2026-05-01,\n41,,boat,2026-05-02,\n',
    b"\n".join([b"40,,car,2026-05-01,"] * 40),
]  # fmt: skip
PIECES = [b'"', b"'", b"\\", b"[", b"]", b"{", b"}", b",", b":", b"\n", b"\r", b"null", b"NaN", b"-0", b"1e999", b"9" * 25, b"\xff",
          b"\\ud800", b'"data"', b'"columns"', b'"instances":', b"\xef\xbb\xbf", b"[" * 50, b'""', b"\0", b" "]  # fmt: skip


def mutated(chance: random.Random) -> bytes:
    body = bytearray(chance.choice(SEEDS))
    for _ in range(chance.choice((0, 1, 1, 2, 3, 8))):
        at = chance.randrange(len(body) + 1)
        match chance.randrange(4):
            case 0:
                del body[at : at + chance.choice((1, 1, 3, 20))]
            case 1:
                body[at:at] = chance.choice(PIECES)
            case 2:
                start = chance.randrange(len(body) + 1)
                body[at:at] = body[start : start + chance.choice((1, 5, 40))]
            case _:
                body[at : at + 1] = bytes([chance.randrange(256)])
    return bytes(body)


def memory() -> int:
    """Resident, in KiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


@pytest.mark.parametrize("cases", [4_000, pytest.param(300_000, marks=pytest.mark.soak)])
def test_rows_or_a_request_error(cases: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("sereno.serve"), "disabled", True)
    chance = random.Random(cases)
    once, batch, instances = Invocations(LIVE, batch=False), Invocations(LIVE, batch=True), Instances(LIVE)
    statuses: Counter[int] = Counter()
    before = 0
    for case in range(cases):
        body = mutated(chance)
        headers = {"Content-Type": chance.choice(TYPES), "Accept": chance.choice(ACCEPTS)}
        reader, refuse = chance.choice(((once, mlflow.refuse), (batch, mlflow.refuse), (instances, vertex.refuse)))
        try:
            asked = reader.read(LIVE, request_of(body, headers))
        except RequestError as refused:
            statuses[refuse(refused).status] += 1
        else:
            statuses[200] += 1
            assert all(len(row) == 6 for row in asked.rows)
            reply = reader.write(LIVE, asked, [(float(i),) for i in range(len(asked.rows))])
            assert reply.status == 200
            if asked.one_by_one:
                whole_lines = body.removeprefix(b"\xef\xbb\xbf").count(b"\n") + (
                    not body.endswith(b"\n") and bool(body)
                )
                assert reply.body.count(b"\n") in (whole_lines, 1)  # one: a document of MLflow's is one record
        if case == cases // 2:
            before = memory()
    assert all(status < 500 for status in statuses)
    assert cases / 20 < statuses[200] < cases - cases / 20, statuses
    assert memory() - before < 8_192
