"""What the command line says of a server, for every process of it. Light to import: the supervisor has nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sereno.config import load_settings
from sereno.exceptions import SettingsError
from sereno.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Options:
    """See the module."""

    files: Sequence[Path]  # model files; none: those of the project
    home: Path | None = None
    env: str | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)

    @property
    def start(self) -> Path:
        """Where the server's own settings are looked for."""
        return self.files[0] if self.files else Path.cwd()

    def settings(self, start: Path | None = None) -> Settings:
        """Those of a model file, or of the whole server. Raises SettingsError."""
        return load_settings(start or self.start, home=self.home, env=self.env, overrides=self.overrides)

    def model_files(self) -> list[Path]:
        """The files to serve, as absolute paths. Raises SettingsError where there is none."""
        if self.files:
            return [file.absolute() for file in self.files]
        settings = self.settings()
        found = [model.file for model in settings.models.values() if model.file is not None]
        if not found:
            raise SettingsError(
                f"There is nothing to serve: no FILE was given, and no model of sereno.toml in {settings.home} has a file. "
                'Say `sereno serve FILE`, or add [models.NAME] with file = "NAME.py".'
            )
        return found
