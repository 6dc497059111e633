"""The way to a Ray cluster: the one that the settings name, or one that is started on this machine and ends with this process."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sereno.adapters.executors.leftovers import own_folder
from sereno.exceptions import MissingExtraError, SettingsError, WorkerError
from sereno.settings import RaySettings

OBJECT_STORE_BYTES = 100 << 20  # of a Ray that is started here: nothing large goes through it
PREFIX = "sereno-ray-"  # of its folder
MOST_LETTERS = 32  # of the folder for temporary files: below it are sockets, whose names may have 107
REACH_SECONDS = 10.0  # until a host that does not answer is told: Ray itself would try for minutes
HEAD_SECONDS = 15  # until it is told that what listens at the address is no head
# In a process of its own, as Ray asks for ever, deaf to signals, and says so in lines of its own. It prints what is wrong.
ASK = """
import signal, sys
signal.alarm(int(sys.argv[2]))
from ray import exceptions
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import GcsClient
try:
    ensure_token_if_auth_enabled(create_token_if_missing=False)
    address = canonicalize_bootstrap_address(sys.argv[1])
    if address is not None:
        GcsClient(address=address)
except exceptions.AuthenticationError:
    sys.exit(3)
except Exception as error:
    print(error)
    sys.exit(1)
"""
HINT = "Is its head running (`ray start --head --port=6379`), and is ray.address where it listens?"
OTHER_TOKEN = 3  # its exit code
VARIABLES = {  # of this process and those that it starts, where nobody set them
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    # Who waits for an answer of a node whose power was cut waits for 7 minutes, unless it asks whether that is still there.
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "10000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # as Ray will do; else it says so at length
}
# So many seconds a process of Ray's lives on without its head; 60, if not set.
RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"


def require_ray(what: str) -> None:
    """Raises MissingExtraError where Ray is not installed. `what` needs it."""
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError(f"{what} needs a package that is not installed: pip install 'sereno[ray]'.")


def address_of(settings: RaySettings) -> str | None:
    """Of the cluster's head; None: Ray is started here. Raises SettingsError."""
    address = settings.address or os.environ.get("RAY_ADDRESS") or None
    if address and "://" in address:
        raise SettingsError(
            f"{'ray.address' if settings.address else 'RAY_ADDRESS'} is {address!r}; valid is the head's host and port, "
            '"host:6379". The process that asks works on a '
            "node of the cluster, which may be one without CPUs for others: `ray start --address=host:6379 --num-cpus=0`."
        )
    return address


def runtime_env_of(settings: RaySettings) -> dict[str, Any] | None:
    """What the file says that `ray.runtime_env` names. Raises SettingsError."""
    file = settings.runtime_env
    if file is None:
        return None
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"ray.runtime_env is {file}, which cannot be read as JSON: {error}.") from None
    if not isinstance(found, dict):
        raise SettingsError(f'ray.runtime_env is {file}, which holds no object. Write {{"env_vars": {{…}}}}, say.')
    return found


class RayConnection:
    """This process's connection. There is one at a time; where somebody made one before (in a notebook), that is used."""

    def __init__(self, address: str | None, **options: Any) -> None:
        """`options`: more of `ray.init`; `num_cpus` is heeded by a Ray that is started here.

        Raises WorkerError where the cluster cannot be reached, SettingsError where it asks for another token.
        """
        for name, value in VARIABLES.items():
            os.environ.setdefault(name, value)
        import ray

        self.address = address
        self._folder: Path | None = None
        self._is_ours = not ray.is_initialized()
        if not self._is_ours:
            return
        if address is None:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            self._folder = temporary_folder()
            options |= {
                "address": "local",
                "object_store_memory": OBJECT_STORE_BYTES,
                "include_dashboard": False,
                "_temp_dir": str(self._folder),  # Ray's own would keep the logs of every run for ever
                "_node_ip_address": "127.0.0.1",
            }
        else:
            _reach(address)
            options.pop("num_cpus", None)
            options["address"] = address
        self._connect(options)

    def _connect(self, options: dict[str, Any]) -> None:
        import ray

        try:
            with _signals_kept():
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except ray.exceptions.AuthenticationError as error:
            raise _no_token(self.address) from error
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            hint = f" Is this host one of the cluster's nodes (`ray start --address={self.address} --num-cpus=0` makes it one)?"
            raise WorkerError(
                f"{named(self.address)} cannot be used: {in_short(error)}{hint if self.address else ''}"
            ) from error
        # What Ray itself says of each node that is lost comes on standard output and in colours. We say it in a line.
        with contextlib.suppress(Exception):
            ray._private.worker._worker_logs_enabled = False

    def close(self, *, is_lost: bool = False) -> None:
        """All that this process has started there ends. `is_lost`: the head is; without it, Ray does not come to an end."""
        import ray

        try:
            if self._is_ours and not is_lost:
                ray.shutdown()
            if is_lost:
                atexit.register(_hush)
                if (
                    self._folder is not None
                    and (node := getattr(ray._private.worker, "_global_node", None)) is not None
                ):
                    node.kill_all_processes(check_alive=False, allow_graceful=False)
        finally:  # also where SIGTERM or Ctrl-C comes just now
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)


def _hush() -> None:
    """When all is said: Ray, as it looks for its head until the process ends, would say what it thinks of it."""
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def named(address: str | None) -> str:
    """The cluster, in words."""
    return f"The Ray cluster {address}" if address else "Ray on this machine"


def in_short(error: BaseException | str) -> str:
    """What Ray says, in a line and with a full stop."""
    text = " ".join(str(error).split())
    return (text[:500] + " …" if len(text) > 500 else text).rstrip(".") + "."


def temporary_folder() -> Path:
    """For the files of a Ray that is started here. What processes have left that were killed is removed after a day."""
    place = Path(tempfile.gettempdir())
    if len(str(place)) > MOST_LETTERS:
        place = Path("/tmp")
    return own_folder(PREFIX, place)


def _reach(address: str) -> None:
    """Raise where no head of a cluster answers there, or one that asks for another token."""
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdecimal():  # else "auto": Ray knows where
            socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise WorkerError(
            f"{named(address)} cannot be reached: {getattr(error, 'strerror', None) or error}. {HINT}"
        ) from error
    asking = [sys.executable, "-P", "-c", ASK, address, str(HEAD_SECONDS)]
    asked = subprocess.run(asking, check=False, capture_output=True, text=True, errors="replace")
    if asked.returncode == OTHER_TOKEN:
        raise _no_token(address)
    if asked.returncode == -signal.SIGALRM:
        raise WorkerError(
            f"What listens at {address} has not answered for {HEAD_SECONDS} s as the head of a Ray cluster does. {HINT}"
        )
    if asked.returncode:
        said = asked.stdout.strip() or f"the process that asked its head ended with {asked.returncode}"
        raise WorkerError(f"{named(address)} cannot be used: {in_short(said)} {HINT}")


def _no_token(address: str | None) -> SettingsError:
    return SettingsError(
        f"The token for the Ray cluster {address} is missing, or another. Set RAY_AUTH_TOKEN to that of the cluster, or "
        "RAY_AUTH_TOKEN_PATH to the file that has it (or RAY_AUTH_MODE=disabled, if the cluster asks for none)."
    )


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray sets what SIGTERM does, and then does it late; here that is for the command to say."""
    from ray._private import utils

    before = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = before
