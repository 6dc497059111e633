"""docs/deploy_platforms.md, with the platforms' side played: what is deployed is read from the page, and the server that it
starts is asked, probed and stopped as the platform does it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from sereno.serve.guard import new_key
from sereno.serve.processes.ending import AFTER_DRAIN_SECONDS
from sereno.settings import ServeSettings
from tests.acceptance.batch_transform import Job
from tests.acceptance.containers import MODEL, PATIENCE, Container, as_mounted, free_port, until, values_of

PAGE = (Path(__file__).parents[2] / "docs" / "deploy_platforms.md").read_text(encoding="utf-8")
HELD = 99  # the age of a customer whose prediction waits until it is let


def definition(section: str, port: int) -> Any:
    """What a section of the page has deployed, with another port in place of 8080."""
    (text,) = [one for one in re.split(r"^##+ ", PAGE, flags=re.MULTILINE) if one.startswith(f"{section}\n")]
    ((kind, block),) = re.findall(r"^```(json|yaml)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    block = block.replace("8080", str(port))
    return json.loads(block) if kind == "json" else yaml.safe_load(block)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The working folder of an image with the model in it."""
    folder = tmp_path / "image"
    folder.mkdir()
    (folder / "churn.py").write_text(MODEL)
    return folder


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def key() -> tuple[str, str]:
    """A key, and the line of it that the server is given."""
    return new_key("the tests")


def ages(*ages: int) -> list[dict[str, Any]]:
    return [{"age": age, "spend": None} for age in ages]


def probabilities(*ages: int) -> dict[str, Any]:
    return {"predictions": [{"probability": age / 100} for age in ages]}


def test_the_image_that_is_written_has_what_the_page_asks_for_and_opens_nothing() -> None:
    written = resources.files("sereno.deploy").joinpath("templates/docker/Dockerfile").read_text()
    (block,) = re.findall(r"^```dockerfile\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    env, entry, command = block.splitlines()
    assert env.removeprefix("ENV ") in written
    assert command in written.splitlines()
    (theirs,) = re.findall(r"^ENTRYPOINT (.*)$", written, re.MULTILINE)
    assert json.loads(theirs)[-1:] == json.loads(entry.removeprefix("ENTRYPOINT "))
    # what the platform says would not count where the image says it already
    for setting in ("PORT", "NO_AUTH", "TLS_TERMINATED_UPSTREAM", "ALLOWED_HOSTS"):
        assert f"SERENO_SERVE__{setting}" not in written
    assert 'com.amazonaws.sagemaker.capabilities.accept-bind-to-port="true"' in written


class TestSageMaker:
    @pytest.fixture
    def container(self, image: Path, port: int, tmp_path: Path) -> Iterator[Container]:
        """The model comes in its own folder, and the image has none."""
        model = tmp_path / "model"
        image.rename(model)
        image.mkdir()
        variables = definition("SageMaker", port)["PrimaryContainer"]["Environment"]
        told = {"SAGEMAKER_BIND_TO_PORT": str(port)}
        with Container(
            image, ["serve"], variables | told, port=port, kill_seconds=30, under=as_mounted(model, "/opt/ml/model")
        ) as one:
            one.folder = model
            ping = one.wait_for("/ping", timeout=2, host="container-0.local:8080")
            assert (ping.status_code, ping.content) == (200, b"")
            yield one

    def ask(self, container: Container, body: bytes, content_type: str = "text/csv") -> httpx.Response:
        headers = {
            "Content-Type": content_type,
            "Host": "container-0.local:8080",
            "X-Amzn-SageMaker-Custom-Attributes": "trace=1",  # it adds some, which are to be ignored
        }
        times = httpx.Timeout(60, connect=0.25)
        return httpx.post(f"{container.url}/invocations", content=body, headers=headers, timeout=times)

    def test_real_time(self, container: Container) -> None:
        assert self.ask(container, b"25,\n75,1.5\n").json() == probabilities(25, 75)
        large = (b"25," + b" " * 26_000 + b"\n") * 1_000  # as large as it sends, 25 MB, and as many rows as are taken
        assert self.ask(container, large).json() == probabilities(*[25] * 1_000)
        assert self.ask(container, large + large).status_code == 413
        with container.predicting(lambda: self.ask(container, b"%d,\n" % HELD)) as replies:
            container.wait_for("/ping", timeout=2)
        assert replies[0].json() == probabilities(HELD)
        reply = container.stop_while_predicting(lambda: self.ask(container, b"%d,\n" % HELD))
        assert reply.json() == probabilities(HELD)


class TestBatchTransform:
    def test_job(self, image: Path, port: int) -> None:
        model, job = definition("SageMaker", port), definition("Batch transform", port)
        told = {
            "SAGEMAKER_BATCH": "true",
            "SAGEMAKER_MAX_PAYLOAD_IN_MB": str(job["MaxPayloadInMB"]),
            "SAGEMAKER_BATCH_STRATEGY": {"MultiRecord": "MULTI_RECORD"}[job["BatchStrategy"]],
            "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": str(job["MaxConcurrentTransforms"]),
            "SERENO_SERVE__PORT": str(port),  # it has 8080 for itself, and the tests have not
        }
        # the image has the model and no project file: its name is what `model.tar.gz` would have brought
        (image / "sereno.toml").write_text('[models.churn]\nfile = "churn.py"\n')
        variables = model["PrimaryContainer"]["Environment"] | told
        with Container(image, ["serve"], variables, port=port, kill_seconds=30) as container:
            container.wait_for("/ping", timeout=2)
            rows = [18 + number % 80 for number in range(20_000)]
            rows[77] = 3  # not of age
            file = b"".join(b"%d,%0120d.5\n" % (age, number) for number, age in enumerate(rows))
            assert len(file) > 2 * job["MaxPayloadInMB"] << 20  # several requests
            out = Job(
                url=container.url,
                content_type=job["TransformInput"]["ContentType"],
                accept=job["TransformOutput"]["Accept"],
                assemble_with=job["TransformOutput"]["AssembleWith"],
                payload_bytes=job["MaxPayloadInMB"] << 20,
                concurrent=job["MaxConcurrentTransforms"],
            ).run(file)
            lines = out.decode().splitlines()
            assert len(lines) == len(rows)
            assert lines[77] == '""'
            del lines[77], rows[77]
            assert [float(line) for line in lines] == [age / 100 for age in rows]


class TestVertex:
    def test_endpoint(self, image: Path, port: int) -> None:
        spec = definition("Vertex AI", port)["model"]["containerSpec"]
        health, predict = spec["healthRoute"], spec["predictRoute"]
        variables = {
            "AIP_HTTP_PORT": str(spec["ports"][0]["containerPort"]),
            "AIP_HEALTH_ROUTE": health,
            "AIP_PREDICT_ROUTE": predict,
            "AIP_MODE": "PREDICTION",
            "AIP_MODE_VERSION": "1.0.0",
            "AIP_FRAMEWORK": "CUSTOM_CONTAINER",
            "AIP_ENDPOINT_ID": "17",
            "AIP_DEPLOYED_MODEL_ID": "42",
            "AIP_PROJECT_NUMBER": "111122223333",
            "AIP_STORAGE_URI": "",
            "SERENO_WORKERS": "2",  # so that some who connect early have to wait for the other one
        }
        (image / "loading").touch()
        with Container(image, spec["args"], variables, port=port, kill_seconds=30) as container:
            self.connects(container)  # the liveness check, while the model loads
            with pytest.raises(httpx.ReadTimeout):
                httpx.get(container.url + health, timeout=0.2)
            (image / "loading").unlink()
            assert container.wait_for(health, timeout=10, host="10.0.0.7:8080").status_code == 200

            def ask(*of_ages: int) -> httpx.Response:
                body = {"instances": ages(*of_ages), "parameters": {}}
                return httpx.post(container.url + predict, json=body, headers={"Host": "10.0.0.7:8080"}, timeout=60)

            for _ in range(10):
                assert ask(25, 75).json() == probabilities(25, 75)
            # as large as it sends: 1.5 MB, of blanks between
            large = b'{"instances":' + b" " * 1_499_000 + json.dumps(ages(25)).encode() + b"}"
            assert httpx.post(container.url + predict, content=large, timeout=60).json() == probabilities(25)
            assert httpx.post(container.url + predict, content=large * 2, timeout=60).status_code == 413
            assert container.stop_while_predicting(lambda: ask(HELD)).json() == probabilities(HELD)

    def connects(self, container: Container) -> None:
        def tried() -> bool:
            with socket.socket() as sock:
                return sock.connect_ex(("127.0.0.1", container.port)) == 0

        until(tried, "take connections")


class TestKServe:
    @pytest.mark.parametrize("mode", ["Knative", "Standard"])
    def test_inference_service(self, image: Path, port: int, mode: str) -> None:
        service = definition("KServe", port)
        ((one,),) = [service["spec"]["predictor"]["containers"]]
        assert (service["kind"], one["name"]) == ("InferenceService", "kserve-container")
        variables = values_of(one["env"])
        assert "PORT" not in variables  # Knative refuses a definition with it
        host = f"{service['metadata']['name']}-predictor.default.example.com"
        kill_seconds = 30.0
        if mode == "Knative":
            variables |= {"PORT": str(port), "K_SERVICE": "churn-predictor", "K_REVISION": "churn-predictor-00001"}
        with Container(image, one["args"], variables, port=port, kill_seconds=kill_seconds) as container:
            for each in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe(container, one[each])
            assert patience(one["startupProbe"]) >= 300
            with httpx.Client(base_url=container.url, headers={"Host": host}, timeout=60) as client:
                assert client.get("/v1/models/churn").json() == {"name": "churn", "ready": True}
                assert client.get("/v2/health/ready").status_code == 200
                answer = client.post("/v1/models/churn:predict", json={"instances": ages(25, 75)})
                assert answer.json() == probabilities(25, 75)
                inputs = [
                    {"name": "age", "datatype": "INT64", "shape": [2], "data": [25, 75]},
                    {"name": "spend", "datatype": "FP64", "shape": [2], "data": [1.5, 2.5]},
                ]
                answer = client.post("/v2/models/churn/infer", json={"inputs": inputs})
                assert answer.json()["outputs"][0]["data"] == [0.25, 0.75]
            url, body = f"{container.url}/v1/models/churn:predict", {"instances": ages(HELD)}
            reply = container.stop_while_predicting(
                lambda: httpx.post(url, json=body, headers={"Host": host}, timeout=60)
            )
            assert reply.json() == probabilities(HELD)


class TestCloudRun:
    def test_service(self, image: Path, port: int) -> None:
        spec = definition("Cloud Run", port)["spec"]["template"]["spec"]
        (one,) = spec["containers"]
        told = {
            "PORT": str(one["ports"][0]["containerPort"]),
            "K_SERVICE": "churn",
            "K_REVISION": "churn.1",
            "K_CONFIGURATION": "churn",
        }
        with Container(image, one["args"], values_of(one["env"]) | told, port=port, kill_seconds=10) as container:
            probe(container, one["startupProbe"])
            probe(container, one["livenessProbe"])
            headers = {"Host": "churn-abc123-ey.a.run.app", "X-Forwarded-Proto": "https", "Forwarded": "proto=https"}

            def ask(age: int) -> httpx.Response:
                return httpx.post(f"{container.url}/predict", json=ages(age)[0], headers=headers, timeout=60)

            assert ask(25).json() == {"probability": 0.25}
            assert container.stop_while_predicting(lambda: ask(HELD)).json() == {"probability": 0.99}
        assert not (image / "home" / ".sereno" / "answers").exists()  # the disk is memory there


class TestEcs:
    def test_task(self, image: Path, port: int, key: tuple[str, str]) -> None:
        task = definition("Amazon ECS", port)
        (one,) = task["containerDefinitions"]
        variables = values_of(one["environment"]) | {
            secret["name"]: {"SERENO_SECRET_API_KEYS": key[1]}[secret["name"]] for secret in one["secrets"]
        }
        told = {"ECS_CONTAINER_METADATA_URI_V4": "http://169.254.170.2/v4/1", "AWS_REGION": "eu-central-1"}
        with Container(
            image, one["command"], variables | told, port=port, kill_seconds=one["stopTimeout"]
        ) as container:
            container.wait_for("/readyz", timeout=5, host="10.0.0.7:8080")  # the target group, which has no key
            kind, python, *code = one["healthCheck"]["command"]
            assert (kind, python) == ("CMD", "python")
            subprocess.run([sys.executable, *code], check=True, capture_output=True, timeout=PATIENCE)

            def ask(age: int, **headers: str) -> httpx.Response:
                headers = {"Host": "scores.bank", "X-API-Key": key[0]} | headers
                return httpx.post(f"{container.url}/predict", json=ages(age)[0], headers=headers, timeout=60)

            assert ask(25).json() == {"probability": 0.25}
            assert ask(25, **{"X-API-Key": "another"}).status_code == 401
            assert ask(25, Host="10.0.0.7:8080").status_code == 400
            assert container.stop_while_predicting(lambda: ask(HELD)).json() == {"probability": 0.99}


class TestContainerApps:
    def test_app(self, image: Path, port: int, key: tuple[str, str]) -> None:
        app = definition("Azure Container Apps", port)["properties"]
        (one,) = app["template"]["containers"]
        secrets = {pair["name"]: key[1] for pair in one["env"] if "secretRef" in pair}
        assert {pair["secretRef"] for pair in one["env"] if "secretRef" in pair} <= {
            secret["name"] for secret in app["configuration"]["secrets"]
        }
        told = {
            "CONTAINER_APP_NAME": "churn",
            "CONTAINER_APP_REVISION": "churn--20mh1s9",
            "CONTAINER_APP_PORT": str(app["configuration"]["ingress"]["targetPort"]),
            "CONTAINER_APP_REPLICA_NAME": "churn--20mh1s9-86c8c4b497-zx9bq",
        }
        variables = values_of(one["env"]) | secrets | told
        kill_seconds = app["template"]["terminationGracePeriodSeconds"]
        with Container(image, one["args"], variables, port=port, kill_seconds=kill_seconds) as container:
            kinds = [each["type"] for each in one["probes"]]
            assert sorted(kinds) == ["Liveness", "Readiness", "Startup"]
            for each in one["probes"]:
                probe(container, each)

            def ask(age: int, given: str = key[0]) -> httpx.Response:
                headers = {
                    "Host": "churn.calm-sea-1.westeurope.azurecontainerapps.io",
                    "Authorization": f"Bearer {given}",
                }
                return httpx.post(f"{container.url}/predict", json=ages(age)[0], headers=headers, timeout=60)

            assert ask(25).json() == {"probability": 0.25}
            assert ask(25, "another").status_code == 401
            assert container.stop_while_predicting(lambda: ask(HELD)).json() == {"probability": 0.99}


def patience(said: dict[str, Any]) -> int:
    """For how many seconds a probe may fail."""
    return int(said["periodSeconds"] * said["failureThreshold"])


def test_liveness_waits_until_a_worker_that_hung_is_replaced() -> None:
    kserve = definition("KServe", 8080)["spec"]["predictor"]["containers"][0]
    run = definition("Cloud Run", 8080)["spec"]["template"]["spec"]["containers"][0]
    listed = definition("Azure Container Apps", 8080)["properties"]["template"]["containers"][0]["probes"]
    azure = {f"{one['type'].lower()}Probe": one for one in listed}
    for container in (kserve, run, azure):
        # a model may load as long as at the start, and again after predict hung for 30 s
        assert patience(container["startupProbe"]) < patience(container["livenessProbe"]) - 30
    assert patience(run["startupProbe"]) <= 240  # which is all that Cloud Run takes
    assert all(one.get("failureThreshold", 3) <= 10 and one.get("periodSeconds", 10) <= 240 for one in listed)


def test_a_server_has_ended_before_it_is_killed() -> None:
    sagemaker = definition("SageMaker", 8080)["PrimaryContainer"]["Environment"]
    kserve = values_of(definition("KServe", 8080)["spec"]["predictor"]["containers"][0]["env"])
    for variables in (sagemaker, kserve):
        assert float(variables["SERENO_SERVE__DRAIN_SECONDS"]) + AFTER_DRAIN_SECONDS < 30
    azure = definition("Azure Container Apps", 8080)["properties"]["template"]["terminationGracePeriodSeconds"]
    (ecs,) = definition("Amazon ECS", 8080)["containerDefinitions"]
    for seconds in (azure, ecs["stopTimeout"]):
        assert ServeSettings().drain_seconds + AFTER_DRAIN_SECONDS < seconds


def probe(container: Container, said: dict[str, Any]) -> None:
    """As the kubelet and its like do: by the address of the pod, and any status from 200 to 399 is well."""
    assert said["httpGet"]["port"] == container.port
    container.wait_for(said["httpGet"]["path"], timeout=10, host="10.0.0.7:8080")


@pytest.mark.parametrize("section", ["Vertex AI", "Cloud Run"])
def test_without_the_words_the_image_opens_nothing(section: str, image: Path, port: int) -> None:
    found = definition(section, port)
    args = found["model"]["containerSpec"]["args"] if "model" in found else []
    args = args or found["spec"]["template"]["spec"]["containers"][0]["args"]
    kept = [word for word in args if word != "--no-auth"]
    assert len(kept) == len(args) - 1
    variables = {"AIP_HTTP_PORT": str(port)} if "model" in found else {"K_SERVICE": "churn", "PORT": str(port)}
    container = Container(image, kept, variables, port=port, kill_seconds=30)
    with container:
        assert container.process.wait(PATIENCE) == 2
        assert "--no-auth" in container.log
