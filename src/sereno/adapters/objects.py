"""The stores behind object paths: the one file that knows obstore.

Each is asked with the platform's usual credentials (`object_credentials.py`, docs/cloud.md). What fails and may pass is
tried again until a deadline, which all requests of one operation share (`Tries`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from sereno.adapters.object_credentials import settings_of as settings_of  # whose place others need not know
from sereno.exceptions import MissingExtraError, StorageError

CHUNK = 8 << 20  # bytes of a part of a large object, up and down
AT_ONCE = 4  # parts
DEADLINE = timedelta(seconds=60)  # after which no try begins; a setting of tests
NOBODYS_DEADLINE = timedelta(seconds=10)  # likewise, where a platform is to tell who this machine is: there may be none
UNTOLD = 3.0  # seconds that an operation may fail before anybody is told
FIRST_WAIT, LONGEST_WAIT = timedelta(milliseconds=100), timedelta(seconds=5)  # between two tries, each with jitter
TIMEOUT, CONNECT = "30s", "5s"  # of one try
LISTED_AT_ONCE = 1000

LOG = logging.getLogger("sereno.storage")
Answer = TypeVar("Answer")

DENIED = ("these credentials may not do that there", "Give them the right to read, write, list and delete.")
ELSEWHERE = ("the bucket is in another region", "Set AWS_REGION to the bucket's.")
NOBODY = ("no credentials were found, and this machine has no identity of its own", "See docs/cloud.md.")
MEND_NAME = "Mend its name, or make it. `sereno config` says where the storage is set."
IDENTITY = ("169.254.169.254", "metadata.google.internal")  # where clouds tell their machines who they are
UNTRUSTED, UNREACHED = "InvalidCertificate", "kind: Connect"  # a connection that fails, and will again; or may pass
HINTS = (  # what a store's answer says, or its package → what it means, and what to do
    ("Missing AccessKeyId", "there is no access key to the secret key", "Set AWS_ACCESS_KEY_ID, too."),
    ("Missing SecretAccessKey", "there is no secret key to the access key", "Set AWS_SECRET_ACCESS_KEY, too."),
    ("Account must be specified", "no storage account is named", "Set AZURE_STORAGE_ACCOUNT_NAME."),
    (
        "Invalid Access Key",
        "the account's key is none",
        "AZURE_STORAGE_ACCOUNT_KEY is to be as Azure shows it: base64.",
    ),
    ("service account file", "the file of keys cannot be read as Google's", "See GOOGLE_APPLICATION_CREDENTIALS."),
    ("RequestTimeTooSkewed", "this machine's clock is minutes away from the store's", "Set the clock (ntpd, chrony)."),
    ("SignatureDoesNotMatch", "the secret key is wrong", "See AWS_SECRET_ACCESS_KEY, or the profile's."),
    ("InvalidAccessKeyId", "the store does not know the access key", "See AWS_ACCESS_KEY_ID, or the profile's."),
    ("ExpiredToken", "the credentials have expired", "Renew them, or use those that the platform renews."),
    ("TokenRefreshRequired", "the credentials have expired", "Renew them, or use those that the platform renews."),
    ("InvalidToken", "the session token is wrong", "See AWS_SESSION_TOKEN, or the profile's."),
    ("NoSuchBucket", "there is no such bucket", MEND_NAME),
    ("ContainerNotFound", "there is no such container", MEND_NAME),
    ("PermanentRedirect", *ELSEWHERE),
    ("AuthorizationHeaderMalformed", *ELSEWHERE),
    ("IllegalLocationConstraint", *ELSEWHERE),
    ("incorrectly configured region", *ELSEWHERE),  # obstore's words for a redirect
    *((word, *NOBODY) for word in IDENTITY),
    (UNTRUSTED, "this machine does not trust the store's certificate", "Add its authority to the system's."),
    (
        UNREACHED,
        "the store is not there, or out of reach",
        "See to the network, or mend AWS_ENDPOINT_URL and the like.",
    ),
    ("AuthenticationFailed", "the store refuses the credentials", "See AZURE_STORAGE_ACCOUNT_KEY, or the identity's."),
    ("AccessDenied", *DENIED),
    ("SlowDown", "the store asks for fewer requests", "Start it again later."),
)
RENEWED = (  # what is said of keys that may be other ones by now, in a file: those of a profile, or of an account of Google
    *("ExpiredToken", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"),
    "invalid_grant",
)
_ASKED = re.compile(r"\b[A-Z]+ (https?://[^/?#@\s]+)[/? ]")  # in what the package says of a request
PASSES = re.compile(  # no connection, or none any more; too much to do; or in the body of an answer that says 200
    r"HTTP error: |status code: (408|409|429|5(?!01)\d\d)|InternalError|SlowDown|ServiceUnavailable"
)


def require_objects(what: str) -> Any:
    """The package, where it is installed; else raises MissingExtraError. `what` needs it."""
    try:
        import obstore
        import obstore.exceptions
    except ModuleNotFoundError:
        raise MissingExtraError(f"{what} needs a package that is not installed: pip install 'sereno[cloud]'.") from None
    return obstore


@cache
def _open(root: str, process: int, retry_timeout: timedelta) -> Any:
    """One store for each bucket and process: it keeps connections, and a copy made by fork could not use them."""
    from obstore.store import from_url

    settings = settings_of(root)
    allow_http = settings.pop("allow_http", "") == "true"
    open_store: Any = from_url  # whose type has a signature for each kind of store
    return open_store(
        root,
        config=settings or None,
        client_options={"allow_http": allow_http, "timeout": TIMEOUT, "connect_timeout": CONNECT},
        retry_config={
            "max_retries": 1_000 if retry_timeout else 0,
            "retry_timeout": retry_timeout,
            "backoff": {"base": 3, "init_backoff": FIRST_WAIT, "max_backoff": LONGEST_WAIT},
        },
    )


def store_of(root: str) -> Any:
    """The store, each of whose requests is tried once."""
    return _open(root, os.getpid(), timedelta())


def patient_store_of(root: str) -> Any:
    """The same for what takes many requests and cannot go on where it broke off: each of them has a deadline of its own."""
    return _open(root, os.getpid(), DEADLINE)


def forget() -> None:
    """Open all stores anew: credentials have changed."""
    _open.cache_clear()


@contextlib.contextmanager
def _told(doing: str, place: str) -> Iterator[None]:
    """Turn what obstore raises into StorageError; FileNotFoundError stays, unless it is the bucket that is not there."""
    exceptions = require_objects(place).exceptions
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
            asked = _ASKED.search(text) if word in (UNTRUSTED, UNREACHED) else None
            where = f" at {asked[1]}" if asked else ""
            return StorageError(f"{place} cannot be {doing}{where}: {meaning}. {then}")
    for status, meaning, then in (
        ("403", *DENIED),
        ("401", "the store refuses the credentials", "Mend them."),
    ):
        if f"{status} " in text or f"status: {status}" in text:
            return StorageError(f"{place} cannot be {doing}: {meaning}. {then}")
    said = " ".join(text.split("\n\nDebug source:")[0].split())
    return StorageError(f"{place} cannot be {doing}: {said[:400]}. Mend that, then start it again.")


_deadline: ContextVar[timedelta | None] = ContextVar("deadline", default=None)


@contextlib.contextmanager
def within(deadline: timedelta) -> Iterator[None]:
    """Meanwhile no try of this thread's, nor of those it starts by `together`, begins so long after the first: somebody waits,
    and had rather know that it fails."""
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


class Tries:
    """The tries of one operation: what it asks on its way shares them, so that deadlines do not add up."""

    _told_at: ClassVar[float] = -math.inf

    def __init__(self) -> None:
        self._began, self._made, self._renewed = time.monotonic(), 0, False
        self._soonest = _deadline.get() or timedelta.max

    def again(self, error: StorageError) -> bool:
        """Whether what failed may pass and is to be done again now: after a pause, or with keys that are read anew."""
        said = str(error.__cause__)
        if not self._renewed and any(word in said for word in RENEWED):
            self._renewed = True
            forget()
            return True
        if UNTRUSTED in said or not PASSES.search(said.split("\n\nDebug source:")[0]):
            return False
        deadline = min(NOBODYS_DEADLINE if any(word in said for word in IDENTITY) else DEADLINE, self._soonest)
        if not self.pause(deadline):
            return False
        self._tell(error, deadline)
        return True

    def _tell(self, error: StorageError, deadline: timedelta) -> None:
        """Whoever waits is told for what: once in a while, as many operations may wait for the same."""
        now = time.monotonic()
        if now - self._began > UNTOLD and now - Tries._told_at > deadline.total_seconds():
            Tries._told_at = now
            LOG.warning("%s It is tried again, for at most %.0f s.", error, deadline.total_seconds())

    def pause(self, deadline: timedelta) -> bool:
        """Wait before another try, the longer the more there were; False: there is no time left."""
        self._made += 1
        most = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(self._made - 1, 16))
        wait = random.uniform(0, most.total_seconds())
        if time.monotonic() + wait > self._began + min(deadline, self._soonest).total_seconds():
            return False
        time.sleep(wait)
        return True


def _tried(doing: str, place: str, do: Callable[[], Answer], tries: Tries | None = None) -> Answer:
    """Do what does no harm if it is done twice, and again where it failed in a way that may pass."""
    tries = tries or Tries()
    while True:
        try:
            with _told(doing, place):
                return do()
        except StorageError as error:
            if not tries.again(error):
                raise


def head(root: str, key: str, place: str, tries: Tries | None = None) -> Any:
    obstore = require_objects(place)
    tries = tries or Tries()

    def ask() -> Any:
        return obstore.head(store_of(root), key)

    try:
        return _tried("looked at", place, ask, tries)
    except StorageError as error:
        if not re.search("status code: (400|403)|redirect", str(error.__cause__)):
            raise
    # What is wrong is told by answers that have a body; and it may be mended then, by keys that were read anew.
    _tried("looked at", place, lambda: obstore.get(store_of(root), key), tries)
    return _tried("looked at", place, ask, tries)


def tag_of(meta: Any) -> str:
    """The tag in its quotes, which Azure leaves away where it lists."""
    tag = str(meta["e_tag"] or "")
    return f'"{tag}"' if tag and '"' not in tag else tag


def any_below(root: str, prefix: str, place: str) -> bool:
    obstore = require_objects(place)
    return _tried(
        "listed", place, lambda: any(len(some) for some in obstore.list(store_of(root), prefix or None, chunk_size=1))
    )


def list_folder(root: str, prefix: str, place: str) -> tuple[Sequence[str], Sequence[Any]]:
    obstore = require_objects(place)
    found = _tried("listed", place, lambda: obstore.list_with_delimiter(patient_store_of(root), prefix or None))
    return found["common_prefixes"], [meta for meta in found["objects"] if not _is_mark(root, meta, prefix, place)]


def list_below(root: str, prefix: str, place: str) -> Iterator[Any]:
    """In the order of their names. Where it breaks off, it goes on behind the last one; each answer has a deadline of its own."""
    obstore = require_objects(place)
    last: str | None = None
    tries = Tries()
    while True:
        try:
            with _told("listed", place):
                for some in obstore.list(store_of(root), prefix or None, offset=last, chunk_size=LISTED_AT_ONCE):
                    for meta in some:
                        if not _is_mark(root, meta, prefix, place):
                            yield meta
                        last = meta["path"]
                    tries = Tries()
            return
        except StorageError as error:
            if not tries.again(error):
                raise


def _is_mark(root: str, meta: Any, prefix: str, place: str) -> bool:
    """Whether it is a folder's mark, an empty object whose name ends with /, as consoles make them.

    obstore leaves the / away. But only of a mark is there something under its name with one: itself.
    """
    own = meta["path"] == prefix.rstrip("/")
    return own or (not meta["size"] and any_below(root, f"{meta['path']}/", place))


def get(root: str, key: str, place: str, tries: Tries | None = None) -> tuple[bytes, Any]:
    obstore = require_objects(place)

    def whole() -> tuple[bytes, Any]:
        answer = obstore.get(store_of(root), key)
        return bytes(answer.bytes()), answer.meta

    return _tried("read", place, whole, tries)


def get_range(root: str, key: str, place: str, start: int, length: int, tag: str) -> bytes:
    obstore = require_objects(place)
    refused = obstore.exceptions.PreconditionError

    def part() -> bytes | None:
        if not tag:
            return bytes(obstore.get_range(store_of(root), key, start=start, length=length))
        try:
            answer = obstore.get(store_of(root), key, options={"range": (start, start + length), "if_match": tag})
            return bytes(answer.bytes())
        except refused:
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
    tries = Tries()
    while True:
        tag = _tried("written", place, lambda: _put_if(root, key, place, content, only_if, tries), tries)
        if tag is not None:
            return tag
        if not tries.pause(DEADLINE):
            raise StorageError(
                f"{place} cannot be written: the store goes on refusing it, though nobody else has written it. Start it again later."
            )


def _put(root: str, key: str, content: bytes, mode: Any) -> str:
    import obstore

    return tag_of(obstore.put(store_of(root), key, content, mode=mode, use_multipart=False))


def _put_if(root: str, key: str, place: str, content: bytes, only_if: str, tries: Tries) -> str | None:
    """Its tag; None: refused for no reason that is still there, so that it may be tried again. Raises ConditionError."""
    from obstore.exceptions import AlreadyExistsError, PreconditionError

    from sereno.object_path import ConditionError

    try:
        return _put(root, key, content, _version(root, key, place, only_if, tries) if only_if else "create")
    except (AlreadyExistsError, PreconditionError, FileNotFoundError) as error:
        if "NoSuchBucket" in str(error):
            raise
        refused = error
    there, tag = _there(root, key, place, tries)
    if tag and there == content:
        return tag  # it was this one's own, whose answer was lost
    if tag == only_if:
        return None  # others were about to write it (409), and have not
    raise ConditionError(f"{place} is another one by now") from refused


def _version(root: str, key: str, place: str, tag: str, tries: Tries) -> dict[str, str]:
    """How obstore is told what is to be there. Google's store knows it by its generation alone."""
    from obstore.exceptions import PreconditionError

    if not root.startswith("gs://"):
        return {"e_tag": tag}
    meta = head(root, key, place, tries)
    if tag_of(meta) != tag:
        raise PreconditionError(f"{place} is {meta['e_tag']}")
    return {"e_tag": tag, "version": meta["version"]}


def _there(root: str, key: str, place: str, tries: Tries) -> tuple[bytes, str]:
    """The object and its tag; "": there is none."""
    try:
        content, meta = get(root, key, place, tries)
    except FileNotFoundError:
        return b"", ""
    return content, tag_of(meta)


def upload(root: str, key: str, place: str, file: Path) -> None:
    obstore = require_objects(place)

    def whole() -> None:
        obstore.put(patient_store_of(root), key, file, chunk_size=CHUNK, max_concurrency=AT_ONCE)

    try:
        _tried("written", place, whole)
    except FileNotFoundError:
        if not file.exists():
            raise
        # The answer to its last request was lost, and at the next try the store did not know the upload any more.
        _tried("written", place, whole)


def copy(root: str, key: str, to: str, place: str) -> None:
    obstore = require_objects(place)
    _tried("copied", place, lambda: obstore.copy(store_of(root), key, to))


def delete(root: str, keys: Sequence[str], place: str) -> None:
    for start in range(0, len(keys), LISTED_AT_ONCE):  # as many as a store takes in one request
        _delete(root, keys[start : start + LISTED_AT_ONCE], place)


def _delete(root: str, keys: Sequence[str], place: str) -> None:
    obstore = require_objects(place)

    def each() -> None:
        for key in keys:
            with contextlib.suppress(FileNotFoundError):
                obstore.delete(store_of(root), key)

    try:
        _tried("removed", place, lambda: obstore.delete(store_of(root), list(keys)))
    except FileNotFoundError:  # S3 does not tell, others do: it is gone either way
        _tried("removed", place, each)
