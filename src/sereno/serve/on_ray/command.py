"""`sereno serve --on ray`: from what was typed to servers on nodes of a cluster, and somebody who looks after them."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sereno import __version__
from sereno.exceptions import SettingsError
from sereno.serve.command import note
from sereno.serve.on_ray.fleet import Fleet
from sereno.serve.on_ray.replica import OWN, Spec, Status
from sereno.serve.options import Options
from sereno.serve.processes.ending import AFTER_DRAIN_SECONDS
from sereno.serve.processes.sockets import refuse_openness
from sereno.settings import Settings, is_secret_name, redact

HEAD_SECONDS = 3.0  # between two looks at Ray's head, and that it may take


def serve_on_ray(
    options: Options, *, replicas: int, watch: bool, verbose: bool, as_json: bool, tell: Callable[[str], None]
) -> int:
    """Serve on so many nodes until a signal ends it; the exit code. `tell` prints for whoever started it.

    Raises SerenoError: what cannot be set so, no cluster, somebody who does the same for this home, and what keeps a
    server from starting.
    """
    from sereno.adapters.ray_servers import RayServers

    options.model_files()
    settings = options.settings()
    host = _host(settings)
    servers = RayServers(settings.ray, settings.home)
    if servers.address is None:
        host = host or "127.0.0.1"  # Ray has the address of this machine for its own, which others reach
    is_over = threading.Event()
    try:
        for address in servers.addresses():
            refuse_openness(replace(settings, serve=replace(settings.serve, host=host or address)))
        servers.lock(f"pid {os.getpid()} on host {socket.gethostname()}")

        def announce(said: Sequence[Status]) -> None:
            for line in [_data(said, servers.address)] if as_json else _lines(said, replicas):
                tell(line)
            if nice := max((one.nice for one in said), default=0):
                note(
                    f"the servers give way to other processes of their nodes (nice {nice}), as all that Ray starts. Set "
                    "RAY_worker_niceness=0 where Ray is started."
                )

        spec = Spec(
            arguments=_arguments(options, settings, watch=watch, verbose=verbose),
            folder=str(Path.cwd()),
            host=host,
            **_variables(os.environ),
            version=__version__,
        )
        seconds_to_end = settings.serve.drain_seconds + AFTER_DRAIN_SECONDS
        fleet = Fleet(servers, spec, replicas, seconds_to_end=seconds_to_end, announce=announce, note=note)
        if servers.address is not None:
            threading.Thread(target=watch_head, args=[servers.address, is_over, note], daemon=True).start()
        return fleet.run()
    finally:
        is_over.set()
        servers.close()


def watch_head(address: str, is_over: threading.Event, note: Callable[[str], None]) -> None:
    """Say when Ray's head is gone: a minute later Ray ends this process, in words of its own."""
    host, _, port = address.rpartition(":")
    was_there = True
    while port.isdecimal() and not is_over.wait(HEAD_SECONDS):
        try:
            socket.create_connection((host.strip("[]"), int(port)), HEAD_SECONDS).close()
            is_there = True
        except OSError:
            is_there = False
        if was_there and not is_there:
            note(
                f"Ray's head {address} cannot be reached. The servers go on, but nothing is started again. If it is not back "
                "within a minute, Ray ends this command, and then its nodes with their servers."
            )
        elif is_there and not was_there:
            note(f"Ray's head {address} can be reached again.")
        was_there = is_there


def _host(settings: Settings) -> str | None:
    """The address that all nodes are to listen on, if not each on its own. Raises SettingsError."""
    if settings.serve.unix is not None:
        raise SettingsError(
            f"'serve.unix' is {str(settings.serve.unix)!r}, and nobody reaches a Unix socket of another host. Leave it out with "
            "--on ray: each server listens on its node's address."
        )
    if "serve.host" not in settings.origins:
        return None
    host = settings.serve.host
    try:
        if ipaddress.ip_address(host).is_unspecified:
            return host
    except ValueError:
        pass
    raise SettingsError(
        f"'serve.host' is {host!r}, from {settings.origins['serve.host']}, but with --on ray each server has its node's own "
        "address. Leave it out, or set 0.0.0.0, so that each listens on all of its node's."
    )


def _arguments(options: Options, settings: Settings, *, watch: bool, verbose: bool) -> list[str]:
    """What was typed, for `sereno serve` on a node; the address is added there."""
    home = ["--home", str(settings.home)] if options.home is not None else []
    env = ["--env", options.env] if options.env is not None else []
    settings_typed = [f"--set={key}={value}" for key, value in options.overrides.items() if key != "serve.host"]
    flags = [*(["--watch"] if watch else []), *(["-v"] if verbose else [])]
    return [*home, *env, *settings_typed, *flags, "--", *(str(file) for file in options.files)]


def _variables(environ: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The settings among them. Secrets are not sent, nor what may hold one: each node has its own."""
    own = [
        one for one in environ if one in OWN or (one.startswith("SERENO_VALUES__") and _is_secret(one, environ[one]))
    ]
    left_out = ("SERENO_SECRET_", "SERENO_SERVE__HOST", *OWN, *own)
    no_server_s = tuple(f"{name}{end}" for name in ("NOTIFY", "__DATABASE", "__EXPORTS") for end in ("", "_FILE"))
    sent = {
        name: value
        for name, value in environ.items()
        if name.startswith("SERENO_") and not name.startswith(left_out) and not name.endswith(no_server_s)
    }
    return {"variables": sent, "own": {name: hashlib.sha256(environ[name].encode()).hexdigest()[:8] for name in own}}


def _is_secret(name: str, text: str) -> bool:
    return is_secret_name(name) or redact(text) != text


def _data(said: Sequence[Status], address: str | None) -> str:
    servers: list[dict[str, Any]] = [
        {"url": one.url, "host": one.host, "pid": one.pid, "models": (one.served or {}).get("models", [])}
        for one in said
        if one.url
    ]
    return json.dumps({"pid": os.getpid(), "ray": address, "servers": servers})


def _lines(said: Sequence[Status], replicas: int) -> Iterable[str]:
    there = [one for one in said if one.url]
    names = ", ".join(model["name"] for model in (there[0].served or {}).get("models", [])) if there else "nothing yet"
    yield f"Serving {names} on {len(there)} of {replicas} nodes. Ctrl-C ends it."
    yield from (f"  {one.url}  {one.host}" for one in there)
