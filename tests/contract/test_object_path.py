"""What holds for paths of objects, on a real S3 server, on Azure's emulator, and on what stands in for Google's store."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock
from uuid import uuid4

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sereno.adapters import objects
from sereno.exceptions import StorageError
from sereno.object_path import ConditionError, ObjectPath
from sereno.places import place_of, readable, write_place
from tests.stores import Store, azure, google

pytestmark = pytest.mark.service


@pytest.fixture(scope="module", params=["s3", "azure", "google"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "s3":
        server = request.getfixturevalue("shared_s3")
        yield Store(root=f"s3://{server.make_bucket()}", environment=server.environment)
    elif request.param == "azure":
        with azure() as found:
            yield found
    else:
        with google() as found:
            yield found


@pytest.fixture
def folder(store: Store) -> Iterator[ObjectPath]:
    """A folder of its own, with the store in reach."""
    with store.reached():
        yield ObjectPath.of(store.root) / uuid4().hex


def test_what_is_written_is_read(folder: ObjectPath) -> None:
    path = folder / "a" / "note.txt"
    tag = path.write_bytes("né".encode())
    assert path.read_bytes() == "né".encode()
    assert path.read_text() == "né"
    assert path.read_tagged() == ("né".encode(), tag)
    found = path.look()
    assert (found.size, found.tag) == (3, tag)
    assert abs(datetime.now(UTC) - found.modified_at) < timedelta(minutes=2)
    assert path.write_bytes(b"") != tag
    assert path.read_bytes() == b""


def test_what_is_not_there(folder: ObjectPath) -> None:
    path = folder / "a"
    for ask in (path.read_bytes, path.look, path.open, path.unlink, lambda: path.copy_to(folder / "b")):
        with pytest.raises(FileNotFoundError, match=f"^{path} is not there$"):
            ask()
    with pytest.raises(FileNotFoundError, match="is not there"):
        path.download(Path("/proc/nowhere"))
    path.unlink(missing_ok=True)
    path.remove_below()
    assert not path.exists()
    assert not path.is_file()
    assert not path.is_dir()
    assert [*path.iterdir(), *path.below(), *path.glob("*"), *path.rglob("*")] == []


def test_folders_are_what_lies_below(folder: ObjectPath) -> None:
    for name in ("a.json", "b/1.json", "b/2.csv", "b/c/3.json", "bb/4.json"):
        write_place(folder / name, name.encode())
    assert (folder / "b").is_dir()
    assert (folder / "b").exists()
    assert not (folder / "b").is_file()
    assert not (folder / "a").exists()  # another object's name begins so
    assert sorted(path.name for path in folder.iterdir()) == ["a.json", "b", "bb"]
    below = [(str(path.relative_to(folder)), found.size) for path, found in folder.below()]
    assert below == [("a.json", 6), ("b/1.json", 8), ("b/2.csv", 7), ("b/c/3.json", 10), ("bb/4.json", 9)]
    tags = {path: found.tag for path, found in folder.below()}
    assert tags == {path: path.look().tag for path in tags}
    assert [path.name for path in folder.rglob("*.json")] == ["a.json", "1.json", "3.json", "4.json"]
    assert [path.name for path in folder.glob("*.json")] == ["a.json"]
    assert [path.name for path in folder.glob("*/*.json")] == ["1.json", "4.json"]
    assert [path.name for path in folder.glob("b/*.json")] == ["1.json"]
    assert [path.name for path in folder.glob("b/2.csv")] == ["2.csv"]
    (folder / "b").remove_below()
    assert [str(path.relative_to(folder)) for path, _ in folder.below()] == ["a.json", "bb/4.json"]


def test_marks_of_folders_are_no_objects(store: Store, folder: ObjectPath) -> None:
    """As consoles make them: empty, with a name that ends in /. (Only the one that stands in takes them from anybody.)"""
    (folder / "in" / "a").write_bytes(b"a")
    (folder / "in" / "empty").write_bytes(b"")
    if folder.scheme == "gs":
        for name in ("in/", "in/deep/", "in/deep/er/", "in/empty-folder/"):
            url = f"{store.environment['GOOGLE_BASE_URL']}/{folder.bucket}/{folder.key}/{name}"
            assert httpx.put(url, content=b"").status_code == 200
        (folder / "in" / "deep" / "er" / "b").write_bytes(b"b")
    below = {"in/a", "in/empty"} | ({"in/deep/er/b"} if folder.scheme == "gs" else set())
    assert {str(path.relative_to(folder)) for path, _ in folder.below()} == below
    assert {path.name for path, _ in (folder / "in").listed()[1]} == {"a", "empty"}


@pytest.mark.parametrize(
    "name", ["day=2026-05-01", "a b", "ü", "50%", "a%20b", "a+b", "q?x=1&y", "a#b", "~", "x:y", "(1)", "a'b"]
)
def test_names_stay_what_they_are(folder: ObjectPath, name: str) -> None:
    path = folder / name / "part"
    path.write_bytes(name.encode())
    assert path.read_bytes() == name.encode()
    assert [found for found, _ in folder.below()] == [path]
    assert [*folder.iterdir()] == [folder / name]
    assert place_of(str(path)) == path
    path.copy_to(folder / "copy" / name)
    assert (folder / "copy" / name).read_bytes() == name.encode()
    folder.remove_below()
    assert not folder.exists()


def test_a_write_where_there_is_none(folder: ObjectPath) -> None:
    path = folder / "claim"
    tag = path.write_bytes(b"mine", only_if="")
    with pytest.raises(ConditionError, match=f"^{path} is another one by now$"):
        path.write_bytes(b"yours", only_if="")
    assert path.read_tagged() == (b"mine", tag)


def test_a_write_over_the_one_that_was_read(folder: ObjectPath) -> None:
    path = folder / "latest.json"
    first = path.write_bytes(b"1")
    second = path.write_bytes(b"2", only_if=first)
    assert path.read_tagged() == (b"2", second)
    with pytest.raises(ConditionError):
        path.write_bytes(b"3", only_if=first)
    assert path.read_bytes() == b"2"
    path.unlink()
    with pytest.raises(ConditionError):
        path.write_bytes(b"3", only_if=second)
    assert not path.exists()


def test_a_conditional_write_again_is_done(folder: ObjectPath) -> None:
    """It may be its own, whose answer was lost."""
    path = folder / "latest.json"
    first = path.write_bytes(b"1", only_if="")
    assert path.write_bytes(b"1", only_if="") == first
    second = path.write_bytes(b"2", only_if=first)
    assert path.write_bytes(b"2", only_if=first) == second


def test_one_of_many_writers_wins(folder: ObjectPath) -> None:
    path, won, lost = folder / "claim", [], []
    start = threading.Barrier(8)

    def write(number: int) -> None:
        start.wait()
        try:
            path.write_bytes(b"%d" % number, only_if="")
        except ConditionError:
            lost.append(number)
        else:
            won.append(number)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    assert path.read_bytes() == b"%d" % won[0]


def test_a_counter_of_many_writers_loses_none(folder: ObjectPath) -> None:
    path = folder / "counter"
    path.write_bytes(b"0")

    def count() -> None:
        for n in range(4):
            while True:
                content, tag = path.read_tagged()
                try:
                    # each writes what only it would, as a write that is found done is done
                    path.write_bytes(b"%d %d %d" % (int(content.split()[0]) + 1, n, threading.get_ident()), only_if=tag)
                    break
                except ConditionError:
                    continue

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert int(path.read_bytes().split()[0]) == 16


def test_a_large_one_goes_in_parts(folder: ObjectPath, tmp_path: Path) -> None:
    content = os.urandom((objects.CHUNK << 1) + 12_345)
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(content)
    path = folder / "large"
    path.upload(source)
    assert path.look().size == len(content)
    assert path.download(copy).size == len(content)
    assert copy.read_bytes() == content
    with path.open() as stream:
        stream.seek(-12_345, io.SEEK_END)
        assert stream.read() == content[-12_345:]
    source.write_bytes(b"small")
    path.upload(source)
    assert path.read_bytes() == b"small"
    source.write_bytes(b"")
    path.upload(source)
    path.download(copy)
    assert copy.read_bytes() == b""


def test_ranges(folder: ObjectPath) -> None:
    path = folder / "a"
    tag = path.write_bytes(b"0123456789")
    assert path.read_range(2, 3) == path.read_range(2, 3, tag) == b"234"
    assert path.read_range(8, 5) == path.read_range(8, 5, tag) == b"89"


def test_a_stream_reads_one_object(folder: ObjectPath) -> None:
    path = folder / "part.parquet"
    table = pa.table({"n": range(200_000)})
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=50_000)
    path.write_bytes(file.getvalue())
    with readable(path) as stream:
        assert pq.ParquetFile(stream).read_row_group(2).equals(table.slice(100_000, 50_000))
    with path.open() as stream, mock.patch.object(objects, "get_range", side_effect=objects.get_range) as asked:
        assert stream.read() == file.getvalue()
        assert stream.read() == b""
    assert asked.call_count == 1
    large = os.urandom(3 << 20)
    path.write_bytes(large)
    with path.open() as stream:
        assert stream.read(10) == large[:10]
        path.write_bytes(large[::-1])
        with pytest.raises(OSError, match="was written anew while it was read"):
            stream.read()


def test_no_bucket(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with store.reached():
        path = ObjectPath.of(store.root.partition("://")[0] + "://nobodys-bucket") / "a"
        asked: list[Callable[[], object]] = [path.read_bytes, path.exists]
        asked += [lambda: [*path.parent.below()], lambda: [*path.parent.iterdir()]]
        if path.scheme != "s3":  # this server makes a bucket for who writes to it
            asked += [lambda: path.write_bytes(b"x"), lambda: path.write_bytes(b"x", only_if="")]
            asked += [lambda: path.upload(tmp_path / "file")]
        for ask in asked:
            with pytest.raises(StorageError, match=r"there is no such (bucket|container)\. Mend its name, or make it"):
                ask()
