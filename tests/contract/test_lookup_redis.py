"""Lookups in a server, beyond what every store promises: who may do what, what goes wrong there, and how it is told."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sereno.adapters.lookup_redis import filling, home_id, lock
from sereno.adapters.lookup_redis import store as redis_store
from sereno.adapters.lookup_redis.address import Address, cause, told
from sereno.adapters.lookup_redis.home_id import home_id_path
from sereno.adapters.lookup_redis.index import RedisIndex
from sereno.adapters.lookup_redis.link import Link
from sereno.adapters.lookup_redis.store import LookupRedis
from sereno.exceptions import BusyError, ExportError, IndexingError, MissingExtraError, SettingsError, StorageError
from sereno.home import Home
from sereno.lookup.entries import Entries
from sereno.lookup.keys import KeyCodec
from sereno.lookup.where import Where
from sereno.serve.lookup import Lookups
from sereno.serve.metrics import Metrics
from sereno.serve.processes import watching_far
from sereno.serve.wire import Awaited, RequestError
from sereno.settings import ModelSettings, Settings
from sereno.snapshots import State
from tests.contract.lookup_stores import ALL, MODEL, Table, answer, scores
from tests.valkey import Valkey, valkey

KEYS = KeyCodec(("id",), ("int",))
TWO = KEYS.encode((2,))


@pytest.fixture(scope="module")
def running() -> Iterator[Valkey]:
    with valkey() as one:
        yield one


@pytest.fixture
def server(running: Valkey) -> Valkey:
    running.client.flushall()
    return running


@pytest.fixture
def own() -> Iterator[Valkey]:
    """One that the test may kill."""
    with valkey() as one:
        yield one


def made(home: Path, server: Valkey, address: str = "", prefix: str = "test") -> LookupRedis:
    return LookupRedis(home, MODEL, address=address or server.url, prefix=prefix)


def filled(home: Path, server: Valkey) -> tuple[Table, LookupRedis]:
    table, store = Table(home), made(home, server)
    table.publish()
    store.follow(table.state, ALL)
    return table, store


def opened(store: LookupRedis) -> RedisIndex:
    index = store.open()
    assert index is not None
    return index


async def asked(index: RedisIndex, *keys: bytes) -> Any:
    """What it says to a question on the event loop."""
    told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    index.ask(keys, told.set_result)
    return await asyncio.wait_for(told, 30)


# Addresses


@pytest.mark.parametrize(
    ("text", "shown", "database"),
    [
        ("redis://h", "redis://h:6379", 0),
        ("redis://u:p%40ss@h:7000/3", "redis://u@h:7000/3", 3),
        ("rediss://:p@h?ssl_ca_certs=/ca.pem", "rediss://h:6379", 0),
        ("unix:///run/v.sock?db=2", "unix:///run/v.sock", 2),
        ("redis://[::1]/1", "redis://[::1]:6379/1", 1),
    ],
)
def test_addresses(text: str, shown: str, database: int) -> None:
    address = Address.parse(text)
    assert (address.shown, address.database) == (shown, database)
    assert "p%40ss" not in repr(address)
    assert "p@ss" not in repr(address)


@pytest.mark.parametrize(
    "text",
    [
        *("redis://:s3cret@h:port", "redis://:s3cret@h/x", "redis://:s3cret@h?x=1", "unix://", "unix://h/v.sock"),
        *(
            "redis://h/²",
            "redis://a..b",
            "redis://h:0",
            "redis://h:99999",
            "redis://h h",
            "redis://h\n",
            "redis://\udcff",
        ),
        *(
            "redis://u:4711#s3cret@h:6379/0",
            "unix://u:p/s3cret@/run/v.sock",
            "redis://u:4711/s3cret@h",
            "rediss://h?ssl_ca_certs=",
        ),
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(SettingsError, match="looks like redis://") as told:
        Address.parse(text)
    assert "s3cret" not in str(told.value)


def test_the_extra_is_missing(tmp_path: Path) -> None:
    """Said early, and what does without it does not import it."""
    code = (
        "import sys; sys.modules['redis'] = sys.modules['hiredis'] = None\n"
        "import sereno.lookup.builder, sereno.serve.service\n"
        "from pathlib import Path; from sereno.lookup.where import Where, open_store\n"
        "open_store(None, Path('/'), 'm')\n"
        "try: open_store(Where(address='redis://h', prefix='p', versions=1), Path('/'), 'm')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.startswith(MissingExtraError.__name__), done.stdout + done.stderr
    assert "pip install 'sereno[redis]'" in done.stdout


# Whose they are


def test_a_host_without_the_table_changes_nothing(tmp_path: Path, server: Valkey) -> None:
    table, store = filled(tmp_path / "a", server)
    far = made(tmp_path / "b", server)
    assert (far.mark(), far.is_behind(), far.work()) == (store.mark(), False, None)
    assert opened(far).get(TWO) == answer(1)
    assert not far.follow(Table(tmp_path / "b").state, ALL)
    far.remove()
    assert not home_id_path(tmp_path / "b").exists()
    assert opened(store).get(TWO) == answer(1)
    table.publish()
    assert not far.is_behind()


def test_another_home_with_the_same_prefix(tmp_path: Path, server: Valkey) -> None:
    _, store = filled(tmp_path / "a", server)
    other = Table(tmp_path / "b")
    other.publish(scores(9))
    second = made(tmp_path / "b", server)
    for refused in (second.open, second.mark, lambda: second.follow(other.state, ALL)):
        with pytest.raises(IndexingError, match="another home"):
            refused()
    assert opened(store).get(TWO) == answer(1)
    apart = made(tmp_path / "b", server, prefix="other")
    apart.follow(other.state, ALL)
    assert opened(apart).get(TWO) == answer(9)


def test_a_home_that_moved(tmp_path: Path, server: Valkey) -> None:
    filled(tmp_path / "a", server)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    moved = made(tmp_path / "b", server)
    assert not moved.is_behind()
    assert opened(moved).get(TWO) == answer(1)


def test_a_user_who_may_only_read(tmp_path: Path, server: Valkey) -> None:
    table, _ = filled(tmp_path, server)
    client = server.client
    rights = "+get +hget +hlen +hmget +exists +select +client|setname"
    client.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~test:*", *rights.split())
    address = server.url.replace("//", "//reader:pw@")
    reader = made(tmp_path, server, address)

    async def story() -> None:
        assert await asked(opened(reader), TWO) == [answer(1)]
        reader.close()

    asyncio.run(story())
    assert (reader.work(), reader.is_followed(), reader.look(1).is_behind) == (None, False, False)
    table.publish()
    with pytest.raises(StorageError, match="has no permissions to run the 'set' command"):
        reader.follow(table.state, ALL)
    client.execute_command("ACL", "DELUSER", "reader")


# What goes wrong


@pytest.mark.parametrize("garbled", [b'{"format":1}', b'{"home":"\xff\xfe"}'])
def test_a_damaged_catalogue(garbled: bytes, tmp_path: Path, server: Valkey) -> None:
    table, store = filled(tmp_path, server)
    server.client.set("test:{scores}:catalogue", garbled)
    for failing in (store.open, store.mark, lambda: store.follow(table.state, ALL)):
        with pytest.raises(StorageError, match="is not what Sereno wrote"):
            failing()


def test_a_field_is_missing(tmp_path: Path, server: Valkey) -> None:
    """Somebody has removed one: it is not opened, the one before it answers, and it is built again."""
    table, store = filled(tmp_path, server)
    table.publish()
    store.follow(table.state, ALL)
    (name,) = server.client.scan_iter("test:{scores}:000002-*")
    server.client.hdel(name, TWO)
    assert store.is_behind()
    assert opened(store).number == 1
    assert store.follow(table.state, ALL)
    assert (opened(store).number, opened(store).get(TWO)) == (2, answer(2))


def test_an_index_that_is_gone_knows_no_unknown_keys(tmp_path: Path, server: Valkey) -> None:
    _, store = filled(tmp_path, server)
    index = opened(store)
    server.client.flushall()
    with pytest.raises(StorageError, match="is no longer there"):
        index.get(KEYS.encode((99,)))
    assert index.is_gone
    assert store.open() is None


def test_one_fills_and_the_others_wait(tmp_path: Path, server: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    table, store = filled(tmp_path, server)
    table.publish()
    server.client.set("test:{scores}:lock", b"another", px=60_000)
    assert store.is_followed()
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    with pytest.raises(BusyError, match="perhaps on another host"):
        store.follow(table.state, ALL)


def test_who_stood_still_for_too_long_changes_nothing(
    tmp_path: Path, server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock has expired, and is another's now."""
    table, store = filled(tmp_path, server)
    table.publish()
    really = redis_store.fill

    def late(*arguments: Any) -> Any:
        keys = really(*arguments)
        server.client.set("test:{scores}:lock", b"another")
        return keys

    monkeypatch.setattr(redis_store, "fill", late)
    with pytest.raises(BusyError, match="taken over"):
        store.follow(table.state, ALL)
    assert server.client.get("test:{scores}:lock") == b"another"
    assert opened(store).number == 1


def test_a_home_whose_disk_is_full(tmp_path: Path, server: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    table = Table(tmp_path)
    table.publish()
    monkeypatch.setattr(home_id, "write_atomically", full)
    with pytest.raises(
        StorageError, match="could not be made ready .*: the disk is full .*home-id.* The publication stands"
    ):
        made(tmp_path, server).follow(table.state, ALL)
    assert not made(tmp_path, server).is_followed()


def test_what_is_being_filled_expires_from_the_first(
    tmp_path: Path, server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may die before it has written the first rows whole."""
    table, really, seen = Table(tmp_path), Entries.chunks, list[int]()
    table.publish()

    def chunks(self: Entries, scratch: Path) -> Iterator[Any]:
        (name,) = server.client.keys("test:{scores}:building:*")
        seen.append(server.client.ttl(name))
        return really(self, scratch)

    monkeypatch.setattr(Entries, "chunks", chunks)
    store = made(tmp_path, server)
    assert store.follow(table.state, ALL)
    assert 0 < seen[0] <= filling.BUILDING_SECONDS
    assert opened(store).get(TWO) == answer(1)


def test_who_wakes_while_another_fills_changes_nothing(
    tmp_path: Path, server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stood still before it wrote its rows: of another version, with the same keys, and as many."""
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.0)
    table, store = filled(tmp_path, server)
    other = made(tmp_path, server)
    stands_still, wakes, really = threading.Event(), threading.Event(), Entries.chunks
    caught: list[BusyError] = []

    def chunks(self: Entries, scratch: Path) -> Iterator[Any]:
        for chunk in really(self, scratch):
            stands_still.set()
            assert wakes.wait(20)
            yield chunk

    def late(state: State) -> None:
        try:
            store.follow(state, ALL)
        except BusyError as error:
            caught.append(error)

    def meanwhile(place: str) -> None:
        if place == "lookup_build" and threading.current_thread() is not thread:
            wakes.set()
            thread.join(20)

    table.publish()
    thread = threading.Thread(target=late, args=(table.state,))
    with monkeypatch.context() as patch:
        patch.setattr(Entries, "chunks", chunks)
        thread.start()
        assert stands_still.wait(20)
    table.publish()
    server.client.delete("test:{scores}:lock")  # it has expired
    monkeypatch.setattr(filling, "failpoint", meanwhile)
    assert other.follow(table.state, ALL)
    assert "taken over" in str(caught[0])
    index = opened(other)
    assert (index.number, index.get(TWO)) == (3, answer(3))


def test_a_lock_that_is_renewed(tmp_path: Path, server: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lasts longer than its time, as the one who has it gives signs of life."""
    table, store = filled(tmp_path, server)
    table.publish(scores(2, range(200_000)))
    places: list[str] = []

    def slowly(place: str) -> None:
        places.append(place)
        time.sleep(0.4 if place == "lookup_build" else 0)

    monkeypatch.setattr(filling, "failpoint", slowly)
    monkeypatch.setattr(lock, "LOCK_SECONDS", 1.0)
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.0)
    assert store.follow(table.state, ALL)
    assert places.count("lookup_build") >= 3
    assert opened(store).rows == 200_000


def test_errors_in_our_words() -> None:
    said = {
        "OOM command not allowed when used memory > 'maxmemory'.": "its memory is full (maxmemory)",
        "READONLY You can't write against a read only replica.": "it is a replica, which takes no writes",
        "LOADING Valkey is loading the dataset in memory": "it is starting, and still loads its data",
        "MOVED 1 127.0.0.1:7": "it is a cluster, which shares keys out; a single server is needed, or one with replicas",
        "something else.": "something else",
    }
    assert {text: cause(text) for text in said} == said
    assert cause(TimeoutError()) == "it did not answer in time"


def test_what_was_rolled_back_does_not_come_back_with_a_dump(tmp_path: Path, own: Valkey) -> None:
    """Who saw that it was rolled back does not answer from it again; who did not says which version it is."""
    table, store = filled(tmp_path, own)
    table.publish()
    store.follow(table.state, ALL)
    own.client.save()
    table.store.rollback()
    store.follow(table.state, frozenset())
    assert opened(store).number == 1
    own.restart()
    assert opened(store).number == 1
    assert opened(made(tmp_path, own)).number == 2
    assert store.is_behind()
    store.follow(table.state, ALL)
    assert opened(made(tmp_path, own)).number == 1


def test_a_new_table_is_no_older_state(tmp_path: Path, server: Valkey) -> None:
    table, store = filled(tmp_path, server)
    for _ in range(3):
        table.publish()
        store.follow(table.state, ALL)
    assert opened(store).number == 4
    shutil.rmtree(table.store.folder)
    for number in range(1, 7):
        table.publish()
        store.follow(table.state, ALL)
        assert opened(store).number == number


@pytest.mark.parametrize("how", ["unix", "password", "user"])
def test_ways_in(how: str, tmp_path: Path, own: Valkey) -> None:
    address = f"unix://{own.socket}?db=3"
    if how == "user":  # of the network they come from, say, so that none needs a password
        own.client.execute_command("ACL", "SETUSER", "app", "on", "nopass", "~*", "+@all")
        address = own.url.replace("//", "//app@")
    if how != "unix":
        own.client.config_set("requirepass", "p@ss")
    if how == "password":
        address = own.url.replace("//", "//:p%40ss@")
    table, store = Table(tmp_path), made(tmp_path, own, address)
    table.publish()
    store.follow(table.state, ALL)

    async def story() -> None:
        assert await asked(opened(store), TWO) == [answer(1)]
        store.close()

    asyncio.run(story())


# On the event loop


def test_answers_come_in_the_order_of_questions(tmp_path: Path, server: Valkey) -> None:
    table, store = Table(tmp_path), made(tmp_path, server)
    table.publish(scores(1, range(3_000)))
    store.follow(table.state, ALL)

    async def story() -> None:
        index = opened(store)
        told: list[int] = []
        for number in range(300):
            count = number % 7 + 1
            index.ask([KEYS.encode((n,)) for n in range(count)], lambda found, n=number: told.append((n, len(found))))  # type: ignore[misc]
        await asked(index)
        assert told == [(n, n % 7 + 1) for n in range(300)]  # type: ignore[comparison-overlap]
        store.close()

    asyncio.run(story())


def test_a_late_answer_is_nobodys(tmp_path: Path, own: Valkey) -> None:
    """What was asked is told within a second that there is no answer; what comes after all goes nowhere."""
    _, store = filled(tmp_path, own)

    async def story() -> None:
        index = opened(store)
        assert await asked(index, TWO) == [answer(1)]
        with own.paused():
            began = time.monotonic()
            late = await asyncio.gather(*(asked(index, TWO) for _ in range(3)))
            assert all("did not answer within 0.5 seconds" in str(one) for one in late)
            assert time.monotonic() - began < 20
            assert isinstance(await asked(index, TWO), StorageError)  # at once
        while isinstance(await asked(index, KEYS.encode((99,))), StorageError):
            await asyncio.sleep(0.02)
        assert await asked(index, KEYS.encode((99,)), TWO) == [None, answer(1)]
        assert not index.is_gone
        store.close()

    asyncio.run(story())


def test_a_loop_that_was_held_up_loses_nothing(tmp_path: Path, server: Valkey) -> None:
    """A predict of a second on the loop is no fault of the server."""
    _, store = filled(tmp_path, server)

    async def story() -> None:
        index = opened(store)
        await asked(index, TWO)
        told = asyncio.ensure_future(asked(index, TWO))
        await asyncio.sleep(0)
        time.sleep(0.9)
        assert await told == [answer(1)]
        store.close()

    asyncio.run(story())


def test_a_server_that_goes_and_comes_back(tmp_path: Path, own: Valkey) -> None:
    table, store = filled(tmp_path, own)

    async def story() -> None:
        index = opened(store)
        assert await asked(index, TWO) == [answer(1)]
        own.kill()
        assert isinstance(await asked(index, TWO), StorageError)
        own.start()
        while "no longer there" not in str(await asked(index, TWO)):
            await asyncio.sleep(0.02)
        assert index.is_gone
        store.follow(table.state, ALL)
        assert await asked(opened(store), TWO) == [answer(1)]
        store.close()
        assert isinstance(await asked(index, TWO), StorageError | list)

    asyncio.run(story())


def test_a_connection_that_was_idle(tmp_path: Path, server: Valkey) -> None:
    """Servers close what is quiet: nobody hears of it, neither at once nor later."""
    _, store = filled(tmp_path, server)

    async def story() -> None:
        index = opened(store)
        for wait in (0.0, 0.5):
            assert await asked(index, TWO) == [answer(1)]
            server.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await until(lambda: store.link._transport is None)
            await asyncio.sleep(wait)
        assert await asked(index, TWO) == [answer(1)]
        store.close()

    asyncio.run(story())


def test_it_connects_again_without_being_asked(tmp_path: Path, own: Valkey) -> None:
    _, store = filled(tmp_path, own)

    async def story() -> None:
        index = opened(store)
        assert await asked(index, TWO) == [answer(1)]
        own.kill()
        assert isinstance(await asked(index, TWO), StorageError)
        await until(lambda: bool(store.link._trouble))
        own.start()
        await until(lambda: store.link._transport is not None)
        assert "no longer there" in str(await asked(index, TWO))
        store.close()

    asyncio.run(story())


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not happened():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_what_is_not_redis(says: bytes, tmp_path: Path) -> None:
    """It answers otherwise, or not at all."""

    async def story() -> None:
        async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(says)
            await reader.read()
            writer.close()

        listening = await asyncio.start_server(other, "127.0.0.1", 0)
        link = Link(Address.parse(f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}"))
        told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        link.ask(("GET", "x"), told.set_result)
        error = await asyncio.wait_for(told, 30)
        assert isinstance(error, StorageError)
        assert ("does not speak Redis" if says else "not answer within 0.5 seconds") in str(error)
        if says:
            with pytest.raises(StorageError, match="does not speak Redis"):
                await asyncio.to_thread(LookupRedis(tmp_path, MODEL, address=link.address.shown, prefix="x").open)
        link.close()
        listening.close()
        await asyncio.sleep(0.05)

    asyncio.run(story())


def test_one_connection_for_all_models(tmp_path: Path, server: Valkey) -> None:
    async def story() -> None:
        one, two = (Link.shared(Address.parse(server.url)) for _ in range(2))
        assert one is two
        one.release()
        told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        two.ask(("PING",), told.set_result)
        assert await told == b"PONG"
        two.release()

    asyncio.run(story())


def lookups(store: LookupRedis, home: Path, **settings: Any) -> Lookups:
    return Lookups("m", home, store, ModelSettings(**settings), KEYS, metrics=Metrics())


async def found(made: Lookups, *keys: int) -> Any:
    """What a request finds, read as often as it takes; or the status of its error."""
    told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def read() -> None:
        try:
            told.set_result(made.find([(key,) for key in keys]).predictions)
        except Awaited as awaited:
            awaited.begin(read)
        except RequestError as error:
            told.set_result(error.status)

    read()
    return await asyncio.wait_for(told, 30)


def test_a_store_that_is_lost(tmp_path: Path, own: Valkey) -> None:
    """What is asked meanwhile is told so, or predicted live where that was wanted."""
    _, store = filled(tmp_path, own)

    async def story() -> None:
        plain, live = lookups(store, tmp_path), lookups(store, tmp_path, unknown="live")
        assert await found(live, 1, 99) == [answer(1), None]
        own.kill()
        assert await found(plain, 1, 99) == 503
        assert await found(live, 1, 99) == [None, None]
        assert live.counts["live"] == 3
        plain.close()
        live.close()

    asyncio.run(story())


def test_what_the_log_says_of_several_outages(
    tmp_path: Path, server: Valkey, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is told once, and its end."""
    _, store = filled(tmp_path, server)
    caplog.set_level("INFO", "sereno.lookup")

    async def story() -> None:
        made = lookups(store, tmp_path)
        for _ in range(2):
            with monkeypatch.context() as patch:
                patch.setattr(store, "_reading", Address.parse("redis://127.0.0.1:1").client(0.5))
                await made._look_aside()
                await made._look_aside()
            await made._look_aside()
        made.close()

    caplog.clear()
    asyncio.run(story())
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 4, told
    assert told[0] == told[2]
    assert told[0].count("tried again") == 1
    assert told[1] == told[3] == "the lookups of m follow their table again."


def test_who_watches_goes_on_whatever_happens(tmp_path: Path, server: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    really, happened = LookupRedis.work, iter([ValueError("unforeseen"), UnicodeError("unforeseen")])

    def work(self: LookupRedis) -> Any:
        for error in happened:
            raise error
        return really(self)

    table = Table(tmp_path)
    table.publish()
    monkeypatch.setattr(LookupRedis, "work", work)
    monkeypatch.setattr(watching_far, "LOOK_SECONDS", 0.01)
    watch = watching_far.FarWatch(Where(address=server.url, prefix="test", versions=2), tmp_path, MODEL)
    deadline = time.monotonic() + 20
    while watch.work is None and time.monotonic() < deadline:
        time.sleep(0.01)
    watch.stop()
    assert watch.work is not None


def test_exports_follow_whatever_keeps_lookups_from_it(
    tmp_path: Path, server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table(tmp_path)
    table.publish()
    home = Home(Settings(home=tmp_path, lookup_store=server.url), MODEL)

    def refuse(*_: Any) -> None:
        raise UnicodeError("label too long")

    followed: list[Any] = []
    export = SimpleNamespace(name="other", follow=lambda *state: followed.append(state))
    monkeypatch.setattr(LookupRedis, "follow", refuse)
    monkeypatch.setattr(home, "exports", lambda: [export])
    with pytest.raises(ExportError, match="lookup: UnicodeError: label too long") as told:
        home.follow()
    assert "1 of its exports" in str(told.value)
    assert followed


def test_what_takes_over_between_two_readings(tmp_path: Path, server: Valkey) -> None:
    """All that a request is told is of one version, whichever."""
    table, store = filled(tmp_path, server)

    async def story() -> None:
        made = lookups(store, tmp_path)
        assert await found(made, 1, 2, 99) == [answer(1), answer(1), None]
        table.publish()
        store.follow(table.state, ALL)
        asking = asyncio.ensure_future(found(made, *range(300)))
        await asyncio.sleep(0)
        made._opened(store.open(), None)
        assert made.standing is not None
        assert made.standing.version == 2
        assert [one for one in await asking if one is not None] == [answer(2)] * 3
        made.close()

    asyncio.run(story())


def test_many_that_wait(tmp_path: Path, server: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    from sereno.serve import reads

    _, store = filled(tmp_path, server)
    monkeypatch.setattr(reads, "MOST_WAITING", 2)

    async def story() -> None:
        made = lookups(store, tmp_path)
        several = await asyncio.gather(*(found(made, 1, 2) for _ in range(3)))
        assert several == [[answer(1)] * 2, 503, 503]
        assert await found(made, 1, 2, 3) == [answer(1)] * 3
        made.close()

    asyncio.run(story())


def test_tls(tmp_path: Path, server: Valkey) -> None:
    """Through something that speaks TLS in front of it: its certificate is looked at."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            *[
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=localhost",
                "-addext",
            ],
            *("subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    table = Table(tmp_path / "home")
    table.publish()
    with tls_in_front(server.port, certificate, key) as port:
        good = made(tmp_path / "home", server, f"rediss://localhost:{port}?ssl_ca_certs={certificate}")
        good.follow(table.state, ALL)

        async def story() -> None:
            assert await asked(opened(good), TWO) == [answer(1)]
            good.close()

        asyncio.run(story())
        with pytest.raises(StorageError, match="(?i)certificate"):
            made(tmp_path / "home", server, f"rediss://localhost:{port}").open()
        lost = made(tmp_path / "home", server, f"rediss://localhost:{port}?ssl_ca_certs={tmp_path}/gone.pem")
        plain = made(tmp_path / "home", server, f"redis://localhost:{port}")
        for refused, words in ((lost, "gone.pem: No such file"), (plain, "to who does not speak TLS")):
            with pytest.raises(StorageError, match=words):
                refused.open()
            assert words in asyncio.run(refused_by_link(refused.address))


async def refused_by_link(address: Address) -> str:
    link = Link(address)
    told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    link.ask(("GET", "x"), told.set_result)
    error = await asyncio.wait_for(told, 30)
    link.close()
    assert isinstance(error, StorageError)
    return str(error)


def test_tls_where_nobody_speaks_it(tmp_path: Path, server: Valkey) -> None:
    """Neither who answers nor who writes waits for long."""
    address = Address.parse(server.url.replace("redis://", "rediss://"))
    with pytest.raises(StorageError, match="or not in TLS"), told("x"):
        address.client(3600).ping()
    assert "or not in TLS" in asyncio.run(refused_by_link(address))


def test_what_is_trusted_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes long; and anew once a certificate was refused."""
    made: list[None] = []
    monkeypatch.setattr(Address, "tls", lambda self: made.append(None) or ssl.create_default_context())

    async def story() -> None:
        link = Link(Address.parse("rediss://127.0.0.1:1"))
        for _ in range(3):
            await link._connected()
        assert len(made) == 1
        link.close()

    asyncio.run(story())


IN_FRONT = """
import asyncio, ssl, sys

async def relay(reader, writer):
    there = await asyncio.open_connection("127.0.0.1", int(sys.argv[1]))

    async def copy(one, other):
        while data := await one.read(65536):
            other.write(data)
            await other.drain()
        other.close()

    await asyncio.gather(copy(reader, there[1]), copy(there[0], writer), return_exceptions=True)

async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2], sys.argv[3])
    server = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


@contextlib.contextmanager
def tls_in_front(port: int, certificate: Path, key: Path) -> Iterator[int]:
    """Speaks TLS, and hands on what it hears to a server that does not."""
    command = [sys.executable, "-c", IN_FRONT, str(port), str(certificate), str(key)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()
