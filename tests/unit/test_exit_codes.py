"""What the exit code of a run tells whoever starts runs: whether another one may do better."""

from __future__ import annotations

import pytest

from sereno import exceptions
from sereno.cli import code_of
from sereno.exceptions import SerenoError

STAYS = {
    *(
        "ModelFileError",
        "RowTypeError",
        "ArtifactError",
        "OutputError",
        "DataError",
        "InputError",
        "DuplicateKeysError",
    ),
    *("NotFoundError", "OlderDataError"),
}
KINDS = [one for one in vars(exceptions).values() if isinstance(one, type) and issubclass(one, SerenoError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_stays_as_it_is_ends_a_run_with_4(kind: type[SerenoError]) -> None:
    is_usage = kind.__name__ in ("SettingsError", "MissingExtraError")
    assert code_of(kind("no"), "run") == (2 if is_usage else 4 if kind.__name__ in STAYS else 1)
    assert code_of(kind("no"), "check") == (2 if is_usage else 1)
