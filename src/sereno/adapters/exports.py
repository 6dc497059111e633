"""From a value of the setting `exports` to what does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sereno.adapters.export_folder import FolderExport
from sereno.adapters.export_objects import ObjectExport
from sereno.adapters.objects import require_objects
from sereno.adapters.postgresql.address import require
from sereno.exceptions import SettingsError
from sereno.places import ObjectPath

if TYPE_CHECKING:
    from pathlib import Path

    from sereno.interfaces import Export
    from sereno.places import Place


def make_export(setting: str, *, home: Path, model: str, storage: Place | None = None) -> Export:
    """The export that one value of `exports` names. Nothing is opened or written yet.

    `storage`: below which it lies, if that is not the home.

    Raises SettingsError for any other value, and MissingExtraError where a package is missing.
    """
    match setting:
        case "parquet" | "csv" | "jsonl":
            root = (storage or home.absolute()) / "exports" / model / setting
            if isinstance(root, ObjectPath):
                require_objects(f"The storage {storage}")
                return ObjectExport(root, setting, home.absolute() / ".sereno" / "scratch")
            return FolderExport(root, setting)
    if setting.startswith("postgresql://"):
        require("psycopg", "An export to PostgreSQL")
        from sereno.adapters.postgresql.export import PostgresqlExport

        return PostgresqlExport(setting, model)
    # Only what comes before :// is shown: the rest may hold a password.
    shown = setting if "://" not in setting else f"{setting.partition('://')[0]}://…"
    raise SettingsError(
        f"There is no export {shown!r}. Valid are 'parquet', 'csv', 'jsonl' and 'postgresql://USER@HOST/DATABASE'."
    )
