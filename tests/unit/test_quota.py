"""How many cores' time a control group leaves: files as the kernel has them, of both versions."""

from pathlib import Path

import pytest

from sereno.adapters.executors import spawn
from sereno.adapters.executors.quota import cores_of_quota


def groups(folder: Path, ours: str, files: dict[str, str]) -> int | None:
    (folder / "ours").write_text(ours)
    for name, text in files.items():
        (folder / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "groups" / name).write_text(text)
    return cores_of_quota(folder / "groups", folder / "ours")


@pytest.mark.parametrize(
    ("said", "cores"),
    [
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("50000 100000\n", 1),
        ("max 100000\n", None),
        ("nonsense\n", None),
    ],
)
def test_a_container_has_the_cores_of_its_quota(tmp_path: Path, said: str, cores: int | None) -> None:
    assert groups(tmp_path, "0::/\n", {"cpu.max": said}) == cores


def test_the_narrowest_group_counts(tmp_path: Path) -> None:
    files = {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000", "a/b/c/cpu.max": "800000 100000"}
    assert groups(tmp_path, "1:name=systemd:/x\n0::/a/b/c\n", files) == 3


def test_the_older_hierarchy_is_read_also_where_its_path_is_another_outside(tmp_path: Path) -> None:
    files = {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}
    assert groups(tmp_path, "4:cpu,cpuacct:/docker/3f2a\n2:cpuset:/\n", files) == 4
    assert groups(tmp_path, "4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n"}) is None


def test_where_no_group_can_be_read_there_is_no_quota(tmp_path: Path) -> None:
    assert cores_of_quota(tmp_path, tmp_path / "none") is None


def test_a_run_has_no_more_workers_than_cores_of_its_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "cores_of_quota", lambda: 1)
    assert spawn.cores() == 1
    monkeypatch.setattr(spawn, "cores_of_quota", lambda: None)
    all_of_them = spawn.cores()
    monkeypatch.setattr(spawn, "cores_of_quota", lambda: all_of_them + 5)
    assert spawn.cores() == all_of_them
