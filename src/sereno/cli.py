"""The command line. Thin: parse, call, print. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sereno import __version__
from sereno.exceptions import NotFoundError, SerenoError, SettingsError

if TYPE_CHECKING:
    from sereno.config import Settings
    from sereno.home import Home
    from sereno.model import Model

DONE, FAILED, USAGE, HELD = 0, 1, 2, 3

ABOUT = """\
Puts a trained model into production: one plain Python file, scored by night, published whole or not at all.

  sereno new churn                      a model file to start from
  sereno check churn.py                 the same prediction in every arrangement and through every door?
  sereno run churn.py                   read, score, check, publish the last interval that ended
  sereno versions churn                 what was published, what is in service
  sereno rollback churn                 the version before, back in service
  sereno serve churn.py                 predictions over HTTP
"""
SERVE_OPTIONS = (
    ("host", "ADDRESS", "the address to listen on (127.0.0.1)"),
    ("port", "P", "the port (8000); 0 takes a free one"),
    ("unix", "PATH", "a Unix socket to listen on instead"),
    ("tls_certificate", "FILE", "speak TLS, with this certificate"),
    ("tls_key", "FILE", "and this key"),
    ("keys_file", "FILE", "who asks needs a key whose hash is in there; `sereno key` makes one"),
)
SERVE_SWITCHES = (
    ("no_auth", "an open address without keys: whoever reaches it may ask"),
    ("tls_terminated_upstream", "an open address without TLS: something in front of it speaks TLS with the callers"),
)
AFTER = "Exit codes: 0 done or nothing to do, 1 failed, 2 wrong usage, 3 held by a gate. `sereno COMMAND --help` tells more."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    return _start(_parser(), given, None)


def main_of(model: Model, arguments: Sequence[str]) -> int:
    """The command line of a model file that was started itself: `python credit_scoring.py run`."""
    return _start(_parser(own=model), arguments, model)


def _start(parser: argparse.ArgumentParser, arguments: Sequence[str], model: Model | None) -> int:
    if not arguments:
        parser.print_help()
        return USAGE
    options = parser.parse_args(arguments)
    options.given = list(arguments)
    return _run(options, model)


def _run(options: argparse.Namespace, model: Model | None) -> int:
    options.model_itself = model
    options.out = sys.stdout
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        # what the model's own code prints must not end up between the braces of our JSON
        with _working_folder(), contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
            return command(options)
    except SerenoError as error:
        if options.json:
            _print(options, json.dumps({"error": type(error).__name__, "says": str(error)}))
        print(f"sereno: {error}", file=sys.stderr)
        if options.verbose:
            raise
        cause = error.__cause__
        if cause is not None and not isinstance(cause, SerenoError | OSError):
            print("  (-v shows the traceback)", file=sys.stderr)
        return USAGE if isinstance(error, SettingsError) else FAILED
    except KeyboardInterrupt:
        print("sereno: interrupted; finished tasks are kept, the next run goes on where this one was.", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _working_folder() -> Iterator[None]:
    """Commands may change the working folder (to a model's home); it is put back for whoever called us in-process."""
    before = Path.cwd()
    try:
        yield
    finally:
        os.chdir(before)


def _parser(own: Model | None = None) -> argparse.ArgumentParser:
    """`own`: the model whose file was started itself, so that commands do not ask for it."""
    name = "sereno" if own is None or own.file is None else f"python {own.file.name}"
    parser = argparse.ArgumentParser(
        prog=name, description=ABOUT, epilog=AFTER, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"sereno {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, function: Callable[[argparse.Namespace], int], about: str, more: str = "") -> Any:
        one = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}. {more}", add_help=True)
        one.set_defaults(command=function)
        one.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
        one.add_argument("--home", type=Path, metavar="DIR", help="where predictions, exports and .sereno lie")
        one.add_argument("--env", metavar="NAME", help="the [env.NAME] of sereno.toml (or SERENO_ENV)")
        one.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, e.g. values.warehouse=/data"
        )
        one.add_argument("--json", action="store_true", help="print JSON for scripts")
        return one

    def takes_file(one: Any) -> None:
        if own is None:
            one.add_argument("file", metavar="FILE", help="the model file, or the name of a model in sereno.toml")

    def takes_model(one: Any, *, optional: bool = False) -> None:
        if own is None:
            more = "; the only one there is, if not given" if optional else ""
            one.add_argument("model", metavar="MODEL", nargs="?" if optional else None, help=f"the model's name{more}")

    if own is None:
        one = command(
            "new", _new, "a model file to start from", "With --from-data its row types are those of your data."
        )
        one.add_argument("name", metavar="NAME")
        one.add_argument(
            "--from-data", type=Path, metavar="FILE", help="Parquet, CSV or JSON lines to infer row types from"
        )
    one = command(
        "check",
        _check,
        "load a model file, score a sample in every arrangement, compare",
        "A predict that depends on its batch, on the order of rows or on what it scored before is caught.",
    )
    takes_file(one)
    one.add_argument("--date", metavar="D", help="data date of the sample; the last interval if not given")
    one.add_argument("--rows", type=_positive, default=200, metavar="N", help="rows of the sample (200)")
    one.add_argument("--source", metavar="S", help="read from here instead")
    one = command(
        "run",
        _run_batch,
        "one batch run: read, score, check, publish, export",
        "A run that was killed goes on where it was. Exit code 3: held by a gate; what was in service stays.",
    )
    takes_file(one)
    one.add_argument("--date", metavar="D", help="data date (2026-05-01, or 2026-05-01T13:00 of an hourly schedule)")
    one.add_argument(
        "--force", action="store_true", help="score and publish even what is published, older or withdrawn"
    )
    one.add_argument("--workers", type=_positive, metavar="N", help="processes; as many as cores if not given")
    one.add_argument("--source", metavar="S", help="read from here instead")
    one = command(
        "serve",
        _serve,
        "the online API: predictions over HTTP",
        "Without FILE it serves the models of sereno.toml. SIGTERM drains it, SIGHUP has it read its files again.",
    )
    if own is None:
        one.add_argument("file", metavar="FILE", nargs="*", help="model files, or names of models in sereno.toml")
    one.add_argument("--workers", type=_positive, metavar="N", help="processes that answer (1)")
    for name, placeholder, about in SERVE_OPTIONS:
        one.add_argument(f"--{name.replace('_', '-')}", dest=f"serve_{name}", metavar=placeholder, help=about)
    for name, about in SERVE_SWITCHES:
        one.add_argument(
            f"--{name.replace('_', '-')}", dest=f"serve_{name}", action="store_const", const="true", help=about
        )
    one.add_argument("--watch", action="store_true", help="read the files again when one of them changes")
    one = command("runs", _runs, "the runs of a model, newest last")
    takes_model(one, optional=True)
    one = command("show", _show, "the report of a run: rows, rejects, gates, predictions, times")
    one.add_argument("run", metavar="RUN", help="a run's id, or its data date")
    one.add_argument("--model", metavar="MODEL", help="where several models have a run of that date")
    one = command("versions", _versions, "what was published, what is in service, what was withdrawn")
    takes_model(one, optional=True)
    one = command(
        "release", _release, "publish a held run", "Its gates are judged again against what is in service now."
    )
    one.add_argument("run", metavar="RUN")
    one.add_argument("--model", metavar="MODEL", help="where several models have a run of that date")
    one = command("discard", _discard, "drop a held run; what is in service stays")
    one.add_argument("run", metavar="RUN")
    one.add_argument("--model", metavar="MODEL", help="where several models have a run of that date")
    one = command(
        "rollback",
        _rollback,
        "put an older version back in service: table, lookups and exports",
        "What was rolled back is withdrawn: no run publishes it again, unless you say --force or roll back --to it.",
    )
    takes_model(one)
    one.add_argument("--to", type=_positive, metavar="V", help="the version; the one before if not given")
    one.add_argument("--date", metavar="D", help="with disposition = partition: the data date; the newest if not given")
    one.add_argument("--why", default="", metavar="TEXT", help="kept in the table's history")
    one = command("get", _get, "the published prediction of one key")
    takes_model(one)
    one.add_argument("key", nargs="+", metavar="KEY", help="the key's values, in declared order")
    one.add_argument("--version", type=_positive, dest="number", metavar="V", help="of an older version")
    one = command(
        "log",
        _log,
        "what the online API answered, newest last",
        "T is 2026-05-01, 2026-05-01T12:00 (UTC) or, for how long ago, 15m, 2h, 3d.",
    )
    takes_model(one)
    one.add_argument("--since", metavar="T", help="only answers from this time on")
    one.add_argument("--until", metavar="T", help="only answers before this time; of a date: until its end")
    one.add_argument("--key", nargs="+", metavar="KEY", help="only answers of this key: its values, in declared order")
    one.add_argument("--request", metavar="ID", help="only answers to this request")
    one.add_argument("--limit", type=_positive, metavar="N", help="how many, the newest (20)")
    one.add_argument("--compact", action="store_true", help="put all that was answered into the table now")
    one.add_argument("--erase", nargs="+", metavar="KEY", help="remove the answers of this key for good: a person's")
    if own is None:
        one = command(
            "key",
            _key,
            "a new key for a caller of the online API",
            "It is shown once; the server keeps its hash, in the file that the setting serve.keys_file names.",
        )
        one.add_argument("name", metavar="NAME", nargs="?", default="", help="whose it is, for your own records")
    return parser


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return number


def _settings(options: argparse.Namespace, start: Path, model: str | None = None) -> Settings:
    from sereno.config import load_settings

    return load_settings(start, home=options.home, env=options.env, overrides=_overrides(options, model))


def _overrides(options: argparse.Namespace, model: str | None = None) -> dict[str, str]:
    """Dotted keys and texts of what the command line sets."""
    overrides = {}
    for item in options.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise SettingsError(f"--set {item!r} is not KEY=VALUE, e.g. --set values.warehouse=/data.")
        overrides[key] = value
    if getattr(options, "workers", None) is not None:
        overrides["workers"] = str(options.workers)
    if model is not None and getattr(options, "source", None) is not None:
        overrides[f"models.{model}.source"] = options.source
    for name, *_ in (*SERVE_OPTIONS, *SERVE_SWITCHES):
        if (text := getattr(options, f"serve_{name}", None)) is not None:
            overrides[f"serve.{name}"] = text
    return overrides


def _model(options: argparse.Namespace) -> tuple[Model, Settings]:
    """The model that the command names, and its settings; the working folder becomes that of sereno.toml."""
    from sereno.config import find_home
    from sereno.loader import load_model
    from sereno.storage import told

    model = options.model_itself
    if model is not None:
        model.check()
    else:
        model = load_model(_model_file(options))
    assert model.file is not None
    settings = _settings(options, model.file, model.name)
    with told(f"The home {settings.home} cannot be used"):
        settings.home.mkdir(parents=True, exist_ok=True)
    os.chdir(find_home(model.file))  # so that relative paths in `read` mean the same from wherever it is started
    return model, settings


def _model_file(options: argparse.Namespace, named: str | None = None) -> Path:
    """FILE is a path, or the name of a model that sereno.toml knows."""
    named = named or str(options.file)
    path = Path(named)
    if path.suffix or path.exists():
        return path
    models = _settings(options, Path.cwd()).models
    if named in models and models[named].file is not None:
        return models[named].file  # type: ignore[return-value]
    known = ", ".join(models) or "none"
    raise NotFoundError(f"There is no file {named}, and sereno.toml knows no model of that name (it knows: {known}).")


def _home(options: argparse.Namespace) -> Home:
    """The home of the model that the command names."""
    from sereno.home import Home

    own = options.model_itself
    settings = _settings(options, own.file if own is not None else Path.cwd())
    there = sorted({f.name for part in ("predictions", ".sereno/runs") for f in (settings.home / part).glob("*")})
    name = own.name if own is not None else options.model
    if name is None:
        if len(there) != 1:
            raise SettingsError(f"Say which model: in {settings.home} there are {', '.join(there) or 'none'}.")
        name = there[0]
    home = Home(settings, name)
    if name not in there:
        raise NotFoundError(
            f"There is no model {name!r} in {settings.home} (there are: {', '.join(there) or 'none'}). Run it first, or say "
            "where it lies with --home."
        )
    return home


def _home_of_run(options: argparse.Namespace) -> Home:
    """The home of the model that has the run which the command names."""
    from sereno.home import Home

    own = options.model_itself
    settings = _settings(options, own.file if own is not None else Path.cwd())
    named = own.name if own is not None else options.model
    folders = sorted((settings.home / ".sereno" / "runs").glob("*"))
    models = [named] if named else [f.name for f in folders]
    found = []
    for name in models:
        home = Home(settings, name)
        with contextlib.suppress(NotFoundError):
            home.attempts.find(options.run)
            found.append(home)
    if len(found) == 1:
        return found[0]
    if found:
        raise NotFoundError(
            f"{', '.join(h.name for h in found)} have a run {options.run!r} each. Say which with --model."
        )
    known = ", ".join(models) or "none"
    raise NotFoundError(
        f"No model in {settings.home} has a run {options.run!r} (models: {known}). See `sereno runs MODEL`."
    )


def _new(options: argparse.Namespace) -> int:
    from sereno.new import new

    written = new(options.name, Path.cwd(), options.from_data)
    shown = os.path.relpath(written)
    if options.json:
        _print(options, json.dumps({"file": shown}))
    else:
        _print(options, f"Wrote {shown}. Next: sereno check {shown}, then sereno run {shown}")
    return DONE


def _check(options: argparse.Namespace) -> int:
    from sereno.check import check, render

    if options.source is not None:
        options.source = _from_here(options.source)
    model, settings = _model(options)
    report = check(model, settings, date=options.date, rows=options.rows)
    _output(options, report.to_dict(), render(report))
    return DONE if report.ok else FAILED


def _run_batch(options: argparse.Namespace) -> int:
    if options.source is not None:
        options.source = _from_here(options.source)
    with _ahead(options) as ahead:  # before anything heavy is imported here
        from sereno.adapters.local import LocalExecutor
        from sereno.adapters.spawn import cores
        from sereno.batch.run import run
        from sereno.progress import Shown
        from sereno.scoring import open_scorer
        from sereno.show import run_lines

        model, settings = _model(options)
        executor = LocalExecutor(settings.workers or cores(), lambda: open_scorer(model, settings), ahead)
        with Shown() as watcher:
            report = run(model, settings, executor, when=options.date, force=options.force, watcher=watcher)
    if options.json:
        _print(options, report.to_json().decode())
    elif report.state == "nothing":
        _print(options, report.says)
    else:
        _print(options, "\n".join(run_lines(report)))
    return HELD if report.state == "held" else DONE


def _serve(options: argparse.Namespace) -> int:
    from sereno.serve.command import replace_process, serve
    from sereno.serve.options import Options

    if options.model_itself is not None:
        replace_process(options.model_itself.file, options.given[options.given.index("serve") + 1 :])
    served = Options(
        files=[_model_file(options, named).absolute() for named in options.file],
        home=options.home,
        env=options.env,
        overrides=_overrides(options),
    )
    return serve(
        served,
        watch=options.watch,
        verbose=options.verbose,
        as_json=options.json,
        tell=lambda line: _print(options, line),
    )


@contextlib.contextmanager
def _ahead(options: argparse.Namespace) -> Iterator[Any]:
    """A second worker that imports what the model file imports while this process does; none where that is for nothing."""
    from sereno.adapters.spawn import Ahead, cores

    if options.model_itself is not None:
        yield None
        return
    file = _model_file(options)
    workers = _settings(options, file).workers or cores()
    if workers == 1 or not file.is_file():
        yield None
        return
    with Ahead(file.resolve(), workers) as ahead:
        yield ahead


def _from_here(source: str) -> str:
    """A relative path on the command line is relative to where the command was typed."""
    from sereno.settings import IS_SQL

    return source if IS_SQL.match(source) or source.startswith("{") else os.path.abspath(source)


def _runs(options: argparse.Namespace) -> int:
    from sereno.show import runs_lines

    home = _home(options)
    reports, published = home.attempts.all(), home.store.state().attempts
    states = [home.attempts.state_in_words(r, published) for r in reports]
    data = [json.loads(r.to_json()) | {"state": s} for r, s in zip(reports, states, strict=True)]
    _output(options, data, runs_lines(reports, states))
    return DONE


def _show(options: argparse.Namespace) -> int:
    from sereno.show import run_lines

    home = _home_of_run(options)
    report = home.attempts.find(options.run)
    state = home.attempts.state_in_words(report, home.store.state().attempts)
    _output(options, json.loads(report.to_json()) | {"state": state}, run_lines(report, state=state))
    return DONE


def _versions(options: argparse.Namespace) -> int:
    from sereno.show import versions_lines

    state = _home(options).store.state()
    served = {s.number for s in state.served}
    data = [
        {
            "version": s.number,
            "data_date": s.data_date.isoformat(),
            "data_time": s.data_time.isoformat(),
            "published_at": s.published_at.isoformat(),
            "run": s.attempt,
            "rows": s.rows,
            "rejects": s.rejects,
            "model_fingerprint": s.fingerprint,
            "in_service": s.number in served,
            "withdrawn": s.number in state.withdrawn,
            "why_withdrawn": state.why_withdrawn.get(s.number),
        }
        for s in state.snapshots.values()
    ]
    _output(options, data, versions_lines(state))
    return DONE


def _release(options: argparse.Namespace) -> int:
    from sereno.batch.publish import release
    from sereno.show import run_lines

    report = release(_home_of_run(options), options.run, who=_who())
    _output(options, json.loads(report.to_json()), run_lines(report))
    return DONE


def _discard(options: argparse.Namespace) -> int:
    from sereno.batch.publish import discard

    report = discard(_home_of_run(options), options.run)
    _output(options, json.loads(report.to_json()), [f"Discarded {report.attempt}; what is in service stays."])
    return DONE


def _rollback(options: argparse.Namespace) -> int:
    from sereno.home import rollback

    home = _home(options)
    before, served = rollback(home, to=options.to, day=options.date, why=options.why, who=_who())
    if served:
        place = f", in place of {before.number}" if before else ""
        says = f"Version {served.number} (data date {served.data_date}) of {home.name} is in service again{place}."
    else:
        assert before is not None
        says = f"Data date {before.data_date} of {home.name} is empty now: version {before.number} was its first."
    data = {
        "rolled_back": before.number if before else None,
        "in_service": served.number if served else None,
        "data_date": str((served or before).data_date),  # type: ignore[union-attr]
    }
    _output(options, data, [says])
    return DONE


def _get(options: argparse.Namespace) -> int:
    from sereno.home import get

    found = get(_home(options), options.key, version=options.number)
    _output(options, found, [f"{name}: {value}" for name, value in found.items()])
    return DONE


def _key(options: argparse.Namespace) -> int:
    from sereno.serve.guard import new_key

    key, line = new_key(options.name)
    says = [
        "The key, for the caller. It is not shown again:",
        key,
        "Its line for the file that the setting serve.keys_file names; started or reloaded, the server knows it:",
        line,
    ]
    _output(options, {"key": key, "line": line}, says)
    return DONE


def _log(options: argparse.Namespace) -> int:
    from sereno.answers.command import log

    own = options.model_itself
    model = own.name if own is not None else options.model
    settings = _settings(options, own.file if own is not None else Path.cwd())
    data, lines, notes = log(
        settings,
        model,
        {name: getattr(options, name) for name in ("since", "until", "key", "request", "limit")},
        compact=options.compact,
        without=options.erase,
    )
    _output(options, data, lines)
    for note in notes:
        print(f"sereno: {note}", file=sys.stderr)
    return DONE


def _who() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"


def _output(options: argparse.Namespace, data: Any, lines: Iterable[str]) -> None:
    _print(options, json.dumps(data, indent=2, default=str) if options.json else "\n".join(lines))


def _print(options: argparse.Namespace, text: str) -> None:
    try:
        print(text, file=options.out, flush=True)
    except BrokenPipeError:  # the reader (head, say) has seen enough; the exit code is still the command's
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
