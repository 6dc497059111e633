"""Answers as small as their callers ask for: gzip and deflate. (Requests come unpacked: the application does that.)"""

from __future__ import annotations

import gzip
import zlib

WORTHWHILE_BYTES = 1400  # what fits into one packet gets no faster by being smaller


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
