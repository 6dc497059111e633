"""The script block of a model file against the packages that are installed here."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from sereno.loader import script_block


def differences(file: Path | None) -> list[str]:
    """What the script block asks for that is not so here: a sentence each. Empty without a block."""
    if file is None:
        return []
    block = script_block(file)
    found = list(_python(str(block.get("requires-python", ""))))
    for text in block.get("dependencies", []):
        try:
            requirement = Requirement(str(text))
        except InvalidRequirement as error:
            found.append(f"The script block's dependency {text!r} cannot be read: {str(error).splitlines()[0]}.")
        else:
            found += _package(requirement)
    return found


def _python(asked: str) -> Iterator[str]:
    here = platform.python_version()
    try:
        if asked and not SpecifierSet(asked).contains(here, prereleases=True):
            yield f"The script block asks for Python {asked}; this is {here}."
    except InvalidSpecifier:
        yield f'The script block\'s requires-python {asked!r} cannot be read; write ">=3.11", say.'


def _package(requirement: Requirement, of: str = "") -> Iterator[str]:
    """A requirement and its extras."""
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": of}):
        return
    try:
        distribution = metadata.distribution(requirement.name)
    except metadata.PackageNotFoundError:
        needed = f"{of!r}, an extra of the script block, needs" if of else "The script block asks for"
        yield f"{needed} {_words(requirement)}, which is not installed: `pip install '{_words(requirement)}'`."
        return
    # an address instead of a version cannot be compared
    if not requirement.specifier.contains(distribution.version, prereleases=True):
        yield (
            f"The script block asks for {_words(requirement)}, but version {distribution.version} is installed. "
            "Predictions may differ where the block is followed: install that version, or change the block."
        )
    for extra in sorted(requirement.extras):
        for text in distribution.requires or []:
            further = Requirement(text)
            # only what the extra brings; the rest is the package's own business
            if (
                further.marker
                and further.marker.evaluate({"extra": extra})
                and not further.marker.evaluate({"extra": ""})
            ):
                yield from _package(further, extra)


def _words(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"
