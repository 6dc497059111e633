"""Channels to people, by apprise: e-mail, webhooks, Slack and about a hundred others, each named by an address.

An address is a secret, and so is each of its pieces: nothing that is said here has one in it.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import unquote

from sereno.exceptions import MissingExtraError
from sereno.ledger import NoticeKind
from sereno.operate.notices.words import host_of

# What the socket had to say: apprise keeps it beside the address. These words hold nothing of it.
CAUSES = (
    "Connection refused",
    "timed out",
    "Name or service not known",
    "Temporary failure in name resolution",
    "No route to host",
    "Network is unreachable",
    "Connection reset",
    "closed connection without response",
    "certificate verify failed",
    "Connection unexpectedly closed",
    "Authentication",
)
LEAST_SECRET = 3  # characters of a piece of an address that is looked for in messages
LONGEST = 300


class Channel:
    """One address. Made once for several messages, as apprise slows down what comes too fast for a service."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._plugin: Any = None

    def tell(self, subject: str, text: str, kind: NoticeKind | None) -> str:
        """Send a message; what went wrong, in words, or nothing. May take as long as the other side likes."""
        apprise = import_apprise()
        seen: list[tuple[int, str]] = []

        def hear(entry: Any, _: object) -> None:
            seen.append((logging.getLevelName(entry.level), entry.message))

        if self._plugin is None:
            self._plugin = _open(apprise, self._address)
        if self._plugin is None:
            return UNKNOWN
        one = apprise.Apprise(asset=self._plugin.asset)  # which has no threads that an end would wait for
        one.add(self._plugin)
        sort = {None: "info", "recovered": "success", "failed": "failure"}.get(kind, "warning")
        try:
            done = one.notify(
                body=text,
                title=subject,
                notify_type=sort,
                body_format="text",
                log_callback=hear,
                log_level=logging.DEBUG,
            )
        except Exception as error:  # noqa: BLE001 - a hundred plugins: none of them may end the others' messages
            return _without(self._address, f"{type(error).__name__}: {error}")
        return "" if done else _without(self._address, _why(seen))


UNKNOWN = "apprise knows no such address, or it lacks something: see its documentation for how this kind is written"


def is_known(address: str) -> bool:
    """Whether apprise can make something of it; nobody is asked. Raises MissingExtraError."""
    return _open(import_apprise(), address) is not None


def import_apprise() -> Any:
    """Raises MissingExtraError."""
    logger = logging.getLogger("apprise")  # what it says goes to `hear`, and with its secrets nowhere else
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    for noisy in ("urllib3", "requests"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():  # of what its plugins import
            warnings.simplefilter("ignore")
            import apprise
    except ImportError:
        raise MissingExtraError(
            "The setting 'notify' needs a package that is not installed: pip install 'sereno[notify]'."
        ) from None
    return apprise


def _open(apprise: Any, address: str) -> Any:
    asset = apprise.AppriseAsset(
        app_id="Sereno", app_desc="Sereno", app_url="", image_url_mask=None, image_url_logo=None, async_mode=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return apprise.Apprise.instantiate(address, asset=asset)


def _why(seen: Iterable[tuple[int, str]]) -> str:
    """What apprise said: its first warning, and what the socket said."""
    said = list(seen)
    found = [
        next((m for level, m in said if level >= logging.WARNING), "it was not delivered, and apprise does not say why")
    ]
    details = " ".join(message for level, message in said if level == logging.DEBUG and "xception" in message)
    found += [cause for cause in CAUSES if cause in details][:1]
    return ": ".join(one.strip().rstrip(".") for one in found)


def _without(address: str, text: str) -> str:
    """The text in one line, without any piece of the address but its kind and host."""
    for piece in sorted(_pieces(address), key=len, reverse=True):
        text = text.replace(piece, "***")
    return " ".join(text.split())[:LONGEST]


def _pieces(address: str) -> Iterator[str]:
    _, _, rest = address.partition("://")
    host = host_of(address)
    for piece in {rest, *re.split(r"[/:@?&=,;#+\s]+", rest)}:
        for spelled in {piece, unquote(piece)}:
            if len(spelled) >= LEAST_SECRET and spelled not in host:
                yield spelled
