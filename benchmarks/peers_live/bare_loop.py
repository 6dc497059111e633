"""Limit: an asyncio protocol on uvloop, httptools, msgspec, and all rows that wait predicted at once.

It checks that the columns are numbers, and nothing else: no bounds, no limits, no deadlines, no metrics, no log; it answers
every path, and pipelined requests as they come.
"""

import asyncio
import sys

import httptools
import msgspec
import numpy as np
import uvloop

from benchmarks.workload import FEATURES, load_model

model, port = sys.argv[1:3]
predict = load_model(model)
decode = msgspec.json.Decoder(msgspec.defstruct("Row", [(feature, float) for feature in FEATURES], gc=False)).decode
values_of = msgspec.structs.astuple
encode = msgspec.json.Encoder().encode

callers: list[asyncio.Transport] = []
waiting: list[tuple[float, ...]] = []


class Connection(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.data_received = self.parser.feed_data
        self.body = b""

    def data_received(self, data):
        self.parser.feed_data(data)

    def on_body(self, part):
        self.body = self.body + part if self.body else part

    def on_message_complete(self):
        row = values_of(decode(self.body))
        self.body = b""
        if not waiting:
            loop.call_soon(answer_all)
        callers.append(self.transport)
        waiting.append(row)


def answer_all():
    probabilities = predict(np.array(waiting)).tolist()
    for transport, probability in zip(callers, probabilities, strict=True):
        body = encode({"probability": probability})
        transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
    callers.clear()
    waiting.clear()


async def main():
    global loop
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", int(port), backlog=1024)
    await server.serve_forever()


uvloop.run(main())
