"""How a store is opened and what its answers mean: no store is asked."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError, GenericError

from sereno.adapters import objects
from sereno.adapters.exports import make_export
from sereno.cli import main
from sereno.config import Settings
from sereno.exceptions import MissingExtraError, SettingsError, StorageError
from sereno.object_path import ObjectPath
from sereno.operate.health import look
from sereno.presence import together
from sereno.sources import find_files

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
        (
            "HTTP error: error sending request\n\nDebug source:\n kind: Connect,",
            "the store is not there, or out of reach",
        ),
        (
            "Error performing GET http://127.0.0.1:9/bank?list-type=2 in 1ms - HTTP error: …\n\nDebug source:\n kind: Connect,",
            "s3://b/a cannot be read at http://127.0.0.1:9: the store is not there, or out of reach",
        ),
        (
            "status code: 404: <Code>NoSuchBucket</Code>",
            "there is no such bucket. Mend its name, or make it. `sereno config` says",
        ),
        ("Generic S3 error: Missing AccessKeyId", "Set AWS_ACCESS_KEY_ID, too."),
        ("Generic S3 error: Missing SecretAccessKey", "Set AWS_SECRET_ACCESS_KEY, too."),
        ("Generic MicrosoftAzure error: Account must be specified", "Set AZURE_STORAGE_ACCOUNT_NAME."),
        ("Generic MicrosoftAzure error: Invalid Access Key: Invalid padding", "AZURE_STORAGE_ACCOUNT_KEY is to be"),
        ("Unable to decode service account file: unknown variant", "See GOOGLE_APPLICATION_CREDENTIALS."),
        ("disk on fire\n\nDebug source:\nGeneric", "disk on fire. Mend that"),
    ],
)
def test_what_is_wrong_is_told(said: str, told: str) -> None:
    assert told in str(objects._translated("read", "s3://b/a", OSError(said)))


@pytest.mark.parametrize("server", ["127.0.0.1:9", "ftp://x", "http://", "http://a b", "localhost"])
def test_an_address_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: str) -> None:
    """Some of them end the process, where the store's package is asked."""
    for name, root in (
        ("AWS_ENDPOINT_URL", "s3://b"),
        ("AZURE_STORAGE_ENDPOINT", "az://b"),
        ("GOOGLE_BASE_URL", "gs://b"),
    ):
        monkeypatch.setenv(name, server)
        with pytest.raises(
            SettingsError, match=rf"^{name} is '{server}'\. Valid: the address of a server, https://HOST or"
        ):
            ObjectPath.of(f"{root}/a").is_dir()
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text(f"[default]\nendpoint_url = {server}\n")
    with pytest.raises(SettingsError, match="^the profile's endpoint_url is"):
        objects.settings_of("s3://b")


def test_a_file_of_keys_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/no/keys.json")
    with pytest.raises(
        SettingsError, match=r"^GOOGLE_APPLICATION_CREDENTIALS is '/no/keys\.json', a file that is not there"
    ):
        ObjectPath.of("gs://b/a").is_dir()


def test_what_the_package_says_has_these_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "credentials").write_text("")
    (tmp_path / "keys.json").write_text("{}")
    for variables, root, words in (
        ({"AWS_SECRET_ACCESS_KEY": "x"}, "s3", "Set AWS_ACCESS_KEY_ID, too"),
        ({"AWS_ACCESS_KEY_ID": "x"}, "s3", "Set AWS_SECRET_ACCESS_KEY, too"),
        ({}, "az", "Set AZURE_STORAGE_ACCOUNT_NAME"),
        ({"AZURE_STORAGE_ACCOUNT_NAME": "b", "AZURE_STORAGE_ACCOUNT_KEY": "%"}, "az", "base64"),
        ({"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "keys.json")}, "gs", "See GOOGLE_APPLICATION_CREDENTIALS"),
    ):
        objects.forget()
        with mock.patch.dict(os.environ, variables), pytest.raises(StorageError, match=words):
            ObjectPath.of(f"{root}://b/a").is_dir()
    objects.forget()


def test_tags_have_their_quotes() -> None:
    assert [objects.tag_of({"e_tag": tag}) for tag in ("x", '"x"', 'W/"x"', None)] == ['"x"', '"x"', 'W/"x"', ""]


# What fails is tried again


SLOW = GenericError("Generic S3 error: … - Server returned non-2xx status code: 500 Internal Server Error: ")
MINUTE = objects.DEADLINE.total_seconds()
PATH = ObjectPath.of("s3://bank/a")


class Clock:
    """Time that passes where somebody sleeps, or a store is asked."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    found = Clock()
    monkeypatch.setattr(objects, "time", found)
    monkeypatch.setattr(obstore.store, "from_url", lambda url, **options: options["config"] or {})
    objects.forget()
    yield found
    objects.forget()


def failing(clock: Clock, error: Callable[[], BaseException], seconds: float = 0.01) -> Callable[..., Any]:
    """A request that takes so long to fail."""

    def ask(*of: object, **options: object) -> Any:
        clock.now += seconds
        raise error()

    return ask


def test_a_store_that_is_slow_for_a_while_fails_nobody(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    well_at = 0.0

    def get_range(*of: object, **options: object) -> bytes:
        clock.now += 0.01
        if clock.now < well_at:
            raise SLOW
        return b"x"

    monkeypatch.setattr(obstore, "get_range", get_range)
    for _ in range(100):
        began, well_at = clock.now, clock.now + 20
        clock.slept.clear()
        assert PATH.read_range(0, 1) == b"x"
        assert clock.now <= began + 20 + objects.LONGEST_WAIT.total_seconds() + 0.01
        assert max(clock.slept) <= 5
        assert len({*clock.slept}) == len(clock.slept)  # with jitter


def test_whoever_waits_is_told_once_for_what(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(objects.Tries, "_told_at", -math.inf)
    monkeypatch.setattr(obstore, "get_range", failing(clock, lambda: SLOW))
    for deadline in (60, 10):
        with objects.within(timedelta(seconds=deadline)), pytest.raises(StorageError):
            PATH.read_range(0, 1)
        told = caplog.records[-1].getMessage()
        assert told.startswith("s3://bank/a cannot be read: ")
        assert told.endswith(f" It is tried again, for at most {deadline} s.")
        clock.now += 60
    assert len(caplog.records) == 2  # one for each


@pytest.mark.parametrize("seconds", [0.01, 7, 30])
def test_no_try_begins_after_the_deadline(clock: Clock, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """However many requests it is that an operation makes on its way."""
    asked: list[float] = []

    def noted(ask: Callable[..., Any]) -> Callable[..., Any]:
        def request(*of: object, **options: object) -> Any:
            asked.append(clock.now)
            return ask(*of, **options)

        return request

    monkeypatch.setattr(obstore, "put", noted(failing(clock, lambda: AlreadyExistsError("status code: 409"), seconds)))
    for name in ("get", "head"):
        monkeypatch.setattr(obstore, name, noted(failing(clock, lambda: SLOW, seconds)))
    monkeypatch.setattr(obstore, "list", noted(failing(clock, lambda: SLOW, seconds)))
    google = ObjectPath.of("gs://bank/a")  # which is looked at before it is written
    for ask in (
        lambda: PATH.write_bytes(b"x", only_if=""),
        lambda: google.write_bytes(b"x", only_if='"1"'),
        lambda: PATH.look(),
        lambda: [*PATH.below()],
    ):
        asked.clear()
        began = clock.now
        with pytest.raises(StorageError, match=r"(s3|gs)://bank/a cannot be"):
            ask()
        assert asked[-1] <= began + MINUTE + seconds  # what is asked beside a refused write follows it
        assert clock.now >= began + MINUTE - 5 - seconds


def test_a_listing_has_the_deadline_for_each_answer(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of many answers takes longer than a minute: it goes on as long as they come."""
    names = [f"a/{n:02}" for n in range(20)]
    failed: set[str | None] = set()

    def listed(store: object, prefix: str, offset: str | None = None, **options: object) -> Iterator[list[Any]]:
        if offset not in failed:  # each page at the second try
            failed.add(offset)
            clock.now += MINUTE - 6
            raise SLOW
        at = 0 if offset is None else names.index(offset) + 1
        yield [{"path": names[at], "size": 1, "e_tag": "t", "last_modified": None}]
        if at + 1 < len(names):
            yield from listed(store, prefix, names[at])

    monkeypatch.setattr(obstore, "list", listed)
    assert [path.name for path, _ in PATH.below()] == [name[2:] for name in names]


def test_a_machine_without_an_identity_is_told_soon(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Error performing PUT http://169.254.169.254/latest/api/token in 1s - HTTP error: error sending request"
    monkeypatch.setattr(obstore, "get_range", failing(clock, lambda: GenericError(said), 1.0))
    began = clock.now
    with pytest.raises(StorageError, match="no credentials were found, and this machine has no identity"):
        PATH.read_range(0, 1)
    assert clock.now <= began + objects.NOBODYS_DEADLINE.total_seconds() + 1


def test_health_is_told_soon(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obstore, "list", failing(clock, lambda: SLOW))
    began = clock.now
    with pytest.raises(StorageError, match=r"s3://bank/\.sereno/status cannot be listed"):
        look(Settings(home=tmp_path, storage=ObjectPath.of("s3://bank")))
    assert clock.now <= began + 11
    with pytest.raises(StorageError):
        PATH.is_dir()
    assert clock.now > began + 50  # as ever


def test_so_is_who_reads_several_at_once(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obstore, "get_range", failing(clock, lambda: SLOW))
    began = clock.now
    with objects.within(timedelta(seconds=10)), pytest.raises(StorageError):
        together(lambda path: path.read_range(0, 1), [PATH])
    assert clock.now <= began + 11


def test_a_certificate_that_is_not_trusted_is_told_at_once(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "HTTP error: error sending request\n\nDebug source:\n kind: Connect, error: InvalidCertificate(…)"
    monkeypatch.setattr(obstore, "get_range", failing(clock, lambda: GenericError(said)))
    with pytest.raises(StorageError, match="this machine does not trust the store's certificate"):
        PATH.read_range(0, 1)
    assert clock.slept == []


# Keys that are renewed while a process runs


@pytest.mark.parametrize("word", ["ExpiredToken", "InvalidAccessKeyId", "invalid_grant"])
def test_renewed_keys_need_no_restart(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    valid = "key-of-default"
    asked: list[str] = []

    def answered(store: dict[str, str], body: bool) -> None:
        asked.append(store["aws_access_key_id"])
        if store["aws_access_key_id"] != valid:
            raise GenericError(f"Server returned non-2xx status code: 403 Forbidden: {word if body else ''}")

    def head(store: dict[str, str], key: str) -> dict[str, Any]:
        answered(store, body=False)
        return {"size": 1, "e_tag": "t", "last_modified": None}

    def get(store: dict[str, str], key: str, **options: object) -> None:
        answered(store, body=True)

    monkeypatch.setattr(obstore, "head", head)
    monkeypatch.setattr(obstore, "get", get)
    assert PATH.look().size == 1
    valid = "key-renewed"
    (tmp_path / "credentials").write_text(PROFILES.replace("key-of-default", valid))
    asked.clear()
    assert PATH.look().size == 1  # an answer to HEAD has no body, which would say why
    assert asked == ["key-of-default", "key-of-default", valid, valid]
    valid = "not here yet"
    asked.clear()
    with pytest.raises(StorageError, match=r"s3://bank/a cannot be looked at: "):
        PATH.look()
    assert asked == ["key-renewed"] * 3  # once more with keys that were read anew, and they are the same
    assert clock.slept == []


# Without the package


NEEDS = r"needs a package that is not installed: pip install 'sereno\[cloud\]'\."


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    objects.forget()


@pytest.mark.usefixtures("no_package")
@pytest.mark.parametrize(
    "ask",
    [
        lambda: PATH.look(),
        lambda: PATH.is_dir(),
        lambda: PATH.listed(),
        lambda: [*PATH.below()],
        lambda: PATH.read_bytes(),
        lambda: PATH.read_range(0, 1),
        lambda: PATH.write_bytes(b""),
        lambda: PATH.write_bytes(b"", only_if=""),
        lambda: PATH.upload(Path(__file__)),
        lambda: PATH.copy_to(PATH),
        lambda: PATH.unlink(),
        lambda: PATH.unlink(missing_ok=True),
    ],
)
def test_whatever_is_asked_tells_of_the_package(ask: Callable[[], object]) -> None:
    with pytest.raises(MissingExtraError, match=f"^s3://bank/a {NEEDS}"):
        ask()


@pytest.mark.usefixtures("no_package")
def test_so_does_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SERENO_STORAGE", "s3://bank")
    for command in ("versions m", "get m 1", "show 2026-05-01", "rollback m", "health", "log m", "runs", "prune"):
        assert main(command.split()) == 2, command
        assert re.match(rf"sereno: s3://bank/\S+ {NEEDS}\n$", capsys.readouterr().err), command
    with pytest.raises(MissingExtraError, match=f"^The storage s3://bank {NEEDS}"):
        make_export("csv", home=tmp_path, model="m", storage=ObjectPath.of("s3://bank"))
    with pytest.raises(MissingExtraError, match=NEEDS):
        find_files("s3://bank/in")
