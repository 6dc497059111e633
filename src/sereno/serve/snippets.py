"""How a model is asked: an example row or key, and the `curl` line and Python program that send it."""

from __future__ import annotations

import dataclasses
from pprint import pformat
from typing import TYPE_CHECKING, Any

import msgspec

from sereno.exceptions import ModelFileError
from sereno.lookup.found import key_path
from sereno.madeup import made_up, made_up_row
from sereno.schema import RowType

if TYPE_CHECKING:
    from sereno.serve.live import Live
    from sereno.serve.service import Service
    from sereno.settings import ServeSettings


def address(settings: ServeSettings) -> str:
    """Where callers reach the server, as far as its settings tell; what they sent as Host is nothing to go by."""
    known = [name for name in settings.allowed_hosts if name != "*"]
    host = settings.host if settings.host not in ("0.0.0.0", "::") else (known or ["localhost"])[0]
    if settings.unix is not None:
        host = "localhost"
    scheme = "http" if settings.tls_certificate is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.port or 8000}"


def path_of(service: Service, live: Live) -> str:
    """The shortest path that asks this model."""
    return "/predict" if service.only is live else f"/models/{live.name}/predict"


def example_row(live: Live) -> dict[str, Any] | None:
    """A made-up row as JSON has it, without columns that are fetched; None where some value cannot be made up."""
    return _made_up(live.inputs, without=("fetched",))


def example_answer(live: Live) -> dict[str, Any] | None:
    """A made-up prediction: it shows the shape, and is not the answer to the example row."""
    return _made_up(live.outputs)


def example_key(live: Live) -> list[Any] | None:
    """The values of a made-up key as JSON has them; None where some value cannot be made up."""
    found = _made_up(live.inputs, without=("feature", "fetched"))
    return None if found is None else list(found.values())


def example_keys(live: Live) -> list[list[Any]]:
    """That key, and another one where there is one that can be made up."""
    first = example_key(live)
    if first is None:
        return []
    keys = dataclasses.replace(live.inputs, columns=live.inputs.keys)
    others = [list(row.values()) for row in msgspec.to_builtins(made_up(keys, 4).to_pylist())]
    return [first, *(other for other in others[:0:-1] if other != first)][:2]


def _made_up(row: RowType, without: tuple[str, ...] = ()) -> dict[str, Any] | None:
    row = dataclasses.replace(row, columns=tuple(c for c in row.columns if c.role not in without))
    try:
        plain: dict[str, Any] = msgspec.to_builtins(made_up_row(row))
    except ModelFileError:
        return None
    return plain


def curl(service: Service, live: Live, url: str | None = None) -> str:
    """One line of shell. `url` is where the server is reached, for whoever knows better than its settings."""
    body = msgspec.json.encode(example_row(live) or {}).decode().replace("'", "'\\''")
    key = ' -H "Authorization: Bearer $SERENO_KEY"' if service.guard.wants_keys else ""
    url = address(service.limits) if url is None else url
    return f"curl {url}{path_of(service, live)}{key} -H 'Content-Type: application/json' -d '{body}'"


def curl_lookup(service: Service, live: Live) -> str:
    """One line of shell that looks up a key."""
    path = path_of(service, live).removesuffix("predict") + "predictions/" + key_path(example_key(live) or ["KEY"])
    key = ' -H "Authorization: Bearer $SERENO_KEY"' if service.guard.wants_keys else ""
    return f"curl {address(service.limits)}{path}{key}"


def python(service: Service, live: Live) -> str:
    """A program that prints a prediction."""
    row = pformat(example_row(live) or {}, width=100, sort_dicts=False)
    return f"{_client(service, live)}row = {row}\nprint(client.predict(row))\n"


def python_lookup(service: Service, live: Live) -> str:
    """A program that prints what is published under a key."""
    key = example_key(live) or ["KEY"]
    return f"{_client(service, live)}print(client.lookup({key[0] if len(key) == 1 else tuple(key)!r}))\n"


def _client(service: Service, live: Live) -> str:
    """How a program begins, up to its client."""
    arguments = [repr(address(service.limits)).replace("'", '"')]
    if service.only is not live:
        arguments.append(f'model="{live.name}"')
    if service.guard.wants_keys:
        arguments.append('key=os.environ["SERENO_KEY"]')
    imports = "import os\n\nimport sereno" if service.guard.wants_keys else "import sereno"
    return f"{imports}\n\nclient = sereno.Client({', '.join(arguments)})\n"
