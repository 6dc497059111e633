"""`sereno serve` as an operator meets it: real processes, real signals, callers who notice everything."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import psutil
import pytest

from tests.acceptance.load import Load
from tests.acceptance.server import PATIENCE, Server

MODEL = """
import os, sys, time
from pathlib import Path
from typing import TypedDict

import numpy as np

from sereno import Key, Model


class Row(TypedDict):
    id: Key[int]
    x: float


class Score(TypedDict):
    y: float


model = Model("total", inputs=Row, outputs=Score, artifacts={"weight": "weight.txt"})


@model.load
def load(weight: Path):
    text = weight.read_text().strip()
    if text == "kill":
        os.kill(os.getpid(), 11)
    if text == "wait":  # all but the first worker, until they are let go
        try:
            with weight.with_name("first").open("x") as first:
                first.write(str(os.getpid()))
        except FileExistsError:
            weight.with_name("waits").touch()
            while not weight.with_name("go").exists():
                time.sleep(0.02)
        return 2.0
    return float(text)


@model.predict
def predict(weight, rows: np.ndarray) -> np.ndarray:
    if rows[0, 0] < 0:  # the tests ask for trouble
        Path(__file__).with_name("asleep").touch()
        time.sleep(-rows[0, 0])
    return rows * weight


if __name__ == "__main__":
    model.main()
"""
SETTINGS = """
[models.total]
file = "total.py"
log = "off"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with the model `total`: y = x × weight. A negative x takes as many seconds."""
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "total.py").write_text(MODEL)
    (folder / "weight.txt").write_text("2")
    (folder / "sereno.toml").write_text(SETTINGS)
    return folder


def ask(server: Server, x: float, **options: object) -> httpx.Response:
    return httpx.post(f"{server.url}/predict", json={"id": 1, "x": x}, timeout=PATIENCE, **options)  # type: ignore[arg-type]


def serve(folder: Path, *arguments: str, code: int, **variables: str) -> str:
    """What a server says that cannot start."""
    with Server(folder, *arguments, ready=False, **variables) as server:
        assert server.process.wait(PATIENCE) == code, server.log
    return server.log


def seldom(*values: object) -> object:
    """A case for `make soak`."""
    return pytest.param(*values, marks=pytest.mark.soak)


# Start


def test_it_answers(folder: Path) -> None:
    with Server(folder, "total.py") as server:
        assert ask(server, 3).json() == {"y": 6.0}
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        assert server.told["models"][0]["name"] == "total"
        assert server.told["pid"] == server.pid
        assert len(server.workers()) == 1
        assert server.stop() == 0


def test_people_are_told_where_it_is(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "sereno", "serve", "total.py", "--port", "0"],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process:
        first, docs, tries = (process.stdout.readline() for _ in range(3))
        found = re.fullmatch(r"Serving total on (http://127.0.0.1:\d+), 1 worker. Ctrl-C ends it.\n", first)
        assert found is not None, first
        assert docs == f"Docs: {found[1]}/docs\n"
        assert tries.startswith(f"Try:  curl {found[1]}")
        told = subprocess.run(tries.removeprefix("Try:"), shell=True, capture_output=True, text=True, check=True)
        assert set(json.loads(told.stdout)) == {"y"}
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


def test_a_model_file_serves_itself(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "total.py", "serve", "--port", "0", "--json"],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process:
        told = json.loads(process.stdout.readline())
        assert httpx.post(f"{told['url']}/predict", json={"id": 1, "x": 1}).json() == {"y": 2.0}
        # it has become the supervisor, and keeps nothing of what the file imported
        assert told["pid"] == process.pid
        assert "numpy" not in {Path(m.path).parent.parent.name for m in psutil.Process(process.pid).memory_maps()}
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_the_project_s_models_together(folder: Path) -> None:
    other = (folder / "total.py").read_text().replace('"total"', '"other"').replace("rows * weight", "rows + weight")
    (folder / "other.py").write_text(other)
    (folder / "sereno.toml").write_text(f'{SETTINGS}\n[models.other]\nfile = "other.py"\nlog = "off"\n')
    with Server(folder) as server:
        for name, y in (("total", 6.0), ("other", 5.0)):
            answer = httpx.post(f"{server.url}/models/{name}/predict", json={"id": 1, "x": 3})
            assert answer.json() == {"y": y}
    with Server(folder, "other", "total.py") as server:
        assert [model["name"] for model in server.told["models"]] == ["other", "total"]


def test_without_a_model_there_is_nothing_to_serve(tmp_path: Path) -> None:
    assert "There is nothing to serve" in serve(tmp_path, code=2)
    assert "There is no file" in serve(tmp_path, "gone.py", code=1)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_model_that_does_not_load_ends_the_command(folder: Path, workers: str) -> None:
    (folder / "total.py").write_text(MODEL.replace("rows * weight", "rows *"))
    assert re.search(r"sereno: total.py:\d+: invalid syntax", serve(folder, "total.py", "--workers", workers, code=1))
    (folder / "total.py").write_text(MODEL)
    (folder / "weight.txt").write_text("kill")
    told = serve(folder, "total.py", "--workers", workers, code=1)
    assert "was ended by signal 11 while it loaded" in told


def test_two_servers_never_share_a_port(folder: Path) -> None:
    with Server(folder, "total.py", "--workers", "2") as server:
        port = str(server.port)
        for workers in ("1", "2"):
            told = serve(folder, "total.py", "--port", port, "--workers", workers, code=1)
            assert f"Port {port} is taken by another `sereno serve` (pid {server.pid})" in told
        everywhere = ("--host", "0.0.0.0", "--no-auth", "--tls-terminated-upstream")
        for workers in ("1", "2"):
            told = serve(folder, "total.py", "--port", port, "--workers", workers, *everywhere, code=1)
            assert f"Port {port} is taken by another `sereno serve` (pid {server.pid})" in told


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_that_another_program_would_share(folder: Path, workers: str) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        told = serve(folder, "total.py", "--port", str(port), "--workers", workers, code=1)
        assert f"Port {port} of 127.0.0.1 is taken by another program" in told


# Who may reach it


def test_it_does_not_open_itself_to_a_network(folder: Path) -> None:
    (folder / "keys").write_text(f"sha256:{'0' * 64}\n")
    asks_for = {
        (): {"--keys-file", "--tls-certificate"},
        ("--no-auth",): {"--tls-certificate"},
        ("--tls-terminated-upstream",): {"--keys-file"},
        ("--keys-file", "keys"): {"--tls-certificate"},
    }
    for said, wanted in asks_for.items():
        told = serve(folder, "total.py", "--host", "0.0.0.0", *said, code=2)
        assert "The address 0.0.0.0 can be reached from other machines" in told
        assert {word for word in ("--keys-file", "--tls-certificate") if word in told} == wanted
    with Server(folder, "total.py", "--host", "0.0.0.0", "--keys-file", "keys", "--tls-terminated-upstream") as server:
        assert ask(server, 1).status_code == 401
        assert server.url.startswith("http://127.0.0.1:")


def certificate(folder: Path, name: str) -> None:
    made = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN={name}"
    subprocess.run(["openssl", *made.split()], cwd=folder, check=True, capture_output=True)


def test_tls_takes_the_new_certificate_at_a_reload(folder: Path) -> None:
    certificate(folder, "old")
    tls = ("--tls-certificate", "cert.pem", "--tls-key", "key.pem")
    with Server(folder, "total.py", *tls) as server:
        assert server.url.startswith("https://")
        old = ssl.get_server_certificate(("127.0.0.1", server.port))
        assert ask(server, 1, verify=False).json() == {"y": 2.0}
        certificate(folder, "new")
        server.reload()
        assert ssl.get_server_certificate(("127.0.0.1", server.port)) not in ("", old)
        with Load(server.port, keep_alive=False, tls=True) as load:
            for weight in (3.0, 4.0):
                (folder / "weight.txt").write_text(str(weight))
                server.reload()
                load.wait_for(weight=weight)
        assert not load.failures
        assert not load.refused
        (folder / "key.pem").write_text("no key")
        server.reload()
        assert "the reload was refused" in server.log
        assert "TLS cannot be spoken with" in server.log
        assert ask(server, 1, verify=False).json() == {"y": 4.0}


def test_a_unix_socket(folder: Path) -> None:
    path = folder / "run" / "api.sock"
    with Server(folder, "total.py", "--unix", str(path), "--workers", "2") as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            assert client.post("http://localhost/predict", json={"id": 1, "x": 1}).json() == {"y": 2.0}
        told = serve(folder, "total.py", "--unix", str(path), code=1)
        assert f"is taken by another `sereno serve` (pid {server.pid})" in told
        os.kill(server.pid, signal.SIGKILL)  # what it leaves is in nobody's way
    assert path.exists()
    with Server(folder, "total.py", "--unix", str(path), SERENO_SERVE__UNIX_MODE="0660") as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert server.stop() == 0
    assert not path.exists()
    path.write_text("mine")
    assert "is no Unix socket" in serve(folder, "total.py", "--unix", str(path), code=2)
    assert path.read_text() == "mine"


# The end


@pytest.mark.parametrize(("number", "keep_alive"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_it_drains(folder: Path, number: int, keep_alive: bool) -> None:
    with Server(folder, "total.py", "--workers", "2") as server, Load(server.port, keep_alive=keep_alive) as load:
        load.wait_for(500)
        assert server.stop(number) == 0
    assert not load.failures
    assert load.refused


def test_it_finishes_what_it_is_at(folder: Path) -> None:
    answers = []
    with Server(folder, "total.py") as server:
        slow = threading.Thread(target=lambda: answers.append(ask(server, -2).json()))
        slow.start()
        server.until(lambda: bool(_in_flight(server)), "begin")
        assert server.stop() == 0
        slow.join()
    assert answers == [{"y": -4.0}]


def _in_flight(server: Server) -> list[object]:
    """Connections that are open: one is that of the slow request."""
    return [c for c in psutil.Process(server.workers()[0]).net_connections() if c.status == psutil.CONN_ESTABLISHED]


def test_what_does_not_end_in_time_is_killed(folder: Path) -> None:
    with Server(folder, "total.py", SERENO_SERVE__DRAIN_SECONDS="2") as server:
        stuck = threading.Thread(target=lambda: _stuck(server, -3600))
        stuck.start()
        server.until(lambda: bool(_in_flight(server)), "begin")
        assert server.stop() in (0, 1)
        stuck.join()
        assert not server.workers()


def test_it_ends_with_its_terminal(folder: Path) -> None:
    """A SIGHUP of the terminal that was closed is no wish for a reload."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "sereno", "serve", "total.py", "--port", "0"]
    with open(folder / "out", "w+") as out:
        process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *command], cwd=folder, stdin=theirs, stdout=out, stderr=out
        )
        os.close(theirs)
        with process:
            while "Try:" not in (folder / "out").read_text():
                assert process.poll() is None
                threading.Event().wait(0.05)
            os.close(ours)
            assert process.wait(PATIENCE) == 0
        assert "reload" not in (folder / "out").read_text()


def test_workers_end_with_their_supervisor(folder: Path) -> None:
    with Server(folder, "total.py", "--workers", "2") as server:
        workers = [psutil.Process(pid) for pid in server.workers()]
        os.kill(server.pid, signal.SIGKILL)
        gone, alive = psutil.wait_procs(workers, PATIENCE)
        assert len(gone) == 2
        assert not alive
        port = str(server.port)
    with Server(folder, "total.py", "--port", port):
        pass


def test_a_worker_that_hangs_ends_though_its_supervisor_is_gone(folder: Path) -> None:
    with Server(folder, "total.py", SERENO_SERVE__DRAIN_SECONDS="2") as server:
        (worker,) = map(psutil.Process, server.workers())
        with httpx.Client() as client:
            for _ in range(500):  # then predict runs on the event loop
                assert client.post(f"{server.url}/predict", json={"id": 1, "x": 1}).json() == {"y": 2.0}
            stuck = threading.Thread(target=lambda: _stuck(server, -3600, client))
            stuck.start()
            server.until((folder / "asleep").exists, "begin")
            os.kill(server.pid, signal.SIGKILL)
            assert not psutil.wait_procs([worker], PATIENCE)[1]
            stuck.join()


def test_only_the_same_signal_again_ends_it_at_once(folder: Path) -> None:
    answers = []
    with Server(folder, "total.py") as server:
        slow = threading.Thread(target=lambda: answers.append(ask(server, -2).json()))
        slow.start()
        server.until(lambda: bool(_in_flight(server)), "begin")
        server.send(signal.SIGTERM)
        assert server.stop(signal.SIGINT) == 0
        slow.join()
        assert answers == [{"y": -4.0}]
    with Server(folder, "total.py") as server:
        stuck = threading.Thread(target=lambda: _stuck(server, -3600))
        stuck.start()
        server.until(lambda: bool(_in_flight(server)), "begin")
        server.send(signal.SIGINT)
        server.until(lambda: _is_draining(server), "drain")
        assert server.stop(signal.SIGINT) == 1
        stuck.join()


def _is_draining(server: Server) -> bool:
    try:
        return httpx.get(f"{server.url}/readyz").status_code == 503
    except httpx.HTTPError:  # it takes no more connections
        return True


# Reload


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_reload_loses_no_request(folder: Path, workers: str) -> None:
    with Server(folder, "total.py", "--workers", workers) as server, Load(server.port) as load:
        load.wait_for(weight=2.0)
        old = set(server.workers())
        (folder / "weight.txt").write_text("3")
        server.reload()
        load.wait_for(weight=3.0)
        server.until(lambda: not old & set(server.workers()), "let the old ones go")
        before = load.weights[2.0]
        load.wait_for()
        assert load.weights[2.0] == before
        assert set(load.weights) == {2.0, 3.0}
        assert server.process.poll() is None
    assert not load.failures


def test_a_model_that_does_not_load_is_refused(folder: Path) -> None:
    with Server(folder, "total.py", "--workers", "2") as server, Load(server.port) as load:
        server.wait_for_all(2)
        workers = server.workers()
        (folder / "weight.txt").write_text("heavy")
        server.reload()
        (told,) = server.wait_for("the reload was refused")
        assert "could not convert string to float: 'heavy'" in server.log
        assert "stays in service" in told
        (folder / "sereno.toml").write_text("workres = 3")
        server.reload()
        assert "Did you mean 'workers'?" in server.log
        assert server.workers() == workers
        load.wait_for()
        (folder / "sereno.toml").write_text(SETTINGS)
        (folder / "weight.txt").write_text("4")
        server.reload()
        load.wait_for(weight=4.0)
    assert set(load.weights) == {2.0, 4.0}


def test_many_reloads_at_once_are_few(folder: Path) -> None:
    with Server(folder, "total.py") as server, Load(server.port) as load:
        load.wait_for()
        for weight in range(3, 23):
            (folder / "weight.txt").write_text(str(weight))
            server.send(signal.SIGHUP)
        load.wait_for(weight=22.0)
        assert len(server.wait_for("reloaded in")) <= 3


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (signal.SIGKILL, "was ended by signal 9 before the others were ready"),
        (signal.SIGSTOP, "hangs: it has not moved"),
    ],
)
def test_a_new_worker_that_fails_while_the_others_load_ends_the_reload(folder: Path, number: int, why: str) -> None:
    (folder / "sereno.toml").write_text(SETTINGS + "predict_timeout_seconds = 5\n")
    with Server(folder, "total.py", "--workers", "2") as server:
        server.wait_for_all(2)
        old = server.workers()
        (folder / "weight.txt").write_text("wait")
        server.send(signal.SIGHUP)
        server.wait_for_all(3)
        new = [psutil.Process(pid) for pid in server.workers() if pid not in old]
        os.kill(int((folder / "first").read_text()), number)
        server.wait_for(f"the reload was refused, .*{why}")
        psutil.wait_procs(new, PATIENCE)
        assert server.workers() == old
        assert 'sereno_worker_restarts_total{reason="died"} 0\n' in httpx.get(f"{server.url}/metrics").text
        (folder / "weight.txt").write_text("3")
        server.reload()
        assert server.wait_for("reloaded in")


def test_a_reload_while_the_first_worker_loads_comes_after(folder: Path) -> None:
    (folder / "weight.txt").write_text("wait")
    (folder / "first").touch()
    with Server(folder, "total.py", ready=False) as server:
        server.until((folder / "waits").exists, "load")
        server.send(signal.SIGHUP)
        (folder / "go").touch()
        server.wait_for("reloaded in")


def test_settings_that_need_a_restart_are_told(folder: Path) -> None:
    with Server(folder, "total.py") as server:
        (folder / "sereno.toml").write_text('workers = 2\n[serve]\nhost = "127.0.0.2"\n' + SETTINGS)
        server.reload()
        server.wait_for("what is new in host, workers needs a restart")
        assert len(server.workers()) <= 2


def test_watched_files_are_read_again(folder: Path) -> None:
    (folder / "more.py").write_text("TIMES = 1\n")
    (folder / "total.py").write_text(
        MODEL.replace("rows * weight", "rows * weight * more.TIMES").replace("import os", "import more, os")
    )
    with Server(folder, "total.py", "--watch") as server:
        changes = (("weight.txt", "3", 3.0), ("more.py", "TIMES = 2\n", 6.0), ("weight.txt", "heavy", 6.0))
        for times, (file, text, y) in enumerate(changes, 1):
            (folder / file).write_text(text)
            server.wait_for("reloaded in|the reload was refused", times)
            assert ask(server, 1).json() == {"y": y}
        assert "the reload was refused" in server.log
        # by another name first, as good programs write files
        (folder / "weight.new").write_text("5")
        (folder / "weight.new").rename(folder / "weight.txt")
        server.wait_for("reloaded in", 3)
        assert ask(server, 1).json() == {"y": 10.0}
        server.wait_for("reloaded in", 3)


# Workers that fail


def test_a_worker_that_is_killed_is_replaced(folder: Path) -> None:
    with Server(folder, "total.py", "--workers", "2") as server:
        server.wait_for_all(2)
        for time in range(2):
            before = server.workers()
            server.kill_worker(before[0])
            # the other one takes the connections of both, so nobody waits for the new one
            for _ in range(20):
                assert ask(server, 1).json() == {"y": 2.0}
            server.until(lambda: len(set(server.workers()) - {before[0]}) == 2, "start another")  # noqa: B023
            assert server.wait_for(r"was ended by signal 9\. Another one starts", time + 1)


def test_what_a_model_has_started_goes_with_its_worker(folder: Path) -> None:
    started = "import subprocess\n    load.child = subprocess.Popen(['sleep', '3600'])\n    text = "
    (folder / "total.py").write_text(MODEL.replace("text = ", started))
    with Server(folder, "total.py") as server:
        for end in (server.kill_worker, lambda _: server.reload()):
            (worker,) = server.workers()
            (child,) = psutil.Process(worker).children()
            end(worker)
            child.wait(PATIENCE)
            server.until(lambda: len(server.workers()) == 1, "have one worker")
            server.wait_for_all(1)


def test_service_is_back_after_the_only_worker_was_killed(folder: Path) -> None:
    with Server(folder, "total.py") as server:
        server.kill_worker(server.workers()[0])
        assert ask(server, 1).json() == {"y": 2.0}  # it waited for the new one


@pytest.mark.parametrize(("workers", "warm"), [(1, 0), (2, 500), seldom(2, 0), seldom(1, 500)])
def test_a_worker_whose_predict_hangs_is_replaced(folder: Path, workers: int, warm: int) -> None:
    """In its thread, and, where it was fast before, on the event loop."""
    (folder / "sereno.toml").write_text(
        SETTINGS + "predict_timeout_seconds = 1\n[serve]\nrequest_timeout_seconds = 3\n"
    )
    with Server(folder, "total.py", "--workers", str(workers)) as server:
        for times in (1, 2):
            server.wait_for_all(workers)
            before = server.workers()
            with httpx.Client() as client:
                for _ in range(warm):
                    assert client.post(f"{server.url}/predict", json={"id": 1, "x": 1}).json() == {"y": 2.0}
                stuck = threading.Thread(target=lambda: _stuck(server, -3600, client))
                stuck.start()
                told = server.wait_for("hangs", times)[-1]
                hung = int(re.findall(r"worker (\d+) hangs", told)[0])
                assert hung in before
                assert ask(server, 1).json() == {"y": 2.0}  # as soon as another one is there
                stuck.join()
            server.until(lambda: hung not in server.workers(), "end it")  # noqa: B023


def _stuck(server: Server, x: float, client: httpx.Client | None = None) -> None:
    with contextlib.suppress(httpx.HTTPError):  # its worker was killed
        ask = (client or httpx).post
        assert ask(f"{server.url}/predict", json={"id": 1, "x": x}, timeout=PATIENCE).status_code in (503, 504)


# Campaigns


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_two_hundred_reloads_lose_no_request(folder: Path, kind: str) -> None:
    where = ("--unix", str(folder / "api.sock")) if kind == "unix" else ()
    with Server(folder, "total.py", "--workers", "2", *where) as server, contextlib.ExitStack() as stack:
        loads = [stack.enter_context(callers(server, keep_alive=keep_alive)) for keep_alive in (True, False)]
        for weight in range(3, 203):
            (folder / "weight.txt").write_text(str(weight))
            server.reload()
            for load in loads:
                load.wait_for(50, weight=float(weight))
        assert len(server.workers()) <= 6
    for load in loads:
        assert not load.failures
        assert not load.refused


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["tcp", "tcp, 1 worker", "unix"])
def test_fifty_ends_lose_no_request(folder: Path, kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    where = ("--unix", str(folder / "api.sock")) if kind == "unix" else ("--port", str(port))
    workers = "1" if "1" in kind else "2"
    with contextlib.ExitStack() as stack:
        loads: list[Load] = []
        for _ in range(50):
            with Server(folder, "total.py", "--workers", workers, *where) as server:
                if not loads:
                    loads = [
                        stack.enter_context(callers(server, keep_alive=keep_alive)) for keep_alive in (True, False)
                    ]
                for load in loads:
                    load.wait_for(100)
                assert server.stop() == 0
    for load in loads:
        assert not load.failures
        assert load.refused


def callers(server: Server, *, keep_alive: bool) -> Load:
    unix = server.told["unix"]
    if unix is not None:
        return Load(unix=Path(unix), keep_alive=keep_alive)
    return Load(server.port, keep_alive=keep_alive)
