"""Limit: as bare_loop, but it understands no HTTP: what comes is one GET, and its key ends at the second space.

No server can be like this. It says what parsing costs. bare_line FILE PORT
"""

import asyncio
import sys

import lmdb
import uvloop

file, port = sys.argv[1:3]
BEFORE = len("GET /predictions/")
FOUND = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
UNKNOWN = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"

reading = lmdb.open(file, subdir=False, readonly=True, lock=False, readahead=False).begin()
for _ in reading.cursor().iternext(values=False):  # so that no request waits for a page to be mapped
    pass
get = reading.get


class Connection(asyncio.Protocol):
    def connection_made(self, transport):
        self.write = transport.write

    def data_received(self, data):
        found = get(data[BEFORE : data.index(b" ", BEFORE)])
        self.write(UNKNOWN if found is None else FOUND % (len(found), found))


async def main():
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", int(port), backlog=1024)
    await server.serve_forever()


uvloop.run(main())
