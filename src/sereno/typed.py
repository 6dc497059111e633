"""Commands that messages say to type: with the options that were given to whoever says so, as without them another home
or another environment would be meant. Light: nothing heavy is imported."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping

from sereno.settings import FILE_NAME, Settings, is_secret_name, redact

_ELSEWHERE = re.compile(r"(serve|up)\.|workers$")  # what no command that is told needs


def options_of(settings: Settings) -> tuple[str, ...]:
    """The options without which a command would be of another home, environment or value. Nothing of them is secret."""
    options = list(settings.given_options)
    has_file = ((settings.folder or settings.home) / FILE_NAME).is_file()
    if not has_file and "--home" not in options:
        options = ["--home", str(settings.home), *options]
    return tuple(options)


def typed(options: tuple[str, ...], *words: str) -> str:
    """A command, to be typed in the folder of sereno.toml."""
    return shlex.join(["sereno", *words, *options])


def options_given(home: str | None, env: str | None, overrides: Mapping[str, str]) -> tuple[str, ...]:
    """As a command line has them; what may be a secret, or an address, is left out."""
    return (
        *(("--home", home) if home else ()),
        *(("--env", env) if env else ()),
        *_settings(overrides),
    )


def _settings(overrides: Mapping[str, str]) -> Iterator[str]:
    for key, text in overrides.items():
        is_secret = is_secret_name(key) or "://" in text or text.startswith("secret:") or redact(text) != text
        if not is_secret and not _ELSEWHERE.match(key):
            yield from ("--set", f"{key}={text}")
