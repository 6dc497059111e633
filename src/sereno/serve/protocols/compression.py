"""Compressed bodies, both ways: gzip and deflate, with a cap on what may come out of them."""

from __future__ import annotations

import gzip
import zlib

from sereno.serve.wire import RequestError

WORTHWHILE_BYTES = 1400  # what fits into one packet gets no faster by being smaller
GZIP, ZLIB, RAW = zlib.MAX_WBITS | 16, zlib.MAX_WBITS, -zlib.MAX_WBITS


def decompress(encoding: bytes, body: bytes, most: int) -> bytes:
    """The body of a request whose Content-Encoding is `encoding`, at most `most` bytes. Raises RequestError."""
    name = encoding.strip().lower()
    if name in (b"", b"identity"):
        return body
    if name in (b"gzip", b"x-gzip"):
        bits = GZIP
    elif name == b"deflate":
        # RFC 9110 means zlib's format; some clients send the bare stream that the name suggests
        bits = ZLIB if len(body) > 1 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0 else RAW
    else:
        raise RequestError(415, "This Content-Encoding is not supported. Valid are gzip and deflate.")
    stream = zlib.decompressobj(bits)
    try:
        # one byte more than allowed, and no more, is ever made: a bomb costs what an honest body of the cap does
        out = stream.decompress(body, most + 1)
    except zlib.error:
        raise RequestError(400, f"The body is not {name.decode()}.") from None
    if len(out) > most:
        raise RequestError(413, f"The body has more than {most} bytes when decompressed.")
    if not stream.eof or stream.unused_data:
        raise RequestError(400, f"The body is not one whole {name.decode()} stream.")
    return out


def compress(accepts: bytes, body: bytes) -> tuple[bytes, tuple[tuple[bytes, bytes], ...]]:
    """A body in the form that Accept-Encoding asks for, and the headers that say so; small ones stay as they are."""
    if len(body) < WORTHWHILE_BYTES:
        return body, ()
    accepted = _accepted(accepts)
    if b"gzip" in accepted:
        # the time would make two equal answers differ
        return gzip.compress(body, 1, mtime=0), ((b"content-encoding", b"gzip"), (b"vary", b"accept-encoding"))
    if b"deflate" in accepted:
        return zlib.compress(body, 1), ((b"content-encoding", b"deflate"), (b"vary", b"accept-encoding"))
    return body, ()


def _accepted(header: bytes) -> set[bytes]:
    """The codings that Accept-Encoding names, without those of weight 0."""
    found = set()
    for part in header.lower().split(b","):
        name, _, weight = part.partition(b";")
        if weight.replace(b" ", b"").rstrip(b"0") not in (b"q=", b"q=0."):
            found.add(name.strip())
    return found
