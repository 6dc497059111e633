# ruff: noqa: RET503 - a handler ends with its answer
"""Stores of the other kinds that tests start: Azure's emulator, from npm; and what stands in for Google's."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import hashlib
import hmac
import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import pytest

from sereno.adapters import objects

AZURITE = Path(__file__).parents[1] / ".azurite/node_modules/azurite/dist/src/blob/main.js"  # by `make azurite`
ACCOUNT = "devstoreaccount1"  # the emulator's own account and key, which are public
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
START_SECONDS = 40


@dataclass(frozen=True, kw_only=True)
class Store:
    """A bucket of a store, and what a program finds it by."""

    root: str  # "az://bank"
    environment: dict[str, str]

    @contextlib.contextmanager
    def reached(self) -> Iterator[None]:
        """This process finds the store meanwhile."""
        with mock.patch.dict(os.environ, self.environment):
            objects.forget()
            try:
                yield
            finally:
                objects.forget()


@contextlib.contextmanager
def azure() -> Iterator[Store]:
    """Azurite, with a container. Skips the test, or fails it with CI=1, where it is not installed."""
    if not AZURITE.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Azurite: run `make azurite`, which needs npm")
    port = _free_port()
    command = [
        *("node", str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(port)),
        *("--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=_die_with_parent)
    try:
        _until_open(port, process)
        _make_container(port, "bank")
        yield Store(
            root="az://bank",
            environment={
                "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
                "AZURE_STORAGE_ACCOUNT_KEY": KEY,
                "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{port}/{ACCOUNT}",
            },
        )
    finally:
        process.kill()
        process.wait(10)


def _make_container(port: int, name: str) -> None:
    """https://learn.microsoft.com/en-us/rest/api/storageservices/authorize-with-shared-key"""
    date, version = formatdate(usegmt=True), "2021-12-02"
    signed = "\n".join(
        [
            *("PUT", *[""] * 11, f"x-ms-date:{date}", f"x-ms-version:{version}"),
            *(f"/{ACCOUNT}/{ACCOUNT}/{name}", "restype:container"),
        ]
    )
    signature = base64.b64encode(hmac.digest(base64.b64decode(KEY), signed.encode(), hashlib.sha256)).decode()
    headers = {"x-ms-date": date, "x-ms-version": version, "Content-Length": "0"}
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{signature}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("PUT", f"/{ACCOUNT}/{name}?restype=container", headers=headers)
    answer = connection.getresponse()
    assert answer.status == 201, answer.read()
    connection.close()


@contextlib.contextmanager
def google() -> Iterator[Store]:
    """What Google documents of its XML API, as far as it is asked here. It proves what is sent, not Google's store:
    https://cloud.google.com/storage/docs/xml-api/overview. (The emulators to be had do not take this API's writes.)"""
    server = _Google(("127.0.0.1", 0), _GoogleRequest)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    account = {"gcs_base_url": url, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    try:
        yield Store(
            root="gs://bank",
            environment={"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(account), "GOOGLE_BASE_URL": url},
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass(frozen=True, kw_only=True)
class _Blob:
    content: bytes
    generation: int
    made_at: float = field(default_factory=time.time)

    @property
    def tag(self) -> str:
        return f'"{hashlib.md5(self.content).hexdigest()}"'


class _Google(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *of: object) -> None:
        super().__init__(*of)  # type: ignore[arg-type]
        self.blobs: dict[str, _Blob] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.generation = 1_700_000_000_000_000
        self.lock = threading.Lock()

    def write(self, key: str, content: bytes) -> _Blob:
        self.generation += 1
        self.blobs[key] = _Blob(content=content, generation=self.generation)
        return self.blobs[key]


class _NoBucketError(Exception):
    """Another bucket was asked for."""


class _GoogleRequest(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body at once
    server: _Google

    def log_message(self, *of: object) -> None: ...

    def _said(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refused(self, status: int, code: str) -> None:
        self._said(status, f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode())

    def _asked(self) -> tuple[str, dict[str, str], bytes]:
        split = urlsplit(self.path)
        bucket, _, key = unquote(split.path).lstrip("/").partition("/")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        query = {name: values[0] for name, values in parse_qs(split.query, keep_blank_values=True).items()}
        if bucket != "bank":
            raise _NoBucketError
        return key, query, body

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except _NoBucketError:
            self._refused(404, "NoSuchBucket")
            self.wfile.flush()
        except ConnectionError:  # the client has gone
            self.close_connection = True

    def do_PUT(self) -> None:
        key, query, body = self._asked()
        with self.server.lock:
            if "uploadId" in query:
                self.server.uploads[query["uploadId"]][int(query["partNumber"])] = body
                return self._said(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')
            there = self.server.blobs.get(key)
            wanted = self.headers.get("x-goog-if-generation-match")
            if wanted is not None and int(wanted) != (there.generation if there else 0):
                return self._refused(412, "PreconditionFailed")
            if source := self.headers.get("x-goog-copy-source"):
                _, _, name = unquote(source).partition("/")
                if name not in self.server.blobs:
                    return self._refused(404, "NoSuchKey")
                body = self.server.blobs[name].content
            blob = self.server.write(key, body)
        answer = b"<CopyObjectResult><ETag>x</ETag></CopyObjectResult>" if source else b""
        self._said(200, answer, ETag=blob.tag, x_goog_generation=str(blob.generation))

    def do_POST(self) -> None:
        key, query, body = self._asked()
        with self.server.lock:
            if "uploads" in query:
                name = secrets.token_hex(8)
                self.server.uploads[name] = {}
                found = f"<InitiateMultipartUploadResult><UploadId>{name}</UploadId></InitiateMultipartUploadResult>"
                return self._said(200, found.encode())
            parts = self.server.uploads.pop(query["uploadId"], None)
            if parts is None:
                return self._refused(404, "NoSuchUpload")
            wanted = [int(part.text or 0) for part in ElementTree.fromstring(body).iter() if "PartNumber" in part.tag]
            blob = self.server.write(key, b"".join(parts[number] for number in wanted))
        xml = f"<CompleteMultipartUploadResult><ETag>{blob.tag}</ETag></CompleteMultipartUploadResult>"
        self._said(200, xml.encode(), x_goog_generation=str(blob.generation))

    def do_GET(self) -> None:
        key, query, _ = self._asked()
        if not key:
            return self._listed(query)
        with self.server.lock:
            blob = self.server.blobs.get(key)
        if blob is None:
            return self._refused(404, "NoSuchKey")
        if self.headers.get("If-Match") not in (None, blob.tag):
            return self._refused(412, "PreconditionFailed")
        said = {
            "ETag": blob.tag,
            "x_goog_generation": str(blob.generation),
            "Last_Modified": formatdate(blob.made_at, usegmt=True),
        }
        if (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))) is None:
            return self._said(200, blob.content, **said)
        first, last = int(asked[1]), min(int(asked[2] or 1 << 62), len(blob.content) - 1)
        if first >= len(blob.content):
            return self._refused(416, "InvalidRange")
        said["Content_Range"] = f"bytes {first}-{last}/{len(blob.content)}"
        self._said(206, blob.content[first : last + 1], **said)

    do_HEAD = do_GET  # noqa: N815

    def _listed(self, query: dict[str, str]) -> None:
        prefix, after = query.get("prefix", ""), query.get("start-after", query.get("continuation-token", ""))
        root = ElementTree.Element("ListBucketResult")
        folders = set()
        with self.server.lock:
            blobs = sorted(self.server.blobs.items())
        for key, blob in blobs:
            if not key.startswith(prefix) or key <= after:
                continue
            if query.get("delimiter") and "/" in key.removeprefix(prefix):
                folders.add(prefix + key.removeprefix(prefix).split("/")[0] + "/")
                continue
            entry = ElementTree.SubElement(root, "Contents")
            made_at = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(blob.made_at))
            said = {"Key": key, "Size": str(len(blob.content)), "ETag": blob.tag, "LastModified": made_at}
            for name, value in said.items():
                ElementTree.SubElement(entry, name).text = value
        for folder in sorted(folders):
            ElementTree.SubElement(ElementTree.SubElement(root, "CommonPrefixes"), "Prefix").text = folder
        self._said(200, ElementTree.tostring(root))

    def do_DELETE(self) -> None:
        key, query, _ = self._asked()
        with self.server.lock:
            there = self.server.uploads.pop(query["uploadId"], None) if query else self.server.blobs.pop(key, None)
        self._said(204) if there is not None else self._refused(404, "NoSuchKey")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _until_open(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("the store did not start")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
