"""What a platform's environment says about the server that it starts: Amazon SageMaker, Google Vertex AI, Knative (which
is Cloud Run, and KServe as a rule), Azure Container Apps, and any other that says a `PORT`.

They start the image themselves. What they want stands in variables of theirs, and becomes settings here, as the
`SERENO_…` variables that would say the same. Those that are set count more. What these variables cannot say is that
the server may be open: that is for whoever builds or starts the image to say (`docs/deploy_platforms.md`).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sereno.exceptions import SettingsError
from sereno.serve.options import Options
from sereno.serve.processes.sockets import is_open
from sereno.settings import FILE_NAME, ModelSettings

SAGEMAKER_MODEL = Path("/opt/ml/model")  # where SageMaker unpacks a model's artefacts
# Studio, notebooks and training jobs have other variables of SageMaker's: those do not ask for a server
SAGEMAKER_VARIABLES = ("SAGEMAKER_BIND_TO_PORT", "SAGEMAKER_BATCH")
SAGEMAKER_PAYLOAD_MB = 25  # what it sends at most to a real-time endpoint
SAGEMAKER_BATCH_PAYLOAD_MB = 6  # and in a batch transform job, unless told otherwise
SAGEMAKER_LARGEST_MB = 100  # what it can be told; 0 means no limit, which no server can give
SAGEMAKER_BATCH_SECONDS = 600  # how long it waits for the answer to one request of a batch transform job
VERTEX_PAYLOAD_MB = 2  # it sends at most 1.5
KNATIVE_DRAIN_SECONDS = 8  # Cloud Run kills 10 seconds after its SIGTERM
DECLARES_MODEL = re.compile(rb"^\w+\s*=\s*(?:\w+\.)?Model\(", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Platform:
    """Where the server runs, and what follows from it."""

    name: str  # "sagemaker", "vertex", "knative", "azure", or "another"
    said_by: str  # the variable or folder that told
    variables: Mapping[str, str]  # SERENO_…; put those of the environment over them
    folder: Path | None = None  # where its model files are, if no other is named
    connects_early: bool = False  # it restarts a container to which it cannot connect while the model loads

    def unset(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Those of `variables` that nobody has set, nor had read from a file."""
        return {name: text for name, text in self.variables.items() if not {name, f"{name}_FILE"} & environ.keys()}


def platform_of(environ: Mapping[str, str], model_folder: Path | None = None) -> Platform | None:
    """The platform that started this process, if one did. Raises SettingsError for a variable that makes no sense."""
    model_folder = model_folder or SAGEMAKER_MODEL
    if "AIP_HTTP_PORT" in environ:
        return Platform(
            name="vertex",
            said_by="AIP_HTTP_PORT",
            variables=_open_at(_port(environ, "AIP_HTTP_PORT"), VERTEX_PAYLOAD_MB),
            connects_early=True,
        )
    said_by = next((name for name in SAGEMAKER_VARIABLES if environ.get(name)), None)
    if said_by is None and environ.get("K_SERVICE"):
        variables = _open_at(_port(environ, "PORT"))
        variables["SERENO_SERVE__DRAIN_SECONDS"] = str(KNATIVE_DRAIN_SECONDS)
        return Platform(name="knative", said_by="K_SERVICE", variables=variables)
    if said_by is None and environ.get("CONTAINER_APP_PORT"):
        variables = _open_at(_port(environ, "CONTAINER_APP_PORT"))
        return Platform(name="azure", said_by="CONTAINER_APP_PORT", variables=variables)
    if said_by is None and model_folder.is_dir() and "TRAINING_JOB_NAME" not in environ:
        said_by = str(model_folder)
    return _sagemaker(environ, said_by, model_folder) if said_by is not None else None


def _sagemaker(environ: Mapping[str, str], said_by: str, model_folder: Path) -> Platform:
    usual = SAGEMAKER_BATCH_PAYLOAD_MB if is_batch(environ) else SAGEMAKER_PAYLOAD_MB
    payload = _number(environ, "SAGEMAKER_MAX_PAYLOAD_IN_MB", usual) or SAGEMAKER_LARGEST_MB
    variables = _open_at(_port(environ, "SAGEMAKER_BIND_TO_PORT"), payload)
    if is_batch(environ):
        # a request is as many lines as fit into the payload, and none of them is short of a character and its end
        variables["SERENO_SERVE__MAX_ROWS"] = str(payload << 19)
        variables["SERENO_SERVE__REQUEST_TIMEOUT_SECONDS"] = str(SAGEMAKER_BATCH_SECONDS)
    folder = model_folder if model_folder.is_dir() else None
    if folder is not None and not os.access(folder, os.W_OK):
        variables["SERENO_HOME"] = "/tmp/sereno"
    return Platform(name="sagemaker", said_by=said_by, variables=variables, folder=folder)


def platform_for(options: Options, environ: Mapping[str, str]) -> Platform | None:
    """The platform that started `sereno serve`, also one of which nothing but its PORT is known. Raises SettingsError."""
    platform = platform_of(environ)
    # On this machine alone a PORT is not meant for us: developers have one for other programs.
    if platform is None and environ.get("PORT") and is_open(options.settings().serve):
        port = str(_port(environ, "PORT"))
        return Platform(name="another", said_by="PORT", variables={"SERENO_SERVE__PORT": port})
    return platform


def on_platform(options: Options, environ: MutableMapping[str, str]) -> Options:
    """The options of `sereno serve` where it runs; `environ`, which workers inherit, gets what the platform says.

    Without FILE, the model that the platform put there counts more than a project of the image's. Raises SettingsError.
    """
    platform = platform_for(options, environ)
    if platform is None:
        return options
    environ.update(platform.unset(environ))
    folder = platform.folder
    if options.files or folder is None or not (any(folder.glob("*.py")) or (folder / FILE_NAME).is_file()):
        return options
    os.chdir(folder)  # a sereno.toml there is found as in any working folder
    return replace(options, files=model_files(folder))


def connects_early(environ: Mapping[str, str]) -> bool:
    """Whether callers are to connect before the model has loaded, and wait. Raises SettingsError."""
    platform = platform_of(environ)
    return platform is not None and platform.connects_early


def for_platform(settings: ModelSettings, environ: Mapping[str, str]) -> ModelSettings:
    """The settings of a model where it is served.

    A batch transform job has so many requests under way and no more, and gives up where one is turned away too often: there
    the queue takes whatever comes, unless it was set.
    """
    if not is_batch(environ):
        return settings
    wide: dict[str, Any] = {"queue_rows": sys.maxsize, "queue_seconds": float(SAGEMAKER_BATCH_SECONDS)}
    return replace(settings, **{name: value for name, value in wide.items() if name not in settings.given})


def is_batch(environ: Mapping[str, str]) -> bool:
    """Whether this is the container of a batch transform job (which writes `true`; its local mode writes `True`)."""
    return environ.get("SAGEMAKER_BATCH", "").lower() == "true"


def model_files(folder: Path) -> list[Path]:
    """The model file of a folder without `sereno.toml`; none where there is one, which names them. Raises SettingsError."""
    if (folder / FILE_NAME).is_file():
        return []
    files = sorted(folder.glob("*.py"))
    found = files if len(files) == 1 else [f for f in files if DECLARES_MODEL.search(f.read_bytes())]
    if len(found) == 1:
        return found
    what = f"{len(found)} model files ({', '.join(f.name for f in found)})" if found else "no model file"
    raise SettingsError(
        f"{folder} has {what}. Put one there, with its artefacts beside it; or several, and a sereno.toml that names them."
    )


def _open_at(port: int, payload_mb: int | None = None) -> dict[str, str]:
    variables = {
        "SERENO_SERVE__HOST": "0.0.0.0",
        "SERENO_SERVE__PORT": str(port),
        "SERENO_SERVE__ALLOWED_HOSTS": "*",  # under what name the platform calls is its own affair
    }
    if payload_mb is not None:
        variables["SERENO_SERVE__MAX_BODY_BYTES"] = str(payload_mb << 20)
    return variables


def _port(environ: Mapping[str, str], variable: str) -> int:
    return _number(environ, variable, 8080)


def _number(environ: Mapping[str, str], variable: str, default: int) -> int:
    text = environ.get(variable) or str(default)
    if not (text.isascii() and text.isdigit()) or int(text) > 65535:
        raise SettingsError(f"The variable {variable} is {text!r}. It must be a whole number, 0 to 65535.")
    return int(text)
