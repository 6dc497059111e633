"""Sends requests that are broken, oversized, lying or never finished, from a seed, and right ones between them.

python -m benchmarks.hostile PORT REQUESTS SEED
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.prepare import customers
from benchmarks.workload import FEATURES, load_model

AT_ONCE = 128
PATIENCE = 25.0  # the server's own deadlines are shorter
AND_MORE = 0.2  # seconds after the first bytes of an answer
EVERY_RIGHT = 10  # each so-manieth request is a right one

ROW = dict(zip(FEATURES, [20_000.0, 1.0, 2.0, 1.0, 30.0, *[0.0] * 18], strict=True))
PATHS = ["/predict", "/models/live/predict", "/v2/models/live/infer", "/v1/models/live:predict", "/invocations"]
ODD_PATHS = [
    "/",
    "//",
    "/predict/",
    "/models/../../etc/passwd",
    "/models/%2e%2e/predict",
    "/models/\x00/predict",
    "/metrics",
]
ODD_PATHS += [
    "/v2/models/" + "a" * 4_000 + "/infer",
    "/models/live/predictions/1",
    "*",
    "http://elsewhere/predict",
    "/docs",
]
ODD_PATHS += [
    "/openapi.json",
    "/livez?" + "a=b&" * 500,
    "/models/caf\u00e9/predict",
    "/v2/models/live/versions/9/infer",
]


def post(path: str, body: bytes, *headers: str, length: object = None) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    if length != "":
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode("utf-8", "surrogatepass") + b"\r\n\r\n" + body


def scalar(draw: random.Random) -> Any:
    texts = ["", "3.5", "\x00", "\ud800", "x" * draw.choice([10, 70_000]), "NaN", "<script>", "' or 1=1 --", "\u202e"]
    numbers = [0, -1, 1e308, -1e308, 10**30, 10**400, 2**63, 5e-324, 0.1]
    return draw.choice([*texts, *numbers, None, True, [], {}, [[]], {"a": 1}])


def changed_row(draw: random.Random) -> dict[str, Any]:
    row: dict[str, Any] = dict(ROW)
    for _ in range(draw.randint(1, 4)):
        what = draw.choice(["replace", "drop", "add"])
        name = draw.choice(FEATURES)
        if what == "replace":
            row[name] = scalar(draw)
        elif what == "drop":
            row.pop(name, None)
        else:
            row[str(scalar(draw))] = scalar(draw)
    return row


def wrong_rows(draw: random.Random) -> bytes:
    rows = [changed_row(draw) for _ in range(draw.choice([1, 1, 1, 2, 50]))]
    split = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
    columns = {name: [row.get(name) for row in rows] for name in rows[0]}
    as_tensors = [
        {"name": name, "shape": [len(rows)], "datatype": "FP64", "data": values} for name, values in columns.items()
    ]
    forms: list[tuple[str, Any]] = [("/predict", rows[0]), ("/models/live/predict", rows)]
    forms += [("/v1/models/live:predict", {"instances": rows}), ("/v2/models/live/infer", {"inputs": as_tensors})]
    forms += [("/invocations", {"inputs": columns}), ("/invocations", {"dataframe_split": split})]
    forms += [("/invocations", {"dataframe_records": rows}), ("/invocations", {"instances": rows})]
    path, value = draw.choice(forms)
    if draw.random() < 0.1:
        path = draw.choice(PATHS)
    return post(path, json.dumps(value).encode("utf-8", "surrogatepass"))


def broken_json(draw: random.Random) -> bytes:
    body = bytearray(json.dumps(ROW).encode())
    for _ in range(draw.randint(1, 8)):
        place = draw.randrange(len(body))
        if draw.random() < 0.5:
            body[place] = draw.randrange(256)
        else:
            del body[place:]
            body += bytes(draw.randrange(256) for _ in range(draw.randint(1, 20)))
    return post(draw.choice(PATHS), bytes(body))


def literals(draw: random.Random) -> bytes:
    value = draw.choice(
        ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1" * 50_000, "0x10", "01", "1.", ".5", '"\\ud800"']
    )
    text = json.dumps(ROW).replace("20000.0", value)
    return post(draw.choice(PATHS), text.encode())


def deep(draw: random.Random) -> bytes:
    levels = draw.choice([40, 1_000, 100_000])
    opened, closed = draw.choice(
        [(b"[", b"]"), (b'{"a":', b"}"), (b'{"inputs":[', b"]}"), (b'{"instances":[{"age":', b"}]}")]
    )
    end = b"1" + closed * levels if draw.random() < 0.5 else b""
    return post(draw.choice(PATHS), opened * levels + end)


def many(draw: random.Random) -> bytes:
    bodies: list[Any] = [
        [ROW] * 5_000,
        {f"n{i}": i for i in range(20_000)},
        {"instances": [[1]] * 10_000},
        [None] * 100_000,
    ]
    return post(draw.choice(PATHS), json.dumps(draw.choice(bodies)).encode())


def tensors(draw: random.Random) -> bytes:
    kinds = ["FP64", "FP32", "INT8", "UINT64", "BYTES", "BOOL", "FP16", "X", None, 7]
    shapes = [[1], [2], [-1], [0], [10**9], [2**63], [1, 1], [], None, "1", [1.5]]
    inputs = []
    for name in draw.sample(FEATURES, draw.randint(0, len(FEATURES))):
        one: dict[str, Any] = {"name": name, "shape": draw.choice(shapes), "datatype": draw.choice(kinds)}
        if draw.random() < 0.6:
            one["data"] = draw.choice([[1.0], [], [1, 2], "a", [[1]], [None], [scalar(draw)]])
        else:
            one["parameters"] = {"binary_data_size": draw.choice([8, 0, -8, 2**40, "8", None])}
        inputs.append(one)
    head = json.dumps({"inputs": inputs, "id": scalar(draw)}).encode("utf-8", "surrogatepass")
    said = draw.choice([len(head), len(head) + 5, 0, -1, 10**12, "a", ""])
    more = [f"Inference-Header-Content-Length: {said}"] if draw.random() < 0.7 else []
    return post("/v2/models/live/infer", head + draw.randbytes(draw.choice([0, 8, 100])), *more)


def packed(draw: random.Random) -> bytes:
    bomb = gzip.compress(b"[" * draw.choice([1_000, 20_000_000]), 9) if draw.random() < 0.05 else gzip.compress(b"{}")
    body = draw.choice([bomb, bomb[:-5], b"not packed", b"", draw.randbytes(100), bomb + bomb])
    return post(
        draw.choice(PATHS), body, f"Content-Encoding: {draw.choice(['gzip', 'deflate', 'br', 'gzip, gzip', ''])}"
    )


def tables(draw: random.Random) -> bytes:
    header = ",".join(FEATURES)
    texts = [
        header,
        header + "\n",
        "1,2,3",
        header + "\n" + "x," * 23,
        '"' * 1_000,
        "\n" * 50_000,
        ",".join(["1"] * 5_000),
    ]
    return post(
        "/invocations",
        draw.choice(texts).encode(),
        f"Content-Type: {draw.choice(['text/csv', 'application/jsonlines'])}",
    )


def lying_lengths(draw: random.Random) -> bytes:
    body = json.dumps(ROW).encode()
    length = draw.choice(
        [10**12, -1, "a", "+5", "1,1", "0x10", 10**40, " ", len(body) + 10, len(body) - 10, "5\r\nContent-Length: 6"]
    )
    return post(draw.choice(PATHS), body, length=length)


def chunks(draw: random.Random) -> bytes:
    parts = [
        b"5\r\nhello\r\n0\r\n\r\n",
        b"ffffffffffffffff\r\na",
        b"-1\r\n",
        b"5;" + b"x" * 50_000,
        b"zz\r\n\r\n",
        b"0\r\n",
    ]
    parts += [b"1\r\n{\r\n" * 5_000 + b"0\r\n\r\n", b"0\r\nX: y\r\n" * 100 + b"\r\n", b"5\nhello\n0\n\n"]
    more = [
        "Transfer-Encoding: "
        + draw.choice(["chunked", "gzip, chunked", "chunked, chunked", "xchunked", "identity", "\x0bchunked"])
    ]
    return post(draw.choice(PATHS), draw.choice(parts), *more, length=draw.choice(["", None, 4]))


def heads(draw: random.Random) -> bytes:
    more = [
        "X-Long: " + "a" * 200_000,
        "\r\n".join(f"X-{i}: {i}" for i in range(2_000)),
        "Host: elsewhere",
        "No colon here",
        " folded: yes",
        "X-Null: \x00",
        ": nameless",
        "X-Request-ID: " + "\u00e9" * 300,
        "Authorization: Bearer " + "a" * 5_000,
        "Expect: 100-continue",
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: nonsense",
        "Content-Type: application/json; charset=utf-7",
    ]
    return post(draw.choice(PATHS), json.dumps(ROW).encode(), draw.choice(more))


def no_http(draw: random.Random) -> bytes:
    return draw.choice(
        [
            draw.randbytes(draw.choice([1, 100, 5_000])),
            bytes.fromhex("16030100c8010000c40303") + draw.randbytes(200),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + draw.randbytes(50),
            b"GET /livez\r\n\r\n",
            b"GET /livez HTTP/9.9\r\n\r\n",
            b"\r\n" * 1_000 + b"G",
            b"A" * 100_000,
            b"GET /livez HTTP/1.1\nHost: x\n\n",
            b"GET  /livez  HTTP/1.1\r\nHost: localhost\r\n\r\n",
        ]
    )


def odd_paths(draw: random.Random) -> bytes:
    method = draw.choice(
        ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "CONNECT", "get", "BREW", "G" * 1_000]
    )
    path = draw.choice([*ODD_PATHS, *PATHS])
    return (
        f"{method} {path} HTTP/{draw.choice(['1.1', '1.0'])}\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )


def pipelined(draw: random.Random) -> bytes:
    makers = [wrong_rows, broken_json, literals, lying_lengths, odd_paths]
    whole = b"".join(
        draw.choice(makers)(draw).replace(b"Connection: close\r\n", b"") for _ in range(draw.randint(2, 8))
    )
    return whole + right_request(ROW)


def cut(draw: random.Random) -> bytes:
    whole = draw.choice([wrong_rows, tensors, heads, chunks])(draw)
    return whole[: draw.randrange(1, len(whole))]


def right_request(row: dict[str, float]) -> bytes:
    return post("/predict", json.dumps(row).encode(), "Content-Type: application/json")


MAKERS: list[Callable[[random.Random], bytes]] = [
    *(wrong_rows, broken_json, literals, tensors, lying_lengths, chunks, heads, no_http, odd_paths, pipelined, cut),
    *(wrong_rows, broken_json, tensors, packed, tables, deep),
]
UNFINISHED = [cut, lying_lengths, chunks]
RARE = [many]  # their cost is the sender's too


class Sender:
    def __init__(self, port: int, seed: int) -> None:
        self.port, self.draw = port, random.Random(seed)
        matrix, _ = customers(64, 4, seed)
        self.rows = [dict(zip(FEATURES, row, strict=True)) for row in matrix.tolist()]
        self.right = load_model("heavy")(matrix).tolist()
        self.statuses: dict[str, int] = {}
        self.bugs: list[str] = []  # requests that were answered with 5xx, but 503
        self.wronged: list[str] = []  # answers of right requests that were not right
        self.held: list[str] = []  # requests after which the server neither answered nor closed

    async def send_all(self, count: int) -> None:
        numbers = iter(range(count))

        async def one_caller() -> None:
            for number in numbers:
                await (self.right_one(number) if number % EVERY_RIGHT == 0 else self.hostile_one(number))

        await asyncio.gather(*(one_caller() for _ in range(AT_ONCE)))

    async def right_one(self, number: int) -> None:
        place = number % len(self.rows)
        answer = await self.exchange(right_request(self.rows[place]), "wait")
        head, _, body = answer.partition(b"\r\n\r\n")
        self.count(b"right: " + head[9:12])
        if head[9:12] != b"200" or abs(json.loads(body)["probability"] - self.right[place]) > 1e-9:
            self.wronged.append(repr(answer[:300]))

    async def hostile_one(self, number: int) -> None:
        maker = self.draw.choice(RARE if self.draw.random() < 0.002 else MAKERS)
        request = maker(self.draw)
        ending = self.draw.choice(["wait", "half-close", "reset"])
        if (
            maker in UNFINISHED and self.draw.random() < 0.95
        ):  # else nearly all the time would go by waiting for deadlines
            ending = "reset"
        answer = await self.exchange(request, ending)
        status = answer[9:12] if answer.startswith(b"HTTP/1.") else b"none"
        self.count(status)
        if status.startswith(b"5") and status != b"503":
            self.bugs.append(f"{maker.__name__}: {request[:500]!r}: {answer[:300]!r}")

    async def exchange(self, request: bytes, ending: str) -> bytes:
        """What the server says; nothing if we reset the connection."""
        source = f"127.0.0.{self.draw.randint(1, 250)}"  # so that ports do not run out
        try:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", self.port, local_addr=(source, 0), limit=1 << 24
            )
        except OSError:
            return b""
        answer = b""
        try:
            writer.write(request)
            if ending == "reset":
                await asyncio.sleep(self.draw.choice([0, 0, 0.002]))
                if found := writer.get_extra_info("socket"):  # unless the server was quicker
                    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
                return answer
            if ending == "half-close" and not writer.transport.is_closing():
                writer.write_eof()
            async with asyncio.timeout(PATIENCE):
                answer = await reader.read(1 << 20)
            async with asyncio.timeout(AND_MORE):  # most close then; others keep the connection for a next request
                while more := await reader.read(1 << 20):
                    answer += more
        except TimeoutError:
            if not answer:
                self.held.append(f"{ending}: {request[:500]!r}")
        except OSError:  # the server closed before it had read all
            pass
        finally:
            writer.close()
        return answer

    def count(self, status: bytes) -> None:
        name = status.decode("latin-1")
        self.statuses[name] = self.statuses.get(name, 0) + 1


def main() -> None:
    import uvloop

    port, count, seed = map(int, sys.argv[1:4])
    sender = Sender(port, seed)
    uvloop.run(sender.send_all(count))
    found = {"requests": count, "statuses": sender.statuses, "bugs": len(sender.bugs), "wronged": len(sender.wronged)}
    examples = {"bugs": sender.bugs[:5], "wronged": sender.wronged[:5], "held": sender.held[:5]}
    print(json.dumps(found | {"held": len(sender.held), "examples": examples}))


if __name__ == "__main__":
    main()
