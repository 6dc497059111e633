"""Which texts name something by a URL. Light to import: every command asks it of its settings."""

from __future__ import annotations

import re

SCHEMES = ("az", "gs", "s3")  # of places for files
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_ALMOST = re.compile(r"(s3[an]?|gs|gcs|az|azure)(:/*|/{2,})([^:/].*)?", re.IGNORECASE)
_MEANT = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "azure": "az"}


def is_url(text: str) -> bool:
    """Whether a text names something by a URL, of whatever scheme, and not by a path. One of an object store may be misspelt:
    nobody means a path by `s3:/bank`."""
    return _URL.match(text) is not None or _ALMOST.fullmatch(text) is not None


def mistake_of(url: str) -> str:
    """What is wrong with a URL that is to be a place for files; "": its scheme is one."""
    scheme, separator, _ = url.partition("://")
    if separator and scheme in SCHEMES:
        return ""
    if found := _ALMOST.fullmatch(url):
        meant = _MEANT.get(found[1].lower(), found[1].lower())
        return f"{url!r} is none of an object store: did you mean {meant}://{found[3] or '…'}?"
    return f"{scheme}://… is no place for files."
