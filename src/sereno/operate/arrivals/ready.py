"""`python -P -m sereno.operate.arrivals.ready`: asks a model's `ready` about one interval until it says yes. Not for people.

It reads what to ask on its standard input, loads the model file, and prints a line for each answer. Whatever the function
prints goes to the log. It ends with exit code 0 after a yes, with 1 where there is nothing to ask; with its parent, always.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sereno.config import find_home, load_settings
from sereno.exceptions import SerenoError
from sereno.operate.arrivals.asking import Answer, Question

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> int:
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
    words = os.dup(1)
    os.dup2(2, 1)

    def say(answer: Answer) -> None:
        os.write(words, msgspec.json.encode(answer) + b"\n")

    try:
        ask = prepared(question)
    except (SerenoError, OSError) as error:
        say(Answer(kind="failed", says=f"ready cannot be asked: {str(error).rstrip('.')}"))
        return 1
    while True:
        answer = ask()
        say(answer)
        if answer.kind == "yes":
            return 0
        time.sleep(question.ready_seconds)


def prepared(question: Question) -> Callable[[], Answer]:
    """What asks once. Raises SerenoError where the model file or a setting is wrong."""
    from sereno.loader import bind, load_model
    from sereno.model import place
    from sereno.operate.arrivals.awaited import interval_between

    here = os.getcwd()
    file = Path(question.file)
    os.chdir(find_home(file.resolve()))  # where the functions of the model file run
    model = load_model(file)
    function = model.ready_function
    if function is None:
        raise SerenoError(f"{file.name} has no function under `@model.ready` any more")
    assert model.file is not None
    home = os.getcwd()
    os.chdir(here)  # against which paths of variables and of the command line resolve
    settings = load_settings(
        model.file,
        home=None if question.home is None else Path(question.home),
        env=question.env,
        overrides=question.overrides,
    )
    chosen = settings.model(model.name, model.declared, model.file.parent)
    os.chdir(home)
    start, end = datetime.fromisoformat(question.start), datetime.fromisoformat(question.end)
    interval = interval_between(start, end, chosen.time_zone, alone=question.alone)
    arguments = bind(model, function, settings, given={"data_date": interval.data_date, "interval": interval})

    def ask() -> Answer:
        try:
            return _answer(function(**arguments), place(function))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it raises: it is asked again
            return Answer(kind="raised", says=f"ready ({place(function)}) raised {type(error).__name__}: {error}")

    return ask


def _answer(given: Any, where: str) -> Answer:
    from sereno.values import plain_value

    answer = plain_value(given)  # numpy's True is one, too
    if answer is True:
        return Answer(kind="yes", says="ready says yes")
    if answer is False:
        return Answer(kind="no", says="ready says no")
    shown = "nothing" if answer is None else f"{type(answer).__name__}, {answer!r:.60}"
    return Answer(kind="odd", says=f"ready ({where}) answered {shown}, which is neither True nor False")


if __name__ == "__main__":
    os._exit(main())  # what the model file has imported may have threads that never end
