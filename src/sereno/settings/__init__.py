"""What can be set, and how it is read. `sereno.config` puts it together.

kinds.py      what a setting may be, and how text becomes it
groups.py     the settings of models, of the API, of `sereno up`, of clusters: kind, default and meaning of each
table.py      all of them by name, and the checks of what is given for one
settings.py   the outcome: everything that was set
entries.py    what one place says of one setting
files.py      sereno.toml
variables.py  `SERENO_*`
secrets.py    secrets, by their variable or file
redacting.py  what is secret by its name, and texts without it
"""

from sereno.settings.groups import (
    DAILY,
    ColumnSettings,
    GateSettings,
    ModelSettings,
    RaySettings,
    ServeSettings,
    SparkSettings,
    UpSettings,
)
from sereno.settings.kinds import IS_SQL, NOTICE_KINDS, listed, nearest, parse_list
from sereno.settings.redacting import is_secret_name, redact
from sereno.settings.settings import Settings, Value
from sereno.settings.table import FILE_NAME, SETTINGS, Setting

__all__ = [
    "DAILY",
    "FILE_NAME",
    "IS_SQL",
    "NOTICE_KINDS",
    "SETTINGS",
    "ColumnSettings",
    "GateSettings",
    "ModelSettings",
    "RaySettings",
    "ServeSettings",
    "Setting",
    "Settings",
    "SparkSettings",
    "UpSettings",
    "Value",
    "is_secret_name",
    "listed",
    "nearest",
    "parse_list",
    "redact",
]
