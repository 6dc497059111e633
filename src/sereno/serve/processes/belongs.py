"""Which files a worker has read, and how they looked: what --watch watches."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from sereno.artifacts import is_elsewhere
from sereno.config import find_home
from sereno.exceptions import SerenoError
from sereno.loader import siblings
from sereno.serve.options import Options
from sereno.serve.processes.control import Belongs
from sereno.serve.processes.watching import changed_since, looks
from sereno.settings import FILE_NAME, ServeSettings

if TYPE_CHECKING:
    from sereno.serve.service import Service


class Belonging:
    """Absolute paths, as they were written: a link that is set to another target changes what is read."""

    def __init__(self, options: Options) -> None:
        """What is known before anything is loaded."""
        files = [Path(os.path.abspath(file)) for file in options.model_files()]
        starts = {find_home(start) for start in (*files, options.start)}
        self._paths = {str(folder / FILE_NAME) for folder in starts} | {str(file) for file in files}
        for file in files:
            with contextlib.suppress(SerenoError, OSError):  # the load tells what is wrong with it
                self._paths |= {str(path) for path in siblings(file)}
        self._serve(options.settings().serve)

    def add(self, service: Service) -> None:
        """What the models themselves name."""
        for live in service.lives.values():
            assert live.model.file is not None
            folder = live.model.file.parent
            here = [text.partition("#")[0] for text in live.model.artifacts.values() if not is_elsewhere(text)]
            self._paths |= {str(folder / text) for text in here}

    def told(self) -> Belongs:
        return Belongs(sorted(self._paths))

    def seen(self, started_ns: int) -> str:
        """How they look; nothing that ever comes again where one was written since the worker started to read them."""
        return "" if changed_since(self._paths, started_ns) else looks(self._paths)

    def _serve(self, serve: ServeSettings) -> None:
        self._paths |= {
            str(file) for file in (serve.tls_certificate, serve.tls_key, serve.keys_file) if file is not None
        }
