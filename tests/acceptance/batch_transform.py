"""SageMaker's batch transform, played: a file is cut into lines, sent in parts, and put together from what comes back.

As the service does it: `/ping` first, then `/execution-parameters`, which yield to what the job was told; as many lines
in a request as fit into the payload, or one; several requests at a time, whose replies are written in order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import httpx

RETRIES = 3


@dataclass(frozen=True, kw_only=True)
class Job:
    """What `CreateTransformJob` is told."""

    url: str
    content_type: str
    accept: str | None = None
    strategy: Literal["MULTI_RECORD", "SINGLE_RECORD"] | None = None
    payload_bytes: int | None = None
    concurrent: int | None = None
    assemble_with: Literal["Line"] | None = None

    def run(self, file: bytes) -> bytes:
        """The file's results, as they would lie in the bucket. Raises httpx.HTTPStatusError where a request fails for good."""
        with httpx.Client(base_url=self.url, timeout=60) as client:
            ping = client.get("/ping")
            assert (ping.status_code, ping.content) == (200, b"")
            advice = client.get("/execution-parameters").raise_for_status().json()
            most = self.payload_bytes or advice["MaxPayloadInMB"] << 20
            parts = list(split(file, most, self.strategy or advice["BatchStrategy"]))
            with ThreadPoolExecutor(self.concurrent or advice["MaxConcurrentTransforms"]) as pool:
                replies = list(pool.map(lambda part: self._invoke(client, part), parts))
        return b"".join(
            [reply + (b"\n" if self.assemble_with and not reply.endswith(b"\n") else b"") for reply in replies]
        )

    def _invoke(self, client: httpx.Client, part: bytes) -> bytes:
        # the service sends headers of its own beside those of the job, which are to be ignored
        headers = {"Content-Type": self.content_type, "X-Amzn-SageMaker-Custom-Attributes": "trace=1"}
        if self.accept is not None:
            headers["Accept"] = self.accept
        for _ in range(RETRIES):
            reply = client.post("/invocations", content=part, headers=headers)
            if reply.status_code < 500:
                break
            time.sleep(0.1)  # the back-off of a caller
        return reply.raise_for_status().content


def split(file: bytes, most: int, strategy: str) -> Iterator[bytes]:
    """The file in parts of whole lines."""
    part = b""
    for line in file.splitlines(keepends=True):
        if part and (strategy == "SINGLE_RECORD" or len(part) + len(line) > most):
            yield part
            part = b""
        part += line
    if part:
        yield part
