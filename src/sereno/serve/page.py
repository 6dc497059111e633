"""`/openapi.json`, and `/docs`: Swagger UI, with all that it needs from this server alone.

Swagger UI comes from the package swagger-ui-bundle-v2 (Apache-2.0). The page may load and reach nothing but this server,
which it says of itself in its Content-Security-Policy. What makes them is imported at the first request, so that no server
starts later for it.
"""

from __future__ import annotations

from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from sereno.serve.wire import JSON, Reply, Request, RequestError, Route

if TYPE_CHECKING:
    from sereno.serve.live import Live
    from sereno.serve.service import Service

HTML = b"text/html; charset=utf-8"
TYPES = {
    "docs.css": b"text/css; charset=utf-8",
    "docs.js": b"text/javascript; charset=utf-8",
    "swagger-ui.css": b"text/css; charset=utf-8",
    "swagger-ui-bundle.js": b"text/javascript; charset=utf-8",
}
# Swagger UI styles its elements one by one; the icons in its style sheet are data: addresses.
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFE = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
ONCE = (b"cache-control", b"no-cache")
KEPT = (b"cache-control", b"private, max-age=3600")


def routes(service: Service) -> list[Route]:
    made: list[bytes] = []

    def document(service: Service, request: Request, parameters: dict[str, str]) -> Reply:
        if not made:
            from sereno.serve import openapi

            made.append(openapi.encode(service))
        return Reply(200, made[0], JSON, (*SAFE, ONCE))

    return [
        Route("GET", "/openapi.json", answer=document),
        Route("GET", "/docs", answer=_page),
        Route("GET", "/docs/{name}", answer=_file),
    ]


def _page(service: Service, request: Request, parameters: dict[str, str]) -> Reply:
    return Reply(200, _html(service).encode(), HTML, (*SAFE, ONCE, (b"content-security-policy", POLICY)))


def _file(service: Service, request: Request, parameters: dict[str, str]) -> Reply:
    name = parameters["name"]
    if name not in TYPES:
        raise RequestError(404, "There is nothing under this path.")
    folder = _swagger_ui() if name.startswith("swagger") else Path(__file__).parent / "static"
    return Reply(200, (folder / name).read_bytes(), TYPES[name], (*SAFE, KEPT))


@cache
def _swagger_ui() -> Path:
    """The folder of its files, which has its version in its name."""
    from importlib.resources import files

    vendor = files("swagger_ui_bundle") / "vendor"
    return next(Path(str(folder)) for folder in vendor.iterdir() if folder.name.startswith("swagger-ui-"))


def _html(service: Service) -> str:
    from sereno.serve.snippets import address

    models = "\n".join(_model(service, live) for live in service.lives.values())
    title = escape(", ".join(service.lives))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · Sereno</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="stylesheet" href="docs/docs.css">
<script src="docs/swagger-ui-bundle.js" defer></script>
<script src="docs/docs.js" defer></script>
</head>
<body data-address="{escape(address(service.limits))}">
<main>
{models}
</main>
<div id="swagger-ui"></div>
<noscript>The description of the API is in <a href="openapi.json">openapi.json</a>.</noscript>
</body>
</html>
"""


def _model(service: Service, live: Live) -> str:
    from sereno.serve.snippets import curl, python

    return f"""<section>
<h1>{escape(live.name)} <small>model version {escape(live.model_version)}</small></h1>
<pre><code>{escape(curl(service, live))}</code></pre>
<pre><code>{escape(python(service, live))}</code></pre>
</section>"""
