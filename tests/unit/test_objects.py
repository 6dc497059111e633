"""How a store is opened and what its answers mean: no store is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from sereno.adapters import objects
from sereno.exceptions import SettingsError

PROFILES = """
[default]
aws_access_key_id = key-of-default
aws_secret_access_key = secret
[bank]
aws_access_key_id = key-of-bank
aws_secret_access_key = secret
aws_session_token = token
region = eu-west-3
"""


@pytest.fixture(autouse=True)
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    (tmp_path / "credentials").write_text(PROFILES)


def test_a_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    assert objects.settings_of("s3://b")["aws_access_key_id"] == "key-of-default"
    monkeypatch.setenv("AWS_PROFILE", "bank")
    found = objects.settings_of("s3://b")
    assert (found["aws_access_key_id"], found["aws_session_token"]) == ("key-of-bank", "token")
    assert found["aws_region"] == "eu-west-3"
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(SettingsError, match="AWS_PROFILE is 'other'; .* have default, bank"):
        objects.settings_of("s3://b")


def test_a_file_of_profiles_that_is_none_is_told_without_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text("aws_secret_access_key = hidden\n")
    with pytest.raises(
        SettingsError, match=r"credentials or .*config cannot be read as AWS's files of profiles"
    ) as caught:
        objects.settings_of("s3://bank")
    assert "hidden" not in str(caught.value)


def test_variables_come_before_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "bank")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-variables")
    assert objects.settings_of("s3://b") == {"aws_region": "eu-west-3"}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Error performing PUT http://169.254.169.254/latest/api/token", "no credentials were found"),
        ("Received redirect without LOCATION, an incorrectly configured region", "the bucket is in another region"),
        ("<Code>RequestTimeTooSkewed</Code>", "this machine's clock is minutes away"),
        ("status code: 403 Forbidden: ", "these credentials may not do that there"),
        ("disk on fire\n\nDebug source:\nGeneric", "disk on fire. Mend that"),
    ],
)
def test_what_is_wrong_is_told(said: str, told: str) -> None:
    assert told in str(objects._translated("read", "s3://b/a", OSError(said)))


def test_tags_have_their_quotes() -> None:
    assert [objects.tag_of({"e_tag": tag}) for tag in ("x", '"x"', 'W/"x"', None)] == ['"x"', '"x"', 'W/"x"', ""]
