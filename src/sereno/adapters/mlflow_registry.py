"""An MLflow registry of models, asked by its REST API: https://mlflow.org/docs/latest/api_reference/rest-api.html

Found as MLflow's own tools find it: MLFLOW_REGISTRY_URI or MLFLOW_TRACKING_URI, with MLFLOW_TRACKING_USERNAME and
MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN. The package `mlflow` is not needed: see docs/decisions.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httpx

from sereno.exceptions import ArtifactError, ChangedError, SettingsError, StorageError
from sereno.settings import redact

URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))(?:/(?P<inside>.+))?")
DEADLINE = 60.0  # seconds after which no try begins to have a name resolved, a folder listed, or a file handed out
FIRST_WAIT, LONGEST_WAIT = 0.2, 5.0  # seconds between two tries, each with jitter
DOWNLOADS = 5  # of one file, which may break off at any time, however long it takes
AGAIN = (408, 429, 500, 502, 503, 504)
TIMEOUT = httpx.Timeout(30.0, connect=5.0)
PROXY = "/api/2.0/mlflow-artifacts/artifacts"
PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version of a registered model, which never changes."""

    says: str  # "models:/credit/7", with the path in it that was asked for
    location: str  # URL of an object store, mlflow-artifacts:/…, or a path
    key: list[str]  # what tells it from any other, also of another registry


class Registry:
    """One server. What fails and may pass is tried again until DEADLINE; what it answers is told in words."""

    def __init__(self, url: str, http: httpx.Client) -> None:
        self._url, self._http = url.rstrip("/"), http

    @classmethod
    def of_environment(cls, asked: str, environ: Mapping[str, str] = os.environ) -> Registry:
        """Raises SettingsError where no server is named, or one of another kind."""
        url = environ.get("MLFLOW_REGISTRY_URI") or environ.get("MLFLOW_TRACKING_URI") or ""
        if urlsplit(url).scheme not in ("http", "https"):
            given = f"It is {url.partition('://')[0]}://…" if url else "It is not set"
            raise SettingsError(
                f"{asked} is in an MLflow registry: set MLFLOW_TRACKING_URI to its server's address (http://… or https://…). "
                f"{given}."
            )
        user, token = environ.get("MLFLOW_TRACKING_USERNAME"), environ.get("MLFLOW_TRACKING_TOKEN")
        auth = (user, environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None
        headers = {"Authorization": f"Bearer {token}"} if token and not user else {}
        verify: bool | ssl.SSLContext = environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() not in ("true", "1")
        if verify and (file := environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH")):
            verify = ssl.create_default_context(cafile=file)
        return cls(url, httpx.Client(auth=auth, headers=headers, verify=verify, timeout=TIMEOUT, follow_redirects=True))

    def resolve(self, uri: str) -> Version:
        """The version that a name means now, and where its files lie.

        Raises ArtifactError where there is none, ChangedError where it is not whole yet, and StorageError where the server
        cannot be asked.
        """
        parts = URI.fullmatch(uri)
        if parts is None or ".." in PurePosixPath(parts["inside"] or "").parts:
            raise ArtifactError(
                f"{uri!r} names no version. Valid are models:/NAME@ALIAS and models:/NAME/7, either with a /path/in/it; "
                "stages are not read: MLflow has replaced them by aliases."
            )
        until = time.monotonic() + DEADLINE
        if parts["alias"]:
            answer = self._ask("registered-models/alias", uri, until, name=parts["name"], alias=parts["alias"])
        else:
            answer = self._ask("model-versions/get", uri, until, name=parts["name"], version=parts["version"])
        found = answer["model_version"]
        number = str(found["version"])
        if found.get("status", "READY") != "READY":
            raise ChangedError(
                f"{uri} is version {number}, which is {found['status']}. Start it again when it is READY."
            )
        told = self._ask("model-versions/get-download-uri", uri, until, name=parts["name"], version=number)
        inside = f"/{parts['inside']}" if parts["inside"] else ""
        return Version(
            says=f"models:/{parts['name']}/{number}{inside}",
            location=self._location(told["artifact_uri"], uri, until).rstrip("/") + inside,
            key=[self._url, parts["name"], number, str(found.get("creation_timestamp", "")), inside],
        )

    def _location(self, uri: str, asked: str, until: float) -> str:
        """Where the files lie: what MLflow names by a run or a logged model is looked up."""
        if uri.startswith("runs:/"):
            run, _, inside = uri.removeprefix("runs:/").partition("/")
            info = self._ask("runs/get", asked, until, run_id=run)["run"]["info"]
            return f"{info['artifact_uri'].rstrip('/')}/{inside}"
        if uri.startswith("models:/m-"):
            model, _, inside = uri.removeprefix("models:/").partition("/")
            info = self._ask(f"logged-models/{quote(model)}", asked, until)["model"]["info"]
            return f"{info['artifact_uri'].rstrip('/')}/{inside}"
        if uri.startswith(f"{self._url}{PROXY}/"):
            return f"mlflow-artifacts:/{unquote(uri.removeprefix(f'{self._url}{PROXY}/'))}"
        azure = re.fullmatch(r"(?:wasbs?|abfss?)://([^@/]+)@[^/]+/?(.*)", uri)
        if azure:  # the account comes from the environment, as of any az://
            return f"az://{azure[1]}/{azure[2]}"
        if uri.startswith("file://"):
            return unquote(urlsplit(uri).path)
        if uri.startswith(("s3://", "gs://", "mlflow-artifacts:/", "/")):
            return uri
        raise ArtifactError(
            f"{asked} lies at {redact(uri)}, which cannot be read from here. Valid are s3://, gs://, abfss://, wasbs://, a path of "
            "this machine, and what the server itself hands out (mlflow server --serve-artifacts)."
        )

    def copy(self, location: str, target: Path) -> None:
        """Copy a file or folder that the server hands out, or that lies on this machine. Raises as `resolve`, and OSError."""
        if not location.startswith("mlflow-artifacts:"):
            if not Path(location).exists():
                raise ArtifactError(f"There is no {location} on this machine: the registry names a path of its own.")
            (shutil.copytree if Path(location).is_dir() else shutil.copyfile)(location, target)
            return
        path = urlsplit(location).path.lstrip("/")
        files = [*self._below(path)]
        for inside in files or [""]:
            file = target / inside if inside else target
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._download(f"{path}/{inside}".rstrip("/"), file)

    def _below(self, path: str, inside: str = "") -> Iterator[str]:
        until = time.monotonic() + DEADLINE
        answer = self._get(PROXY, path, until, params={"path": f"{path}/{inside}".rstrip("/")}).json()
        for one in answer.get("files", []):
            name = PurePosixPath(one["path"]).name
            if not name or name == "..":
                continue
            if one.get("is_dir"):
                yield from self._below(path, f"{inside}{name}/")
            else:
                yield f"{inside}{name}"

    def _download(self, path: str, file: Path) -> None:
        for left in reversed(range(DOWNLOADS)):
            answer = self._get(f"{PROXY}/{quote(path)}", path, time.monotonic() + DEADLINE, stream=True)
            try:
                with contextlib.closing(answer), file.open("wb") as stream:
                    for piece in answer.iter_bytes(PIECE):
                        stream.write(piece)
                    stream.flush()
                    os.fsync(stream.fileno())
                return
            except httpx.HTTPError as error:
                if not left:
                    raise self._silent(path, f"{type(error).__name__}: {error}, {DOWNLOADS} times") from error

    def _ask(self, what: str, asked: str, until: float, **params: str) -> Any:
        try:
            return self._get(f"/api/2.0/mlflow/{what}", asked, until, params=params).json()
        except ValueError as error:
            raise StorageError(f"{asked} cannot be asked for: {self._shown} is no MLflow server.") from error

    def _get(
        self, path: str, asked: str, until: float, *, params: dict[str, str] | None = None, stream: bool = False
    ) -> httpx.Response:
        """The answer, whole or as a stream that the caller closes. It is tried again until then."""
        request = self._http.build_request("GET", self._url + path, params=params)
        most = FIRST_WAIT
        while True:
            cause: BaseException | None = None
            try:
                answer = self._http.send(request, stream=stream)
                if answer.status_code == httpx.codes.OK:
                    return answer
                answer.read()
                if answer.status_code not in AGAIN:
                    raise self._told(asked, answer)
                why = f"it answers {answer.status_code}"
            except httpx.HTTPError as error:
                why, cause = f"{type(error).__name__}: {error}", error
            wait = random.uniform(0, most)
            if time.monotonic() + wait > until:
                raise self._silent(asked, why) from cause
            time.sleep(wait)
            most = min(2 * most, LONGEST_WAIT)

    def _silent(self, asked: str, why: str) -> StorageError:
        return StorageError(
            f"{asked} cannot be asked for: the MLflow server {self._shown} does not answer ({why}). Start it, or mend "
            "MLFLOW_TRACKING_URI."
        )

    def _told(self, asked: str, answer: httpx.Response) -> Exception:
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            return StorageError(
                f"{asked} cannot be asked for: the MLflow server {self._shown} refuses these credentials "
                f"({answer.status_code}). See MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
            )
        try:
            says = str(answer.json()["message"])
        except (ValueError, KeyError, TypeError):
            return StorageError(
                f"{asked} cannot be asked for: {self._shown} answers {answer.status_code}, as no MLflow server does. Mend "
                "MLFLOW_TRACKING_URI."
            )
        return ArtifactError(
            f"The MLflow server {self._shown} has no {asked}: {says.rstrip('.')}. Register it or set the alias, or mend "
            "artifacts= in the model file."
        )

    @property
    def _shown(self) -> str:
        """Without what may be a password."""
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"
