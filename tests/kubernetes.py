"""What a cluster would make of manifests: its schemas, how its objects find each other, its cron, and its kubelet's part."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock
from zoneinfo import ZoneInfo, available_timezones

import kubernetes_validate
import kubernetes_validate.utils
import yaml

from sereno.cli import parser_of
from sereno.cli.commands import HELD, LASTING, USAGE
from sereno.config import load_settings
from sereno.exceptions import SettingsError
from sereno.serve.guard import FREE
from sereno.serve.processes.ending import BUILDER_SECONDS, COMPACTOR_SECONDS

VERSIONS = ("1.30", "1.37")  # the oldest that has all that is asked for, and the newest whose schemas are there
UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
AUTOSCALER = "cluster-autoscaler.kubernetes.io"
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
Object = dict[str, Any]


def read(folder: Path) -> Manifests:
    """The files that `sereno deploy kubernetes` wrote."""
    return parsed({str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.yaml")})


def parsed(texts: Mapping[str, str]) -> Manifests:
    """The same, by their names."""
    resources = sorted(texts.keys() - {"kustomization.yaml"})
    return Manifests(
        objects=[one for name in resources for one in _objects(texts[name])],
        files={*resources},
        kustomization=_objects(texts["kustomization.yaml"])[0],
    )


def _objects(text: str) -> list[Object]:
    return [*yaml.load_all(text, Loader=yaml.CSafeLoader)]


@dataclass
class Manifests:
    objects: list[Object]
    files: set[str]
    kustomization: Object
    told: str = ""  # what the command said
    predict_seconds: float = 30.0  # after which the server ends a worker that hangs
    speaks_tls: bool = False

    def of(self, kind: str) -> list[Object]:
        return [one for one in self.objects if one["kind"] == kind]

    def one(self, kind: str, name: str | None = None) -> Object:
        (found,) = [one for one in self.of(kind) if name is None or one["metadata"]["name"] == name]
        return found

    @property
    def api(self) -> Object:
        """The Deployment that answers."""
        (found,) = [one for one in self.of("Deployment") if _containers(one)[0]["name"] == "api"]
        return found

    def templates(self) -> Iterator[tuple[str, Object]]:
        """The kind and name of whatever makes pods, and how these are made."""
        for one in self.objects:
            where = f"{one['kind']} {one['metadata']['name']}"
            if one["kind"] == "Deployment":
                yield where, one["spec"]["template"]
            elif one["kind"] == "CronJob":
                yield where, one["spec"]["jobTemplate"]["spec"]["template"]

    def pods(self) -> Iterator[tuple[str, Object, Object]]:
        """The same, with the spec of the pod and its one container."""
        for where, template in self.templates():
            (container,) = template["spec"]["containers"]
            yield where, template["spec"], container

    def environment(self, container: Object, secrets: Mapping[str, str] = {}, **fields: str) -> dict[str, str]:
        """The variables of a container as the kubelet sets them. `fields`: what the downward API says."""
        found: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            if "configMapRef" in source:
                found |= self.one("ConfigMap", source["configMapRef"]["name"])["data"]
            else:
                found |= secrets
        for one in container.get("env", ()):
            if "value" in one:
                # what is not known by then stays as it is written
                found[one["name"]] = re.sub(r"\$\((\w+)\)", lambda m: found.get(m[1], m[0]), one["value"])
            else:
                path = one["valueFrom"]["fieldRef"]["fieldPath"]
                found[one["name"]] = fields.get(path.rpartition(".")[2], f"<{path}>")
        return found


def _containers(deployment: Object) -> list[Object]:
    return list(deployment["spec"]["template"]["spec"]["containers"])


# Checks: each tells what is wrong


# each object is held to half a megabyte of definitions, which it reads anew each time
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)


def schemas(manifests: Manifests) -> Iterator[str]:
    for one in manifests.objects:
        for version in VERSIONS:
            if says := _refused(json.dumps(one), version):
                yield f"{one['kind']}: no object of Kubernetes {version}: {says}"


@functools.cache  # most objects are the same, whatever a test changes of others
def _refused(text: str, version: str) -> str:
    try:
        kubernetes_validate.validate(json.loads(text), version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    return ""


def names(manifests: Manifests) -> Iterator[str]:
    seen = set()
    for one in manifests.objects:
        name = one["metadata"]["name"]
        if (one["kind"], name) in seen:
            yield f"{one['kind']} {name} is there twice"
        seen.add((one["kind"], name))
        if not LABEL.fullmatch(name):
            yield f"{one['kind']} {name!r} is no DNS label"
        if one["kind"] == "CronJob" and len(name) > 52:
            yield f"CronJob {name}: longer than 52, a Job's name would be too long"
        if one["kind"] == "Service" and not name[0].isalpha():
            yield f"Service {name} begins with no letter"


def kustomized(manifests: Manifests) -> Iterator[str]:
    if set(manifests.kustomization["resources"]) != manifests.files:
        yield "kustomization.yaml lists other files than there are"


def selects(selector: Mapping[str, str], template: Object) -> bool:
    return selector.items() <= template["metadata"]["labels"].items()


def selectors(manifests: Manifests) -> Iterator[str]:
    deployment = manifests.api
    own = deployment["spec"]["selector"]["matchLabels"]
    wanted = [f"Deployment {deployment['metadata']['name']}"]
    for what, selector in (
        ("Deployment", own),
        ("Service", manifests.one("Service")["spec"]["selector"]),
        *(
            ("topologySpreadConstraints", one["labelSelector"]["matchLabels"])
            for one in deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
        ),
    ):
        found = [where for where, template in manifests.templates() if selects(selector, template)]
        if found != wanted:
            yield f"{what} selects {found}"
    kept = [f"Deployment {one['metadata']['name']}" for one in manifests.of("PodDisruptionBudget")]
    if sorted(kept) != sorted(where for where, _ in manifests.templates() if where.startswith("Deployment")):
        yield f"there are PodDisruptionBudgets for {kept}"
    for where, budget in zip(kept, manifests.of("PodDisruptionBudget"), strict=True):
        selector = budget["spec"]["selector"]["matchLabels"]
        if [other for other, template in manifests.templates() if selects(selector, template)] != [where]:
            yield f"PodDisruptionBudget of {where} selects others"
    target = manifests.one("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    if target != {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment["metadata"]["name"]}:
        yield f"HorizontalPodAutoscaler scales {target}"
    for where, template in manifests.templates():
        for policy in ("Ingress", "Egress"):
            if not [*_policies(manifests, template, policy)]:
                yield f"{where}: no NetworkPolicy is for its {policy}"


def _policies(manifests: Manifests, template: Object, policy: str) -> Iterator[Object]:
    for one in manifests.of("NetworkPolicy"):
        if policy in one["spec"]["policyTypes"] and selects(one["spec"]["podSelector"]["matchLabels"], template):
            yield one


def ports(manifests: Manifests) -> Iterator[str]:
    template = manifests.api["spec"]["template"]
    (container,) = template["spec"]["containers"]
    there = {port["name"]: port["containerPort"] for port in container["ports"]}
    listens = int(manifests.environment(container)["SERENO_SERVE__PORT"])
    if [*there.values()] != [listens]:
        yield f"the container says {there}, the server listens on {listens}"
    for port in manifests.one("Service")["spec"]["ports"]:
        if port["targetPort"] not in there:
            yield f"Service: no port is called {port['targetPort']}"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        if container[probe]["httpGet"]["port"] not in there:
            yield f"{probe}: no port is called {container[probe]['httpGet']['port']}"
    for policy in _policies(manifests, template, "Ingress"):
        for rule in policy["spec"]["ingress"]:
            if [port["port"] for port in rule.get("ports", ())] != [listens]:
                yield f"NetworkPolicy {policy['metadata']['name']} lets {rule.get('ports')} in, not {listens}"
        if not policy["spec"]["ingress"]:
            yield f"NetworkPolicy {policy['metadata']['name']} lets nobody in"


def crons(manifests: Manifests) -> Iterator[str]:
    for one in manifests.of("CronJob"):
        where, spec = f"CronJob {one['metadata']['name']}", one["spec"]
        try:
            cron = Cron(spec["schedule"])
        except ValueError as error:
            yield f"{where}: {error}"
            continue
        if spec.get("timeZone") not in available_timezones():
            yield f"{where}: {spec.get('timeZone')!r} is no time zone"
            continue
        seconds = spec.get("startingDeadlineSeconds") or 0
        if seconds < 10:
            yield f"{where}: startingDeadlineSeconds {seconds} is less than the controller's pause"
        start = datetime(2026, 11, 23, 12, tzinfo=UTC)
        if len(cron.times(start, start + timedelta(seconds=seconds), spec["timeZone"])) > 100:
            yield f"{where}: more than 100 starts may be missed within startingDeadlineSeconds"


def jobs(manifests: Manifests) -> Iterator[str]:
    for one in manifests.of("CronJob"):
        where, spec = f"CronJob {one['metadata']['name']}", one["spec"]
        job = spec["jobTemplate"]["spec"]
        pod = job["template"]["spec"]
        if spec.get("concurrencyPolicy") != "Forbid":
            yield f"{where}: concurrencyPolicy"
        for limit in ("successfulJobsHistoryLimit", "failedJobsHistoryLimit"):
            if not 1 <= spec.get(limit, 0) <= 10:
                yield f"{where}: {limit}"
        if job.get("activeDeadlineSeconds", 0) < 600:
            yield f"{where}: activeDeadlineSeconds"
        if "backoffLimit" not in job:
            yield f"{where}: backoffLimit"
        if pod.get("restartPolicy") != "Never":  # what podFailurePolicy needs
            yield f"{where}: restartPolicy"
        rules = job.get("podFailurePolicy", {}).get("rules", [])
        ended = [rule["onExitCodes"] for rule in rules if rule["action"] == "FailJob"]
        if [(one["containerName"], one["operator"], one["values"]) for one in ended] != [
            (pod["containers"][0]["name"], "In", [USAGE, HELD, LASTING])
        ]:
            yield f"{where}: podFailurePolicy does not end with exit codes 2, 3 and 4 of its container"
        if not any(rule["action"] == "Ignore" for rule in rules):
            yield f"{where}: a pod that is moved counts as a try"


def resources(manifests: Manifests) -> Iterator[str]:
    for where, _, container in manifests.pods():
        asked, most = container["resources"].get("requests", {}), container["resources"].get("limits", {})
        for name in ("cpu", "memory", "ephemeral-storage"):
            if name not in asked:
                yield f"{where}: nothing is asked for of {name}"
        if "memory" not in most:
            yield f"{where}: no limit of memory"
        for name in asked.keys() & most.keys():
            if amount(asked[name]) > amount(most[name]):
                yield f"{where}: asks for more {name} than its limit"
        cpu = amount(asked.get("cpu", 0))
        if container["name"] == "run" and "cpu" not in most:
            yield f"{where}: without a limit of CPU a run takes the node's cores for its own"
        if container["args"][0] == "up":
            up = _settings(manifests, container).up
            if up.run_cores is None or max(1, cpu) < up.run_cores:
                yield f"{where}: a run has {up.run_cores} cores of {cpu:g}"
            continue
        workers = int(manifests.environment(container).get("SERENO_WORKERS", 0))
        if workers != max(1, int(cpu)):
            yield f"{where}: {workers} workers on {asked.get('cpu')} CPUs"


def amount(text: object) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(m|[kMGT]|[KMGT]i)?", str(text))
    assert match is not None, f"{text} is no amount"
    return float(match[1]) * (0.001 if match[2] == "m" else UNITS[match[2] or ""])


def probes(manifests: Manifests) -> Iterator[str]:
    deployment = manifests.api
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    scheme = "HTTPS" if manifests.speaks_tls else "HTTP"
    for name, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        probe = container[name]["httpGet"]
        if probe["path"] != path or path.encode() not in FREE:
            yield f"{name} asks {probe['path']}"
        if "httpHeaders" in probe:
            yield f"{name} needs headers"
        if probe.get("scheme", "HTTP") != scheme:
            yield f"{name} speaks {probe.get('scheme')}"
    patience = _patience(container["startupProbe"])
    if not 300 <= patience < deployment["spec"]["progressDeadlineSeconds"]:
        yield f"startupProbe waits {patience} s, progressDeadlineSeconds is {deployment['spec']['progressDeadlineSeconds']}"
    hangs = manifests.predict_seconds
    if _patience(container["livenessProbe"]) <= hangs + patience:
        yield (
            f"livenessProbe ends a server after {_patience(container['livenessProbe'])} s that ends a worker after {hangs:g} s, "
            f"and whose next one may load for {patience} s"
        )
    if _patience(container["readinessProbe"]) > 10:
        yield "readinessProbe is slow"


def _patience(probe: Object) -> int:
    return int(probe["periodSeconds"] * probe["failureThreshold"])


def _settings(manifests: Manifests, container: Object) -> Any:
    """What Sereno makes of a container's variables, or SettingsError."""
    variables = manifests.environment(container)
    variables.pop("SERENO_ENV", None)
    return load_settings(Path("/nowhere"), environ=variables)


def grace(manifests: Manifests) -> Iterator[str]:
    spec = manifests.api["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    for where, other, its in manifests.pods():
        if (
            its["args"][0] == "up"
            and other["terminationGracePeriodSeconds"] < _settings(manifests, its).up.stop_seconds + 5
        ):
            yield f"{where}: runs are killed before they end"
    stop = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    drain = _settings(manifests, container).serve.drain_seconds
    if stop < 5:
        yield f"preStop waits {stop} s: callers come that have not heard"
    if "SERENO_SERVE__DRAIN_SECONDS" not in manifests.environment(container):
        yield "drain_seconds may be another in the image's sereno.toml"
    beside = COMPACTOR_SECONDS + BUILDER_SECONDS
    if spec["terminationGracePeriodSeconds"] < stop + drain + beside + 5:
        yield f"terminationGracePeriodSeconds {spec['terminationGracePeriodSeconds']} < {stop} + {drain:g} + {beside:g} + 5"


def references(manifests: Manifests) -> Iterator[str]:
    there = {(one["kind"], one["metadata"]["name"]) for one in manifests.objects}
    for where, spec, container in manifests.pods():
        named = {("ServiceAccount", spec.get("serviceAccountName"))}
        for source in container.get("envFrom", ()):
            for kind, field in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                if field in source:
                    named.add((kind, source[field]["name"]))
                    if source[field].get("optional"):
                        yield f"{where}: without its {kind} it would start all the same"
        named |= {("Secret", one["secret"]["secretName"]) for one in spec["volumes"] if "secret" in one}
        if {kind for kind, _ in named} != {"ServiceAccount", "ConfigMap", "Secret"}:
            yield f"{where} names {named}"
        for kind, name in sorted(named - there, key=str):
            if kind != "Secret" or f"create secret generic {name} " not in manifests.told:
                yield f"{where} names {kind} {name}, which is not there"
        mounted, volumes = ({one["name"] for one in many} for many in (container["volumeMounts"], spec["volumes"]))
        if mounted != volumes:
            yield f"{where} mounts {mounted}, and has {volumes}"


def network(manifests: Manifests) -> Iterator[str]:
    for where, template in manifests.templates():
        rules = [rule for one in _policies(manifests, template, "Egress") for rule in one["spec"].get("egress", ())]
        for protocol, port, what in (
            ("UDP", 53, "DNS"),
            ("TCP", 53, "DNS"),
            ("UDP", 5353, "DNS of OpenShift"),
            ("TCP", 5353, "DNS of OpenShift"),
            ("TCP", 443, "the bucket"),
            ("TCP", 5432, "the ledger"),
        ):
            if not any(_lets(rule, protocol, port, "to") for rule in rules):
                yield f"{where} cannot reach {what}"
        if not any(_lets(rule, "TCP", 80, "to", "169.254.169.254") for rule in rules):
            yield f"{where} cannot ask for the platform's credentials"
    api = manifests.api["spec"]["template"]
    for policy in _policies(manifests, api, "Ingress"):
        for rule in policy["spec"]["ingress"]:
            if not rule.get("from"):
                yield "whoever there is may ask the API"
            elif {"podSelector": {}} not in rule["from"]:
                yield "the API's own namespace may not ask it"


def _lets(rule: Object, protocol: str, port: int, side: str, address: str | None = None) -> bool:
    whom = rule.get(side)
    open_to = not whom or (
        address is not None and any(one.get("ipBlock", {}).get("cidr") == "169.254.0.0/16" for one in whom)
    )
    through = "ports" not in rule or {"port": port, "protocol": protocol} in rule["ports"]
    return open_to and through


def service_links(manifests: Manifests) -> Iterator[str]:
    for where, spec, _ in manifests.pods():
        if spec.get("enableServiceLinks") is not False:
            yield f"{where}: Services would set variables"


def security(manifests: Manifests) -> Iterator[str]:
    """As the Pod Security Standard `restricted` asks, and a file system that cannot be written."""
    for where, spec, container in manifests.pods():
        pod, own = spec.get("securityContext", {}), container.get("securityContext", {})
        for holds, what in (
            (pod.get("runAsNonRoot") is True and own.get("runAsNonRoot") is not False, "runAsNonRoot"),
            (pod.get("runAsUser", 1) and own.get("runAsUser", 1), "runAsUser"),
            (pod.get("seccompProfile", {}).get("type") == "RuntimeDefault", "seccompProfile"),
            (own.get("allowPrivilegeEscalation") is False, "allowPrivilegeEscalation"),
            (not own.get("privileged"), "privileged"),
            (own.get("capabilities") == {"drop": ["ALL"]}, "capabilities"),
            (own.get("readOnlyRootFilesystem") is True, "readOnlyRootFilesystem"),
            (spec.get("automountServiceAccountToken") is False, "automountServiceAccountToken"),
            (not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), "the node's own namespaces"),
            (not any("hostPort" in port for port in container.get("ports", ())), "hostPort"),
            (all({*one} <= {"name", "emptyDir", "configMap", "secret"} for one in spec["volumes"]), "volumes"),
        ):
            if not holds:
                yield f"{where}: {what}"


def scratch(manifests: Manifests) -> Iterator[str]:
    for where, spec, container in manifests.pods():
        volumes = {one["name"]: one for one in spec["volumes"]}
        writable = {}
        for mount in container["volumeMounts"]:
            volume = volumes.get(mount["name"], {})
            if "emptyDir" in volume and not mount.get("readOnly"):
                writable[Path(mount["mountPath"])] = volume["emptyDir"]
            # below it the platform mounts the tokens of its identities
            if Path(mount["mountPath"]) in {
                Path("/run"),
                Path("/run/secrets"),
                Path("/var/run"),
                Path("/var/run/secrets"),
            }:
                yield f"{where}: {mount['mountPath']} is where tokens are mounted"
        variables = manifests.environment(container)
        for what in (variables["SERENO_HOME"], variables["HOME"], "/tmp"):
            if not any(Path(what).is_relative_to(place) for place in writable):
                yield f"{where}: {what} cannot be written"
        for place, volume in writable.items():
            if "sizeLimit" not in volume:
                yield f"{where}: {place} may fill the node"


def evictions(manifests: Manifests) -> Iterator[str]:
    """That an autoscaler takes no node away under a run, and any under what may go."""
    for where, template in manifests.templates():
        said = template["metadata"].get("annotations", {})
        volumes = ",".join(one["name"] for one in template["spec"]["volumes"] if "emptyDir" in one)
        if template["spec"]["containers"][0]["name"] == "run":
            if (said.get(f"{AUTOSCALER}/safe-to-evict"), said.get("karpenter.sh/do-not-disrupt")) != ("false", "true"):
                yield f"{where}: its node may be taken away under a run"
        elif said.get(f"{AUTOSCALER}/safe-to-evict-local-volumes") != volumes:
            yield f"{where}: {volumes} keep its node"


def replicas(manifests: Manifests) -> Iterator[str]:
    deployment, scaler = manifests.api["spec"], manifests.one("HorizontalPodAutoscaler")["spec"]
    if "replicas" in deployment:
        yield "replicas stands in the Deployment and would undo what the HorizontalPodAutoscaler did"
    if not 1 <= scaler["minReplicas"] <= scaler["maxReplicas"]:
        yield "minReplicas is more than maxReplicas"
    rolling = deployment["strategy"].get("rollingUpdate", {})
    if rolling.get("maxUnavailable") != 0 or not rolling.get("maxSurge"):
        yield "a new version takes pods away before there are others"
    for budget in manifests.of("PodDisruptionBudget"):
        if not budget["spec"].get("maxUnavailable"):
            yield "PodDisruptionBudget: no node could ever be emptied"
    (container,) = deployment["template"]["spec"]["containers"]
    for metric in scaler["metrics"]:
        if metric["resource"]["name"] not in container["resources"].get("requests", {}):
            yield f"a share of {metric['resource']['name']}, of which nothing is asked for"


def variables(manifests: Manifests) -> Iterator[str]:
    for where, _, container in manifests.pods():
        try:
            settings = _settings(manifests, container)
        except SettingsError as error:
            yield f"{where}: {error}"
            continue
        left = [value for value in manifests.environment(container).values() if "$(" in value]
        if left:
            yield f"{where}: {left} names a variable that is not set before"
        if settings.serve.host != "0.0.0.0":
            yield f"{where}: listens on {settings.serve.host}"
        if container["name"] == "api":
            service = manifests.one("Service")["metadata"]["name"]
            for name in (service, f"{service}.<metadata.namespace>.svc"):
                if name not in settings.serve.allowed_hosts:
                    yield f"{where}: is not known as {name}"


_parser = functools.cache(parser_of)


def commands(manifests: Manifests) -> Iterator[str]:
    for where, _, container in manifests.pods():
        if "command" in container:
            yield f"{where}: starts something else than the image does"
        try:
            with mock.patch("sys.stderr"):
                options = _parser().parse_args(container["args"])
        except SystemExit:
            yield f"{where}: sereno {' '.join(container['args'])} is no command"
            continue
        if options.named == "up" and not (options.no_api and not manifests.of("CronJob")):
            yield f"{where}: somebody else does that, too"
        if options.named == "run" and options.once != "ever":
            yield f"{where}: would publish twice"


CHECKS: tuple[Callable[[Manifests], Iterator[str]], ...] = (
    *(schemas, names, kustomized, selectors, ports, crons, jobs, resources, probes, grace, references, network),
    *(service_links, security, scratch, evictions, replicas, variables, commands),
)


def problems(manifests: Manifests, checks: Iterable[Callable[[Manifests], Iterator[str]]] = CHECKS) -> list[str]:
    """All that is wrong, each with the name of its check in front."""
    return [f"{check.__name__}: {problem}" for check in checks for problem in check(manifests)]


# Cron as the CronJob controller reads it: robfig's, with its own rule for days


class Cron:
    """Raises ValueError for what the API server refuses."""

    BOUNDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
    NAMES: tuple[Mapping[str, int], ...] = (
        *({}, {}, {}),
        dict(
            zip(
                ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
                range(1, 13),
                strict=True,
            )
        ),
        dict(zip(["sun", "mon", "tue", "wed", "thu", "fri", "sat"], range(7), strict=True)),
    )

    def __init__(self, schedule: str) -> None:
        fields = schedule.split()
        if len(fields) != 5:
            raise ValueError(f"{schedule!r} has {len(fields)} fields")
        parsed = [self._field(text, *more) for text, *more in zip(fields, self.BOUNDS, self.NAMES, strict=True)]
        self.minutes, self.hours, self.days, self.months, self.weekdays = (values for values, _ in parsed)
        self.both = parsed[2][1] or parsed[4][1]

    def _field(self, text: str, bounds: tuple[int, int], known: Mapping[str, int]) -> tuple[set[int], bool]:
        found, is_star = set(), False
        for part in text.split(","):
            span, _, step = part.partition("/")
            first, _, last = span.partition("-")
            if first in ("*", "?"):
                low, high = bounds
                is_star |= step in ("", "1")
            else:
                low = self._number(first, known)
                high = self._number(last, known) if last else bounds[1] if step else low
            if not (bounds[0] <= low <= high <= bounds[1]) or (step and not int(step)):
                raise ValueError(f"{part!r} is not within {bounds}")
            found |= {*range(low, high + 1, int(step or 1))}
        return found, is_star

    @staticmethod
    def _number(text: str, known: Mapping[str, int]) -> int:
        return known[text.lower()] if text.lower() in known else int(text)

    def is_due(self, local: datetime) -> bool:
        if local.month not in self.months or local.hour not in self.hours or local.minute not in self.minutes:
            return False
        day, weekday = local.day in self.days, local.isoweekday() % 7 in self.weekdays
        return day and weekday if self.both else day or weekday

    def times(self, start: datetime, end: datetime, zone: str) -> list[datetime]:
        """When it is due after the start, until the end: at each minute that shows so on the clock, also a second time."""
        known, found = ZoneInfo(zone), []
        quarter = start.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        while quarter <= end:  # no clock changes within
            local = quarter.astimezone(known)
            if local.hour in self.hours:
                minutes = (minute for minute in range(local.minute, local.minute + 15) if minute in self.minutes)
                moments = [(minute - local.minute, local.replace(minute=minute)) for minute in minutes]
                found += [quarter + timedelta(minutes=more) for more, shown in moments if self.is_due(shown)]
            quarter += timedelta(minutes=15)
        return [moment for moment in found if start < moment <= end]
