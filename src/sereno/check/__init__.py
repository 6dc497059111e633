"""`sereno check`: score a sample in every arrangement that batch and live could give it, and compare.

Batch gives `predict` thousands of rows at once, a live request one. The same row must get the same prediction in both,
so each arrangement is scored and held against the sample scored whole; then over HTTP, with the model in service; and at
last it is looked up by key in what a run would publish of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from sereno.batch.own_gates import bind_own
from sereno.check.arrangements import again, outcomes
from sereno.check.compare import Reference, frames
from sereno.check.over_http import ask_over_http
from sereno.check.published import keys_of
from sereno.check.report import CheckReport, Difference, Finding, Kind, Level, Outcome, render, told
from sereno.check.requirements import differences
from sereno.check.sample import Sample, has_source, take_sample
from sereno.exceptions import InputError, PredictError, SettingsError, SourceError
from sereno.madeup import made_up
from sereno.model import Model
from sereno.operate.arrivals.awaited import awaited
from sereno.scoring import open_scorer

if TYPE_CHECKING:
    from sereno.settings import Settings

__all__ = ["CheckReport", "Difference", "Finding", "Outcome", "check", "render"]

SEED = 0
ROUNDING = 1e-5  # differences up to this are as likely float32 arithmetic as another answer
SHOWN = 5  # rejects that are shown one by one


def check(model: Model, settings: Settings, *, date: str | None, rows: int = 200) -> CheckReport:
    """Load the model and test it on a sample of its source, or on made-up rows where there is none.

    Raises SettingsError and ArtifactError, about which no sample could tell more; SourceError where `date` has no data.
    """
    if rows < 2:
        raise SettingsError(
            f"A check of {rows} rows compares nothing. Give --rows 2 or more; without it, 200 are taken."
        )
    chosen = settings.model(model.name, model.declared, model.file.parent if model.file else None)
    bind_own(model, settings)  # as this is what a run would be asked for
    awaited(model, settings, chosen)  # what a scheduled run would wait for, while somebody is there to mend it
    findings = [Finding(level="warning", about="script block", text=text) for text in differences(model.file)]
    try:
        scorer = open_scorer(model, settings)
    except PredictError as error:
        findings.append(_problem("predict", str(error), frames(model, error.__cause__)))
        return _report(model, "nothing was scored, for the model does not load", 0, [], findings)
    sample = _sample(model, settings, date, rows, findings)
    findings += _about_refused(sample)
    try:
        reference = Reference(scorer, sample.table)
    except PredictError as error:
        findings.append(_problem("predict", str(error), frames(model, error.__cause__)))
        return _report(model, sample.origin, sample.table.num_rows, [], findings)
    findings += _about_raised(reference)
    findings += _about_duplicates(reference, settings, is_made_up=sample.is_made_up)
    compared = outcomes(reference)
    asked = ask_over_http(reference, settings, is_made_up=sample.is_made_up)
    compared += [*asked.outcomes, again(reference, "again, after all of the above")]
    findings += asked.findings
    explained = {kind for f in asked.findings if f.level == "problem" for kind in EXPLAINS.get(f.about, ())}
    findings += _about_outcomes(reference, [o for o in compared if o.kind not in explained])
    return _report(model, sample.origin, sample.table.num_rows, compared, findings)


def _report(model: Model, origin: str, rows: int, outcomes: list[Outcome], findings: list[Finding]) -> CheckReport:
    return CheckReport(
        model=model.name, origin=origin, rows=rows, tolerance=model.tolerance, outcomes=outcomes, findings=findings
    )


def _problem(about: Literal["source", "predict", "rejects"], text: str, details: Sequence[str] = ()) -> Finding:
    return Finding(level="problem", about=about, text=text, details=tuple(details))


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
            why = _problem("source", f"{error} The rows below are made up.", frames(model, error.__cause__))
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
    origin = f"{table.num_rows} rows made up from {model.inputs.name}, its row type"
    return Sample(table=table, origin=origin, is_made_up=True)


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


def _about_raised(reference: Reference) -> list[Finding]:
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


def _about_duplicates(reference: Reference, settings: Settings, *, is_made_up: bool) -> list[Finding]:
    """Keys of several rows with a prediction: what a run does about them is for the settings to say."""
    answered = [
        key for key, answer in zip(keys_of(reference), reference.answers, strict=True) if isinstance(answer, dict)
    ]
    repeated = {key: rows for key, rows in Counter(answered).items() if rows > 1}
    if not repeated or is_made_up:
        return []
    model = reference.model
    policy = settings.model(model.name, model.declared, model.file.parent if model.file else None).duplicates
    names = [c.name for c in model.inputs.keys]
    shown = [", ".join(f"{n} {v}" for n, v in zip(names, key, strict=True)) for key in list(repeated)[:SHOWN]]
    details = (
        *(f"{text} ({rows} rows)" for text, rows in zip(shown, repeated.values(), strict=False)),
        *_more(len(repeated)),
    )
    text = f"{'1 key occurs' if len(repeated) == 1 else f'{len(repeated)} keys occur'} more than once in the sample."
    if policy == "fail":
        text += (
            ' A run refuses that, and publishes nothing: mend the source, or set duplicates = "first" or "last". Of each '
            "key, the first row is looked up below."
        )
        return [Finding(level="problem", about="duplicates", text=text, details=details)]
    text += f" A run publishes the {policy} row of each, and gives the others as rejects."
    return [Finding(level="warning", about="duplicates", text=text, details=details)]


EXPLAINS: dict[str, tuple[Kind, ...]] = {
    "fetch": ("fetch", "alone"),
    "lookup": ("alone",),
}  # what need not be told twice
CAUSES: dict[Kind, str] = {
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
    "http": (
        "The answer over HTTP differs, though in batch it does not. In service, predict is called in a thread of its own, "
        "or on the event loop where it is fast, with the rows that wait. Usual causes: it uses what belongs to the thread "
        "that loaded the model (a database connection, `threading.local`), starts an event loop of its own, or has a case "
        "for some sizes of batch. HTTP 413 means a limit of the server: see [serve] in the settings."
    ),
    "keys": (
        "The answer differs where a request has no keys. predict does not ask for them, so it may not see whether they are "
        "there: take what identifies a row as a third parameter, `keys`, and requests will need them."
    ),
    "lookup": (
        "What is looked up by a key is not what batch answers for its row, though all of the above is. Usual causes: a key "
        "that no request can carry (HTTP 413 means a limit of the server: see [serve] in the settings); predict has hidden "
        "state, or looks at more than values. If it is none of these, Sereno itself is wrong: please report it, with the key."
    ),
    "fetch": (
        "The answer differs where a request leaves out the Fetched columns, though fetch gave the values that the rows "
        "have. Usual cause: fetch is slower than models.NAME.fetch_timeout_seconds allows (HTTP 504)."
    ),
    "alone": (
        "The answer differs where a lookup is asked live. All that it knows of a row is the key: it has what fetch gives, and "
        "the default of every other column."
    ),
}


def _about_outcomes(reference: Reference, compared: list[Outcome]) -> list[Finding]:
    """Why arrangements differ: the first cause of CAUSES that one of them points to, for it explains the later ones."""
    failed = [o for o in compared if not o.passed]
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
    details = [f"First seen {outcome.name}:", *told(outcome), *details]
    return [Finding(level="problem", about="parity", text=CAUSES[cause], details=tuple(details))]


def _power_above(worst: float) -> float:
    return float(f"1e{math.ceil(math.log10(worst))}")
