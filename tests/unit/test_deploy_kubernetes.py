"""What is written for Kubernetes, held to its schemas, its cron, and to the server that the pods run."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim

from sereno.cli import deploying, main
from sereno.deploy import kubernetes as module
from sereno.deploy.crons import cron_of, left_out, shortest
from sereno.deploy.kubernetes import Kubernetes, Nightly, amount, leftovers, next_steps, warnings
from sereno.deploy.writing import write
from sereno.exceptions import SettingsError
from tests.kubernetes import CHECKS, Cron, Manifests, commands, parsed, problems, resources
from tests.unit.test_deploy_server import SCHEDULES

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
MODELS = (
    Nightly(name="credit-scoring", schedule="30 0 * * *", time_zone="Europe/Madrid"),
    Nightly(name="offers", schedule="*/15 8-18 * * mon-fri", time_zone="UTC", cores=4, memory_bytes=1 << 30),
)
BANK = Kubernetes(name="bank", image="registry.bank/scores:1.0", models=MODELS)


@pytest.fixture(autouse=True, scope="module")
def counted_once() -> Iterator[None]:
    """Each schedule's times are counted for each object that is written, thousands of them."""
    counted = functools.cache(lambda schedule, zone: shortest(schedule, zone, NOW))
    with mock.patch.object(module, "shortest", lambda schedule, zone, _: counted(schedule, zone)):
        yield


def manifests_of(kubernetes: Kubernetes) -> Manifests:
    found = parsed(kubernetes.files())
    found.told = "\n".join(next_steps(kubernetes, Path("deploy")))
    found.predict_seconds, found.speaks_tls = kubernetes.predict_seconds, kubernetes.speaks_tls
    return found


@pytest.fixture(scope="module")
def bank() -> Manifests:
    return manifests_of(BANK)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"name": "sereno", "image": "scores@sha256:" + "0" * 64, "env": "prod"},
        {"cpu": "500m", "memory": "512Mi", "replicas": (1, 1), "port": 9000},
        {"cpu": "2.5", "drain_seconds": 90.5, "predict_seconds": 300.0},
        {"callers": ("ingress-nginx", "shop"), "egress": (443, 5432), "domains": ("scores.bank",)},
        {
            "speaks_tls": True,
            "models": (),
            "server_files": {"tls_certificate": Path("a.pem"), "tls_key": Path("a b.key")},
        },
        {"has_scheduler": True, "run_stop_seconds": 90.0, "max_runs": 2, "run_cores": 2},
        {"has_scheduler": True, "models": ()},
        {
            "models": tuple(
                Nightly(name=name, schedule="0 0 * * *", time_zone="UTC") for name in ("a_b", "a-b", "prune", "x" * 64)
            )
        },
        {"models": tuple(Nightly(name=f"m{n}", schedule=each, time_zone="UTC") for n, each in enumerate(SCHEDULES))},
        {"models": (Nightly(name="m", schedule="* * * * *", time_zone="UTC", deadline_seconds=0.0),)},
    ],
    ids=lambda changes: " ".join(changes) or "as it is",
)
def test_what_is_written_is_in_order(changes: dict[str, Any]) -> None:
    assert problems(manifests_of(replace(BANK, **changes))) == []


# Each check, by a mistake that it must see


def of(kind: str, *path: str | int) -> Callable[[Manifests], Any]:
    """Where a mistake is made: below the first object of a kind."""

    def find(manifests: Manifests) -> Any:
        found: Any = manifests.of(kind)[0]
        for step in path:
            found = found[step]
        return found

    return find


POD = ("spec", "template", "spec")
API = (*POD, "containers", 0)
JOB = ("spec", "jobTemplate", "spec")
RUN = (*JOB, "template", "spec", "containers", 0)
GONE = object()
LABEL = "app.kubernetes.io/component"
MISTAKES: list[tuple[str, Callable[[Manifests], Any], str | int, Any, str]] = [
    ("schemas", of("Deployment", *API), "imagePullPolice", "Always", "Additional properties"),
    ("schemas", of("CronJob", *JOB), "backoffLimit", "six", "'six' is not"),
    ("schemas", of("Service"), "apiVersion", "v1", ""),
    ("names", of("CronJob", "metadata"), "name", "bank-run-" + "x" * 44, "longer than 52"),
    ("names", of("Service", "metadata"), "name", "9bank", "begins with no letter"),
    ("names", of("ConfigMap", "metadata"), "name", "bank_1", "no DNS label"),
    ("names", of("CronJob", "metadata"), "name", "bank-run-offers", "is there twice"),
    ("kustomized", lambda manifests: manifests.kustomization["resources"], 0, "resources/other.yaml", "other files"),
    ("selectors", of("Service", "spec", "selector"), LABEL, GONE, "Service selects"),
    ("selectors", of("Deployment", "spec", "template", "metadata", "labels"), LABEL, "web", "Deployment selects"),
    ("selectors", of("PodDisruptionBudget", "spec", "selector", "matchLabels"), LABEL, "run", "PodDisruptionBudget"),
    ("selectors", of("HorizontalPodAutoscaler", "spec", "scaleTargetRef"), "name", "other", "scales"),
    ("selectors", of("NetworkPolicy", "spec", "podSelector", "matchLabels"), LABEL, "x", "is for its Ingress"),
    ("selectors", of("CronJob", *JOB, "template", "metadata", "labels"), LABEL, "api", "selects"),
    ("ports", of("ConfigMap", "data"), "SERENO_SERVE__PORT", "9000", "the server listens on 9000"),
    ("ports", of("Service", "spec", "ports", 0), "targetPort", "web", "no port is called web"),
    ("ports", of("Deployment", *API, "readinessProbe", "httpGet"), "port", "metrics", "readinessProbe"),
    ("ports", of("NetworkPolicy", "spec", "ingress", 0, "ports", 0), "port", 80, "not 8000"),
    ("ports", of("NetworkPolicy", "spec"), "ingress", [], "lets nobody in"),
    ("crons", of("CronJob", "spec"), "schedule", "0 0 * * 7", "is not within"),
    ("crons", of("CronJob", "spec"), "schedule", "0 0 L * *", "invalid literal"),
    ("crons", of("CronJob", "spec"), "schedule", "0 0 0 * * *", "6 fields"),
    ("crons", of("CronJob", "spec"), "timeZone", "Europe/Atlantis", "no time zone"),
    ("crons", of("CronJob", "spec"), "timeZone", GONE, "no time zone"),
    ("crons", of("CronJob", "spec"), "startingDeadlineSeconds", 5, "the controller's pause"),
    ("crons", of("CronJob", "spec"), "startingDeadlineSeconds", GONE, "the controller's pause"),
    ("crons", of("CronJob", "spec"), "schedule", "* * * * *", "more than 100"),
    ("jobs", of("CronJob", "spec"), "concurrencyPolicy", "Allow", "concurrencyPolicy"),
    ("jobs", of("CronJob", "spec"), "failedJobsHistoryLimit", 0, "failedJobsHistoryLimit"),
    ("jobs", of("CronJob", "spec"), "successfulJobsHistoryLimit", GONE, "successfulJobsHistoryLimit"),
    ("jobs", of("CronJob", *JOB), "activeDeadlineSeconds", GONE, "activeDeadlineSeconds"),
    ("jobs", of("CronJob", *JOB), "backoffLimit", GONE, "backoffLimit"),
    ("jobs", of("CronJob", *JOB, "template", "spec"), "restartPolicy", "OnFailure", "restartPolicy"),
    (
        "jobs",
        of("CronJob", *JOB, "podFailurePolicy", "rules", 0, "onExitCodes"),
        "values",
        [2, 3],
        "exit codes 2, 3 and 4",
    ),
    ("jobs", of("CronJob", *RUN), "name", "score", "of its container"),
    ("jobs", of("CronJob", *JOB, "podFailurePolicy", "rules"), 1, GONE, "counts as a try"),
    ("resources", of("Deployment", *API, "resources", "limits"), "memory", "1Gi", "more memory than its limit"),
    ("resources", of("CronJob", *RUN, "resources", "limits"), "cpu", "500m", "more cpu than its limit"),
    ("resources", of("CronJob", *RUN, "resources", "limits"), "memory", GONE, "no limit of memory"),
    ("resources", of("CronJob", *RUN, "resources", "limits"), "cpu", GONE, "takes the node's cores for its own"),
    ("resources", of("CronJob", *RUN, "resources", "requests"), "memory", GONE, "nothing is asked for"),
    ("resources", of("CronJob", *RUN, "resources", "requests"), "ephemeral-storage", GONE, "nothing is asked for"),
    ("resources", of("Deployment", *API, "resources", "requests"), "cpu", "3", "1 workers on 3"),
    ("probes", of("Deployment", *API, "livenessProbe", "httpGet"), "path", "/readyz", "asks /readyz"),
    ("probes", of("Deployment", *API, "readinessProbe", "httpGet"), "path", "/metrics", "asks /metrics"),
    ("probes", of("Deployment", *API, "readinessProbe", "httpGet"), "scheme", "HTTPS", "speaks HTTPS"),
    (
        "probes",
        of("Deployment", *API, "readinessProbe", "httpGet"),
        "httpHeaders",
        [{"name": "Host", "value": "x"}],
        "needs headers",
    ),
    ("probes", of("Deployment", *API, "livenessProbe"), "failureThreshold", 3, "ends a worker after 30"),
    ("probes", of("Deployment", *API, "livenessProbe"), "failureThreshold", 63, "may load for 600"),
    ("probes", of("Deployment", *API, "startupProbe"), "failureThreshold", 3, "startupProbe waits 15 s"),
    ("probes", of("Deployment", "spec"), "progressDeadlineSeconds", 600, "progressDeadlineSeconds is 600"),
    ("probes", of("Deployment", *API, "readinessProbe"), "periodSeconds", 30, "slow"),
    ("grace", of("Deployment", *POD), "terminationGracePeriodSeconds", 35, "35 < 10"),
    ("grace", of("Deployment", *POD), "terminationGracePeriodSeconds", 54, "54 < 10 + 25 + 15 + 5"),
    ("grace", of("ConfigMap", "data"), "SERENO_SERVE__DRAIN_SECONDS", "60", "< 10"),
    ("grace", of("ConfigMap", "data"), "SERENO_SERVE__DRAIN_SECONDS", GONE, "may be another"),
    ("grace", of("Deployment", *API), "lifecycle", {}, "preStop waits 0"),
    ("references", of("ConfigMap", "metadata"), "name", "other", "ConfigMap bank, which is not there"),
    ("references", of("Deployment", *POD), "serviceAccountName", "default", "ServiceAccount default"),
    ("references", of("CronJob", *RUN, "envFrom", 1, "secretRef"), "name", "keys", "Secret keys"),
    ("references", of("CronJob", *RUN, "envFrom", 1, "secretRef"), "optional", True, "start all the same"),
    ("references", of("CronJob", *RUN, "envFrom"), 0, GONE, "names"),
    ("references", of("Deployment", *POD, "volumes"), 1, GONE, "mounts"),
    (
        "references",
        of("Deployment", *POD, "volumes"),
        0,
        {"name": "home", "secret": {"secretName": "keys"}},
        "Secret keys",
    ),
    ("network", lambda manifests: manifests.of("NetworkPolicy")[2]["spec"], "egress", [], "cannot reach DNS"),
    (
        "network",
        lambda manifests: manifests.of("NetworkPolicy")[2]["spec"],
        "egress",
        [{"ports": [{"port": 443, "protocol": "TCP"}]}],
        "cannot ask for the platform's credentials",
    ),
    ("network", of("NetworkPolicy", "spec", "ingress", 0), "from", GONE, "whoever there is"),
    (
        "network",
        of("NetworkPolicy", "spec", "ingress", 0, "from", 0),
        "podSelector",
        {"matchLabels": {"a": "b"}},
        "own namespace",
    ),
    ("service_links", of("Deployment", *POD), "enableServiceLinks", GONE, "Deployment bank: Services"),
    ("service_links", of("CronJob", *JOB, "template", "spec"), "enableServiceLinks", True, "CronJob"),
    ("security", of("Deployment", *POD, "securityContext"), "runAsNonRoot", GONE, "runAsNonRoot"),
    ("security", of("Deployment", *POD, "securityContext"), "runAsUser", 0, "runAsUser"),
    (
        "security",
        of("CronJob", *JOB, "template", "spec", "securityContext"),
        "seccompProfile",
        {"type": "Unconfined"},
        "seccomp",
    ),
    (
        "security",
        of("Deployment", *API, "securityContext"),
        "allowPrivilegeEscalation",
        GONE,
        "allowPrivilegeEscalation",
    ),
    ("security", of("CronJob", *RUN, "securityContext"), "privileged", True, "privileged"),
    ("security", of("CronJob", *RUN, "securityContext", "capabilities"), "add", ["NET_ADMIN"], "capabilities"),
    ("security", of("CronJob", *RUN, "securityContext"), "readOnlyRootFilesystem", False, "readOnlyRootFilesystem"),
    ("security", of("Deployment", *POD), "automountServiceAccountToken", GONE, "automountServiceAccountToken"),
    ("security", of("Deployment", *POD), "hostNetwork", True, "the node's own"),
    ("security", of("Deployment", *API, "ports", 0), "hostPort", 8000, "hostPort"),
    ("security", of("Deployment", *POD, "volumes", 0), "hostPath", {"path": "/"}, "volumes"),
    ("scratch", of("ConfigMap", "data"), "SERENO_HOME", "/app", "/app cannot be written"),
    ("scratch", of("ConfigMap", "data"), "HOME", "/root", "/root cannot be written"),
    ("scratch", of("CronJob", *RUN, "volumeMounts", 0), "readOnly", True, "/var/lib/sereno cannot be written"),
    ("scratch", of("Deployment", *POD, "volumes", 0, "emptyDir"), "sizeLimit", GONE, "may fill the node"),
    ("scratch", of("Deployment", *API, "volumeMounts", 1), "mountPath", "/run/secrets", "tokens are mounted"),
    (
        "evictions",
        of("CronJob", *JOB, "template", "metadata", "annotations"),
        "karpenter.sh/do-not-disrupt",
        GONE,
        "under a run",
    ),
    ("evictions", of("Deployment", "spec", "template", "metadata"), "annotations", {}, "home,tmp keep its node"),
    ("replicas", of("Deployment", "spec"), "replicas", 2, "would undo"),
    ("replicas", of("HorizontalPodAutoscaler", "spec"), "minReplicas", 11, "minReplicas"),
    ("replicas", of("HorizontalPodAutoscaler", "spec", "metrics", 0, "resource"), "name", "gpu", "a share of gpu"),
    ("replicas", of("PodDisruptionBudget", "spec"), "maxUnavailable", 0, "no node could ever be emptied"),
    ("replicas", of("Deployment", "spec", "strategy", "rollingUpdate"), "maxUnavailable", 1, "before there are others"),
    ("variables", of("ConfigMap", "data"), "SERENO_PORT", "tcp://10.0.0.1:80", "There is no setting 'port'"),
    ("variables", of("ConfigMap", "data"), "SERENO_SERVE__HOST", GONE, "listens on 127.0.0.1"),
    ("variables", of("Deployment", *API, "env", 1), "value", "bank,bank.$(NAMESPACE).svc", "not set before"),
    ("variables", of("Deployment", *API, "env", 1), "value", "scores.bank", "is not known as bank"),
    ("commands", of("CronJob", *RUN), "args", ["run"], "is no command"),
    ("commands", of("CronJob", *RUN), "args", ["run", "credit-scoring"], "would publish twice"),
    ("commands", of("Deployment", *API), "command", ["sh", "-c", "sereno serve"], "something else"),
]


@pytest.mark.parametrize(
    ("check", "where", "what", "value", "says"),
    [pytest.param(*mistake, id=f"{mistake[0]} {mistake[2]} {mistake[4]}") for mistake in MISTAKES if mistake[4]],
)
def test_a_mistake_is_seen(
    bank: Manifests, check: str, where: Callable[[Manifests], Any], what: str | int, value: object, says: str
) -> None:
    mistaken = copy.deepcopy(bank)
    place = where(mistaken)
    if value is GONE:
        del place[what]
    else:
        place[what] = value
    (named,) = [one for one in CHECKS if one.__name__ == check]
    found = problems(mistaken, [named])
    assert any(re.search(re.escape(says), one) for one in found), found


def test_every_check_has_a_mistake_that_it_sees() -> None:
    assert {mistake[0] for mistake in MISTAKES} == {check.__name__ for check in CHECKS}


# Times


def controllers_times(schedule: str, zone: str, start: datetime, days: int) -> tuple[set[datetime], set[datetime]]:
    """When a run is due, and when the CronJob starts one."""
    end = start + timedelta(days=days)
    due: set[datetime] = set()
    for moment in CronSim(schedule, start.astimezone(ZoneInfo(zone))):
        if moment.astimezone(UTC) > end:
            break
        due.add(moment.astimezone(UTC))
    return due, set(Cron(cron_of(schedule).schedule).times(start, end, zone))


@pytest.mark.parametrize(
    "schedule", [*SCHEDULES, "0 3 * * 1/2", "0 3 * * */7", "1 2 3,*/9 * *", "0 9 * * 0-7", "0 9 31 * 7"]
)
def test_a_job_starts_when_a_run_is_due(schedule: str) -> None:
    due, started = controllers_times(schedule, "Europe/Madrid", datetime(2026, 11, 23, tzinfo=UTC), 80)
    assert due <= started
    assert cron_of(schedule).comes_more_often == (due != started)


def test_both_days_are_wanted_by_one_and_either_by_the_other() -> None:
    """So the CronJob comes each second day, and only on Mondays is there something to do."""
    assert cron_of("0 12 */2 * 1").schedule == "0 12 */2 * *"
    assert cron_of("0 12 */2 * 1").comes_more_often
    assert cron_of("0 12 2 * 1").schedule == "0 12 2 * 1"
    assert cron_of("0 12 * * 5-7").schedule == "0 12 * * 0,5,6"


@pytest.mark.parametrize(
    "schedule", ["30 2 * * *", "0 3 * * *", "15 */2 * * *", "0 0 * * *", "0 2,3 * * *", "59 1 * * 0"]
)
@pytest.mark.parametrize("zone", ["Europe/Madrid", "America/Havana", "Australia/Lord_Howe"])
def test_when_the_clock_changes_the_times_that_are_left_out_are_known(schedule: str, zone: str) -> None:
    start = datetime(2027, 3, 1, tzinfo=UTC)
    due, started = controllers_times(schedule, zone, start, 270)
    left = {moment.astimezone(UTC) for moment in left_out(schedule, zone, start)}
    assert due - started == {moment for moment in left if moment <= start + timedelta(days=270)}
    assert len(started - due) <= 4  # where an hour comes twice


@pytest.mark.parametrize("schedule", ["0 0 L * *", "0 0 * * 5#2", "0 0 LW * *"])
def test_what_kubernetes_has_no_word_for_is_refused(schedule: str) -> None:
    with pytest.raises(SettingsError, match=r"Kubernetes has no word for '.*' in the schedule"):
        cron_of(schedule)


def test_the_shortest_pause() -> None:
    assert shortest("0 0 * * *", "Europe/Madrid", NOW) == timedelta(hours=23)
    assert shortest("0,10 * * * *", "UTC", NOW) == timedelta(minutes=10)


# What is told


def told(kubernetes: Kubernetes, **changes: Any) -> list[str]:
    right = {"has_storage": True, "executor": "local", "has_ledger": True, "knows_keys": True, "now": NOW}
    return [*warnings(kubernetes, **(right | changes))]


def test_what_the_settings_lack_is_told() -> None:
    assert told(BANK) == []
    (storage,) = told(BANK, has_storage=False)
    assert storage.startswith("WARNING: storage is not set: what runs publish would be gone with their pod.")
    (executor,) = told(BANK, executor="ray")
    assert 'executor is "ray"' in executor
    assert "SERENO_LEDGER=postgresql://" in told(BANK, has_ledger=False)[0]
    assert "SERENO_SECRET_API_KEYS=sha256:" in told(BANK, knows_keys=False)[0]
    for image in ("registry.bank:5000/scores", "scores:latest"):
        assert "names no version" in told(replace(BANK, image=image))[0]
    assert told(replace(BANK, models=(replace(MODELS[0], schedule="30 2 * * *"),), has_scheduler=True)) == []
    partition = Nightly(name="m", schedule="0 0 * * *", time_zone="UTC", disposition="partition")
    assert "`sereno backfill m" in told(replace(BANK, models=(partition,)))[0]
    (gap,) = told(replace(BANK, models=(replace(MODELS[0], schedule="30 2 * * *"),)))
    assert gap.startswith(
        "WARNING: On 2027-03-28 Kubernetes starts no run of credit-scoring: the time of '30 2 * * *' is not"
    )


def test_what_is_done_with_them_is_said(tmp_path: Path) -> None:
    steps = [*next_steps(BANK, tmp_path / "a b")]
    assert f"  kubectl apply -k '{tmp_path}/a b'" in steps
    assert "create job --from=cronjob/bank-run-credit-scoring " in steps[-2]
    assert "rollout status" in steps[-1]  # which may wait for what a run publishes
    assert not any("create job" in step for step in next_steps(replace(BANK, models=()), tmp_path))


def test_what_is_left_over_in_the_folder_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = BANK.files()
    write(texts, tmp_path)
    assert [*leftovers(texts, tmp_path)] == []
    files = [tmp_path / "resources" / f"cronjob-{part}.yaml" for part in ("credit-scoring", "offers", "prune")]
    assert [*leftovers(replace(BANK, has_scheduler=True).files(), tmp_path)] == [
        f"WARNING: {file} is left over from before. It goes, with what it made: kubectl delete -f {file} && rm {file}"
        for file in files
    ]
    monkeypatch.setattr(deploying, "declared_in", lambda *_: [])  # asked of a process of its own
    (tmp_path / "sereno.toml").write_text('[models.m]\nfile = "m.py"\n')
    monkeypatch.chdir(tmp_path)
    assert main(["deploy", "kubernetes", "--image", "scores:1", "--name", "bank", "--to", "."]) == 0
    said = capsys.readouterr().out
    assert f"{files[0]} is left over" in said
    assert f"{files[2]} is left over" not in said


def test_a_lock_that_lacks_what_pods_want_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deploying, "declared_in", lambda *_: [])  # asked of a process of its own
    monkeypatch.chdir(tmp_path)
    Path("sereno.toml").write_text('storage = "s3://bank/sereno"\n[models.m]\nfile = "m.py"\n')

    def said(requirements: str) -> str:
        Path("requirements.txt").write_text(requirements)
        assert main(["deploy", "kubernetes", "--image", "scores:1", "--name", "bank"]) == 0
        return capsys.readouterr().out

    digest = "--hash=sha256:" + "0" * 64
    out = said(f"sereno==0.1.0 {digest}\nobstore==0.9.0 {digest}\n")
    assert "requirements.txt has nothing of sereno[postgresql], without which commands in pods end with exit" in out
    assert "Lock sereno[cloud,postgresql], and build the image anew." in out
    assert "has nothing of" not in said(f"psycopg==3.2.0 {digest}\nobstore==0.9.0 {digest}\n")
    assert "has nothing of" not in said("pandas\n")  # no lock


def test_another_configuration_is_another_pod(bank: Manifests) -> None:
    other = manifests_of(replace(BANK, env="prod"))
    assert [*_annotations(other)] != [*_annotations(bank)]
    assert [*_annotations(manifests_of(replace(BANK, cpu="2")))] == [*_annotations(bank)]


def _annotations(manifests: Manifests) -> Iterator[str]:
    yield manifests.api["spec"]["template"]["metadata"]["annotations"]["sereno/configuration"]


def test_what_a_run_may_take_is_what_the_model_says(bank: Manifests) -> None:
    (run,) = [c for where, _, c in bank.pods() if where == "CronJob bank-run-offers"]
    # four workers, and who publishes
    assert run["resources"]["requests"] == {"cpu": "4", "memory": "5120Mi", "ephemeral-storage": "10Gi"}
    assert bank.environment(run)["SERENO_WORKERS"] == "4"


def test_what_removes_old_things_takes_little() -> None:
    large = manifests_of(replace(BANK, cpu="8", memory="64Gi", scratch="200Gi", run_cores=16, run_memory_bytes=1 << 33))
    (prune,) = [c for where, _, c in large.pods() if where == "CronJob bank-prune"]
    assert prune["resources"]["requests"] == {"cpu": "500m", "memory": "512Mi", "ephemeral-storage": "1Gi"}
    assert large.environment(prune)["SERENO_WORKERS"] == "1"


def test_a_scheduler_takes_the_place_of_all_cronjobs(bank: Manifests) -> None:
    found = manifests_of(replace(BANK, has_scheduler=True, run_stop_seconds=40))
    assert not found.of("CronJob")
    (run,) = [container for where, _, container in found.pods() if where == "Deployment bank-scheduler"]
    # as much as the largest run, and the scheduler beside it; a limit of CPU says how many cores there are
    assert run["resources"]["requests"] == {"cpu": "4", "memory": "5632Mi", "ephemeral-storage": "10Gi"}
    assert run["resources"]["limits"] == {"cpu": "4", "memory": "5632Mi"}
    assert found.environment(run)["SERENO_UP__STOP_SECONDS"] == "40"
    assert found.environment(run)["SERENO_UP__RUN_CORES"] == "1"  # of a model that does not say it: --cpu
    few = copy.deepcopy(found)
    few.one("Deployment", "bank-scheduler")["spec"]["template"]["spec"]["containers"][0]["env"][2]["value"] = "5"
    assert [*resources(few)] == ["Deployment bank-scheduler: a run has 5 cores of 4"]
    mistaken = copy.deepcopy(found)
    mistaken.one("Deployment", "bank-scheduler")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 40
    assert problems(mistaken) == ["grace: Deployment bank-scheduler: runs are killed before they end"]
    both = replace(bank, objects=[*bank.objects, found.one("Deployment", "bank-scheduler")])
    assert problems(both, [commands]) == ["commands: Deployment bank-scheduler: somebody else does that, too"]


def test_a_scheduler_has_room_for_as_many_runs_as_go_on_at_once() -> None:
    several = replace(BANK, has_scheduler=True, max_runs=2, run_cores=2, run_memory_bytes=512 << 20)
    (run,) = [c for where, _, c in manifests_of(several).pods() if where == "Deployment bank-scheduler"]
    # four workers of 1 GiB and who publishes, two of 512 MiB and who publishes, and the scheduler
    assert run["resources"]["requests"]["memory"] == f"{5 * 1024 + 3 * 512 + 512}Mi"
    assert run["resources"]["limits"]["cpu"] == "6"
    said = {one["name"]: one.get("value") for one in run["env"]}
    assert (said["SERENO_UP__MAX_RUNS"], said["SERENO_UP__RUN_CORES"]) == ("2", "2")


def test_files_that_the_server_alone_reads_come_from_a_secret() -> None:
    files = {"keys_file": Path("/srv/the keys"), "tls_key": Path("/srv/tls.key")}
    found = manifests_of(replace(BANK, server_files=files))
    assert (
        "  kubectl create secret generic bank-server --from-file=keys_file='/srv/the keys' --from-file=tls_key=/srv/tls.key"
        in found.told
    )
    for where, spec, container in found.pods():
        volumes = [one["secret"] for one in spec["volumes"] if "secret" in one]
        environment = found.environment(container)
        if where == "Deployment bank":
            assert volumes == [{"secretName": "bank-server"}]
            (mount,) = [one for one in container["volumeMounts"] if one["name"] == "files"]
            assert mount["readOnly"]
            assert environment["SERENO_SERVE__TLS_KEY"] == f"{mount['mountPath']}/tls_key"
            assert environment["SERENO_SERVE__KEYS_FILE"] == f"{mount['mountPath']}/keys_file"
        else:
            assert volumes == []


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ("512Mi", "1Gi"),
        ("999M", "1G"),
        ("1G", "1Gi"),
        ("4095Mi", "4Gi"),
        ("900k", "1Mi"),
        ("1000", "1Ki"),
        ("1T", "1Ti"),
    ],
)
def test_amounts_of_memory(less: str, more: str) -> None:
    assert amount(less) < amount(more)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "Bank"}, "'Bank' cannot be the name of a Service"),
        ({"name": "b" * 33}, "cannot be the name of a Service"),
        ({"image": "my image"}, "'my image' is no name of an image"),
        ({"image": "https://registry.bank/scores"}, "is no name of an image"),
        ({"replicas": (3, 2)}, "--replicas 3-2 is no range"),
        ({"replicas": (0, 2)}, "--replicas 0-2 is no range"),
        ({"cpu": "lots"}, "'lots' is no amount of CPU"),
        ({"cpu": "0.0"}, "'0.0' is no amount of CPU"),
        ({"memory": "80%"}, "--memory '80%' is no amount of memory"),
        ({"scratch": "10GB"}, "--scratch '10GB' is no amount of memory"),
        ({"scratch": "10"}, "--scratch '10' is 10 bytes, which cannot be meant"),
        ({"memory": "2k"}, "--memory '2k' is 2,000 bytes, which cannot be meant"),
        ({"memory": "2000Ti"}, "which cannot be meant: 64Mi is the least and 64Ti the most"),
        ({"cpu": "1m"}, "--cpu '1m' is 0.001 cores, which cannot be meant"),
        ({"cpu": "1000"}, "--cpu '1000' is 1000 cores, which cannot be meant"),
        ({"callers": ("Shop",)}, "'Shop' in --callers is no name of a namespace"),
        ({"egress": (0,)}, "0 in --egress is no port"),
        ({"domains": ("scores bank",)}, "'scores bank' is no name of a host"),
    ],
)
def test_wrong_words_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(says)):
        replace(BANK, **wrong)
