"""The stores behind object paths: the one file that knows obstore.

Each is asked with the platform's usual credentials: variables (AWS_…, GOOGLE_…, AZURE_…), the profile of AWS_PROFILE, or
the identity that the platform gives a machine or pod. See docs/cloud.md.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from sereno.exceptions import MissingExtraError, SettingsError, StorageError

CHUNK = 8 << 20  # bytes of a part of a large object, up and down
AT_ONCE = 4  # parts
DEADLINE = timedelta(seconds=60)  # for a request with all its retries; a setting of tests
RETRIES = 8
FIRST_WAIT, LONGEST_WAIT = timedelta(milliseconds=100), timedelta(seconds=5)  # between two tries, each with jitter
TIMEOUT, CONNECT = "30s", "5s"  # of one try
TRIES = 5  # of what obstore does not try again itself: an answer that breaks off, a conditional write without one
LISTED_AT_ONCE = 1000

Answer = TypeVar("Answer")

DENIED = ("these credentials may not do that there", "Give them the right to read, write, list and delete.")
ELSEWHERE = ("the bucket is in another region", "Set AWS_REGION to the bucket's.")
NOBODY = ("no credentials were found, and this machine has no identity of its own", "See docs/cloud.md.")
HINTS = (  # what a store's answer says → what it means, and what to do
    ("RequestTimeTooSkewed", "this machine's clock is minutes away from the store's", "Set the clock (ntpd, chrony)."),
    ("SignatureDoesNotMatch", "the secret key is wrong", "See AWS_SECRET_ACCESS_KEY, or the profile's."),
    ("InvalidAccessKeyId", "the store does not know the access key", "See AWS_ACCESS_KEY_ID, or the profile's."),
    ("ExpiredToken", "the credentials have expired", "Renew them, or use those that the platform renews."),
    ("TokenRefreshRequired", "the credentials have expired", "Renew them, or use those that the platform renews."),
    ("NoSuchBucket", "there is no such bucket", "Mend its name, or make it."),
    ("ContainerNotFound", "there is no such container", "Mend its name, or make it."),
    ("PermanentRedirect", *ELSEWHERE),
    ("AuthorizationHeaderMalformed", *ELSEWHERE),
    ("IllegalLocationConstraint", *ELSEWHERE),
    ("incorrectly configured region", *ELSEWHERE),  # obstore's words for a redirect
    ("169.254.169.254", *NOBODY),  # where clouds tell their machines who they are
    ("metadata.google.internal", *NOBODY),
    ("AuthenticationFailed", "the store refuses the credentials", "See AZURE_STORAGE_ACCOUNT_KEY, or the identity's."),
    ("AccessDenied", *DENIED),
    ("SlowDown", "the store asks for fewer requests", "Start it again later."),
)


def require_objects(what: str) -> None:
    """Raises MissingExtraError where the package is not installed. `what` needs it."""
    import importlib.util

    if importlib.util.find_spec("obstore") is None:
        raise MissingExtraError(f"{what} needs a package that is not installed: pip install 'sereno[cloud]'.")


def settings_of(root: str) -> dict[str, str]:
    """What the store of "s3://bucket" is opened with, beside its URL: names as both obstore and delta-rs know them.

    Raises SettingsError where AWS_PROFILE names a profile that is not there.
    """
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
        found["aws_endpoint"] = endpoint
    if endpoint.startswith("http://"):
        found["allow_http"] = "true"
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or found.get("aws_region")
    found["aws_region"] = region or "us-east-1"
    return found


def _is_emulated(root: str) -> bool:
    names = {"gs": ("GOOGLE_BASE_URL", "GOOGLE_ENDPOINT_URL"), "az": ("AZURE_ENDPOINT", "AZURE_STORAGE_ENDPOINT")}
    return any(os.environ.get(name, "").startswith("http://") for name in names[root.partition("://")[0]])


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


@cache
def _open(root: str, process: int) -> Any:
    """One store for each bucket and process: it keeps connections, and a copy made by fork could not use them."""
    require_objects(f"{root}/…")
    from obstore.store import from_url

    settings = settings_of(root)
    allow_http = settings.pop("allow_http", "") == "true"
    open_store: Any = from_url  # whose type has a signature for each kind of store
    return open_store(
        root,
        config=settings or None,
        client_options={"allow_http": allow_http, "timeout": TIMEOUT, "connect_timeout": CONNECT},
        retry_config={
            "max_retries": RETRIES,
            "retry_timeout": DEADLINE,
            "backoff": {"base": 2, "init_backoff": FIRST_WAIT, "max_backoff": LONGEST_WAIT},
        },
    )


def store_of(root: str) -> Any:
    return _open(root, os.getpid())


def forget() -> None:
    """Open all stores anew: credentials have changed."""
    _open.cache_clear()


@contextlib.contextmanager
def _told(doing: str, place: str) -> Iterator[None]:
    """Turn what obstore raises into StorageError; FileNotFoundError stays, unless it is the bucket that is not there."""
    from obstore import exceptions

    try:
        yield
    except FileNotFoundError as error:
        if any(word in str(error) for word in ("NoSuchBucket", "ContainerNotFound")):
            raise _translated(doing, place, error) from error
        raise FileNotFoundError(f"{place} is not there") from error
    except (exceptions.BaseError, OSError, ValueError) as error:
        raise _translated(doing, place, error) from error


def _translated(doing: str, place: str, error: BaseException) -> StorageError:
    text = str(error)
    for word, meaning, then in HINTS:
        if word in text:
            return StorageError(f"{place} cannot be {doing}: {meaning}. {then}")
    for status, meaning, then in (
        ("403", *DENIED),
        ("401", "the store refuses the credentials", "Mend them."),
    ):
        if f"{status} " in text or f"status: {status}" in text:
            return StorageError(f"{place} cannot be {doing}: {meaning}. {then}")
    said = " ".join(text.split("\n\nDebug source:")[0].split())
    return StorageError(f"{place} cannot be {doing}: {said[:400]}. Mend that, then start it again.")


def _tried(doing: str, place: str, do: Callable[[], Answer]) -> Answer:
    """Do what does no harm if it is done twice, and again where it broke off as obstore does not try again itself."""
    for wait in _waits():
        try:
            with _told(doing, place):
                return do()
        except StorageError as error:
            if wait is None or not _broke_off(error.__cause__):
                raise
            time.sleep(wait)
    raise AssertionError("the last wait is None")


def _waits() -> Iterator[float | None]:
    """Seconds before each further try, with jitter; None: no more, the tries or the deadline are used up."""
    until = time.monotonic() + DEADLINE.total_seconds()
    for n in range(TRIES - 1):
        wait = random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2**n).total_seconds())
        if time.monotonic() + wait > until:
            break
        yield wait
    yield None


def _broke_off(error: BaseException | None) -> bool:
    """Whether the connection went away, before obstore had tried as often as it may."""
    text = str(error).split("\n\nDebug source:")[0]
    tried = re.search(r"after (\d+) retries", text)
    return "HTTP error: " in text and not (tried and int(tried[1]) >= RETRIES)


def head(root: str, key: str, place: str) -> Any:
    import obstore

    try:
        return _tried("looked at", place, lambda: obstore.head(store_of(root), key))
    except StorageError as error:
        if re.search(
            "status code: (400|403)|redirect", str(error.__cause__)
        ):  # what is wrong is told by answers that have a body
            _tried("looked at", place, lambda: obstore.get_range(store_of(root), key, start=0, length=1))
        raise


def tag_of(meta: Any) -> str:
    """The tag in its quotes, which Azure leaves away where it lists."""
    tag = str(meta["e_tag"] or "")
    return f'"{tag}"' if tag and '"' not in tag else tag


def any_below(root: str, prefix: str, place: str) -> bool:
    import obstore

    return _tried(
        "listed", place, lambda: any(len(some) for some in obstore.list(store_of(root), prefix or None, chunk_size=1))
    )


def list_folder(root: str, prefix: str, place: str) -> tuple[Sequence[str], Sequence[Any]]:
    import obstore

    found = _tried("listed", place, lambda: obstore.list_with_delimiter(store_of(root), prefix or None))
    return found["common_prefixes"], [meta for meta in found["objects"] if not _is_mark(meta, prefix)]


def list_below(root: str, prefix: str, place: str) -> Iterator[Any]:
    """In the order of their names. Where it breaks off, it goes on behind the last one."""
    import obstore

    last: str | None = None
    waits = _waits()
    while True:
        try:
            with _told("listed", place):
                for some in obstore.list(store_of(root), prefix or None, offset=last, chunk_size=LISTED_AT_ONCE):
                    for meta in some:
                        last = meta["path"]
                        if not _is_mark(meta, prefix):
                            yield meta
            return
        except StorageError as error:
            if (wait := next(waits)) is None or not _broke_off(error.__cause__):
                raise
            time.sleep(wait)


def _is_mark(meta: Any, prefix: str) -> bool:
    """Whether it is the folder's own mark, an empty object whose name ends with /, as consoles make them."""
    return bool(meta["path"] == prefix.rstrip("/"))


def get(root: str, key: str, place: str) -> tuple[bytes, Any]:
    import obstore

    def whole() -> tuple[bytes, Any]:
        answer = obstore.get(store_of(root), key)
        return bytes(answer.bytes()), answer.meta

    return _tried("read", place, whole)


def get_range(root: str, key: str, place: str, start: int, length: int, tag: str) -> bytes:
    import obstore
    from obstore.exceptions import PreconditionError

    def part() -> bytes | None:
        if not tag:
            return bytes(obstore.get_range(store_of(root), key, start=start, length=length))
        try:
            answer = obstore.get(store_of(root), key, options={"range": (start, start + length), "if_match": tag})
            return bytes(answer.bytes())
        except PreconditionError:
            return None

    content = _tried("read", place, part)
    if content is None:
        raise OSError(f"{place} was written anew while it was read")
    return content


def download(root: str, key: str, place: str, file: Path) -> Any:
    """In ranges of CHUNK, AT_ONCE together, all of the same object."""
    from concurrent.futures import ThreadPoolExecutor

    meta = head(root, key, place)
    tag = tag_of(meta)
    starts = range(0, meta["size"], CHUNK)
    with file.open("wb") as stream, ThreadPoolExecutor(AT_ONCE) as threads:
        os.posix_fallocate(stream.fileno(), 0, meta["size"]) if meta["size"] else None

        def fetch(start: int) -> None:
            content = get_range(root, key, place, start, min(CHUNK, meta["size"] - start), tag)
            os.pwrite(stream.fileno(), content, start)

        for _ in threads.map(fetch, starts):
            pass
        os.fsync(stream.fileno())
    return meta


def put(root: str, key: str, place: str, content: bytes, only_if: str | None) -> str:
    if only_if is None:
        return _tried("written", place, lambda: _put(root, key, content, "overwrite"))
    for wait in _waits():
        tag = _tried("written", place, lambda: _put_if(root, key, place, content, only_if))
        if tag is not None:
            return tag
        if wait is not None:
            time.sleep(wait)
    raise StorageError(
        f"{place} cannot be written: the store goes on refusing it, though nobody else has written it. Start it again later."
    )


def _put(root: str, key: str, content: bytes, mode: Any) -> str:
    import obstore

    return tag_of(obstore.put(store_of(root), key, content, mode=mode, use_multipart=False))


def _put_if(root: str, key: str, place: str, content: bytes, only_if: str) -> str | None:
    """Its tag; None: refused for no reason that is still there, so that it may be tried again. Raises ConditionError."""
    from obstore.exceptions import AlreadyExistsError, PreconditionError

    from sereno.object_path import ConditionError

    try:
        return _put(root, key, content, _version(root, key, place, only_if) if only_if else "create")
    except (AlreadyExistsError, PreconditionError, FileNotFoundError) as error:
        if "NoSuchBucket" in str(error):
            raise
        refused = error
    there, tag = _there(root, key, place)
    if tag and there == content:
        return tag  # it was this one's own, whose answer was lost
    if tag == only_if:
        return None  # others were about to write it (409), and have not
    raise ConditionError(f"{place} is another one by now") from refused


def _version(root: str, key: str, place: str, tag: str) -> dict[str, str]:
    """How obstore is told what is to be there. Google's store knows it by its generation alone."""
    from obstore.exceptions import PreconditionError

    if not root.startswith("gs://"):
        return {"e_tag": tag}
    meta = head(root, key, place)
    if tag_of(meta) != tag:
        raise PreconditionError(f"{place} is {meta['e_tag']}")
    return {"e_tag": tag, "version": meta["version"]}


def _there(root: str, key: str, place: str) -> tuple[bytes, str]:
    """The object and its tag; "": there is none."""
    try:
        content, meta = get(root, key, place)
    except FileNotFoundError:
        return b"", ""
    return content, tag_of(meta)


def upload(root: str, key: str, place: str, file: Path) -> None:
    import obstore

    def whole() -> None:
        obstore.put(store_of(root), key, file, chunk_size=CHUNK, max_concurrency=AT_ONCE)

    try:
        _tried("written", place, whole)
    except FileNotFoundError:
        if not file.exists():
            raise
        # The answer to its last request was lost, and at the next try the store did not know the upload any more.
        _tried("written", place, whole)


def copy(root: str, key: str, to: str, place: str) -> None:
    import obstore

    _tried("copied", place, lambda: obstore.copy(store_of(root), key, to))


def delete(root: str, keys: Sequence[str], place: str) -> None:
    import obstore

    def each() -> None:
        for key in keys:
            with contextlib.suppress(FileNotFoundError):
                obstore.delete(store_of(root), key)

    try:
        _tried("removed", place, lambda: obstore.delete(store_of(root), list(keys)))
    except FileNotFoundError:  # S3 does not tell, others do: it is gone either way
        _tried("removed", place, each)
