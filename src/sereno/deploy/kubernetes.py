"""`sereno deploy kubernetes`: manifests of the online API and of a CronJob for each model that has runs."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from sereno.adapters.executors.spawn import THREAD_VARIABLES
from sereno.deploy.calendar import Timed
from sereno.deploy.crons import cron_of, left_out, shortest
from sereno.deploy.docker import FILES
from sereno.deploy.stopping import SPARE_SECONDS
from sereno.deploy.writing import filled
from sereno.exceptions import SettingsError
from sereno.serve.processes.ending import AFTER_DRAIN_SECONDS

NAME = re.compile(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?")
NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
IMAGE = re.compile(
    r"(?:[a-z0-9][a-z0-9.-]*(?::\d+)?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*(?::(?P<tag>\w[\w.-]{0,127}))?(?P<digest>@sha256:[0-9a-f]{64})?"
)
SIZE = re.compile(r"[1-9]\d*(?:Ki|k|[MGT]i?)?")
UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
CPU = re.compile(r"[1-9]\d*m?|\d+\.\d{1,3}")
# Beyond these somebody forgot the unit, or took another: no pod starts with less, and no node has more.
CORES = (0.05, 1000)
BYTES = (64 << 20, 64 << 40)

HOME = "/var/lib/sereno"  # of a pod, gone with it
LOAD_SECONDS = 600  # that a worker may take until it has loaded the models
STOP_SECONDS = 10  # between the wish to end a pod and the SIGTERM
LONGEST_CRONJOB = 52  # letters: a Job's name has 11 more
SCHEDULERS_BYTES = 512 << 20  # of the processes of `sereno up` beside its runs, one of which reads model files
TRY_SECONDS = 360  # between two tries of a Job, in the end
PRUNE = "17 4 * * *"


@dataclass(frozen=True, kw_only=True)
class Nightly(Timed):
    """A model whose runs a CronJob starts."""

    disposition: str = "replace"
    deadline_seconds: float = 21_600.0  # how long after it is due a run is tried again
    run_seconds: float | None = None  # how long one may take
    cores: int | None = None
    memory_bytes: int | None = None  # of each of its processes


class Takes(NamedTuple):
    """What the pod of a run asks for."""

    cpu: str
    memory: str
    scratch: str


PRUNE_TAKES = Takes(cpu="500m", memory="512Mi", scratch="1Gi")  # it scores nothing


@dataclass(frozen=True, kw_only=True)
class Kubernetes:
    """What the manifests of a project say."""

    name: str  # of its objects
    image: str
    models: tuple[Nightly, ...] = ()
    env: str | None = None  # the [env.NAME] of sereno.toml
    storage: str | None = None  # an address that the image's sereno.toml does not say
    replicas: tuple[int, int] = (2, 10)  # the least and the most pods of the API
    cpu: str = "1"  # what a pod asks for
    memory: str = "2Gi"  # what a pod asks for, and may take
    scratch: str = "10Gi"  # what a pod may keep on its node
    domains: tuple[str, ...] = ()  # names under which callers know the API, beside the Service's
    callers: tuple[str, ...] = ()  # namespaces that may ask it, beside its own
    egress: tuple[int, ...] = ()  # the ports that pods reach; none: all
    port: int = 8000
    speaks_tls: bool = False  # the server itself, with its own certificate
    drain_seconds: float = 25.0
    predict_seconds: float = 30.0  # after which the server itself ends a worker that hangs
    has_scheduler: bool = False  # pods of `sereno up --no-api`, in place of CronJobs
    run_stop_seconds: float = 20.0  # what runs are given to end when those do
    max_runs: int = 1  # that go on at once in one of those
    run_cores: int | None = None  # of a run whose model does not say it
    run_memory_bytes: int | None = None  # the same, of each of its processes
    server_files: Mapping[str, Path] = field(default_factory=dict)  # setting of [serve] → a file that no image may have

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise SettingsError(
                f"{self.name!r} cannot be the name of a Service. Use up to 32 small letters, digits and -, a letter first: --name scores."
            )
        if not IMAGE.fullmatch(self.image):
            raise SettingsError(
                f"{self.image!r} is no name of an image. Write --image registry.bank/scores:1.0, as it was pushed."
            )
        least, most = self.replicas
        if not 1 <= least <= most:
            raise SettingsError(f"--replicas {least}-{most} is no range. Write the least and the most pods: 2-10.")
        if not CPU.fullmatch(self.cpu) or not cores_of(self.cpu):
            raise SettingsError(f"{self.cpu!r} is no amount of CPU for Kubernetes. Write 2, 0.5 or 500m.")
        if not CORES[0] <= cores_of(self.cpu) < CORES[1]:
            raise SettingsError(
                f"--cpu {self.cpu!r} is {cores_of(self.cpu):g} cores, which cannot be meant: 50m is the least, and below 1000 the "
                "most. Write 2, 0.5 or 500m."
            )
        for option, size in (("memory", self.memory), ("scratch", self.scratch)):
            if not SIZE.fullmatch(size):
                raise SettingsError(
                    f"--{option} {size!r} is no amount of memory for Kubernetes. Write 4Gi, 512Mi or 6000M."
                )
            if not BYTES[0] <= amount(size) <= BYTES[1]:
                raise SettingsError(
                    f"--{option} {size!r} is {amount(size):,} bytes, which cannot be meant: 64Mi is the least and 64Ti the most. "
                    "Write 4Gi, 512Mi or 6000M."
                )
        for namespace in self.callers:
            if not NAMESPACE.fullmatch(namespace):
                raise SettingsError(f"{namespace!r} in --callers is no name of a namespace. Write --callers shop,web.")
        for number in self.egress:
            if not 1 <= number <= 65535:
                raise SettingsError(f"{number} in --egress is no port. Write --egress 443,5432.")
        for domain in self.domains:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*|\*", domain):
                raise SettingsError(f"{domain!r} is no name of a host. Say under which name callers know it.")

    def files(self) -> dict[str, str]:
        """Name of the file → its text. Raises SettingsError for a schedule that Kubernetes has no word for."""
        found = {
            f"resources/{kind}.yaml": getattr(self, f"_{kind}")()
            for kind in (
                *("serviceaccount", "configmap", "deployment", "service", "horizontalpodautoscaler"),
                *("poddisruptionbudget", "networkpolicy"),
            )
        }
        if self.has_scheduler:
            found["resources/scheduler.yaml"] = self._scheduler()
        else:
            found |= {f"resources/cronjob-{part}.yaml": text for part, text in self.cronjobs()}
        listed = "\n".join(f"  - {name}" for name in sorted(found))
        return {"kustomization.yaml": filled("kubernetes/kustomization.yaml", resources=listed), **found}

    @property
    def grace_seconds(self) -> int:
        """What a pod of the API is given to end, from the first wish on."""
        return STOP_SECONDS + math.ceil(self.drain_seconds + AFTER_DRAIN_SECONDS) + SPARE_SECONDS

    @cached_property
    def variables(self) -> dict[str, str]:
        """What every pod is set to."""
        found = {
            "HOME": "/tmp",  # of libraries that keep something there; the image's own cannot be written
            "SERENO_HOME": HOME,
            "SERENO_SERVE__HOST": "0.0.0.0",
            "SERENO_SERVE__PORT": str(self.port),
            "SERENO_SERVE__DRAIN_SECONDS": f"{self.drain_seconds:g}",
            # each worker has a core of its own; of the node's many others these libraries would take all
            **dict.fromkeys(THREAD_VARIABLES, "1"),
        }
        if not self.speaks_tls:
            found["SERENO_SERVE__TLS_TERMINATED_UPSTREAM"] = "true"
        if self.env is not None:
            found["SERENO_ENV"] = self.env
        if self.storage is not None:
            found["SERENO_STORAGE"] = self.storage
        return dict(sorted(found.items()))

    def _serviceaccount(self) -> str:
        return filled("kubernetes/serviceaccount.yaml", name=self.name)

    def _configmap(self) -> str:
        lines = (f"  {name}: {json.dumps(value)}" for name, value in self.variables.items())
        return filled("kubernetes/configmap.yaml", name=self.name, data="\n".join(lines))

    def _deployment(self) -> str:
        period = 5
        inside = [self.name, *(f"{self.name}.$(POD_NAMESPACE){end}" for end in ("", ".svc", ".svc.cluster.local"))]
        return filled(
            "kubernetes/deployment.yaml",
            name=self.name,
            image=json.dumps(self.image),
            configuration=json.dumps(_digest(self.variables)),
            progress_seconds=str(LOAD_SECONDS + 300),
            startup_period=str(period),
            startup_failures=str(LOAD_SECONDS // period),
            # as long as its only worker hangs, and another one loads
            liveness_failures=str(math.ceil((self.predict_seconds + LOAD_SECONDS + 30) / 10)),
            stop_seconds=str(STOP_SECONDS),
            grace_seconds=str(self.grace_seconds),
            scheme="HTTPS" if self.speaks_tls else "HTTP",
            allowed_hosts=json.dumps(",".join([*inside, *self.domains])),
            workers=str(workers_of(self.cpu)),
            port=str(self.port),
            cpu=json.dumps(self.cpu),
            memory=json.dumps(self.memory),
            scratch=json.dumps(self.scratch),
            home=HOME,
            **self._server_files(),
        )

    def _server_files(self) -> dict[str, str]:
        """What the API's pods have for files of a Secret of their own."""
        if not self.server_files:
            return {"file_variables": "", "file_mount": "", "file_volume": ""}
        variables = (
            f"            - name: SERENO_SERVE__{name.upper()}\n              value: {FILES}/{name}\n"
            for name in self.server_files
        )
        return {
            "file_variables": "".join(variables),
            "file_mount": f"            - name: files\n              mountPath: {FILES}\n              readOnly: true\n",
            "file_volume": f"        - name: files\n          secret:\n            secretName: {self.name}-server\n",
        }

    def _service(self) -> str:
        return filled(
            "kubernetes/service.yaml",
            name=self.name,
            service_port="443" if self.speaks_tls else "80",
            app_protocol="https" if self.speaks_tls else "http",
        )

    def _horizontalpodautoscaler(self) -> str:
        least, most = map(str, self.replicas)
        return filled("kubernetes/horizontalpodautoscaler.yaml", name=self.name, least=least, most=most)

    def _poddisruptionbudget(self) -> str:
        return filled("kubernetes/poddisruptionbudget.yaml", name=self.name)

    def _networkpolicy(self) -> str:
        others = "        # Other namespaces: --callers names them."
        if self.callers:
            others = (
                "        - namespaceSelector:\n"
                "            matchExpressions:\n"
                "              - key: kubernetes.io/metadata.name\n"
                "                operator: In\n"
                f"                values: [{', '.join(map(json.dumps, self.callers))}]"
            )
        return filled(
            "kubernetes/networkpolicy.yaml",
            name=self.name,
            port=str(self.port),
            callers=others,
            egress="\n".join(self._egress()),
        )

    def _egress(self) -> Iterator[str]:
        if not self.egress:
            yield "    # All: bucket, ledger, sources. --egress 443,5432 leaves these ports, names, and the platform's credentials."
            yield "    - {}"
            return
        yield "    # Names; 5353 is where OpenShift's server listens behind its Service."
        yield "    - ports:"
        for number in (53, 5353):
            for protocol in ("UDP", "TCP"):
                yield f"        - {{port: {number}, protocol: {protocol}}}"
        yield "    # The platform's credentials, from the node itself."
        yield "    - to:"
        yield "        - ipBlock: {cidr: 169.254.0.0/16}"
        yield "    # Bucket, ledger, sources."
        yield "    - ports:"
        for number in self.egress:
            yield f"        - {{port: {number}, protocol: TCP}}"

    def _scheduler(self) -> str:
        takes = [self._takes(model) for model in self.models] or [
            Takes(cpu=self.cpu, memory=self.memory, scratch=self.scratch)
        ]
        # the largest of those that go on at once, each of another model
        cores = sorted((cores_of(one.cpu) for one in takes), reverse=True)[: self.max_runs]
        memory = sorted((amount(one.memory) for one in takes), reverse=True)[: self.max_runs]
        return filled(
            "kubernetes/scheduler.yaml",
            name=self.name,
            image=json.dumps(self.image),
            configuration=json.dumps(_digest(self.variables)),
            stop_seconds=f"{self.run_stop_seconds:g}",
            grace_seconds=str(math.ceil(self.run_stop_seconds) + SPARE_SECONDS),
            max_runs=str(self.max_runs),
            run_cores=str(self.run_cores or workers_of(self.cpu)),
            cpu=json.dumps(f"{sum(cores):g}"),
            memory=json.dumps(_mebibytes(sum(memory) + SCHEDULERS_BYTES)),
            scratch=json.dumps(self.scratch),
            home=HOME,
        )

    def _takes(self, model: Nightly) -> Takes:
        """What a run of a model asks for."""
        cores, memory_bytes = model.cores or self.run_cores, model.memory_bytes or self.run_memory_bytes
        cpu = self.cpu if cores is None else str(cores)
        if memory_bytes is None:
            return Takes(cpu=cpu, memory=self.memory, scratch=self.scratch)
        # of each worker, and of the process that publishes
        return Takes(cpu=cpu, memory=_mebibytes(memory_bytes * (workers_of(cpu) + 1)), scratch=self.scratch)

    def cronjobs(self) -> Iterator[tuple[str, str]]:
        """The end of each one's name, and its text; those of models first."""
        taken = {"prune"}
        for model in self.models:
            part = _slug(model.name, LONGEST_CRONJOB - len(f"{self.name}-run-"), taken)
            yield part, self._cronjob(model, f"{self.name}-run-{part}")
        prune = Nightly(name="prune", schedule=PRUNE, time_zone="UTC", deadline_seconds=0, run_seconds=3600)
        about = f"Removes what retention does not keep, for all models of {self.name}."
        yield "prune", self._job(prune, f"{self.name}-prune", ["prune"], about, tries=2, takes=PRUNE_TAKES)

    def _cronjob(self, model: Nightly, cronjob: str) -> str:
        about = f"The runs of {model.name}, '{model.schedule}' in {model.time_zone}."
        if cron_of(model.schedule).comes_more_often:
            about += " It comes more often: then there is nothing to do."
        # `--once ever`: what was published, also if it was rolled back since, is not published again. So what comes twice
        # does nothing, and what did not come is done by the next one.
        return self._job(
            model,
            cronjob,
            ["run", model.name, "--once", "ever"],
            about,
            tries=tries_in(model),
            takes=self._takes(model),
        )

    def _job(self, model: Nightly, cronjob: str, args: list[str], about: str, *, tries: int, takes: Takes) -> str:
        now = datetime.now(UTC)
        pause = shortest(model.schedule, model.time_zone, now).total_seconds()
        return filled(
            "kubernetes/cronjob.yaml",
            about=about,
            name=self.name,
            cronjob=cronjob,
            image=json.dumps(self.image),
            schedule=cron_of(model.schedule).schedule,
            time_zone=json.dumps(model.time_zone),
            start_seconds=str(round(min(max(model.deadline_seconds, 3600), max(60, pause)))),
            tries=str(tries),
            longest_seconds=str(math.ceil(model.deadline_seconds + (model.run_seconds or 21_600))),
            args=_args(args),
            workers=str(workers_of(takes.cpu)),
            cpu=json.dumps(takes.cpu),
            memory=json.dumps(takes.memory),
            scratch=json.dumps(takes.scratch),
            home=HOME,
        )


def _mebibytes(count: int) -> str:
    return f"{math.ceil(count / (1 << 20))}Mi"


def tries_in(model: Nightly) -> int:
    """How many tries of a Job there are until the deadline: after 10, 20, 40 … seconds, then every six minutes."""
    return 6 + math.ceil(max(0.0, model.deadline_seconds - 630) / TRY_SECONDS)


def amount(memory: str) -> int:
    """Bytes of an amount of memory as Kubernetes writes it."""
    digits, unit = re.fullmatch(r"(\d+)(\w*)", memory).groups()  # type: ignore[union-attr]
    return int(digits) * UNITS[unit]


def cores_of(cpu: str) -> float:
    """An amount of CPU as Kubernetes writes it."""
    return float(cpu[:-1]) / 1000 if cpu.endswith("m") else float(cpu)


def workers_of(cpu: str) -> int:
    return max(1, math.floor(cores_of(cpu)))


def warnings(
    kubernetes: Kubernetes,
    *,
    has_storage: bool,
    executor: str,
    has_ledger: bool,
    knows_keys: bool,
    now: datetime,
) -> Iterator[str]:
    """What the settings lack for it."""
    if not has_storage:
        yield (
            "WARNING: storage is not set: what runs publish would be gone with their pod. Set storage in sereno.toml, or "
            "SERENO_STORAGE in the ConfigMap, to a bucket that all pods reach: s3://bank/sereno."
        )
    if executor != "local":
        yield f'WARNING: executor is "{executor}": runs would look for its cluster. Set executor = "local", and a pod scores by itself.'
    if not has_ledger:
        yield (
            "The ledger has to be a PostgreSQL: put SERENO_LEDGER=postgresql://… into the Secret, and have an image with "
            "sereno[cloud,postgresql]. A file in a pod would be gone with it."
        )
    if not knows_keys:
        yield "Callers need a key: put SERENO_SECRET_API_KEYS=sha256:… into the Secret; `sereno key` makes one."
    match = IMAGE.fullmatch(kubernetes.image)
    if match is not None and not match["digest"] and match["tag"] in (None, "latest"):
        yield (
            f"WARNING: {kubernetes.image} names no version: nodes that have one keep it, and pods would differ. Give each image a tag."
        )
    if not kubernetes.has_scheduler:
        for model in kubernetes.models:
            yield from _about(model, now)


def _about(model: Nightly, now: datetime) -> Iterator[str]:
    if missed := left_out(model.schedule, model.time_zone, now):
        yield (
            f"WARNING: On {missed[0]:%Y-%m-%d} Kubernetes starts no run of {model.name}: the time of '{model.schedule}' is not on "
            f"the clock of {model.time_zone} that day. Another hour is safer, or `sereno run {model.name}` by hand."
        )
    if model.disposition == "partition":
        yield (
            f"{model.name} has a partition per date, and a CronJob starts no run of a date that was missed. `sereno backfill "
            f"{model.name} --from D --to D` does, and --scheduler catches up by itself."
        )


def leftovers(texts: Mapping[str, str], folder: Path) -> Iterator[str]:
    """What of an earlier time lies among the files: `kubectl apply -f` would take it for theirs."""
    for file in sorted((folder / "resources").glob("*.yaml")):
        if f"resources/{file.name}" not in texts:
            gone = shlex.quote(str(file))
            yield f"WARNING: {file} is left over from before. It goes, with what it made: kubectl delete -f {gone} && rm {gone}"


def next_steps(kubernetes: Kubernetes, folder: Path) -> Iterator[str]:
    """What an operator does with them."""
    name, there = kubernetes.name, shlex.quote(str(folder))
    yield "Read them, then, in the namespace that they are for:"
    yield f"  kubectl create secret generic {name} --from-env-file={name}.env   # SERENO_LEDGER=…, SERENO_SECRET_API_KEYS=…"
    if kubernetes.server_files:
        files = (f"--from-file={setting}={shlex.quote(str(file))}" for setting, file in kubernetes.server_files.items())
        yield f"  kubectl create secret generic {name}-server {' '.join(files)}   # what the server reads"
    yield f"  kubectl diff -k {there}"
    yield f"  kubectl apply -k {there}"
    if kubernetes.models and not kubernetes.has_scheduler:
        part = next(part for part, _ in kubernetes.cronjobs())
        yield f"  kubectl create job --from=cronjob/{name}-run-{part} {name}-first   # a run at once"
    # last: where lookups are required, no pod is ready before a run has published
    yield f"  kubectl rollout status deployment/{name}"


def _args(words: Iterable[str]) -> str:
    return f"              args: [{', '.join(map(json.dumps, words))}]"


def _digest(variables: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(variables, sort_keys=True).encode()).hexdigest()[:16]


def _slug(model: str, longest: int, taken: set[str]) -> str:
    """A model's name as the end of an object's: no two of them are the same."""
    text = model.replace("_", "-").rstrip("-")
    if len(text) > longest or text in taken:
        text = f"{text[: longest - 9].rstrip('-')}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"
    taken.add(text)
    return text
