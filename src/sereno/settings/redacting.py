"""What is secret by its name, and texts without it: one list for messages, `sereno config` and commands that are told."""

from __future__ import annotations

import re

# What is secret by its name: of values, of options in the query of an address, of parts of a connection string; also
# `sslpassword`, `X-Amz-Signature`, `AccountKey`. Who put a secret there was not to, but it is not to be printed, too.
_WORDS = (
    r"pass(?:word|wd|phrase)?|pwd|secret|token|cred(?:ential)?s?|auth(?!or)|signature"
    r"|(?:api|access|account|private|shared|signing|encryption)[_-]?key(?!_?id)"
)
_NAME = re.compile(rf"{_WORDS}|(?:^|\.)key$", re.IGNORECASE)
_PART = re.compile(
    rf"((?<=[?&])sig|\b[\w.-]*(?:{_WORDS}))(\s*=\s*|%3D)[^&\s;'\"]*", re.IGNORECASE
)  # sig: of an Azure address


def is_secret_name(name: str) -> bool:
    """Whether what is called so may be a secret, as far as a name tells."""
    return _NAME.search(name) is not None


def redact(text: str) -> str:
    """The text without the passwords of addresses and connection strings in it."""
    text = re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text)
    text = re.sub(r"(?i)(https?://)[^:/?#@\s]+@", r"\1***@", text)  # a token in place of a user's name
    return _PART.sub(r"\1\2***", text)
