"""One model's lookups in this worker: which snapshot answers, how old it is, and the bytes of an answer.

The answer to a key is what the last published run computed, ready as JSON since then, with a few words about its age that
are made anew once a second. A newer snapshot is noticed within `service.TICK_SECONDS`, opened and read in a thread, and
takes over between two requests: each answer is of one snapshot.

A store on another machine (`is_far`) is asked in a thread whatever it is asked, but for what stands under keys: see
`reads.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from sereno.exceptions import StorageError
from sereno.lookup.keys import Key, KeyCodec
from sereno.lookup.packed import last_look
from sereno.serve.reads import Reads
from sereno.serve.wire import JSON, RequestError

if TYPE_CHECKING:
    from sereno.interfaces import FarIndex, FarStore, LookupIndex, LookupStore, Seen
    from sereno.lookup.where import Where
    from sereno.serve.metrics import Metrics
    from sereno.serve.service import Service
    from sereno.settings import ModelSettings

LOG = logging.getLogger("sereno.lookup")

AT_ONCE = 64  # keys that are looked up before it is seen how large what they found is
RETRY_SECONDS = 5.0  # after an index that could not be opened
LOOK_FAR_SECONDS = 0.4  # between two looks at a store on another machine, which take a thread
RETRY_FAR_SECONDS = 0.5  # the same, where it costs but a question
START = b'{"prediction":'
BODY = b"\r\n\r\n" + START
NO_STORE = (b"cache-control", b"no-store")


_OTHER = object()  # than any mark


def _no_prediction(key: bytes) -> bytes | None:
    return None


class Standing(NamedTuple):
    """Which snapshot answers, and how old it is."""

    version: int
    data_date: str
    data_time: str
    age_seconds: int
    stale: bool


class Found(NamedTuple):
    """What there is about some keys."""

    predictions: list[bytes | None]  # as JSON; None: unknown, or to be asked live
    live: list[int]  # the positions of those that are to be asked live


class Lookups:
    """See the module. Made and used on the event loop."""

    def __init__(
        self,
        name: str,
        home: Path,
        store: LookupStore,
        settings: ModelSettings,
        keys: KeyCodec,
        *,
        metrics: Metrics,
        max_reply_bytes: int = 1 << 24,
        where: Where | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name, self.home, self.settings = name, home, settings
        self.where = where  # the store is, if not in the home's folder
        self._store, self._clock = store, clock
        self._max_reply_bytes = max_reply_bytes
        self.keys = keys  # what a key of the model is; a snapshot whose keys are others is not looked up in
        self._has_other_keys = False  # that is why there is no index
        self.counts = metrics.lookups(name)
        self.index: LookupIndex | None = None
        self.get: Callable[[bytes], bytes | None] = _no_prediction  # of the index, where that need not wait
        self.reads = Reads(self, max_reply_bytes) if store.is_far else None
        self.far: FarIndex | None = None  # the index, where reads are needed
        self.standing: Standing | None = None
        self.etag = b""
        self.headers: tuple[tuple[bytes, bytes], ...] = ()  # of an answer
        self.end = b""  # of the JSON of an answer, after the prediction
        self.is_plain = False  # whether the shortest path may answer
        self.found_as = "found"  # how a key that is there is counted
        self._defaults: Any = None  # for which the next three were made
        self._found = self._not_modified = b""  # how a reply begins
        self._around = 0  # bytes of a body beside the prediction
        self._mark: object = None
        self._opening: asyncio.Task[None] | None = None
        self._not_before = 0.0
        self._trouble = ""  # what was said last of an index that could not be opened
        self._behind_since: float | None = None
        self._looked = 0.0
        self._looking: asyncio.Task[None] | None = None  # at a store that is far
        self._seen: Seen | None = None  # what that said last; None: it did not answer
        self._had_index = False
        try:
            mark = self._look_far().mark if self.reads is not None else store.mark()
            self._opened(store.open(), mark)
        except Exception as error:  # noqa: BLE001 - the model answers without it, and it is tried again
            self._cannot_follow(error)

    # Which snapshot answers

    def look(self) -> None:
        """Follow what is served, and let the age grow. Called several times a second."""
        self._renew(self._clock())
        if self.reads is None:
            self._follow(self._store.mark())
        elif self._looking is None and (now := time.monotonic()) - self._looked >= LOOK_FAR_SECONDS:
            self._looked = now
            self._looking = asyncio.get_running_loop().create_task(self._look_aside())

    async def _look_aside(self) -> None:
        try:
            seen = await asyncio.to_thread(self._look_far)
        except Exception as error:  # noqa: BLE001 - what is served stays, as far as it can be read
            self._seen = None
            self._say(error)
        else:
            if seen.mark == self._mark and self._opening is None:
                self._is_well()
            self._follow(seen.mark)
        finally:
            self._looking = None

    def _look_far(self) -> Seen:
        index = self.index
        store = cast("FarStore", self._store)
        self._seen = seen = store.look(index.number if index is not None else None)
        return seen

    def _follow(self, mark: object) -> None:
        if self._opening is None and self._clock() >= self._not_before and mark != self._mark:
            self._opening = asyncio.get_running_loop().create_task(self._open(mark))

    async def _open(self, mark: object) -> None:
        try:
            index = await asyncio.to_thread(self._store.open)
        except Exception as error:  # noqa: BLE001 - what is served stays, whatever kept the next one from it
            self._cannot_follow(error)
        else:
            self._opened(index, mark)
        finally:
            self._opening = None

    def lost(self, index: FarIndex, error: StorageError) -> None:
        """An index on another machine could not be read. One that is gone there is not asked again."""
        if index is self.far and index.is_gone:
            LOG.error("%s", error)
            self._mark = _OTHER  # whatever is there now is opened
            self._serve(None)

    def _opened(self, index: LookupIndex | None, mark: object) -> None:
        # what was opened may be newer than what was noticed
        self._mark = index.mark if index is not None else mark
        self._is_well()
        if index is not None and index.keys != self.keys:
            self._has_other_keys = True
            LOG.error(
                "version %d of %s has the keys %s, and the model file says %s: there are no lookups until the next run.",
                index.number, self.name, _listed(index.keys), _listed(self.keys),
            )  # fmt: skip
            index.close()
            self._serve(None)
        elif index is not None:
            self._has_other_keys = False
            self._serve(index)
        elif self.reads is not None:
            self._serve(None)
        else:
            self._leave_what_was_rolled_back()  # else what it answers from was removed: it stays until there is another

    def _cannot_follow(self, error: Exception) -> None:
        self._not_before = self._clock() + (RETRY_SECONDS if self.reads is None else RETRY_FAR_SECONDS)
        self._say(error)
        self._leave_what_was_rolled_back()

    def _say(self, error: Exception) -> None:
        if str(error) != self._trouble:
            self._trouble = str(error)
            LOG.error(
                "the lookups of %s cannot follow their table: %s. It is tried again.",
                self.name,
                str(error).removesuffix("."),
            )

    def _is_well(self) -> None:
        if self._trouble:
            self._trouble = ""
            LOG.warning("the lookups of %s follow their table again.", self.name)  # seen by whoever saw the trouble

    def _leave_what_was_rolled_back(self) -> None:
        if self.index is None:
            return
        if self.reads is not None:
            was_rolled_back = self._seen is not None and self._seen.was_rolled_back
        else:
            was_rolled_back = self._store.was_rolled_back(self.index.number)
        if was_rolled_back:
            LOG.warning("lookups of %s have no answers, until the version that is in service can be opened.", self.name)
            self._serve(None)

    def _serve(self, index: LookupIndex | None) -> None:
        before, self.index = self.index, index
        self.standing, self.is_plain = None, False
        self._had_index = self._had_index or index is not None
        if self.reads is None:
            self.get = _no_prediction if index is None else index.get
        else:
            self.far = cast("FarIndex | None", index)
        if index is not None and before is not None and before.number != index.number:
            LOG.info("lookups of %s answer from version %d.", self.name, index.number)
        self._renew(self._clock())
        if (
            before is not None and self.reads is None
        ):  # nothing is asked of it any more, and to let go of gigabytes takes a moment
            asyncio.get_running_loop().run_in_executor(None, before.close)

    def _renew(self, now: float) -> None:
        index = self.index
        if index is None:
            return
        age = max(0, int(now - index.data_time.timestamp()))
        if self.standing is not None and age == self.standing.age_seconds:
            return
        most = self.settings.max_age_seconds
        stale = most is not None and age > most
        data_time = index.data_time.isoformat().replace("+00:00", "Z")
        self.standing = Standing(index.number, index.data_date.isoformat(), data_time, age, stale)
        self.end = b',"version":%d,"data_date":"%b","data_time":"%b","age_seconds":%d,"stale":%b,"origin":"lookup"}' % (
            index.number,
            self.standing.data_date.encode(),
            data_time.encode(),
            age,
            b"true" if stale else b"false",
        )
        self.etag = b'W/"%d-%b"' % (index.number, b"true" if stale else b"false")
        self.headers = ((b"etag", self.etag), (b"age", b"%d" % age), (b"cache-control", b"private, no-cache"))
        if self.settings.cache_seconds and not stale:
            # no longer than until it is stale; and without Age, which some caches count in and others do not
            kept = min(self.settings.cache_seconds, int(most) - age if most is not None else 1 << 31)
            self.headers = ((b"etag", self.etag), (b"cache-control", b"private, max-age=%d" % kept))
        self.found_as = "stale" if stale else "found"
        self.is_plain = not stale or self.settings.stale == "flag"
        self._defaults = None

    def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        if self._looking is not None:
            self._looking.cancel()
        if self.index is not None:
            self.index.close()
        if self.reads is not None:
            cast("FarStore", self._store).close()

    def watch(self, metrics: Metrics, slot: int) -> None:
        """Have it counted how far it is."""

        def standing(read: Callable[[Standing], float]) -> Callable[[], float | None]:
            return lambda: read(self.standing) if self.standing is not None else None

        metrics.watch("sereno_lookup_version", standing(lambda now: now.version), self.name, str(slot))
        metrics.watch("sereno_lookup_age_seconds", standing(lambda now: now.age_seconds), self.name)
        metrics.watch("sereno_lookup_stale", standing(lambda now: now.stale), self.name)
        metrics.watch("sereno_lookup_behind_seconds", self.behind_seconds, self.name)

    def behind_seconds(self) -> float:
        """For how long the table has had something that is not served here, as far as this process saw."""
        now = self._clock()
        if self.reads is not None:
            is_behind = self._seen is None or self._seen.is_behind or self._seen.mark != self._mark
        else:
            is_behind = self._store.is_behind() or self._mark != self._store.mark()
        if not is_behind:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = now
        return now - self._behind_since if self._behind_since is not None else 0.0

    # Answers

    def find(self, keys: Sequence[Key]) -> Found:
        """What is published under these keys, and which of them are to be asked live.

        Raises Awaited where a store on another machine is to be asked first; RequestError: 503 where nothing is there to
        look up in, or a prediction is stale and refused; 413 where they are larger together than a reply may be.
        """
        settings, index, counts = self.settings, self.index, self.counts
        if index is None:
            if settings.unknown != "live":
                raise self._nothing_there()
            return self._all_live(keys)
        encode = index.keys.encode
        try:
            predictions = self._many(index, [encode(key) for key in keys])
        except StorageError:  # the log tells more
            if settings.unknown == "live":
                return self._all_live(keys)
            counts["lost"] += len(keys)
            raise _lost() from None
        live = [i for i, one in enumerate(predictions) if one is None] if settings.unknown == "live" else []
        unknown = predictions.count(None) - len(live)
        found = len(keys) - predictions.count(None)
        assert self.standing is not None
        if found and self.standing.stale and settings.stale != "flag":
            if settings.stale == "refuse":
                counts["stale"] += found
                raise RequestError(
                    503,
                    f"What is published is {self.standing.age_seconds:,} seconds old, and may be at most "
                    f"{settings.max_age_seconds:,g}.",
                    retry_after=60,
                )
            live = [i for i, one in enumerate(predictions) if one is not None or settings.unknown == "live"]
            predictions, found = [None] * len(keys), 0
        counts[self.found_as] += found
        counts["unknown"] += unknown
        counts["live"] += len(live)
        return Found(predictions, live)

    def _many(self, index: LookupIndex, keys: Sequence[bytes]) -> list[bytes | None]:
        """Raises what `find` and `Reads.get_many` raise."""
        if self.reads is not None and self.far is not None:
            chunks: Iterable[list[bytes | None]] = (self.reads.get_many(self.far, keys),)
        else:
            chunks = (index.get_many(keys[start : start + AT_ONCE]) for start in range(0, len(keys), AT_ONCE))
        predictions: list[bytes | None] = []
        size = 0
        for some in chunks:
            predictions += some
            size += sum(len(one) for one in some if one is not None)
            if size > self._max_reply_bytes and len(keys) > 1:
                raise RequestError(
                    413, f"The answers are larger than {self._max_reply_bytes:,} bytes. Ask for fewer keys at once."
                )
        return predictions

    def _all_live(self, keys: Sequence[Key]) -> Found:
        self.counts["live"] += len(keys)
        return Found([None] * len(keys), list(range(len(keys))))

    def _nothing_there(self) -> RequestError:
        if self._has_other_keys:
            return RequestError(
                503,
                "What is published has other keys than this model has now. The next run mends that.",
                retry_after=60,
            )
        if self._is_store_lost:
            return _lost(self.where.address if self.where is not None and self.where.is_objects else "")
        if (self._had_index and self.reads is not None) or self._is_awaited:
            return RequestError(503, "What is published is being made ready for lookups.", retry_after=5)
        return RequestError(503, "Nothing is published yet that could be looked up.", retry_after=60)

    @property
    def why_not_ready(self) -> str:
        """Why a model that requires lookups is not ready; empty where it is."""
        if self.settings.lookup != "required":
            return ""
        if self.reads is not None and self._seen is None:
            return "the store of lookups does not answer"
        if self.index is not None:
            return ""
        if self._is_store_lost:
            return "the bucket of lookups cannot be read"
        if self._has_other_keys:
            return "what is published has other keys"
        if self._is_awaited:
            return "what is published is not indexed yet"
        return "nothing is published to look up"

    @property
    def awaits_run(self) -> bool:
        """Whether there is nothing in a store on another machine, before a run publishes."""
        return self.index is None and not self._is_awaited and not self._is_store_lost

    @property
    def _is_store_lost(self) -> bool:
        """Whether nobody knows what is published: it is on another machine, or in a bucket, which does not answer."""
        if self.where is not None and self.where.is_objects:
            look = last_look(self.home, self.name)
            return look is not None and not look.is_well
        return self.reads is not None and self._seen is None

    @property
    def _is_awaited(self) -> bool:
        """Whether an index is to come."""
        if self.reads is not None:
            return self._seen is not None and (self._seen.is_behind or self._seen.mark is not None)
        return self._store.is_behind() or self._store.mark() is not None

    def item(self, prediction: bytes) -> bytes:
        """The JSON of an answer that was found."""
        return b"%b%b%b" % (START, prediction, self.end)

    def live_item(self, prediction: bytes) -> bytes:
        """The JSON of an answer that was computed just now."""
        now = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return (
            b'%b%b,"version":null,"data_date":null,"data_time":"%b","age_seconds":0,"stale":false,"origin":"live"}'
            % (START, prediction, now.encode())
        )

    # The shortest path

    def plain(self, text: bytes, none_match: bytes | None, service: Service, defaults: Any) -> bytes | None:
        """The whole reply to a GET with this key, as it stands in the URL; None where it takes a longer look."""
        if not self.is_plain or (key := self.keys.plain(text)) is None or (prediction := self.get(key)) is None:
            return None
        return self.reply(prediction, none_match, service, defaults)

    def reply(self, prediction: bytes, none_match: bytes | None, service: Service, defaults: Any) -> bytes | None:
        """The whole reply to a GET that found this; None where it takes a longer look."""
        if self._defaults is not defaults:
            self._begin(service, defaults)
        if none_match is not None:
            if none_match != self.etag:
                return None
            self.counts[self.found_as] += 1
            return b"%b%x\r\n\r\n" % (self._not_modified, service.next_id())
        self.counts[self.found_as] += 1
        return b"%b%x\r\ncontent-length: %d%b%b%b" % (
            self._found,
            service.next_id(),
            self._around + len(prediction),
            BODY,
            prediction,
            self.end,
        )

    def _begin(self, service: Service, defaults: Any) -> None:
        """Make how the replies of this second begin, 200 and 304: to within the request's id, and uvicorn's headers."""
        more = b"".join(b"%b: %b\r\n" % header for header in self.headers) + b"x-request-id: " + service.id_start
        starts = (service.start(defaults, status, JSON).removesuffix(b"x-request-id: ") for status in (200, 304))
        self._found, self._not_modified = (start + more for start in starts)
        self._around = len(START) + len(self.end)
        self._defaults = defaults


def _lost(bucket: str = "") -> RequestError:
    if bucket:
        return RequestError(
            503,
            f"What is published cannot be fetched from {bucket}; the server's log says why. Try again later.",
            retry_after=5,
        )
    return RequestError(503, "The store of the published predictions does not answer. Try again later.", retry_after=1)


def _listed(keys: KeyCodec) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in zip(keys.names, keys.kinds, strict=True))


def matches(none_match: bytes, etag: bytes) -> bool:
    """Whether an If-None-Match names this tag (RFC 9110, 13.1.2: weak comparison)."""
    if none_match.strip() == b"*":
        return True
    return etag.removeprefix(b"W/") in [one.strip().removeprefix(b"W/") for one in none_match.split(b",")]
