"""Callers that look keys up all the time and notice everything: failed answers, mixed ones, versions that go back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Self

import websockets

from tests.acceptance.load import LENGTH

KEYS = 500  # 0, 1, … are published: y = id / 8 × weight; the next one is not
MANY = (3, 8, 499, 500, 16, 8, 77)


class LookupLoad:
    """`with LookupLoad(port, weights) as load: …`: callers of the model `total`, each one request at a time.

    There are callers of four kinds. Between two requests they pause, so that others get to work on a small machine.
    `weights` tells which weight each version was published with; it may grow. `versions` counts the
    predictions of each, of which a POST brings several;
    `failures` tells what no caller should see. `seen` are the versions that each connection was answered from, in order.
    """

    def __init__(self, port: int, weights: Mapping[int, float], *, callers: int = 4, pause: float = 0.02) -> None:
        self.weights = weights
        self.versions: Counter[int] = Counter()
        self.unchanged = 0  # answers of 304
        self.failures: list[str] = []
        self.seen: list[list[int]] = []
        self._port = port
        self._callers, self._pause = callers, pause
        self._stop = threading.Event()
        self._news = threading.Condition()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for(self, version: int) -> None:
        """Until every connection is answered from this version."""
        with self._news:
            reached = self._news.wait_for(
                lambda: bool(self.failures) or self._is_everywhere(version), 120
            )  # fmt: skip
        assert not self.failures, self.failures[:5]
        assert reached, f"version {version} did not reach all of {self.seen}"

    def _is_everywhere(self, version: int) -> bool:
        return bool(self.seen) and all(seen and seen[-1] == version for seen in self.seen)

    def assert_followed(self, history: Sequence[int]) -> None:
        """No answer failed or was mixed, and no connection went back but where the served version did."""
        assert not self.failures, self.failures[:5]
        for seen in self.seen:
            rest = iter(history)
            assert all(version in rest for version in seen), f"{seen} is not in the order of {list(history)}"

    async def _run(self) -> None:
        kinds = (self._get, self._get_unless_known, self._post, self._stream)
        callers = [kinds[number % len(kinds)] for number in range(self._callers)]
        self.seen = [[] for _ in callers]
        await asyncio.gather(
            *(self._guarded(kind, seen) for kind, seen in zip(callers, self.seen, strict=True)),
            self._guarded(self._get_anew, []),  # of any worker: its versions have no order
        )

    async def _guarded(self, kind: Any, seen: list[int]) -> None:
        try:
            await kind(seen)
        except (OSError, EOFError, asyncio.IncompleteReadError, websockets.ConnectionClosed, AssertionError) as error:
            with self._news:
                self.failures.append(f"{kind.__name__}: {error!r}")
                self._news.notify_all()

    async def _get(self, seen: list[int]) -> None:
        async with _Connection(self._port) as connection:
            async for key in self._keys():
                status, _, body = await connection.ask(b"GET /predictions/%d" % key)
                assert status == 200, (status, body)
                self._check(json.loads(body), key, seen)

    async def _get_anew(self, seen: list[int]) -> None:
        async for key in self._keys():
            async with _Connection(self._port) as connection:
                status, _, body = await connection.ask(b"GET /predictions/%d" % key)
                assert status == 200, (status, body)
                self._check(json.loads(body), key, [])

    async def _get_unless_known(self, seen: list[int]) -> None:
        """As caches ask: 304 for as long as it is the same version."""
        etag = b""
        async with _Connection(self._port) as connection:
            async for _ in self._keys():
                headers = b"If-None-Match: %b\r\n" % etag if etag else b""
                status, head, body = await connection.ask(b"GET /predictions/8", headers)
                before, etag = etag, head.lower().partition(b"etag: ")[2].partition(b"\r\n")[0].replace(b"w/", b"W/")
                assert (status, body) == (304, b"") if before == etag else status == 200, (status, before, head, body)
                if status == 304:
                    self.unchanged += 1
                else:
                    answer = self._check(json.loads(body), 8, seen)
                    assert etag == b'W/"%d-false"' % answer["version"]

    async def _post(self, seen: list[int]) -> None:
        body = json.dumps({"keys": MANY}).encode()
        async with _Connection(self._port) as connection:
            async for _ in self._keys():
                status, _, content = await connection.ask(b"POST /predictions", body=body)
                assert status == 200, (status, content)
                answers = json.loads(content)
                assert [answer is None for answer in answers] == [key >= KEYS for key in MANY]
                known = [(key, answer) for key, answer in zip(MANY, answers, strict=True) if answer is not None]
                assert len({answer["version"] for _, answer in known}) == 1, content
                for key, answer in known:
                    self._check(answer, key, seen)

    async def _stream(self, seen: list[int]) -> None:
        address = f"ws://127.0.0.1:{self._port}/predictions"
        async with websockets.connect(address, proxy=None) as socket:
            async for key in self._keys():
                await socket.send(json.dumps(key))
                self._check(json.loads(await socket.recv()), key, seen)

    async def _keys(self) -> AsyncIterator[int]:
        """One after the other, until it is over."""
        for key in itertools.cycle(range(0, KEYS, 7)):
            if self._stop.is_set():
                return
            yield key
            await asyncio.sleep(self._pause)

    def _check(self, answer: Any, key: int, seen: list[int]) -> Any:
        version = answer.get("version")
        assert answer.get("prediction") == {"y": key / 8 * self.weights[version]}, f"key {key}: {answer}"
        with self._news:
            self.versions[version] += 1
            if seen[-1:] != [version]:
                seen.append(version)
                self._news.notify_all()
        return answer


class _Connection:
    """One to the server, that stays."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def ask(self, what: bytes, headers: bytes = b"", body: bytes = b"") -> tuple[int, bytes, bytes]:
        """Status, head and body."""
        length = b"Content-Length: %d\r\n" % len(body) if body else b""
        self._writer.write(b"%b HTTP/1.1\r\nHost: localhost\r\n%b%b\r\n%b" % (what, headers, length, body))
        head = await self._reader.readuntil(b"\r\n\r\n")
        found = LENGTH.search(head)
        return int(head[9:12]), head, await self._reader.readexactly(int(found[1]) if found else 0)
