"""What is written for several hosts, held to the tools that will read it: systemd's, and the real nginx."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sereno.cli import main
from sereno.deploy.cluster import Cluster, warnings
from sereno.deploy.server import Server
from sereno.deploy.writing import write
from sereno.exceptions import SettingsError

NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
HOSTS = ("node1.bank", "node2.bank", "10.0.0.3")
CONFIG = """
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    include {folder}/nginx.conf;
}}
"""


def needed(tool: str | None, name: str) -> str:
    """Where a tool lies. Without it the test is skipped, or fails with CI=1."""
    if tool is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            f"LOUD: {name} is not installed: nothing is verified by it"
        )
    return tool


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    server = Server(project=tmp_path, home=tmp_path, name="bank", user="daemon", memory="4G")
    return Cluster(server=server, hosts=HOSTS, domain="scores.bank", executor="ray")


def test_each_host_gets_its_units(cluster: Cluster) -> None:
    assert sorted(cluster.files()) == [
        "10.0.0.3/bank-api.service",
        "10.0.0.3/bank-ray.service",
        "10.0.0.3/bank-schedule.service",
        "README.md",
        "nginx.conf",
        "node1.bank/bank-api.service",
        "node1.bank/bank-ray.service",
        "node2.bank/bank-api.service",
        "node2.bank/bank-ray.service",
        "node2.bank/bank-schedule.service",
    ]
    spark = replace(cluster, executor="spark").files()
    assert not any("ray" in name for name in spark)
    assert [name for name in spark if "schedule" in name] == [f"{host}/bank-schedule.service" for host in HOSTS[:2]]
    assert replace(cluster, hosts=HOSTS[:2]).schedulers == HOSTS[:2]  # of two, the head's as well


@pytest.mark.parametrize("folder", ["plain", "with space", "100%", "$HOME"])
@pytest.mark.parametrize("executor", ["ray", "spark"])
def test_units_are_valid(cluster: Cluster, tmp_path: Path, folder: str, executor: str) -> None:
    verify = needed(shutil.which("systemd-analyze"), "systemd-analyze")
    place = tmp_path / folder
    there = replace(cluster, server=replace(cluster.server, project=place, home=place), executor=executor)
    for path in write(there.files(), tmp_path / "to"):
        if path.suffix == ".service":
            command = [verify, "verify", "--man=no", *map(str, path.parent.glob("*.service"))]
            verified = subprocess.run(command, capture_output=True, text=True, check=False)
            assert (verified.returncode, verified.stderr) == (0, "")


def test_services_are_hardened(cluster: Cluster, tmp_path: Path) -> None:
    analyze = needed(shutil.which("systemd-analyze"), "systemd-analyze")
    for path in write(cluster.files(), tmp_path / "to"):
        if path.suffix == ".service":
            command = [analyze, "security", "--offline=true", "--threshold=20", "--no-pager", str(path)]
            rated = subprocess.run(command, capture_output=True, text=True, check=False)
            assert rated.returncode == 0, rated.stdout[-500:]


@pytest.mark.parametrize("name", ["bank", "the-bank"])
def test_the_balancer_is_valid(cluster: Cluster, tmp_path: Path, name: str) -> None:
    nginx = needed(NGINX, "nginx (package nginx-light)")
    certificate = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=scores.bank", "-days", "2"]
    subprocess.run(
        [*certificate, "-keyout", tmp_path / f"{name}.key", "-out", tmp_path / f"{name}.crt"],
        check=True,
        capture_output=True,
    )
    # names are looked up when it starts; here they are this machine's
    local = replace(cluster, hosts=("127.0.0.1", "127.0.0.2"), server=replace(cluster.server, name=name))
    text = local.files()["nginx.conf"].replace("/etc/sereno/tls", str(tmp_path))
    (tmp_path / "nginx.conf").write_text(text)
    (tmp_path / "all.conf").write_text(CONFIG.format(folder=tmp_path))
    tested = subprocess.run(
        [nginx, "-t", "-q", "-c", tmp_path / "all.conf", "-p", tmp_path], capture_output=True, text=True, check=False
    )
    assert (tested.returncode, tested.stderr) == (0, "")


def test_the_balancer_asks_every_host(cluster: Cluster) -> None:
    text = replace(cluster, port=8017, body_bytes=4096).files()["nginx.conf"]
    assert [line.split()[1] for line in text.splitlines() if line.startswith("    server ")] == [
        "node1.bank:8017",
        "node2.bank:8017",
        "10.0.0.3:8017",
    ]
    assert "server_name scores.bank;" in text
    assert "client_max_body_size 4096;" in text
    page = (Path(__file__).parents[2] / "docs" / "serving_cluster.md").read_text()
    for setting in ("connect_timeout", "read_timeout", "next_upstream", "next_upstream_tries", "next_upstream_timeout"):
        (ours,), (there,) = (re.findall(rf"proxy_{setting} ([^;]+);", each) for each in (text, page))
        assert ours == there, setting


def test_the_first_host_is_the_head_and_the_others_join_it(cluster: Cluster) -> None:
    files = cluster.files()
    (head,) = [line for line in files["node1.bank/bank-ray.service"].splitlines() if line.startswith("ExecStart=")]
    (other,) = [line for line in files["10.0.0.3/bank-ray.service"].splitlines() if line.startswith("ExecStart=")]
    assert " start --block --head --port=6379 --include-dashboard=false " in head
    assert " start --block --address=node1.bank:6379 --node-ip-address=10.0.0.3 " in other


def test_the_readme_says_what_goes_where(cluster: Cluster) -> None:
    for executor in ("ray", "spark"):
        text = replace(cluster, executor=executor).files()["README.md"]
        assert "${" not in text
        settings = tomllib.loads(text.partition("```toml\n")[2].partition("```")[0])
        assert settings["executor"] == executor
        assert f"sereno[{'postgresql,ray,redis' if executor == 'ray' else 'postgresql,redis,spark'}]" in text
        assert "SERENO_LOOKUP_STORE=redis://" in text
        assert "maxmemory-policy noeviction" in text
        assert ("/ray start --head" in text) == (executor == "ray")
        assert ("spark-submit --master" in text) == (executor == "spark")


def test_the_services_choose_the_environment_that_was_chosen(cluster: Cluster) -> None:
    assert "SERENO_ENV" not in cluster.files()["README.md"]
    assert "\nSERENO_ENV=prod\n" in replace(cluster, env="prod").files()["README.md"]


def test_what_the_settings_lack_is_told(cluster: Cluster) -> None:
    stores: dict[str, Any] = {"ledger": "postgresql://x", "lookups_are_shared": True}
    assert [*warnings(cluster, executor="ray", ray_address="node1.bank:6379", **stores)] == []
    ledger, lookups, executor = warnings(
        cluster, executor="local", ray_address=None, ledger=None, lookups_are_shared=False
    )
    assert "The ledger is a file of the home, which several hosts cannot share" in ledger
    assert "SERENO_LOOKUP_STORE, or `lookup_store` in sereno.toml" in lookups
    assert 'executor is "local": runs would stay on the host of the schedule' in executor
    (address,) = warnings(cluster, executor="ray", ray_address="other:6379", **stores)
    assert 'ray.address is other:6379: set it to "node1.bank:6379"' in address


@pytest.mark.parametrize(("settings", "warns"), [("", True), ('storage = "s3://bank/sereno"\n', False)])
def test_lookups_in_a_bucket_are_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], settings: str, warns: bool
) -> None:
    (tmp_path / "sereno.toml").write_text(settings)
    monkeypatch.chdir(tmp_path)
    assert main(["deploy", "cluster", "--hosts", "node1,node2", "--domain", "scores.bank", "--name", "bank"]) == 0
    assert ("Lookups, where models have them, are kept in the home" in capsys.readouterr().out) is warns


def test_a_name_that_is_too_long_for_sockets_is_refused(cluster: Cluster) -> None:
    longest = replace(cluster.server, name="b" * 28)
    assert replace(cluster, server=longest).files()
    with pytest.raises(SettingsError, match="is longer than 28 letters: Ray could not name its sockets in /var/cache/"):
        replace(cluster, server=replace(longest, name="b" * 29))
    assert replace(cluster, server=replace(longest, name="b" * 29), executor="spark").files()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"hosts": ("node1",)}, "a cluster has at least two hosts"),
        ({"hosts": ("node1", "node1")}, "each named once"),
        ({"hosts": ("node1", "no de")}, "'no de' in --hosts is no name and no IPv4 address"),
        ({"hosts": ("node1", "../x")}, "is no name and no IPv4 address"),
        ({"domain": "scores bank;"}, "'scores bank;' is no name of a host"),
    ],
)
def test_wrong_words_are_refused(cluster: Cluster, wrong: dict[str, tuple[str, ...]], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        replace(cluster, **wrong)  # type: ignore[arg-type]
