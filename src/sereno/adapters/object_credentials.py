"""What the store of a bucket is opened with, by the platform's usual credentials: see docs/cloud.md.

Variables (AWS_…, GOOGLE_…, AZURE_…), the profile of AWS_PROFILE, or the identity that the platform gives a machine or pod.
What is not read here, the store's own package finds.
"""

from __future__ import annotations

import configparser
import os
import re
from pathlib import Path

from sereno.exceptions import SettingsError
from sereno.settings.redacting import redact

ENDPOINTS = {  # the variables that the store's package heeds, or Sereno
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL", "GOOGLE_ENDPOINT_URL"),
    "az": ("AZURE_ENDPOINT", "AZURE_STORAGE_ENDPOINT"),
}
_SERVER = re.compile(r"https?://[^\s/]+(/\S*)?", re.IGNORECASE)


def settings_of(root: str) -> dict[str, str]:
    """What the store of "s3://bucket" is opened with, beside its URL: names as both obstore and delta-rs know them.

    Raises SettingsError where AWS_PROFILE names a profile that is not there, or another variable what it cannot.
    """
    _check_variables(root)
    if not root.startswith("s3://"):
        return {"allow_http": "true"} if _is_emulated(root) else {}
    found: dict[str, str] = {}
    if os.environ.get("AWS_PROFILE") or not os.environ.get("AWS_ACCESS_KEY_ID"):
        found |= _profile()
    if os.environ.get("AWS_ACCESS_KEY_ID"):  # AWS's tools have variables come first; half of each would be nobody's
        found = {name: value for name, value in found.items() if name in ("aws_region", "aws_endpoint")}
    endpoint = (
        os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or found.get("aws_endpoint", "")
    )
    if endpoint:
        _check_server(endpoint, "the profile's endpoint_url")
        found["aws_endpoint"] = endpoint
    if endpoint.startswith("http://"):
        found["allow_http"] = "true"
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or found.get("aws_region")
    found["aws_region"] = region or "us-east-1"
    return found


def _is_emulated(root: str) -> bool:
    return any(os.environ.get(name, "").startswith("http://") for name in ENDPOINTS[root.partition("://")[0]])


def _check_variables(root: str) -> None:
    """Raise SettingsError for what the store's package would end the process of, or tell without its name."""
    scheme = root.partition("://")[0]
    for name in ENDPOINTS[scheme]:
        if server := os.environ.get(name):
            _check_server(server, name)
    name = "GOOGLE_APPLICATION_CREDENTIALS"
    file = os.environ.get(name)
    if scheme == "gs" and file and not os.access(file, os.R_OK):
        raise SettingsError(f"{name} is {file!r}, a file that is not there, or may not be read. Valid: a file of keys.")


def _check_server(server: str, name: str) -> None:
    if _SERVER.fullmatch(server) is None:
        raise SettingsError(
            f"{name} is {redact(server)!r}. Valid: the address of a server, https://HOST or http://HOST:PORT."
        )


def _profile() -> dict[str, str]:
    """Keys and region of the profile in AWS's own files, as its tools read them:
    https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html. One that logs in by other means is left to obstore."""
    name = os.environ.get("AWS_PROFILE", "default")
    home = Path.home() / ".aws"
    files = [
        Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials"),
        Path(os.environ.get("AWS_CONFIG_FILE") or home / "config"),
    ]
    parser = configparser.RawConfigParser()
    try:
        parser.read(files, encoding="utf-8")
    except configparser.Error as error:
        shown = " or ".join(map(str, files))  # what is wrong there may be a secret, which the error quotes
        raise SettingsError(f"{shown} cannot be read as AWS's files of profiles ({type(error).__name__}).") from None
    sections = [s for s in (name, f"profile {name}") if parser.has_section(s)]
    if not sections and "AWS_PROFILE" in os.environ:
        shown = ", ".join(s.removeprefix("profile ") for s in parser.sections()) or "none"
        raise SettingsError(f"AWS_PROFILE is {name!r}; {' and '.join(map(str, files))} have {shown}.")
    values = {key: value for section in sections for key, value in parser.items(section)}
    names = {
        "aws_access_key_id": "aws_access_key_id",
        "aws_secret_access_key": "aws_secret_access_key",
        "aws_session_token": "aws_session_token",
        "region": "aws_region",
        "endpoint_url": "aws_endpoint",
    }
    return {ours: values[theirs] for theirs, ours in names.items() if values.get(theirs)}
