"""`sereno check`: score a sample in every arrangement that batch and live could give it, and compare.

Batch gives `predict` thousands of rows at once, a live request one. The same row must get the same prediction in both,
so each arrangement below is scored and held against the sample scored whole.
"""

from __future__ import annotations

import math
import random
import re
import statistics
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from sereno.batch.tasks import key_text
from sereno.exceptions import InputError, OutputError, PredictError, SettingsError, SourceError
from sereno.model import Model
from sereno.requirements import differences
from sereno.rows import JsonRows, encode
from sereno.sample import Sample, has_source, made_up, take_sample
from sereno.scoring import Scorer, open_scorer

if TYPE_CHECKING:
    from sereno.config import Settings

SEED = 0
CHUNKS = (2, 7, 64, 512, 4096)
ROUNDING = 1e-5  # differences up to this are as likely float32 arithmetic as another answer
SHOWN = 5  # rejects that are shown one by one

Level = Literal["problem", "warning", "note"]
Answer = dict[str, Any] | str  # of one row: its outputs, or the reason of its reject


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that the check has to say; a problem fails it."""

    level: Level
    about: Literal["script block", "source", "rejects", "predict", "parity"]
    text: str  # one paragraph
    details: tuple[str, ...] = ()  # lines below it, such as a traceback


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first row that one arrangement answers otherwise."""

    row: int  # its position in the sample
    key: str
    column: str  # "" where one of the two is a reject
    expected: str  # scored whole
    found: str  # in the arrangement
    rows: int  # that differ in all
    worst: float  # largest difference, relative; infinite where it is none of numbers


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one arrangement."""

    name: str
    kind: Literal["state", "batch", "order", "json"]  # what a difference would say the answer depends on
    difference: Difference | None = None
    error: str = ""  # the answer was none that could be compared

    @property
    def passed(self) -> bool:
        return self.difference is None and not self.error


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What `sereno check` found."""

    model: str
    origin: str  # where the rows are from
    rows: int  # of the sample that fit the input type, and were scored
    tolerance: float
    outcomes: list[Outcome] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not any(f.level == "problem" for f in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        plain = asdict(self)
        for outcome, shown in zip(self.outcomes, plain["outcomes"], strict=True):
            shown["passed"] = outcome.passed
            if shown["difference"] and not math.isfinite(shown["difference"]["worst"]):
                shown["difference"]["worst"] = None
        return {"ok": self.ok, **plain}


def check(model: Model, settings: Settings, *, date: str | None, rows: int = 200) -> CheckReport:
    """Load the model and test it on a sample of its source, or on made-up rows where there is none.

    Raises SettingsError and ArtifactError, about which no sample could tell more; SourceError where `date` has no data.
    """
    if rows < 2:
        raise SettingsError(
            f"A check of {rows} rows compares nothing. Give --rows 2 or more; without it, 200 are taken."
        )
    findings = [Finding(level="warning", about="script block", text=text) for text in differences(model.file)]
    try:
        scorer = open_scorer(model, settings)
    except PredictError as error:
        findings.append(_problem("predict", str(error), _frames(model, error.__cause__)))
        return _report(model, "nothing was scored, for the model does not load", 0, [], findings)
    sample = _sample(model, settings, date, rows, findings)
    findings += _about_refused(sample)
    try:
        reference = _Reference(scorer, sample.table)
    except PredictError as error:
        findings.append(_problem("predict", str(error), _frames(model, error.__cause__)))
        return _report(model, sample.origin, sample.table.num_rows, [], findings)
    findings += _about_raised(reference)
    outcomes = _outcomes(reference)
    findings += _about_outcomes(reference, outcomes)
    return _report(model, sample.origin, sample.table.num_rows, outcomes, findings)


def _report(model: Model, origin: str, rows: int, outcomes: list[Outcome], findings: list[Finding]) -> CheckReport:
    return CheckReport(
        model=model.name, origin=origin, rows=rows, tolerance=model.tolerance, outcomes=outcomes, findings=findings
    )


def _problem(about: Literal["source", "predict", "rejects"], text: str, details: Sequence[str] = ()) -> Finding:
    return Finding(level="problem", about=about, text=text, details=tuple(details))


# The rows


def _sample(model: Model, settings: Settings, date: str | None, rows: int, findings: list[Finding]) -> Sample:
    """Rows of the source; made-up ones, and a finding that says so, where it gives none that can be scored."""
    if not has_source(model, settings):
        why = Finding(
            level="note", about="source", text="The model has neither read nor source, so the rows are made up."
        )
    else:
        try:
            sample = take_sample(model, settings, date, rows)
        except SourceError as error:
            if date is not None:
                raise
            text = f"There is no data to take a sample from, so the rows are made up. {error}"
            why = Finding(level="warning", about="source", text=text)
        except InputError as error:
            why = _problem("source", f"No row can be scored: {error} The rows below are made up.")
        except PredictError as error:
            why = _problem("source", f"{error} The rows below are made up.", _frames(model, error.__cause__))
        else:
            if sample.table.num_rows > 1:
                return sample
            findings += _about_refused(sample)
            text = f"The source gave {sample.origin.split(',')[0]}, {sample.table.num_rows} of which can be scored"
            why = Finding(
                level="warning", about="source", text=f"{text}. To compare takes two, so the rows are made up."
            )
    findings.append(why)
    table = made_up(model.inputs, rows, SEED)
    return Sample(table=table, origin=f"{table.num_rows} rows made up from {model.inputs.name}, its row type")


def _about_refused(sample: Sample) -> list[Finding]:
    """Rejects of the input are news, and no failure; unless there is nothing else."""
    refused = sample.refused
    if not refused:
        return []
    details = [f"{key or 'a row without a key'}: {reason}" for key, reason in refused[:SHOWN]]
    text = f"{len(refused)} of {sample.origin} do not fit the input type; a run gives them as rejects."
    if not sample.table.num_rows:
        return [_problem("rejects", text, [*details, *_more(len(refused))])]
    return [Finding(level="warning", about="rejects", text=text, details=(*details, *_more(len(refused))))]


def _more(count: int) -> list[str]:
    return [f"… and {count - SHOWN} more"] if count > SHOWN else []


def _about_raised(reference: _Reference) -> list[Finding]:
    """Rows that fit, but that predict did not answer, or not as declared."""
    rejects = [(i, a) for i, a in enumerate(reference.answers) if isinstance(a, str)]
    if not rejects:
        return []
    details = [f"{reference.key(i)}: {reason}" for i, reason in rejects[:SHOWN]] + _more(len(rejects))
    raised = [i for i, reason in rejects if reason.startswith("predict raised")]
    if raised:
        details += reference.traceback_of(raised[0])
    count = f"{len(rejects)} of {len(reference.answers)}"
    text = f"{count} rows got no valid answer from predict; a run gives them as rejects."
    level: Level = "problem" if len(rejects) == len(reference.answers) else "warning"
    return [Finding(level=level, about="rejects", text=text, details=tuple(details))]


# Arrangements


class _Reference:
    """The sample scored whole, and what is needed to hold other arrangements against it."""

    def __init__(self, scorer: Scorer, table: pa.Table) -> None:
        self.scorer, self.model, self.table = scorer, scorer.model, table
        self._outputs = [c.name for c in scorer.model.outputs.columns]
        self._keys = table.select([c.name for c in scorer.model.inputs.keys]).to_pylist()
        self.answers = self.score(table)
        self._sizes = _median_sizes(self.answers)

    def key(self, position: int) -> str:
        row = self._keys[position]
        return f"{', '.join(row)} {key_text(row, list(row))}"

    def score(self, part: pa.Table) -> list[Answer]:
        """The answer of each row."""
        scored = self.scorer.score(part)
        answers: list[Answer] = [""] * part.num_rows
        kept = range(part.num_rows) if scored.kept is None else scored.kept.tolist()
        for position, answer in zip(kept, scored.table.select(self._outputs).to_pylist(), strict=True):
            answers[position] = answer
        for position, reason in scored.refused:
            answers[position] = reason
        return answers

    def score_part(self, part: pa.Table) -> list[Answer]:
        """Like `score`; where all of a few rows raise, which fails a whole run, each is a reject here."""
        try:
            return self.score(part)
        except OutputError:
            raise
        except PredictError:
            return [answer for i in range(part.num_rows) for answer in self.score(part.slice(i, 1))]

    def compare(self, answers: list[Answer]) -> Difference | None:
        first: tuple[int, str, Any, Any] | None = None
        rows, worst = 0, 0.0
        for position, (expected, found) in enumerate(zip(self.answers, answers, strict=True)):
            differing = [d for d in self._differing(expected, found) if d[3] > self.model.tolerance]
            if not differing:
                continue
            rows += 1
            worst = max(worst, *(d[3] for d in differing))
            first = first or (position, *differing[0][:3])
        if first is None:
            return None
        position, column, *both = first
        expected, found = (_shown(v) if column or not isinstance(v, str) else f"a reject ({v})" for v in both)
        return Difference(
            row=position,
            key=self.key(position),
            column=column,
            expected=expected,
            found=found,
            rows=rows,
            worst=worst,
        )

    def _differing(self, expected: Answer, found: Answer) -> Iterator[tuple[str, Any, Any, float]]:
        """(column, expected, found, how far apart) of every value, or of the row where one is a reject."""
        if isinstance(expected, str) or isinstance(found, str):
            if _kind_of(expected) != _kind_of(found):
                yield "", expected, found, math.inf
            return
        for name in self._outputs:
            for path, a, b in _leaves(name, expected[name], found[name]):
                if isinstance(a, float) and isinstance(b, float):
                    size = max(abs(a), abs(b), self._sizes.get(_column_of(path), 0.0))
                    yield path, a, b, abs(a - b) / size if size else 0.0
                elif a != b:
                    yield path, a, b, math.inf

    def traceback_of(self, position: int) -> list[str]:
        """What predict raises on one row, in the user's frames; empty where it does not."""
        try:
            self.scorer.predict(self.table.slice(position, 1))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is shown
            return _frames(self.model, error)
        return []


def _outcomes(reference: _Reference) -> list[Outcome]:
    table, count = reference.table, reference.table.num_rows
    rng = random.Random(SEED)
    backwards = list(range(count))[::-1]
    shuffled = rng.sample(range(count), count)

    def arranged(
        name: str, kind: Literal["state", "batch", "order", "json"], parts: Sequence[Sequence[int]]
    ) -> Outcome:
        answers: list[Answer] = [""] * count
        try:
            for part in parts:
                for position, answer in zip(part, reference.score_part(_rows_of(table, part)), strict=True):
                    answers[position] = answer
        except OutputError as error:
            return Outcome(name=name, kind=kind, error=str(error))
        return Outcome(name=name, kind=kind, difference=reference.compare(answers))

    whole = [range(count)]
    out = [arranged("again, in the same batch", "state", whole)]
    out.append(arranged("one at a time", "batch", [range(i, i + 1) for i in range(count)]))
    for size in CHUNKS:
        if size < count:
            chunks = [range(i, min(i + size, count)) for i in range(0, count, size)]
            out.append(arranged(f"in batches of {size}", "batch", chunks))
    out.append(arranged("in reverse order", "order", [backwards]))
    out.append(arranged("in random order", "order", [shuffled]))
    out.append(_through_json(reference))
    out.append(arranged("again, after all of the above", "state", whole))
    return out


def _rows_of(table: pa.Table, positions: Sequence[int]) -> pa.Table:
    if isinstance(positions, range):
        return table.slice(positions.start, len(positions))
    return table.take(pa.array(positions))


def _through_json(reference: _Reference) -> Outcome:
    name = "as JSON, like requests"
    checked = JsonRows(reference.model.inputs).decode(encode(reference.table))
    answers: list[Answer] = [""] * reference.table.num_rows
    for position, reason in checked.refused:
        answers[position] = f"JSON row: {reason}"
    kept = range(len(answers)) if checked.kept is None else checked.kept.tolist()
    try:
        for position, answer in zip(kept, reference.score_part(checked.table), strict=True):
            answers[position] = answer
    except OutputError as error:
        return Outcome(name=name, kind="json", error=str(error))
    return Outcome(name=name, kind="json", difference=reference.compare(answers))


# Comparing


def _leaves(path: str, expected: Any, found: Any) -> Iterator[tuple[str, Any, Any]]:
    """Pairs of single values with their path, `items[2].score`; of whole lists where the lengths differ."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for name in expected:
            yield from _leaves(f"{path}.{name}", expected[name], found.get(name))
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for i, (a, b) in enumerate(zip(expected, found, strict=True)):
            yield from _leaves(f"{path}[{i}]", a, b)
    else:
        yield path, expected, found


def _column_of(path: str) -> str:
    return re.sub(r"\[\d+\]", "[]", path)


def _median_sizes(answers: list[Answer]) -> dict[str, float]:
    """The median size of each float column's values other than 0: what a difference near 0 is measured by.

    The sum of numbers that cancel each other is rounding and nothing else; relative to itself it could differ by any
    factor. A median, for one giant among the answers must not hide what happens to the others.
    """
    sizes: dict[str, list[float]] = {}
    for answer in answers:
        for path, value, _ in _leaves("", answer, answer) if isinstance(answer, dict) else ():
            if isinstance(value, float) and value:
                sizes.setdefault(_column_of(path).removeprefix("."), []).append(abs(value))
    return {column: statistics.median(found) for column, found in sizes.items()}


def _kind_of(answer: Answer) -> str:
    """A reject's reason without the words of an exception, which may name a position in the batch."""
    if not isinstance(answer, str):
        return ""
    return answer.split(":")[0] if answer.startswith("predict raised") else answer


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(v)}" for name, v in value.items())
    text = repr(value) if isinstance(value, float | str | list) else "null" if value is None else str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


# Telling


def render(report: CheckReport) -> list[str]:
    """The report as lines for a terminal."""
    lines = [f"{report.model}: {report.origin}"]
    if report.outcomes:
        lines += [f"{report.rows} scored in one batch, and compared with the same rows", ""]
    for outcome in report.outcomes:
        lines.append(f"  {'passed ' if outcome.passed else 'differs'}  {outcome.name}")
        lines += [f"           {line}" for line in _told(outcome)]
    for finding in report.findings:
        lines += ["", f"{finding.level}: {finding.text}", *(f"  {line}".rstrip() for line in finding.details)]
    lines += ["", _verdict(report)]
    return lines


def _verdict(report: CheckReport) -> str:
    if not report.ok:
        return f"{report.model} does not pass."
    return (
        f"{report.model} passes: floats agree to {report.tolerance:g} of their size (near 0, of the column's median size), "
        "all else exactly."
    )


def _told(outcome: Outcome) -> list[str]:
    if outcome.error:
        return [outcome.error]
    found = outcome.difference
    if found is None:
        return []
    about = f"{found.key}: {found.column}".rstrip(": ")
    rows = "1 row differs" if found.rows == 1 else f"{found.rows} rows differ"
    return [f"{about} is {found.expected} in one batch, {found.found} here ({rows})"]


CAUSES = {
    "state": (
        "The same rows in the same order got other predictions the second time: the answer depends on hidden state. "
        "Usual causes: random numbers, a counter or cache that outlives the call, a model that predict changes, the "
        "clock. All that predict uses should come from load and from the row."
    ),
    "order": (
        "The answer depends on the order of the rows. Usual causes: cumsum, shift, diff, rolling or a fill from the row "
        "before; or a sort, merge or groupby, after which answers stand in another order than their rows."
    ),
    "batch": (
        "The answer depends on the other rows of the batch. Usual causes: statistics such as mean, rank, qcut, min-max "
        "scaling, get_dummies or fit_transform inside predict. They belong in training: save them with the model, and "
        "only apply them here."
    ),
    "json": (
        "The answer depends on how a row arrived, though its values are the same. Usual causes: predict looks at the "
        "identity, memory layout or metadata of what it is given."
    ),
}


def _about_outcomes(reference: _Reference, outcomes: list[Outcome]) -> list[Finding]:
    """Why arrangements differ: the first cause of CAUSES that one of them points to, for it explains the later ones."""
    failed = [o for o in outcomes if not o.passed]
    if not failed:
        return []
    differences_ = [o.difference for o in failed if o.difference]
    worst = max((d.worst for d in differences_), default=math.inf)
    if worst <= ROUNDING and len(differences_) == len(failed):
        text = (
            f"The largest difference is {worst:.1g} of the number's size, more than the "
            f"{reference.model.tolerance:g} that the model allows. Usual cause: rounding, as of float32 arithmetic "
            "(7 digits), which adds up in another order where it has several rows at once. If that is all, declare it: "
            f"Model(…, tolerance={_power_above(worst):g})."
        )
        return [Finding(level="problem", about="parity", text=text)]
    kinds = {o.kind for o in failed}
    cause = next(k for k in CAUSES if k in kinds)
    outcome = next(o for o in failed if o.kind == cause)
    details = []
    if outcome.difference and outcome.difference.found.startswith("a reject (predict raised"):
        details = reference.traceback_of(outcome.difference.row)
    details = [f"First seen {outcome.name}:", *_told(outcome), *details]
    return [Finding(level="problem", about="parity", text=CAUSES[cause], details=tuple(details))]


def _power_above(worst: float) -> float:
    return float(f"1e{math.ceil(math.log10(worst))}")


def _frames(model: Model, error: BaseException | None) -> list[str]:
    """The traceback of an exception, without our frames and those of libraries."""
    if error is None:
        return []
    folder = model.file.parent if model.file else Path.cwd()
    every = traceback.extract_tb(error.__traceback__)
    own = [f for f in every if _is_own(Path(f.filename), folder)]
    lines = []
    for frame in own or every[-1:]:
        lines.append(f"{Path(frame.filename).name}:{frame.lineno}, in {frame.name}")
        if frame.line:
            lines.append(f"    {frame.line}")
    lines += "".join(traceback.format_exception_only(error)).rstrip().splitlines()
    return ["", *lines]


def _is_own(file: Path, folder: Path) -> bool:
    return (
        file.is_relative_to(folder) and "site-packages" not in file.parts and Path(__file__).parent not in file.parents
    )
