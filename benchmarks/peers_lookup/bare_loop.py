"""Limit: an asyncio protocol on uvloop with httptools, one LMDB get, and what it finds is the body: bare_loop FILE PORT

The key is not understood but looked for as it stands in the URL; no version, no age, no ETag, no limits, no deadlines, no
metrics, no other route; pipelined requests are answered as they come.
"""

import asyncio
import sys

import httptools
import lmdb
import uvloop

file, port = sys.argv[1:3]
BEFORE = len("/predictions/")
FOUND = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
UNKNOWN = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"

reading = lmdb.open(file, subdir=False, readonly=True, lock=False, readahead=False).begin()
for _ in reading.cursor().iternext(values=False):  # so that no request waits for a page to be mapped
    pass
get = reading.get


class Connection(asyncio.Protocol):
    def __init__(self):
        self.data_received = httptools.HttpRequestParser(self).feed_data  # before uvloop looks for it

    def connection_made(self, transport):
        self.write = transport.write

    def on_url(self, url):
        self.url = url

    def on_message_complete(self):
        found = get(self.url[BEFORE:])
        self.write(UNKNOWN if found is None else FOUND % (len(found), found))


async def main():
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", int(port), backlog=1024)
    await server.serve_forever()


uvloop.run(main())
