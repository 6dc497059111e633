"""Two hosts, each with `sereno up`, one ledger in PostgreSQL, one shared home: what one host leaves, the other takes over."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from sereno.adapters.ledger import open_at
from tests.acceptance.project import MODEL, Project
from tests.hosts import PATIENCE, Host, Within, hosts, ray_cluster
from tests.services import server

ROWS = 1_000
TAKEN_OVER = 30.0  # seconds after which another host is at work, at the latest
PLAIN = MODEL.replace(', artifacts={"weight": "weight.txt"}', "").replace("weight: Path", "")
PLAIN = PLAIN.replace("float(weight.read_text())", "2.0")
# A run says that it has begun, and waits as long as its host is told to.
WAITS = """
    import socket, time
    here = Path(__file__).parent
    (here / f"began.{socket.gethostname()}").touch()
    while (here / f"wait.{socket.gethostname()}").exists():
        time.sleep(0.05)
"""
SETTINGS = """
executor = "{executor}"
workers = 1

[up]
run_nice = 0

[models.total]
file = "total.py"
log = "off"
ready = "off"
disposition = "partition"
"""
NOTHING: Mapping[str, str] = {}
YESTERDAY = datetime.now(UTC).date() - timedelta(days=1)
NIGHTS = [(YESTERDAY - timedelta(days=back)).isoformat() for back in (2, 1, 0)]


@dataclass
class Pair:
    """Two hosts that work on one home; two nights are due, and the first host works on the first of them."""

    project: Project
    ledger: str
    leads: Host
    stands_by: Host
    ups: dict[str, Within]
    variables: Mapping[str, str]
    lost_at: float = 0.0
    taken_over_at: float = 0.0

    @classmethod
    def new(
        cls,
        folder: Path,
        pair: list[Host],
        ledger: str,
        executor: str = "local",
        variables: Mapping[str, str] = NOTHING,
    ) -> Pair:
        project = Project(folder)
        project.within = True
        project.write("total.py", PLAIN.replace("    return pa.table", WAITS + "    return pa.table"))
        project.write("sereno.toml", f'ledger = "{ledger}"\n{SETTINGS.format(executor=executor)}')
        for night in [*NIGHTS, datetime.now(UTC).date().isoformat()]:  # the last one: midnight may be near
            project.rows(night, ROWS)
        project.sereno(
            "run", "total.py", "--date", NIGHTS[0], "--set", "executor=local"
        )  # with this one known, those after it are due
        one = cls(project, ledger, pair[0], pair[1], {}, variables)
        for file in folder.glob("began.*"):
            file.unlink()
        project.write(f"wait.{one.leads.name}", "")
        one.up(one.leads)
        return one

    def up(self, host: Host) -> None:
        environment = {"PYTHONWARNINGS": "error", **self.variables}
        command = [sys.executable, "-m", "sereno", "up", "--no-api"]
        self.ups[host.name] = host.popen(command, environment, cwd=self.project.folder, log=self.log_of(host))

    def log_of(self, host: Host) -> Path:
        return self.project.folder / f"up.{host.name}.log"

    def says(self, host: Host, text: str) -> bool:
        return text in self.log_of(host).read_text()

    def has_begun(self) -> bool:
        return any(self.project.folder.glob("began.*"))  # on the one that leads, or on a node of a cluster

    def stands_ready(self) -> bool:
        return self.says(self.stands_by, "Schedules total.")

    def is_taken_over(self) -> bool:
        self.taken_over_at = time.monotonic()
        return self.at_work() == self.stands_by.name

    def is_done(self) -> bool:
        return len(self.published()) >= len(NIGHTS)

    def at_work(self) -> str:
        """The host whose scheduler leads."""
        with closing(open_at(self.ledger, self.project.folder)) as ledger:
            lease = ledger.holder("scheduler")
        return "" if lease is None else lease.holder.partition(":")[0]

    def told_published(self) -> list[str]:
        """The run keys that were published, as the ledger knows it: as often as they were."""
        with closing(open_at(self.ledger, self.project.folder)) as ledger:
            keys = [entry.run_key for entry in ledger.entries(model="total")]
            return [key for key in keys for one in ledger.transitions("total", key) if one.after == "published"]

    def published(self) -> list[str]:
        """The data dates, as often as they were."""
        return sorted(str(one["data_date"]) for one in self.project.versions())

    def until(self, happens: Callable[[], object], what: str, patience: float = 2 * PATIENCE) -> None:
        deadline = time.monotonic() + patience
        while not happens():
            assert time.monotonic() < deadline, f"{what} did not come:\n{self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        return "\n".join(f"{path.name}:\n{path.read_text()}" for path in self.project.folder.glob("up.*.log"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pair, Pair]]:
    """One whose first host loses its power, one whose first host loses the network; the second has taken over in both."""
    shared = tmp_path_factory.mktemp("shared")
    with ExitStack() as stack:
        four = stack.enter_context(hosts(4, shared, names=["power1", "power2", "cable1", "cable2"]))
        url = stack.enter_context(server(four[0].gateway)).url
        power = Pair.new(shared / "power", four[:2], database(url, "power"))
        cable = Pair.new(shared / "cable", four[2:], database(url, "cable"))
        for pair in (power, cable):
            pair.until(pair.has_begun, "the first run")
            pair.up(pair.stands_by)
            pair.until(pair.stands_ready, "the second scheduler")
            assert pair.at_work() == pair.leads.name
        power.lost_at = time.monotonic()
        power.leads.kill()
        cable.lost_at = time.monotonic()
        cable.leads.cut()
        for pair in (power, cable):
            pair.until(pair.is_taken_over, "the other one")
        for pair in (power, cable):
            pair.until(pair.is_done, "all nights")
        yield power, cable


def database(url: str, name: str) -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
    return f"{url.rpartition('/')[0]}/{name}"


def test_another_host_takes_over_within_half_a_minute(pairs: tuple[Pair, Pair]) -> None:
    for pair in pairs:
        assert pair.taken_over_at - pair.lost_at <= TAKEN_OVER


def test_each_night_is_published_once(pairs: tuple[Pair, Pair]) -> None:
    for pair in pairs:
        assert pair.published() == NIGHTS
        table = pair.project.published()
        assert table is not None
        assert table.num_rows == len(NIGHTS) * ROWS
        assert table["y"].to_pylist() == [number / 4 for _ in NIGHTS for number in range(ROWS)]
        pair.until(
            lambda pair=pair: len({*pair.told_published()}) == len(NIGHTS), "the ledger"
        )  # it is told after the commit
        assert len(pair.told_published()) == len(NIGHTS), pair.logs()


def test_a_host_that_comes_back_publishes_nothing_and_stands_by(pairs: tuple[Pair, Pair]) -> None:
    _, cable = pairs
    first = cable.leads
    cable.until(lambda: cable.says(first, "The ledger"), "the first one to notice")  # … cannot be reached
    before = len(cable.project.runs())
    first.mend()
    cable.until(lambda: cable.says(first, "the ledger can be used again."), "the network")
    (cable.project.folder / f"wait.{first.name}").unlink()  # its run goes on, which another host has published since
    cable.until(lambda: cable.says(first, "Another process has taken this run over"), "the end of its run")
    assert cable.at_work() == cable.stands_by.name
    assert cable.published() == NIGHTS
    assert len(cable.project.runs()) == before
    cable.ups[cable.stands_by.name].send_signal(signal.SIGTERM)
    cable.until(lambda: cable.at_work() == first.name, "the first one, again")


@pytest.mark.soak
def test_the_driver_of_a_cluster_is_lost(tmp_path: Path) -> None:
    with ExitStack() as stack:
        nodes = stack.enter_context(hosts(3, tmp_path, names=["ray1", "ray2", "ray3"]))
        url = stack.enter_context(server(nodes[0].gateway)).url
        ray = stack.enter_context(ray_cluster(nodes))
        for node in nodes:
            (tmp_path / f"wait.{node.name}").touch()
        pair = Pair.new(tmp_path, nodes[1:], url, "ray", ray.environment)
        pair.until(pair.has_begun, "the first run")
        pair.up(pair.stands_by)
        pair.until(pair.stands_ready, "the second scheduler")
        pair.lost_at = time.monotonic()
        pair.leads.kill()
        for node in nodes:
            (tmp_path / f"wait.{node.name}").unlink()
        pair.until(pair.is_taken_over, "the other one")
        assert pair.taken_over_at - pair.lost_at <= TAKEN_OVER
        pair.until(pair.is_done, "all nights")
        assert pair.published() == NIGHTS
