"""What the tests of ledgers share: both kinds of them, entries, and other processes that use them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from sereno.adapters.ledger import open_at
from sereno.interfaces import RunLedger
from sereno.ledger import Entry

START = datetime(2026, 5, 1, 22, tzinfo=UTC)


@dataclass(kw_only=True)
class Place:
    """Where a ledger is kept."""

    address: str | None
    home: Path
    opened: list[RunLedger] = field(default_factory=list)
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def open(self) -> RunLedger:
        """The ledger, as another process would have it."""
        self.opened.append(open_at(self.address, self.home))
        return self.opened[-1]

    def close(self) -> None:
        for ledger in self.opened:
            ledger.close()
        for process in self.started:
            process.kill()
            process.communicate()

    def start(self, code: str, *arguments: str) -> subprocess.Popen[str]:
        """A process with `ledger`, `tell` and `arguments`."""
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PRELUDE + code, self.address or "", str(self.home), *arguments],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def together(self, code: str, many: int) -> list[Any]:
        """What each of many processes tells, which all begin at once."""
        processes = [self.start(code, str(number)) for number in range(many)]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        told = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
        assert [process.returncode for process in processes] == [0] * many
        return told


PRELUDE = """
import json, sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from sereno.adapters.ledger import open_at
address, home, *arguments = sys.argv[1:]
ledger = open_at(address or None, Path(home))
def tell(what):
    print(json.dumps(what), flush=True)
print("ready", flush=True)
sys.stdin.readline()
"""


def entry(day: int = 1, model: str = "churn", **changes: Any) -> Entry:
    """The run of a night in May."""
    data_date = date(2026, 5, 1) + timedelta(days=day - 1)
    data_time = START + timedelta(days=day)
    blank = Entry(
        model=model,
        run_key=f"{data_time - timedelta(days=1):%Y-%m-%dT%H:%MZ}",
        data_date=data_date,
        data_time=data_time,
        state="due",
        since=data_time,
        label=data_date.isoformat(),
    )
    return replace(blank, **changes)


def moved(ledger: RunLedger, *entries: Entry) -> None:
    for one in entries:
        assert ledger.move(one)


def eventually(holds: Callable[[], bool], seconds: float = 10) -> None:
    import time

    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def labels(entries: Sequence[Entry]) -> list[str]:
    return [f"{one.model}/{one.label[-2:]}" for one in entries]
