"""A place in an object store, asked as `pathlib.Path` is asked, as far as an object store can answer.

There are no folders: one is there as long as an object lies below it, and making one does nothing. Nothing is renamed.
An object is written whole or not at all, and read as soon as it is written; writes can be conditional (`only_if`), which
is what keeps two writers apart: https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-requests.html
"""

from __future__ import annotations

import fnmatch
import io
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import total_ordering
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

from sereno.adapters import objects as stores

BUFFER = 1 << 20  # bytes of a stream that are read at once


class ConditionError(Exception):
    """A conditional write found another object there than it was told."""


@dataclass(frozen=True, kw_only=True)
class Object:
    """What a store says of an object."""

    size: int  # bytes
    tag: str  # another one whenever the content changes: the ETag
    modified_at: datetime


@total_ordering
class ObjectPath:
    """`s3://bucket/a/b`, `gs://bucket/a/b` or `az://container/a/b`. Immutable and hashable.

    It is no `os.PathLike`: whoever opens it as a file of this machine is told by a TypeError.

    What reads or writes raises FileNotFoundError where there is no such object, and StorageError, which says what was
    wrong (credentials, bucket, region, clock) and what to do; after retries with jitter, within a deadline (`adapters/objects.py`).
    """

    __slots__ = ("_key", "_root")

    def __init__(self, root: str, key: PurePosixPath) -> None:
        self._root, self._key = root, key  # "s3://bucket", "a/b"; "." is the bucket itself

    @classmethod
    def of(cls, url: str) -> ObjectPath:
        """Raises SettingsError where it names no bucket."""
        from sereno.exceptions import SettingsError

        scheme, _, rest = url.partition("://")
        bucket, _, key = rest.partition("/")
        if not bucket or "@" in bucket or ":" in bucket:
            raise SettingsError(
                f"{scheme}://… needs the name of a bucket and nothing else before the first /, as in "
                f"{scheme}://bank/warehouse. Credentials come from the environment: see docs/cloud.md."
            )
        if ".." in PurePosixPath(key).parts:
            raise SettingsError(f"{url} leads out of where it lies; write it without `..`.")
        return cls(f"{scheme}://{bucket}", PurePosixPath(key.lstrip("/")))

    def __str__(self) -> str:
        return f"{self._root}/{self.key}" if self.key else self._root

    def __repr__(self) -> str:
        return f"ObjectPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and (self._root, self._key) == (other._root, other._key)

    def __lt__(self, other: ObjectPath) -> bool:
        return (self._root, self._key) < (other._root, other._key)

    def __hash__(self) -> int:
        return hash((self._root, self._key))

    def __truediv__(self, name: str | PurePosixPath) -> ObjectPath:
        return ObjectPath(self._root, self._key / str(name).lstrip("/"))

    # Names

    @property
    def key(self) -> str:
        """The object's name in its bucket; "": the bucket itself."""
        return "" if self._key == PurePosixPath() else str(self._key)

    @property
    def bucket(self) -> str:
        return self._root.partition("://")[2]

    @property
    def scheme(self) -> str:
        return self._root.partition("://")[0]

    @property
    def name(self) -> str:
        return self._key.name

    @property
    def stem(self) -> str:
        return self._key.stem

    @property
    def suffix(self) -> str:
        return self._key.suffix

    @property
    def suffixes(self) -> list[str]:
        return self._key.suffixes

    @property
    def parent(self) -> ObjectPath:
        return ObjectPath(self._root, self._key.parent)

    @property
    def parts(self) -> tuple[str, ...]:
        return (self._root, *self._key.parts)

    def with_name(self, name: str) -> ObjectPath:
        return ObjectPath(self._root, self._key.with_name(name))

    def relative_to(self, other: ObjectPath) -> PurePosixPath:
        if self._root != other._root:
            raise ValueError(f"{self} is not below {other}")
        return self._key.relative_to(other._key)

    def absolute(self) -> ObjectPath:
        return self

    resolve = absolute

    # Asking

    def look(self) -> Object:
        """Size, tag and time. Raises FileNotFoundError."""
        return _object(stores.head(self._root, self.key, str(self)))

    def exists(self) -> bool:
        """Whether there is an object, or one below it."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        try:
            self.look()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        return stores.any_below(self._root, self._below, str(self))

    def is_symlink(self) -> bool:
        return False

    def iterdir(self) -> Iterator[ObjectPath]:
        """What lies in it: objects, and folders by the objects below them. It makes one request for a thousand of them."""
        folders, objects = stores.list_folder(self._root, self._below, str(self))
        for key in [*folders, *(meta["path"] for meta in objects)]:
            yield ObjectPath(self._root, PurePosixPath(key))

    def listed(self) -> tuple[list[ObjectPath], list[tuple[ObjectPath, Object]]]:
        """What lies directly in it: folders, and objects with what the store says of each."""
        folders, objects = stores.list_folder(self._root, self._below, str(self))
        named = [(ObjectPath(self._root, PurePosixPath(meta["path"])), _object(meta)) for meta in objects]
        return [ObjectPath(self._root, PurePosixPath(key)) for key in folders], named

    def below(self) -> Iterator[tuple[ObjectPath, Object]]:
        """Every object below it, in the order of their names, with what the store says of each."""
        for meta in stores.list_below(self._root, self._below, str(self)):
            yield ObjectPath(self._root, PurePosixPath(meta["path"])), _object(meta)

    def rglob(self, pattern: str) -> Iterator[ObjectPath]:
        """The objects (no folders) below it, whatever their depth, whose last name fits."""
        for path, _ in self.below():
            if fnmatch.fnmatchcase(path.name, pattern):
                yield path

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """The objects (no folders) below it whose names fit, part by part: `*.json`, `*/report.json`."""
        wanted = PurePosixPath(pattern).parts
        fixed = next((i for i, part in enumerate(wanted) if any(c in part for c in "*?[")), len(wanted) - 1)
        start = self
        for part in wanted[:fixed]:
            start = start / part
        found = start.iterdir() if fixed == len(wanted) - 1 else (path for path, _ in start.below())
        for path in found:
            parts = path.relative_to(self).parts
            if len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted)):
                yield path

    # Reading

    def open(self, mode: Literal["rb"] = "rb") -> BinaryIO:
        """A stream, which can seek. It goes on reading the object that it began with: a changed one is an OSError."""
        if mode != "rb":
            raise ValueError(
                f"an object is opened to be read ('rb'), not {mode!r}: it is written by write_bytes or upload"
            )
        meta = self.look()
        return io.BufferedReader(_Stream(self, meta), BUFFER)

    def read_bytes(self) -> bytes:
        return self.read_tagged()[0]

    def read_tagged(self) -> tuple[bytes, str]:
        """The content and its tag."""
        content, meta = stores.get(self._root, self.key, str(self))
        return content, stores.tag_of(meta)

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def read_range(self, start: int, length: int, tag: str = "") -> bytes:
        """So many bytes; fewer at the end. With a tag: OSError where the object is no longer that one."""
        return stores.get_range(self._root, self.key, str(self), start, length, tag)

    def download(self, file: Path) -> Object:
        """Copy the object to a file of this machine, whole and flushed, in several requests at once where it is large."""
        return _object(stores.download(self._root, self.key, str(self), file))

    # Writing

    def write_bytes(self, content: bytes, *, only_if: str | None = None) -> str:
        """Write the object; its tag. `only_if`: "" where there is none, or the tag that it has; else ConditionError.

        Where the store's answer is lost, a conditional write finds its own object at the next try: then it is done, if the
        content is the same.
        """
        return stores.put(self._root, self.key, str(self), content, only_if)

    def upload(self, file: Path) -> None:
        """Write the object from a file of this machine, in parts where it is large. Readers find all of it, or nothing."""
        stores.upload(self._root, self.key, str(self), file)

    def copy_to(self, other: ObjectPath) -> None:
        """Have the store copy the object, within one bucket."""
        if other._root != self._root:
            raise ValueError(f"{other} is in another bucket than {self}")
        stores.copy(self._root, self.key, other.key, str(self))

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object. Stores do not tell whether there was one: `missing_ok` is as `pathlib` has it, and asks."""
        if not missing_ok:
            self.look()
        stores.delete(self._root, [self.key], str(self))

    def remove_below(self) -> None:
        """Remove every object below it."""
        if keys := [path.key for path, _ in self.below()]:
            stores.delete(self._root, keys, str(self))

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: see above."""

    @property
    def _below(self) -> str:
        return f"{self.key}/" if self.key else ""


def _object(meta: Any) -> Object:
    return Object(size=meta["size"], tag=stores.tag_of(meta), modified_at=meta["last_modified"])


class _Stream(io.RawIOBase):
    """The raw stream below the buffered one: a request for each read."""

    def __init__(self, path: ObjectPath, meta: Object) -> None:
        self._path, self._meta, self._at = path, meta, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._meta.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readall(self) -> bytes:
        """In few requests: io's own asks for 8 KB at a time."""
        return b"".join(iter(lambda: self.read(stores.CHUNK), b""))

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._meta.size - self._at)
        if length <= 0:
            return 0
        content = self._path.read_range(self._at, length, self._meta.tag)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)
