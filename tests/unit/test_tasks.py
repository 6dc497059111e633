"""What a worker elsewhere is sent of a job."""

from datetime import UTC, date, datetime, time, timedelta, timezone
from pathlib import Path

import msgspec
import pytest

from sereno.batch.tasks import Job, received_values, sent_values
from sereno.settings import Settings, Value


@pytest.mark.parametrize(
    "value",
    [
        "2026-05-01",  # a text stays one
        7,
        2.5,
        True,
        date(2026, 5, 1),
        time(1, 2, 3, 4),
        datetime(2026, 5, 1, 2, 3),
        datetime(2026, 5, 1, 2, 3, tzinfo=UTC),
        datetime(2026, 5, 1, 2, 3, tzinfo=timezone(timedelta(hours=2))),
        ["a", date(2026, 5, 1), [1, time(2)]],
    ],
)
def test_a_value_arrives_as_it_is(value: object) -> None:
    settings = Settings(home=Path("/h"), values={"v": Value(value=value, base=Path("/base"))})
    job = Job(
        model_file="", home="", values=sent_values(settings), secrets_folder="", attempt="", parts_folder="",
        work_folder="", batch_rows=1, fingerprint="", revision_of_model="",
    )  # fmt: skip
    received = received_values(msgspec.msgpack.decode(msgspec.msgpack.encode(job), type=Job))
    assert received == {"v": (value, "/base")}
    assert type(received["v"][0]) is type(value)
