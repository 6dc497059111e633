"""A small MLflow server for tests: what its REST API answers, word for word as version 3.17 does."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

API, PROXY = "/api/2.0/mlflow/", "/api/2.0/mlflow-artifacts/artifacts"


@dataclass(kw_only=True)
class Registry:
    """What the server has, and what it was asked for."""

    url: str = ""
    versions: dict[tuple[str, str], str] = field(default_factory=dict)  # name and version → source
    locations: dict[str, str] = field(default_factory=dict)  # source → where its files lie; without: the source itself
    runs: dict[str, str] = field(default_factory=dict)  # run, or logged model → its artifact_uri
    aliases: dict[tuple[str, str], str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)  # of the proxy
    password: str = ""
    token: str = ""
    failures: list[int] = field(default_factory=list)  # statuses of the next answers; 0: the connection is cut
    cuts: int = 0  # so many of the next good answers break off before their end
    status: str = "READY"
    asked: list[str] = field(default_factory=list)

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, Any]:
        if path.startswith(f"{PROXY}/"):
            name = unquote(path.removeprefix(f"{PROXY}/"))
            if name in self.files:
                return 200, self.files[name]
            return 404, _missing(f"No such artifact: '{name}'")
        if path == PROXY:
            return 200, self._listing(query["path"])
        what = path.removeprefix(API)
        if what == "registered-models/alias":
            name, alias = query["name"], query["alias"]
            if not any(known == name for known, _ in self.versions):
                return 404, _missing(f"Registered Model with name={name} not found")
            if (name, alias) not in self.aliases:
                return 400, {
                    "error_code": "INVALID_PARAMETER_VALUE",
                    "message": f"Registered model alias {alias} not found.",
                }
            return self._version(name, self.aliases[name, alias])
        if what == "model-versions/get":
            return self._version(query["name"], query["version"])
        if what == "model-versions/get-download-uri":
            source = self.versions[query["name"], query["version"]]
            return 200, {"artifact_uri": self.locations.get(source, source)}
        if what == "runs/get":
            return 200, {"run": {"info": {"run_id": query["run_id"], "artifact_uri": self.runs[query["run_id"]]}}}
        if what.startswith("logged-models/"):
            return 200, {"model": {"info": {"artifact_uri": self.runs[what.partition("/")[2]]}}}
        return 404, b"<html>nothing here</html>"

    def _version(self, name: str, version: str) -> tuple[int, Any]:
        if (name, version) not in self.versions:
            return 404, _missing(f"Model Version (name={name}, version={version}) not found")
        found = {
            "name": name,
            "version": version,
            "creation_timestamp": 1795431763245,
            "last_updated_timestamp": 1795431763245,
            "current_stage": "None",
            "source": self.versions[name, version],
            "status": self.status,
            "aliases": [alias for (known, alias), one in self.aliases.items() if (known, one) == (name, version)],
        }
        return 200, {"model_version": found}

    def _listing(self, path: str) -> dict[str, Any]:
        inside = {name.removeprefix(f"{path}/") for name in self.files if name.startswith(f"{path}/")}
        found: dict[str, Any] = {}
        for name in sorted(inside):
            first, below, _ = name.partition("/")
            size = {} if below else {"file_size": len(self.files[f"{path}/{name}"])}
            found[first] = {"path": first, "is_dir": bool(below)} | size
        return {"files": [*found.values()]} if found else {}

    def may(self, authorization: str) -> bool:
        if self.password:
            return authorization == "Basic " + base64.b64encode(f"me:{self.password}".encode()).decode()
        return not self.token or authorization == f"Bearer {self.token}"


def _missing(message: str) -> dict[str, str]:
    return {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": message}


@contextmanager
def registry_server() -> Iterator[Registry]:
    registry = Registry()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            registry.asked.append(self.path)
            status = registry.failures.pop(0) if registry.failures else None
            if status == 0:
                self.close_connection = True
                return
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            if not registry.may(self.headers.get("Authorization", "")):
                status, answer = 401, b"You are not authenticated."
            elif status is None:
                status, answer = registry.answer(parts.path, query)
            else:
                answer = b"busy"
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            is_cut = registry.cuts > 0 and status == 200
            registry.cuts -= is_cut
            self.wfile.write(body[:-1] if is_cut else body)

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        registry.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield registry
        server.shutdown()
