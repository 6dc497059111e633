"""Whether the server of a container lives: `python -P -m sereno.serve.alive`, for the image's HEALTHCHECK.

It asks `/livez` where the container's first process listens, which its command line and settings tell. A container that
serves nothing, as one of `sereno run`, is well as long as it is there.
"""

from __future__ import annotations

import argparse
import http.client
import os
import socket
import ssl
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path

from sereno.exceptions import SerenoError
from sereno.settings import ServeSettings

SECONDS = 4.0  # less than the HEALTHCHECK allows
FIRST = Path("/proc/1/cmdline")


def started(command: Sequence[str]) -> list[str]:
    """What Sereno was told, in a command line that perhaps begins with a program that passes signals on."""
    for place, word in enumerate(command):
        if Path(word).name == "sereno":
            return [*command[place + 1 :]]
    return []


def settings_of(arguments: Sequence[str], environ: MutableMapping[str, str]) -> ServeSettings | None:
    """Where it listens; None: it does not. Raises SerenoError."""
    from sereno.cli import parser_of
    from sereno.cli.named import file_of, overrides_of
    from sereno.serve.options import Options
    from sereno.serve.platforms import on_platform

    try:
        options = parser_of().parse_args(arguments)
    except SystemExit:  # it has ended for the same reason, or is about to
        return None
    if not serves(options):
        return None
    files = [file_of(options, named).absolute() for named in getattr(options, "file", [])]
    served = Options(files=files, home=options.home, env=options.env, overrides=overrides_of(options))
    return on_platform(served, environ).settings().serve


def serves(options: argparse.Namespace) -> bool:
    """Whether the command listens in this container."""
    return (options.named == "serve" and options.on is None) or (options.named == "up" and not options.no_api)


def ask(serve: ServeSettings) -> str:
    """What is wrong; nothing where it lives."""
    where = "the socket" if serve.unix is not None else f"port {serve.port}"
    if serve.unix is None and not serve.port:
        return "The port is 0, a free one that nobody else knows: set serve.port."
    connection = connected(serve)
    try:
        connection.request("GET", "/livez")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"Nothing answers on {where}: {str(error) or type(error).__name__}."
    finally:
        connection.close()
    return "" if status == 200 else f"/livez on {where} answers {status}."


def connected(serve: ServeSettings) -> http.client.HTTPConnection:
    """A connection that is opened by the first request."""
    if serve.unix is not None:
        return Unix(str(serve.unix))
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(serve.host, serve.host)
    if serve.tls_certificate is None:
        return http.client.HTTPConnection(host, serve.port, timeout=SECONDS)
    # the certificate has other names than this address; and who could stand between the two
    anyone = ssl._create_unverified_context()
    return http.client.HTTPSConnection(host, serve.port, timeout=SECONDS, context=anyone)


class Unix(http.client.HTTPConnection):
    """Over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=SECONDS)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(SECONDS)
        self.sock.connect(self.path)


def main() -> int:
    command = FIRST.read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
    try:
        serve = settings_of(started(command), os.environ)
        says = ask(serve) if serve is not None else ""
    except SerenoError as error:
        says = str(error)
    if says:
        sys.stderr.write(f"sereno: {says}\n")
    return 1 if says else 0


if __name__ == "__main__":
    sys.exit(main())
