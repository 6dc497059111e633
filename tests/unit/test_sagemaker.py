"""SageMaker's lines: one out for each one in, in order, whatever is wrong with some."""

from __future__ import annotations

import csv as python_csv
import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, TypedDict

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.csv as pacsv
import pytest
from hypothesis import event, given, settings

from sereno import Fetched, Key
from sereno.rows import UNSET, RowDecoder, live_row
from sereno.schema import Column, row_type
from sereno.serve.live import Live
from sereno.serve.protocols import csv
from sereno.serve.protocols.invocations import Invocations
from sereno.serve.protocols.positional import Positions
from sereno.serve.wire import Mistake, RequestError, Row
from tests.lives import MODEL, Applicant, Score, Served, live_of, live_with, request_of, served
from tests.strategies import FLOATS, INTS, TEXTS, columns, row_of, row_types

LIVE = live_of(Applicant, Score, max_rows=50, max_text_bytes=200)
CSV, JSON, LINES = "text/csv", "application/json", "application/jsonlines"
ROW = {"age": 40, "income": 2, "purpose": "car", "since": "2026-05-01", "tags": None}
READ: Row = (None, 40, 2.0, "car", date(2026, 5, 1), None)
LINE = "40,2,car,2026-05-01,"


class Said(TypedDict):
    what: str | None
    sure: float | None


class Text(TypedDict):
    id: Key[int]
    text: str
    language: str


class Numbers(TypedDict):
    id: Key[int]
    n: int
    x: float | None


class Visit(TypedDict):
    id: Key[int]
    there: Fetched[float]
    here: float


def live_that_fetches() -> Live:
    live = live_with(TEXT, row_type(Visit))
    live.row = live_row(live.row, keys_needed=True)
    live.decoder = RowDecoder(live.row)
    return live


TEXT, NUMBERS = live_of(Text, Said), live_of(Numbers, Score)
VISITS = live_that_fetches()


def rows_of(body: Any, content_type: str = CSV, live: Any = LIVE) -> list[Row]:
    return Invocations(live, batch=False).read(live, request_of(body, {"Content-Type": content_type})).rows


def refused(body: Any, content_type: str = CSV, live: Any = LIVE) -> RequestError:
    with pytest.raises(RequestError) as caught:
        rows_of(body, content_type, live)
    return caught.value


def transformed(
    body: Any, content_type: str = CSV, answers: Any = None, live: Any = LIVE, **headers: str
) -> tuple[list[str], str]:
    """The lines of a batch transform reply, and its type. Each row is answered with its own number, unless told."""
    both = Invocations(live, batch=True)
    sent = {"Content-Type": content_type, **headers}
    asked = both.read(live, request_of(body, sent))
    assert asked.one_by_one
    reply = both.write(live, asked, answers or [(float(i),) for i in range(len(asked.rows))])
    assert reply.status == 200
    text = reply.body.decode()
    assert text == "" or text.endswith("\n")
    return text.splitlines(), reply.content_type.decode()


class TestCells:
    @pytest.mark.parametrize(
        ("text", "cells"),
        [
            ("", []),
            ("a,b\r\nc,d", [["a", "b"], ["c", "d"]]),
            ("a,b\rc,d\r", [["a", "b"], ["c", "d"]]),
            ('a,"b"\n"",', [["a", "b"], ["", None]]),
            ('"a\nb",c\n\n,\n', [["a\nb", "c"], [None, None]]),
            ('a"b,"x"y\n', [['a"b', "xy"]]),
            ('"a""",""\n', [['a"', ""]]),
            ('""', [[""]]),
            ('\n"a",\n', [["a", None]]),
            (" a , b ", [[" a ", " b "]]),
        ],
    )
    def test_nothing_differs_from_an_empty_text(self, text: str, cells: list[csv.Cells]) -> None:
        assert csv.parse(text) == cells

    @pytest.mark.parametrize(("text", "line"), [('"', 0), ('a\n"b,c', 1), ('a,"b""\n', 0), ('"a""', 0)])
    def test_a_quote_that_never_closes(self, text: str, line: int) -> None:
        with pytest.raises(csv.BrokenLineError, match="^has a quote that never closes$") as caught:
            csv.parse(text)
        assert caught.value.line == line

    @settings(deadline=None)
    @given(st.lists(st.lists(st.text("a\",\n\r é'", max_size=4), min_size=2, max_size=2), min_size=1), st.booleans())
    def test_the_dialect_is_that_of_a_runs_files(self, rows: list[list[str]], all_quoted: bool) -> None:
        out = io.StringIO()
        quoting = python_csv.QUOTE_ALL if all_quoted else python_csv.QUOTE_MINIMAL
        python_csv.writer(out, quoting=quoting).writerows(rows)
        table = pacsv.read_csv(
            io.BytesIO(out.getvalue().encode()),
            read_options=pacsv.ReadOptions(column_names=["a", "b"]),
            parse_options=pacsv.ParseOptions(newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                column_types={"a": pa.string(), "b": pa.string()},
                null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False,
            ),
        )  # fmt: skip
        assert csv.parse(out.getvalue()) == [list(row.values()) for row in table.to_pylist()]

    @given(st.text('a",\n\r'))
    def test_any_text(self, text: str) -> None:
        try:
            csv.parse(text)
            csv.parse_line(text)
        except csv.BrokenLineError as error:
            assert 0 <= error.line <= len(text)  # noqa: PT017

    def test_an_answer_as_a_line(self) -> None:
        columns = [
            Column(name=str(i), kind=kind)  # type: ignore[arg-type]
            for i, kind in enumerate(["str", "float", "int", "bool", "date", "datetime", "decimal", "list", "float"])
        ]
        answer = ('say "é", now', 0.1, 3, True, date(2026, 5, 1), datetime(2026, 5, 1, tzinfo=UTC), Decimal("1.10"),
                  [{"a": "x"}], None)  # fmt: skip
        line = csv.line_of(columns, answer)
        assert line == '"say ""é"", now",0.1,3,true,2026-05-01,2026-05-01T00:00:00Z,1.10,"[{""a"":""x""}]",'
        assert csv.blank_line(columns[:3]) == ",,"
        assert csv.blank_line(columns[:1]) == '""'  # a blank line would be passed over


class TestRequests:
    """Anywhere but in a batch transform job."""

    @pytest.mark.parametrize(
        "body",
        [
            LINE,
            f"{LINE}\n",
            f"\ufeff{LINE}\r\n",
            f"7,{LINE}".replace("7", "", 1),
            f"age,income,purpose,since,tags\n{LINE}\n",
            "tags, since ,purpose,colour,income,age\n,2026-05-01,car,red,2,40\n",
            'id,age,"income",purpose,since,tags\n,40,+2.0,"car",2026-05-01,\n\n',
        ],
    )
    def test_rows_with_a_header_or_by_position(self, body: str) -> None:
        assert rows_of(body) == [READ]

    def test_a_header_alone(self) -> None:
        assert rows_of("age,income,purpose,since,tags\n") == []

    def test_a_first_line_that_names_some_columns_is_no_row(self) -> None:
        error = refused(f"age,income,purpose\n{LINE}")
        assert (error.status, error.says) == (
            400, "The first line names columns, but not since, tags. Name them all, or send rows by position.")  # fmt: skip
        assert refused("age,age,income,purpose,since,tags\n").says == "Columns are there twice: age."

    def test_values_that_happen_to_be_names(self) -> None:
        assert rows_of("language,text\nen,hello", live=TEXT) == [(None, "hello", "en")]
        assert rows_of("hello,text\ntext,en", live=TEXT) == [(None, "hello", "text"), (None, "text", "en")]

    def test_empty_and_quoted_empty(self) -> None:
        assert rows_of('"",en', live=TEXT) == [(None, "", "en")]
        assert [tuple(m) for m in refused(",en", live=TEXT).mistakes] == [(0, "text", "is missing (null)")]

    def test_what_is_no_csv(self) -> None:
        assert refused('a\n"b').says == "The body is not CSV: line 2 has a quote that never closes."
        assert refused(b"\xff\n").says == "The body is no text in UTF-8."

    def test_all_mistakes(self) -> None:
        error = refused(f"{LINE}\n17,x,car,May,\n")
        assert [(m.row, m.column, m.expected) for m in error.mistakes] == [
            (1, "age", "must be at least 18"),
            (1, "income", "must be a number"),
            (1, "since", "must be a date (YYYY-MM-DD)"),
        ]
        many = refused("\n".join([LINE] * 40 + ["17,x,car,May,"]))
        assert [m._replace(row=1) for m in many.mistakes] == error.mistakes

    def test_limits(self) -> None:
        assert refused("\n".join([LINE] * 51)).status == 413
        assert refused("x" * 201).status == 413

    def test_json_lines(self) -> None:
        body = json.dumps(ROW) + "\r\n" + json.dumps([None, *ROW.values()]) + "\n" + json.dumps(list(ROW.values()))
        assert rows_of(body, LINES) == [READ, READ, READ]
        error = refused('{"age":40}\nx\n[1]\n\n', LINES)
        assert [m.row for m in error.mistakes] == [0, 0, 0, 0, 1, 2]
        assert error.mistakes[4] == Mistake(1, "row", "The line is not JSON.")

    @settings(deadline=None)
    @given(st.data())
    def test_many_lines_get_the_verdicts_of_each_alone(self, data: st.DataObject) -> None:
        live = live_with(TEXT, data.draw(row_types()))
        names = tuple(c.name for c in live.row.columns)
        cells = st.one_of(st.none(), TEXTS.filter(lambda text: "\ud800" not in text))
        lines = data.draw(st.lists(st.lists(cells, min_size=len(names), max_size=len(names)), min_size=1, max_size=4))
        alone = [csv.rows_of(live, names, [line])[0] for line in lines]
        many = csv.rows_of(live, names, lines * csv.MANY)[: len(lines)]
        assert [told(one) for one in alone] == [told(one) for one in many]

    @settings(deadline=None)
    @given(st.data())
    def test_numbers_are_read_as_json_where_that_says_the_same(self, data: st.DataObject) -> None:
        names = ("a", "b", "c")[: data.draw(st.integers(1, 3))]
        live = live_with(
            TEXT, row_of(*(data.draw(columns(name=name, kinds=("int", "float", "bool"))) for name in names))
        )
        cell = st.one_of(
            st.text("0123456789.-+eE", max_size=5), st.integers(-3, 9).map(str), INTS.map(str), FLOATS.map(repr)
        )
        lines = data.draw(st.lists(st.lists(cell, min_size=len(names), max_size=len(names)), min_size=1, max_size=3))
        body = "\n".join([",".join(line) for line in lines])
        found = csv.numbers(Positions(live.row, live.decoder), None, body.encode())
        event("read as JSON" if found is not None else "read as text")
        if found is not None:
            alone = [csv.rows_of(live, names, [[c or None for c in line]])[0] for line in lines if line != [""]]
            assert list(map(repr, found)) == list(map(repr, alone))  # as text, so that -0.0 differs from 0.0

    def test_rows_of_numbers(self) -> None:
        assert rows_of("1,2.5\n3,4\n", live=NUMBERS) == [(None, 1, 2.5), (None, 3, 4.0)]
        assert rows_of("x,n\r\n1,2\r\n", live=NUMBERS) == [(None, 2, 1.0)]
        assert rows_of("7,1,-0\n", live=NUMBERS) == [(7, 1, 0.0)]
        assert rows_of("7,1,\n", live=NUMBERS) == [(7, 1, None)]
        assert rows_of("7,1,2\r8,3,4\n9,5,6", live=NUMBERS) == [(7, 1, 2.0), (8, 3, 4.0), (9, 5, 6.0)]
        assert refused("7,1,\r2\n", live=NUMBERS).status == 422
        assert rows_of("+7,1.0,.5\n", live=NUMBERS) == [(7, 1, 0.5)]
        assert refused("1.5,2\n3\n", live=NUMBERS).mistakes[0].row == 1
        assert refused("1,2\n1.5,2\n", live=NUMBERS).mistakes == [Mistake(1, "n", "must be a whole number")]


class TestFetched:
    """What is fetched may be left out; the key it is fetched by may not."""

    def test_every_way_leaves_it_to_be_fetched(self) -> None:
        row = {"id": 7, "here": 1.5}
        for body, content_type in (
            ("7,1.5\n", CSV),
            ('7,"1.5"\n', CSV),
            ("here,id\n1.5,7\n", CSV),
            ("\n".join(['"7",1.5'] * csv.MANY), CSV),
            (json.dumps(row), LINES),
            ("[7, 1.5]", LINES),
            (json.dumps({"instances": [row]}), JSON),
            (json.dumps({"instances": [[7, 1.5]]}), JSON),
            (json.dumps({"dataframe_split": {"columns": ["id", "here"], "data": [[7, 1.5]]}}), JSON),
        ):
            assert rows_of(body, content_type, live=VISITS)[0] == (7, UNSET, 1.5)
        assert rows_of("7,2.5,1.5\n", live=VISITS) == [(7, 2.5, 1.5)]

    def test_without_the_key(self) -> None:
        error = refused("2.5,1.5,1,1\n", live=VISITS)
        assert error.mistakes[0].expected == "must be a list of 3 values (id, there, here), or 2 without there"
        assert [m.column for m in refused('{"here": 1.5}', LINES, live=VISITS).mistakes] == ["id"]


def told(one: Row | RequestError) -> Any:
    return one.mistakes if isinstance(one, RequestError) else one


class TestBatchTransform:
    def test_a_line_for_a_line(self) -> None:
        assert transformed(f"{LINE}\n{LINE}\n") == (["0.0", "1.0"], "text/csv; charset=utf-8")
        assert transformed(f"{LINE}\n{LINE}") == (["0.0", "1.0"], "text/csv; charset=utf-8")
        assert transformed("") == ([], "text/csv; charset=utf-8")

    def test_bad_lines_keep_their_place(self, caplog: pytest.LogCaptureFixture) -> None:
        body = [
            "age,income,purpose,since,tags",
            LINE,
            "",
            '"unclosed',
            "17,x,car,May,",
            f"1,{LINE}",
            b"\xff".decode("latin-1"),
        ]
        raw = "\n".join(body).encode("latin-1")
        with caplog.at_level(logging.WARNING, "sereno.serve"):
            assert transformed(raw)[0] == ['""', "0.0", '""', '""', '""', "1.0", '""']
        (message,) = caplog.messages
        expected = "must be a list of 6 values (id, age, income, purpose, since, tags), or 5 without id"
        assert message.startswith(
            "request id-1: 5 of 7 records got a placeholder: line 1: age: must be a whole number; "
        )
        assert f"line 3: {expected}; line 4: The line has a quote that never closes; line 5: age: must be at" in message
        assert message.endswith("since: must be a date (YYYY-MM-DD); line 7: The body is no text in UTF-8")

    def test_json_lines(self) -> None:
        good = json.dumps(ROW)
        lines, kind = transformed(f"{good}\nnot json\n{{}}\n[1,2]\n{good}\n", LINES)
        assert kind == LINES
        assert [json.loads(line) for line in lines] == [
            {"score": 0.0},
            {"error": "The line is not JSON."},
            {"error": "age: is absent; income: is absent; purpose: is absent; since: is absent; tags: is absent"},
            {"error": "must be a list of 6 values (id, age, income, purpose, since, tags), or 5 without id"},
            {"score": 1.0},
        ]

    def test_lines_of_json_by_another_name(self) -> None:
        good = json.dumps(ROW)
        assert transformed(f"{good}\n{good}\n", JSON) == (['{"score":0.0}', '{"score":1.0}'], JSON)
        assert transformed(good, JSON)[0] == ['{"score":0.0}']

    def test_accept_says_what_comes_back(self) -> None:
        assert transformed(LINE, CSV, Accept=LINES) == (['{"score":0.0}'], LINES)
        assert transformed(f"{LINE}\nx", CSV, Accept=JSON)[0][0] == '{"score":0.0}'
        assert transformed(json.dumps(ROW), LINES, Accept=CSV) == (["0.0"], "text/csv; charset=utf-8")

    def test_a_document_of_mlflows_is_one_record(self) -> None:
        both = Invocations(LIVE, batch=True)
        asked = both.read(LIVE, request_of({"instances": [ROW, ROW]}, {"Content-Type": JSON}))
        assert both.write(LIVE, asked, [(1.0,), (2.0,)]).body == b'{"predictions":[{"score":1.0},{"score":2.0}]}'
        assert transformed({"instances": [{**ROW, "age": 1}]}, JSON)[0] == ['{"error":"age: must be at least 18"}']
        whole_file = json.dumps({"instances": [{**ROW, "age": 1}]}, indent=1)
        with pytest.raises(RequestError, match="A row does not fit"):
            both.read(LIVE, request_of(whole_file, {"Content-Type": JSON}))

    def test_what_the_model_cannot_answer_gets_a_placeholder(self) -> None:
        failed = RequestError(500, "The model could not answer this row.", error_id="abc")
        assert transformed(f"{LINE}\n{LINE}", answers=[failed, (2.0,)])[0] == ['""', "2.0"]
        assert transformed(json.dumps(ROW), LINES, [failed])[0] == ['{"error":"The model could not answer this row."}']

    @pytest.mark.parametrize("status", [503, 504])
    def test_what_may_be_answered_later_is_not_given_up(self, status: int) -> None:
        with pytest.raises(RequestError) as caught:
            transformed(f"{LINE}\n{LINE}", answers=[(1.0,), RequestError(status, "Later.")])
        assert caught.value.status == status

    def test_a_text_with_a_line_break_is_no_line(self) -> None:
        answers = [("a\nb", 1.0), ("a", None)]
        assert transformed("hello,en\nyou,en", answers=answers, live=TEXT)[0] == [",", '"a",']
        assert (
            transformed("hello,en\nyou,en", answers=answers, live=TEXT, Accept=LINES)[0][0]
            == '{"what":"a\\nb","sure":1.0}'
        )

    def test_too_many_lines_are_refused_as_a_whole(self) -> None:
        with pytest.raises(RequestError, match="51 rows; at most 50"):
            transformed("\n".join([LINE] * 51))

    @settings(deadline=None)
    @given(
        st.lists(st.one_of(st.binary(max_size=12), st.just(LINE.encode()), st.just(json.dumps(ROW).encode()),
                           TEXTS.map(lambda t: t.encode("utf-8", "replace"))), max_size=40),
        st.sampled_from([CSV, LINES, JSON]), st.sampled_from(["*/*", CSV, LINES, JSON]),
    )  # fmt: skip
    def test_any_lines_come_back_as_many(self, lines: list[bytes], content_type: str, accept: str) -> None:
        lines = [line.replace(b"\n", b" ") for line in lines]
        found, _ = transformed(b"".join([line + b"\n" for line in lines]), content_type, Accept=accept)
        assert len(found) == len(lines)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    file = tmp_path_factory.mktemp("job") / "job.py"
    file.write_text(MODEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAGEMAKER_BATCH", "true")
        patch.setenv("SAGEMAKER_MAX_PAYLOAD_IN_MB", "3")
        with served(file) as one:
            yield one


class TestServer:
    def test_one_bad_record_costs_the_others_nothing(self, job: Served) -> None:
        reply = job.ask("POST", "/invocations", "1,2\n13,0\nx,\n20,\n", content_type=CSV)
        assert (reply.status_code, reply.text) == (200, "3.0,false\n,\n,\n20.0,true\n")

    def test_nothing_but_bad_records(self, job: Served) -> None:
        assert job.ask("POST", "/invocations", "x\n\n", content_type=CSV).text == ",\n,\n"
        assert job.ask("POST", "/invocations", "", content_type=CSV).text == ""

    def test_ping_is_empty_there(self, job: Served) -> None:
        reply = job.ask("GET", "/ping")
        assert (reply.status_code, reply.content) == (200, b"")

    def test_execution_parameters_are_those_of_the_job(self, job: Served) -> None:
        assert job.ask("GET", "/execution-parameters").json() == {
            "MaxConcurrentTransforms": 1, "BatchStrategy": "MULTI_RECORD", "MaxPayloadInMB": 3,
        }  # fmt: skip

    def test_what_is_under_way_at_once_is_no_more_than_the_job_may_have(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It refuses parameters that make more than 100 MB together."""
        monkeypatch.setenv("SAGEMAKER_MAX_PAYLOAD_IN_MB", "40")
        monkeypatch.setenv("SERENO_WORKERS", "8")
        file = tmp_path / "total.py"
        file.write_text(MODEL)
        with served(file) as one:
            parameters = one.ask("GET", "/execution-parameters").json()
        assert (parameters["MaxConcurrentTransforms"], parameters["MaxPayloadInMB"]) == (2, 40)

    def test_execution_parameters_where_nothing_was_chosen(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("SAGEMAKER_MAX_PAYLOAD_IN_MB", raising=False)
        file = tmp_path / "total.py"
        file.write_text(MODEL)
        with served(file) as one:
            parameters = one.ask("GET", "/execution-parameters").json()
        assert parameters == {"MaxConcurrentTransforms": 1, "BatchStrategy": "MULTI_RECORD", "MaxPayloadInMB": 1}
