"""What a URL is as a path: names alone, no store is asked."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from sereno.exceptions import SettingsError
from sereno.object_path import ObjectPath
from sereno.places import is_url, place_of

PATH = ObjectPath.of("s3://bank/warehouse/2026-05-01/part.csv.gz")


def test_its_names() -> None:
    assert (PATH.scheme, PATH.bucket, PATH.key) == ("s3", "bank", "warehouse/2026-05-01/part.csv.gz")
    assert (PATH.name, PATH.stem, PATH.suffix, PATH.suffixes) == ("part.csv.gz", "part.csv", ".gz", [".csv", ".gz"])
    assert str(PATH.parent) == "s3://bank/warehouse/2026-05-01"
    assert PATH.with_name("b") == PATH.parent / "b"
    assert PATH.relative_to(ObjectPath.of("s3://bank/warehouse/")) == PurePosixPath("2026-05-01/part.csv.gz")
    assert str(ObjectPath.of("gs://bank")) == str(ObjectPath.of("gs://bank/")) == "gs://bank"
    assert ObjectPath.of("s3://bank//a/./b") == ObjectPath.of("s3://bank/a/b")
    assert len({PATH, ObjectPath.of(str(PATH))}) == 1
    assert sorted([PATH, PATH.parent]) == [PATH.parent, PATH]
    with pytest.raises(ValueError, match="is not below"):
        PATH.relative_to(ObjectPath.of("s3://other"))


@pytest.mark.parametrize("url", ["s3://", "s3:///a", "s3://user:key@bank/a", "s3://bank:80/a"])
def test_no_bucket(url: str) -> None:
    with pytest.raises(SettingsError, match="needs the name of a bucket"):
        ObjectPath.of(url)


def test_it_does_not_lead_out() -> None:
    with pytest.raises(SettingsError, match="leads out of where it lies"):
        ObjectPath.of("s3://bank/a/../b")


def test_it_is_no_file_of_this_machine() -> None:
    with pytest.raises(TypeError):
        open(PATH)  # type: ignore[call-overload]  # noqa: SIM115
    with pytest.raises(ValueError, match="written by write_bytes or upload"):
        PATH.open("wb")  # type: ignore[arg-type]


def test_what_a_text_names() -> None:
    assert place_of("s3://bank/a") == ObjectPath.of("s3://bank/a")
    assert place_of("a/b", Path("/home")) == Path("/home/a/b")
    assert place_of("/a/b", Path("/home")) == Path("/a/b")
    assert place_of("a", PATH.parent) == PATH.parent / "a"
    assert place_of(Path("/x")) == Path("/x")
    assert is_url("postgresql://x")
    assert not is_url("C:/x")
    assert not is_url("a/b://c")
    with pytest.raises(
        SettingsError, match=r"https://… is no place for files\. Valid are a path, az://…, gs://…, s3://…\."
    ):
        place_of("https://bank/a")
