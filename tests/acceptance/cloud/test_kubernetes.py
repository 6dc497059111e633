"""`sereno deploy kubernetes`: what it writes is started as a cluster would, and its callers notice nothing of what ends."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from sereno.deploy import docker, kubernetes
from sereno.serve.guard import new_key
from tests.acceptance.pods import NAMESPACE, Callers, Job, Pod, started
from tests.acceptance.project import Project, faults
from tests.acceptance.server import PATIENCE
from tests.kubernetes import Manifests, problems, read
from tests.objects import S3Server
from tests.services import postgresql

ROOT = Path(__file__).parents[3]
KEY = new_key("shop")
SCHEMAS = itertools.count()  # of the ledger: a home has one of its own
SLOW = """
    import time

    if len(rows) == 1 and rows["x"][0].as_py() < 0:  # the test asks for one that takes as long
        time.sleep(-rows["x"][0].as_py())
    return pa.table("""


@pytest.fixture
def project(project: Project) -> Project:
    model = (project.folder / "total.py").read_text()
    model = model.replace("\n    return pa.table(", SLOW).replace("input/{data_date}", "input/now")
    project.write("total.py", model)
    project.write("sereno.toml", '[models.total]\nfile = "total.py"\nlog = "off"\n')
    return project


def deployed(project: Project, *options: str) -> Manifests:
    """What the command writes, and says."""
    options = ("--name", "bank", "--image", "registry.bank/scores:1.0", *options)
    done = project.sereno("deploy", "kubernetes", *options)
    manifests = read(project.folder / "deploy")
    manifests.told = done.stdout
    return manifests


# What is written


def test_the_page_s_command_writes_what_the_page_says(project: Project) -> None:
    page = (ROOT / "docs" / "deploy_kubernetes.md").read_text()
    (line,) = re.findall(r"^sereno (deploy kubernetes .*)$", page, re.MULTILINE)
    done = project.sereno(*line.split())
    manifests = read(project.folder / "deploy")
    manifests.told = done.stdout
    assert problems(manifests) == []
    named = set(re.findall(r"^\| `([\w-]+)\.yaml` \|", page, re.MULTILINE)) - {"cronjob-MODEL"}
    assert {f"resources/{name}.yaml" for name in named - {"scheduler"}} | {
        "resources/cronjob-total.yaml"
    } == manifests.files
    assert f"Wrote {project.folder}/deploy/resources/deployment.yaml\n" in done.stdout
    assert "WARNING: storage is not set" in done.stdout
    assert "SERENO_LEDGER=postgresql://… into the Secret" in done.stdout


def test_what_the_settings_say_is_in_the_manifests(project: Project) -> None:
    project.write(
        "sereno.toml",
        """
        [env.prod]
        storage = "s3://bank/sereno"

        [env.prod.serve]
        port = 8017
        drain_seconds = 40
        allowed_hosts = ["scores.bank"]

        [models.total]
        file = "total.py"
        schedule = "30 3 * * 7"
        time_zone = "Europe/Madrid"
        predict_timeout_seconds = 120
        deadline_seconds = 0
        run_cores = 2
        run_seconds = 7200

        [models.live]
        file = "live.py"
        """,
    )
    live = (project.folder / "total.py").read_text().replace('"total"', '"live"')
    project.write("live.py", live.replace(',\n              source="input/now/*.parquet"', ""))
    manifests = deployed(project, "--env", "prod", "--memory", "4Gi")
    manifests.predict_seconds = 120
    assert problems(manifests) == []
    assert "storage is not set" not in manifests.told
    assert manifests.one("ConfigMap")["data"]["SERENO_ENV"] == "prod"
    cronjobs = {one["metadata"]["name"]: one["spec"] for one in manifests.of("CronJob")}
    assert sorted(cronjobs) == ["bank-prune", "bank-run-total"]  # a model without source and `read` has no runs
    run = cronjobs["bank-run-total"]
    assert (run["schedule"], run["timeZone"]) == ("30 3 * * 0", "Europe/Madrid")
    assert run["jobTemplate"]["spec"]["activeDeadlineSeconds"] == 7200
    (container,) = manifests.api["spec"]["template"]["spec"]["containers"]
    assert container["ports"][0]["containerPort"] == 8017
    assert manifests.environment(container, namespace="shop")["SERENO_SERVE__ALLOWED_HOSTS"] == (
        "bank,bank.shop,bank.shop.svc,bank.shop.svc.cluster.local,scores.bank"
    )


def test_what_is_said_where_the_command_is_typed_is_not_in_the_image(project: Project) -> None:
    """An address of the bucket goes on to the pods; what may hold a password does not."""
    project.variables = {
        "SERENO_STORAGE": "s3://bank/sereno",
        "SERENO_LEDGER": "postgresql://sereno:secret@db.bank/x",
        "SERENO_SERVE__NO_AUTH": "true",
    }
    manifests = deployed(project)
    assert problems(manifests) == []
    assert manifests.one("ConfigMap")["data"]["SERENO_STORAGE"] == "s3://bank/sereno"
    assert "storage is not set" not in manifests.told
    assert "The ledger has to be a PostgreSQL" in manifests.told
    assert "Callers need a key" in manifests.told
    assert not any("secret@" in path.read_text() for path in (project.folder / "deploy").rglob("*.yaml"))


def test_pods_and_image_agree() -> None:
    """On the folder that is written to; that arguments are Sereno's; and that the user is a number, which is not root's."""
    assert kubernetes.HOME == docker.HOME
    dockerfile = (ROOT / "src/sereno/deploy/templates/docker/Dockerfile").read_text()
    (entry,) = re.findall(r"^ENTRYPOINT (\[.*\])$", dockerfile, re.MULTILINE)
    assert json.loads(entry)[1:] == ["-P", "-m", "sereno"]
    assert re.findall(r"^USER (.*)$", dockerfile, re.MULTILINE) == ["${uid}:${uid}"]
    assert docker.UID > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["kubernetes"], "Kubernetes needs the name of the image, as it was pushed"),
        (["kubernetes", "--image", "x:1", "--set", "serve.unix=a.sock"], "but callers of a pod come to a port"),
        (["kubernetes", "--image", "x:1", "--replicas", "many"], "'many' is no range: 2-10, or 3"),
        (["kubernetes", "--image", "x:1", "--egress", "https"], "'https' is no list of ports: 443,5432"),
    ],
)
def test_words_that_are_not_of_kubernetes(project: Project, arguments: list[str], says: str) -> None:
    project.within = True
    assert says in project.sereno("deploy", *arguments, code=2).stderr


def test_without_a_model_there_is_nothing_to_deploy(project: Project) -> None:
    project.within = True
    project.write("sereno.toml", "")
    said = project.sereno("deploy", "kubernetes", "--image", "x:1", code=2).stderr
    assert "No model of sereno.toml has a file" in said
    project.write("sereno.toml", '[models.total]\nfile = "gone.py"\n')
    assert "gone.py" in project.sereno("deploy", "kubernetes", "--image", "x:1", code=1).stderr


# The API


def status(pod: Pod, path: str, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", pod.port, timeout=30)
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_new_version_takes_over_and_no_caller_notices(project: Project, tmp_path: Path) -> None:
    # the file is on this machine, and neither in the image nor in the manifests: pods have it from a Secret
    manifests = deployed(project, "--memory", "512Mi", "--set", f"serve.keys_file={tmp_path / 'keys'}")
    assert f"create secret generic bank-server --from-file=keys_file={tmp_path / 'keys'} " in manifests.told
    assert "Callers need a key" not in manifests.told
    host = f"bank.{NAMESPACE}.svc"

    def pod(name: str) -> Pod:
        folder, files = tmp_path / name, {"keys_file": KEY.line}
        return Pod(manifests, "Deployment bank", project.folder, folder, {}, files)

    with started(pod("old")) as old, started(pod("new")) as new:
        for each in (old, new):
            each.until("startupProbe")
            each.until("readinessProbe")
            assert each.probe("livenessProbe") == 200
        # whoever comes by another name, or without a key, gets nothing
        known = {"Authorization": f"Bearer {KEY.key}"}
        assert status(old, "/metrics", Host=host, **known) == 200
        assert status(old, "/metrics", Host="bank", **known) == 200
        assert status(old, "/metrics", Host=f"bank.{NAMESPACE}.svc.cluster.local:80", **known) == 200
        assert status(old, "/metrics", Host="evil.example", **known) == 400
        assert status(old, "/metrics", Host=host) == 401

        pods = [old]
        with Callers(host, KEY.key, pods) as callers:
            callers.wait_for(old)
            pods.append(new)
            callers.wait_for(new)
            slow: list[object] = []
            connection = http.client.HTTPConnection("127.0.0.1", old.port, timeout=60)
            asks = threading.Thread(target=lambda: slow.append(callers.ask(connection, -3)[:2]))
            asks.start()
            assert old.end(removed=lambda: pods.remove(old)) == 0, old.log.read_text()
            asks.join()
            connection.close()
            callers.wait_for(new)
        assert callers.failures == []
        assert slow == [(200, {"y": -6.0})]
        assert "Traceback" not in old.log.read_text()


# The runs


@pytest.fixture(scope="module")
def ledger() -> Iterator[str]:
    with postgresql() as address:
        yield address


@pytest.fixture(scope="module")
def bucket(shared_s3: S3Server) -> dict[str, str]:
    """The variables of a bucket in a real S3 server."""
    shared_s3.make_bucket("bank")
    return shared_s3.environment | {"SERENO_STORAGE": "s3://bank/sereno"}


@pytest.fixture
def project_of_runs(project: Project, tmp_path: Path, ledger: str) -> Project:
    """Its variables name what pods share: the ledger, and the storage."""
    project.rows("now", 200, parts=2)
    schema = f"s{next(SCHEMAS)}"
    with psycopg.connect(ledger, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}".encode())
    project.variables = {
        "SERENO_LEDGER": f"{ledger}&schema={schema}",
        "SERENO_STORAGE": str(tmp_path / "bucket"),
    }
    return project


@pytest.fixture
def job(project_of_runs: Project, tmp_path: Path) -> Callable[..., Job]:
    """The next Job of the model's CronJob; what is given is of its first pod. Each of its pods has a home of its own."""
    project, numbers = project_of_runs, itertools.count()
    manifests = deployed(project, "--cpu", "2")

    def next_job(**first: str) -> Job:
        def make() -> Pod:
            folder, more = tmp_path / f"pod{next(numbers)}", {**first}
            first.clear()
            return Pod(manifests, "CronJob bank-run-total", project.folder, folder, project.variables, **more)

        return Job(manifests, "bank-run-total", make)

    return next_job


@pytest.mark.service
def test_a_cronjob_that_fires_twice_publishes_once(
    project: Project, job: Callable[..., Job], bucket: dict[str, str]
) -> None:
    project.variables |= bucket
    both = [job(), job()]
    ended: list[str] = []
    threads = [threading.Thread(target=lambda one=one: ended.append(one.run())) for one in both]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == ["Complete", "Complete"], [one.logs for one in both]
    assert in_service(project) == [1]

    # another input does not change what is published of a date, nor does a rollback bring it back
    project.rows("now", 210)
    again = job()
    assert again.run() == "Complete"
    assert "Nothing to do: this interval was published as version 1" in again.logs[-1]
    assert in_service(project) == [1]
    project.within = True
    project.sereno("run", "total")
    assert in_service(project) == [2]
    project.sereno("rollback", "total")
    assert in_service(project) == [1]
    back = job()
    assert back.run() == "Complete"
    assert in_service(project) == [1]


@pytest.mark.service
def test_a_run_that_is_held_is_not_tried_again(project: Project, job: Callable[..., Job]) -> None:
    project.rows("now", [1.0] * 2000)
    held = job()
    assert (held.run(), held.codes) == ("Failed", [3])
    project.write("sereno.toml", '[models.total]\nfile = "total.py"\nlogs = "off"\n')
    wrong = job()
    assert (wrong.run(), wrong.codes) == ("Failed", [2])
    project.write("sereno.toml", '[models.total]\nfile = "total.py"\n')
    project.table("now", {"id": [1]})
    other = job()
    assert (other.run(), other.codes) == ("Failed", [4])
    assert "Column 'x' is missing." in other.logs[-1]


@pytest.mark.service
def test_a_run_whose_data_is_late_is_tried_again(project: Project, job: Callable[..., Job]) -> None:
    folder = project.folder / "input" / "now"
    away = folder.rename(folder.with_name("away"))
    late = job()
    waits = threading.Thread(target=late.run)
    waits.start()
    while not late.logs:
        waits.join(0.05)
    away.rename(folder)
    waits.join()
    assert late.codes == [*[1] * (len(late.codes) - 1), 0]
    assert in_service(project) == [1]


@pytest.mark.service
def test_a_night_without_a_job_is_made_up_for_by_the_next(project: Project, job: Callable[..., Job]) -> None:
    project.within = True
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    project.sereno("run", "total", "--date", f"{yesterday - timedelta(days=2)}")
    assert job().run() == "Complete"
    assert in_service(project) == [2]
    dates = [one["data_date"] for one in project.json("versions", "total")]
    assert sorted(dates) == [f"{yesterday - timedelta(days=2)}", f"{yesterday}"]


@pytest.mark.service
@pytest.mark.parametrize(
    "point",
    [
        "commit_after",
        *(
            pytest.param(point, marks=pytest.mark.soak)
            for point in ("task_done", "commit_before", "export_copied", "run_end")
        ),
    ],
)
def test_a_pod_that_is_lost_with_its_node(
    project: Project, job: Callable[..., Job], bucket: dict[str, str], point: str
) -> None:
    """The Job's next one, which has nothing of it, does what is left once the lease has ended."""
    project.variables |= bucket | {"SERENO_STORAGE": f"s3://bank/{point}"}
    after = job(**faults(f"{point}:kill"))
    assert after.run() == "Complete", after.logs[-1]
    assert (after.codes[0], after.codes[-1]) == (-signal.SIGKILL, 0)
    assert in_service(project) == [1]
    assert project.json("runs", "total")[-1]["state"] == "published"


@pytest.mark.service
def test_of_two_schedulers_one_publishes(project_of_runs: Project, tmp_path: Path) -> None:
    project = project_of_runs
    project.write("sereno.toml", '[models.total]\nfile = "total.py"\nquiet_seconds = 0.2\n')
    manifests = deployed(project, "--scheduler")
    assert "resources/scheduler.yaml" in manifests.files

    def pod(name: str) -> Pod:
        return Pod(manifests, "Deployment bank-scheduler", project.folder, tmp_path / name, project.variables)

    with started(pod("one")) as one, started(pod("two")) as two:
        logs = (one.log, two.log)
        until(lambda: any("published as version 1" in log.read_text() for log in logs))
        until(lambda: all("Schedules total" in log.read_text() for log in logs))
        for each in (one, two):
            each.process.terminate()
            assert each.process.wait(each.spec["terminationGracePeriodSeconds"]) == 0, each.log.read_text()
        assert sum("published as version" in log.read_text() for log in logs) == 1
    assert in_service(project) == [1]


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def in_service(project: Project) -> list[int]:
    project.within = True
    return [one["version"] for one in project.json("versions", "total") if one["in_service"]]
