"""The guard: who is let in, and that no spelling of Host, key or path gets around it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sereno.cli import main
from sereno.exceptions import SettingsError
from sereno.serve.guard import FREE, Guard, new_key, read_keys
from sereno.settings import ServeSettings, Settings

KEY, LINE = new_key("tests")
OTHER_KEY, OTHER_LINE = new_key()
BEARER = b"Bearer " + KEY.encode()
HOST = b"localhost:8000"


def settings(**serve: Any) -> Settings:
    return Settings(home=Path("/nowhere"), secrets_folder=Path("/nowhere"), serve=ServeSettings(**serve))


def guard(*lines: str, **serve: Any) -> Guard:
    """A guard that knows the keys of these lines; of none, an open one."""
    return Guard(settings(**serve), {"SERENO_SECRET_API_KEYS": "\n".join(lines)} if lines else {})


def status(refused: Any) -> int | None:
    return None if refused is None else refused.status


# Host


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost:8000", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:65535", "localhost:"],
)
def test_own_names_are_fine_with_any_port(host: str) -> None:
    for _ in range(2):  # the second time it is remembered
        assert guard().check(b"/predict", host.encode(), None) is None


HOSTILE = [
    None,
    b"",
    b"evil.example",
    b"evil.example:8000",
    b"localhost.evil.example",
    b"evil.example#localhost",
    b"localhost@evil.example",
    b"evil.example@localhost",
    b"localhost:8000@evil.example",
    b"localhost:8000.evil.example",
    b"localhost:80:80",
    b"localhost:x",
    b"localhost:123456",
    b"localhost, evil.example",
    b"localhost/evil",
    b"localhost.",
    b"localhost evil.example",
    b"localhost\x00",
    b"localhost\n",
    b"127.0.0.1.evil.example",
    b"127.1",
    b"2130706433",
    b"::1",
    b"[::1",
    b"[::1]evil",
    b"[::]",
    b"0.0.0.0",
    b"10.0.0.7",
    b"*",
    b"\xff\xfe",
]


@pytest.mark.parametrize("host", HOSTILE)
def test_other_names_are_refused(host: bytes | None) -> None:
    refused = guard().check(b"/predict", host, None)
    assert refused is not None
    assert refused.status == 400
    assert refused.says.startswith("This server is not known under the Host of the request.")
    assert "serve.allowed_hosts" in refused.says
    assert "evil" not in refused.says


@pytest.mark.parametrize("host", HOSTILE)
def test_a_key_does_not_make_a_host_known(host: bytes | None) -> None:
    one = guard(LINE)
    assert one.check(b"/predict", HOST, BEARER) is None
    assert status(one.check(b"/predict", host, BEARER)) == 400


def test_names_that_were_set() -> None:
    one = guard(allowed_hosts=("api.example.com", "10.1.2.3", "2001:DB8::1", "[fd00::2]", "under_score"))
    for host in (
        "API.example.com",
        "api.example.com:443",
        "10.1.2.3:80",
        "[2001:db8::1]",
        "[fd00::2]:80",
        "under_score",
    ):
        assert one.check(b"/predict", host.encode(), None) is None, host
    for host in ("example.com", "x.api.example.com", "api.example.com.evil.example"):
        assert status(one.check(b"/predict", host.encode(), None)) == 400, host


def test_the_address_it_listens_on_is_its_own_name_unless_that_means_all() -> None:
    assert guard(host="10.1.2.3").check(b"/predict", b"10.1.2.3:8000", None) is None
    for host in ("0.0.0.0", "::"):
        one = guard(host=host)
        assert status(one.check(b"/predict", f"{host}:8000".encode(), None)) == 400
        assert status(one.check(b"/predict", b"10.1.2.3:8000", None)) == 400


def test_any_host_where_somebody_said_so_and_on_a_unix_socket() -> None:
    for one in (guard(LINE, allowed_hosts=("*",)), guard(LINE, unix=Path("/run/sereno.sock"))):
        for host in HOSTILE:
            assert one.check(b"/predict", host, BEARER) is None
            assert status(one.check(b"/predict", host, None)) == 401


@pytest.mark.parametrize("name", ["https://api.example.com", "api.example.com:443", "a/b", "", "a b", "*.example.com"])
def test_names_that_cannot_be_are_told(name: str) -> None:
    with pytest.raises(SettingsError, match=r"'serve.allowed_hosts' has .*Write names or addresses without scheme"):
        guard(allowed_hosts=(name,))


# Keys


def test_the_key_opens() -> None:
    one = guard(LINE, OTHER_LINE)
    assert one.wants_keys
    for key in (KEY, OTHER_KEY):
        for scheme in ("Bearer ", "bearer ", "BEARER  "):
            for _ in range(2):
                assert one.check(b"/predict", HOST, f"{scheme}{key}".encode()) is None


WRONG = [
    b"",
    b"Bearer",
    b"Bearer ",
    KEY.encode(),
    b"Basic " + KEY.encode(),
    b"Bearer" + KEY.encode(),
    BEARER[:-1],
    BEARER + b"x",
    BEARER + b" x",
    BEARER.swapcase(),
    b"Bearer " + OTHER_KEY.encode(),
    b"Bearer " + LINE.split()[0].encode(),
    b"Bearer " + LINE.split()[0].removeprefix("sha256:").encode(),
    b"Bearer " + b"x" * 100_000,
    b"Bearer \xff\xfe",
    b"Bearer " + KEY.encode() + b"\x00",
    b"Bearer " + KEY.encode() + b"\nBearer x",
]


@pytest.mark.parametrize("authorization", WRONG)
def test_nothing_else_does(authorization: bytes) -> None:
    one = guard(LINE)
    assert one.check(b"/predict", HOST, BEARER) is None
    for _ in range(2):
        refused = one.check(b"/predict", HOST, authorization)
        assert refused is not None
        assert (refused.status, refused.says[:30]) == (401, "The API key is not known here.")
        assert KEY not in refused.says


def test_a_missing_key_is_told_where_it_goes() -> None:
    refused = guard(LINE).check(b"/predict", HOST, None)
    assert refused is not None
    assert (refused.status, refused.says) == (
        401,
        "An API key is missing. Send the header 'Authorization: Bearer KEY', or 'X-API-Key: KEY'.",
    )


def test_without_keys_nobody_needs_one() -> None:
    one = guard()
    assert not one.wants_keys
    for authorization in (None, b"Bearer anything"):
        assert one.check(b"/predict", HOST, authorization) is None


def test_what_is_remembered_is_bounded() -> None:
    one = guard(LINE)
    for n in range(5000):
        one.check(b"/predict", f"localhost:{n}".encode(), b"bearer" + b" " * (n % 400 + 1) + KEY.encode())
        one.check(b"/predict", HOST, b"Bearer wrong%d" % n)
    assert len(one._hosts) <= 1024
    assert len(one._authorizations) <= 1024
    assert not any(b"wrong" in (value or b"") for value in one._authorizations)
    assert one.check(b"/predict", HOST, BEARER) is None


def test_every_key_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return one == other

    monkeypatch.setattr("sereno.serve.guard.hmac.compare_digest", compare)
    guard(LINE, OTHER_LINE).check(b"/predict", HOST, BEARER)
    assert compared == [line.split()[0].removeprefix("sha256:").encode() for line in (LINE, OTHER_LINE)]


# Paths


@pytest.mark.parametrize("path", sorted(FREE))
def test_free_paths_need_neither(path: bytes) -> None:
    one = guard(LINE)
    for host in HOSTILE:
        assert one.check(path, host, None) is None


TRICKS = [
    b"",
    b"/",
    b"//livez",
    b"/livez/",
    b"/livez/../predict",
    b"/livez/..%2fpredict",
    b"/livez%2f..%2fpredict",
    b"/livez%00",
    b"/livez;x",
    b"/livez?x",
    b"/livez#x",
    b"/LIVEZ",
    b"/%6civez",
    b"/./livez",
    b"/predict/../livez",
    b"http://localhost/livez",
    b"livez",
    b"*",
    b"/\xff",
    b"/ping/x",
    b"/predict%2f..",
    b"//predict",
    b"\\livez",
    b"/livez\\..\\predict",
    b"/livez ",
    b"/metrics",
    b"/docs",
    b"/openapi.json",
]


@pytest.mark.parametrize("path", TRICKS)
def test_no_other_spelling_is_free(path: bytes) -> None:
    assert status(guard(LINE).check(path, HOST, None)) == 401
    assert status(guard().check(path, b"evil.example", None)) == 400


@given(st.binary(max_size=40))
def test_no_path_at_all_is_free_but_those(path: bytes) -> None:
    assert (path in FREE) == (guard(LINE).check(path, HOST, None) is None)


# Pages of other sites


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1", "https://[::1]:8000"])
def test_own_pages_may_ask(origin: str) -> None:
    assert guard().check(b"/predict", HOST, None, origin.encode()) is None


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "", "file://", "http://localhost@evil.example"])
def test_pages_of_other_sites_may_not_unless_they_have_a_key(origin: str) -> None:
    refused = guard().check(b"/models/m/stream", HOST, None, origin.encode())
    assert refused is not None
    assert (refused.status, refused.says[:59]) == (403, "This server takes no requests from the pages of other sites")
    assert guard(LINE).check(b"/predict", HOST, BEARER, origin.encode()) is None
    assert status(guard(LINE).check(b"/predict", HOST, None, origin.encode())) == 401


def test_refusals_are_counted() -> None:
    one, closed = guard(), guard(LINE)
    one.check(b"/predict", b"evil.example", None)
    one.check(b"/predict", HOST, None, b"https://evil.example")
    closed.check(b"/predict", HOST, None)
    closed.check(b"/predict", HOST, b"Bearer wrong")
    closed.check(b"/livez", b"evil.example", None)
    assert one.refused == {"host": 1, "origin": 1, "key": 0}
    assert closed.refused == {"host": 0, "origin": 0, "key": 2}


# ASGI


def scope(path: str, headers: Sequence[tuple[bytes, bytes]], *, raw: bytes | None = None) -> dict[str, Any]:
    return {"type": "http", "path": path, "raw_path": raw, "headers": headers}


def test_a_scope_is_judged_by_its_headers() -> None:
    one = guard(LINE)
    host = (b"host", HOST)
    assert one.check_scope(scope("/predict", [host, (b"authorization", BEARER)])) is None
    assert one.check_scope(scope("/predict", [host, (b"x-api-key", KEY.encode())])) is None
    assert status(one.check_scope(scope("/predict", [host, (b"x-api-key", b"wrong")]))) == 401
    assert status(one.check_scope(scope("/predict", [host]))) == 401
    assert status(one.check_scope(scope("/predict", [(b"authorization", BEARER)]))) == 400
    assert status(guard().check_scope(scope("/predict", [host, (b"origin", b"https://evil.example")]))) == 403


@pytest.mark.parametrize("name", ["host", "authorization", "x-api-key", "origin"])
def test_a_header_that_comes_twice_is_refused(name: str) -> None:
    headers = [(b"host", HOST), (b"authorization", BEARER), (b"x-api-key", KEY.encode()), (b"origin", b"null")]
    double = next(h for h in headers if h[0] == name.encode())
    refused = guard(LINE).check_scope(scope("/predict", [*headers, double]))
    assert refused is not None
    assert (refused.status, refused.says) == (400, f"The header {name} came twice. Send it once.")


def test_a_scope_is_free_only_if_the_routes_see_what_was_sent() -> None:
    one = guard(LINE)
    assert one.check_scope(scope("/livez", [])) is None
    assert one.check_scope(scope("/livez", [], raw=b"/livez")) is None
    assert one.check_scope(scope("/livez", [], raw=b"/livez?x=1")) is None
    for path, raw in (
        ("/predict", b"/livez"),
        ("/livez", b"/%6civez"),
        ("/livez", b"/predict"),
        ("/livez/", b"/livez/"),
    ):
        assert status(one.check_scope(scope(path, [(b"host", HOST)], raw=raw))) == 401, (path, raw)


# Where keys come from


def test_a_key_is_random_and_its_line_is_its_hash() -> None:
    assert re.fullmatch(r"sereno_[A-Za-z0-9_-]{43}", KEY)
    assert f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()} tests" == LINE
    assert f"sha256:{hashlib.sha256(OTHER_KEY.encode()).hexdigest()}" == OTHER_LINE
    assert len({new_key().key for _ in range(100)}) == 100


def test_keys_of_file_secret_and_variable_count_together(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# who may ask\n\n{LINE}\n")
    (tmp_path / "api_keys").write_text(OTHER_LINE)
    both = Settings(home=tmp_path, secrets_folder=tmp_path, serve=ServeSettings(keys_file=file))
    hashes = [line.split()[0].removeprefix("sha256:").encode() for line in (LINE, OTHER_LINE)]
    assert read_keys(both, {}) == hashes
    assert read_keys(settings(keys_file=file), {"SERENO_SECRET_API_KEYS": f"{OTHER_LINE},{LINE}"}) == [
        *hashes,
        hashes[0],
    ]
    assert read_keys(settings(), {}) == []


def test_a_file_without_keys_does_not_open_the_server(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    with pytest.raises(
        SettingsError, match=r"The keys file .*keys \(setting serve.keys_file\) cannot be read: No such file"
    ):
        guard(keys_file=file)
    file.write_text("# none yet\n")
    with pytest.raises(
        SettingsError, match=r"The keys file .* has no key. `sereno key` prints a key and the line for it."
    ):
        guard(keys_file=file)
    file.write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="it is not UTF-8"):
        guard(keys_file=file)
    for text in ("", " ", "# none"):
        with pytest.raises(SettingsError, match="api_keys"):
            Guard(settings(), {"SERENO_SECRET_API_KEYS": text})


def test_a_key_in_place_of_its_hash_is_told_and_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    for wrong in (KEY, LINE.removeprefix("sha256:"), LINE.upper(), "sha256:abc", f"{LINE.split()[0]}x"):
        file.write_text(f"{OTHER_LINE}\n{wrong}\n")
        with pytest.raises(
            SettingsError, match=r"line 2 is no hash of a key. .*the key itself does not belong"
        ) as raised:
            guard(keys_file=file)
        assert wrong not in str(raised.value)


def test_a_file_that_everybody_may_write_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(LINE)
    file.chmod(0o666)
    with pytest.raises(
        SettingsError, match=r"can be changed by every user .*: any of them could add a key. `chmod o-w"
    ):
        guard(keys_file=file)
    file.chmod(0o640)
    assert guard(keys_file=file).wants_keys


# sereno key


def test_the_command_prints_a_key_and_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "marketing"]) == 0
    shown = capsys.readouterr().out
    (key,) = re.findall(r"sereno_[A-Za-z0-9_-]{43}", shown)
    assert f"sha256:{hashlib.sha256(key.encode()).hexdigest()} marketing" in shown.splitlines()[-1]


def test_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    assert main(["key", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["line"] == f"sha256:{hashlib.sha256(shown['key'].encode()).hexdigest()}"
    assert guard(shown["line"]).check(b"/predict", HOST, b"Bearer " + shown["key"].encode()) is None


def test_a_name_that_would_break_its_line_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "two\nlines"]) == 2
    assert "'two\\nlines' cannot be the name of a key" in capsys.readouterr().err
