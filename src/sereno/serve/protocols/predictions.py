"""Lookups on our own routes: the prediction that the last published run computed for a key, and how old it is.

    GET  /models/{m}/predictions/{key}      one; the values of a composite key are segments, in declared order
    POST /models/{m}/predictions            {"keys": [1, 2]}, composite {"keys": [["a", 1], …]}: a list, null where unknown
    WebSocket /models/{m}/predictions       a message is one key (see stream.py)

Where the settings say so, what is stale or unknown is asked live: `fetch` gets the features of the key, then `predict`.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote_to_bytes

from sereno.lookup.found import UNKNOWN_KEY
from sereno.lookup.keys import Key
from sereno.rows import NotJsonError, json_value
from sereno.serve.lookup import NO_STORE, Lookups, matches
from sereno.serve.protocols import native
from sereno.serve.wire import JSON, Answer, Asked, Exchange, Mistake, Reply, Request, RequestError, Route, Row
from sereno.values import Refused

if TYPE_CHECKING:
    from sereno.serve.live import Live
    from sereno.serve.service import Service


def routes(service: Service) -> list[Route]:
    """Those of every model that is looked up."""
    found = []
    for live in service.lives.values():
        if live.lookup is not None:
            prefixes = [f"/models/{live.name}", ""] if live is service.only else [f"/models/{live.name}"]
            for prefix in prefixes:
                found += [
                    Route("GET", f"{prefix}/predictions/{{key:rest}}", exchange=ONE, live=live),
                    Route("POST", f"{prefix}/predictions", exchange=MANY, live=live),
                ]
    return found


def lookups_of(live: Live) -> Lookups:
    assert live.lookup is not None
    return live.lookup


def read_one(live: Live, request: Request) -> Asked:
    """Raises RequestError: 422 no key, 404 unknown, 503 nothing to look up in."""
    lookups = lookups_of(live)
    try:
        key = lookups.keys.of_texts(_segments(live, request.path))
    except Refused as refused:
        raise no_key([refused]) from None
    asked = ask(live, key)
    none_match = request.header(b"if-none-match")
    if asked.reply is not None and none_match is not None and matches(none_match, lookups.etag):
        asked.reply = Reply(304, b"", headers=asked.reply.headers)
    return asked


def ask(live: Live, key: Key) -> Asked:
    """What is to be done about one key. Raises RequestError: 404 unknown, 503."""
    lookups = lookups_of(live)
    (prediction,), asks_live = lookups.find([key])
    if prediction is not None:
        return Asked([], reply=Reply(200, lookups.item(prediction), headers=lookups.headers))
    row = live.row_of_key(key) if asks_live else None
    if row is None:
        raise unknown_key()
    return Asked([row], one_by_one=True)


def write_one(live: Live, asked: Asked, answers: Sequence[Any]) -> Reply:
    (item,) = _live_items(live, answers)
    if item is None:
        raise unknown_key()
    return Reply(200, item, headers=(NO_STORE,))


def read_many(live: Live, request: Request) -> Asked:
    """Raises RequestError: 400 no JSON, 413 too many keys, 422 no keys, 503 nothing to look up in."""
    lookups = lookups_of(live)
    keys = _keys(live, request.body)
    predictions, asks_live = lookups.find(keys)
    items = [None if prediction is None else lookups.item(prediction) for prediction in predictions]
    rows = {i: row for i in asks_live if (row := live.row_of_key(keys[i])) is not None}
    if not rows:
        return Asked([], reply=_list(items))
    return Asked(list(rows.values()), context=(items, list(rows)), one_by_one=True)


def write_many(live: Live, asked: Asked, answers: Sequence[Any]) -> Reply:
    items, positions = asked.context
    for position, item in zip(positions, _live_items(live, answers), strict=True):
        items[position] = item
    return _list(items)


def read_message(live: Live, request: Request) -> Asked:
    """One key as JSON, from a WebSocket. Raises RequestError: 400 no JSON, and what `read_one` raises."""
    live.check_json(request.body)
    try:
        key = lookups_of(live).keys.of_value(json_value(request.body))
    except NotJsonError:
        raise RequestError(400, "The message is not JSON.") from None
    except Refused as refused:
        raise no_key([refused]) from None
    return ask(live, key)


class Looked(NamedTuple):
    """What there is about one key: its answer, or the row that is to be asked live; neither: it is unknown."""

    answer: Answer | None = None
    row: Row | None = None


def look_up(live: Live, keys: Sequence[Key]) -> list[Looked]:
    """For protocols whose replies are made of answers. Raises RequestError: 503 nothing to look up in."""
    predictions, asks_live = lookups_of(live).find(keys)
    looked = [Looked(answer=live.answer_of(one)) if one is not None else Looked() for one in predictions]
    for i in asks_live:
        looked[i] = Looked(row=live.row_of_key(keys[i]))
    return looked


def ask_by_keys(live: Live, keys: Sequence[Key], context: Any = None) -> Asked:
    """The answers of these keys, all or none of them. Raises RequestError: 404 one is unknown, 503."""
    looked = look_up(live, keys)
    unknown = [i for i, one in enumerate(looked) if one.answer is None and one.row is None]
    if unknown and len(keys) == 1:
        raise unknown_key()
    if unknown:
        shown = ", ".join(map(str, unknown[:10])) + (", …" if len(unknown) > 10 else "")
        raise RequestError(404, f"Rows {shown}: there is no prediction under their keys.")
    known = {i: one.answer for i, one in enumerate(looked) if one.answer is not None}
    rows = [one.row for one in looked if one.row is not None]
    return Asked(rows, context, known=known, headers=headers_of(live, known, rows))


def headers_of(live: Live, known: Sized, rows: Sized) -> Sequence[tuple[bytes, bytes]]:
    """How old answers are, of which some are known, and the model is asked for some."""
    lookups = lookups_of(live)
    if not rows:
        return lookups.headers
    if not known or lookups.standing is None:
        return (NO_STORE,)
    return ((b"age", b"%d" % lookups.standing.age_seconds), NO_STORE)  # of the oldest


def origin_of(live: Live, asked: Asked) -> dict[str, str | int | bool]:
    """Where the answers to keys come from, as flat values."""
    standing = lookups_of(live).standing
    if standing is None or (asked.rows and not asked.known):
        return {"age_seconds": 0, "stale": False, "origin": "live"}
    return {**standing._asdict(), "origin": "mixed" if asked.rows else "lookup"}


def refuse(error: RequestError) -> Reply:
    """As on our other routes; but a cache must not keep that a key is unknown, which ends with the next run."""
    reply = native.refuse(error)
    return reply._replace(headers=(*reply.headers, NO_STORE)) if error.status == 404 else reply


ONE = Exchange("lookup", read_one, write_one, refuse, asks_model=False)
MANY = Exchange("lookup", read_many, write_many, refuse, asks_model=False)
STREAM = Exchange("lookup stream", read_message, write_one, refuse, asks_model=False)


def unknown_key() -> RequestError:
    return RequestError(404, UNKNOWN_KEY)


def _segments(live: Live, path: bytes) -> list[str]:
    """What comes after /predictions/. Raises RequestError (404) where an escaped slash made the path look like one of ours."""
    parts = path.split(b"/")
    count = 4 if parts[1] == b"models" else 2
    if [unquote_to_bytes(part) for part in parts[1:count]] not in (
        [b"models", live.name.encode(), b"predictions"],
        [b"predictions"],
    ):
        raise RequestError(404, "There is nothing under this path. GET /models tells what is served.")
    return [_text(segment) for segment in parts[count:]]


def _text(segment: bytes) -> str:
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise Refused("key: is not UTF-8", [("key", "must be UTF-8, percent-encoded")]) from None


def _keys(live: Live, body: bytes) -> list[Key]:
    live.check_json(body)
    try:
        value = json_value(body)
    except NotJsonError:
        raise RequestError(400, "The body is not JSON.") from None
    if not isinstance(value, dict) or set(value) != {"keys"} or not isinstance(value["keys"], list):
        raise RequestError(422, 'A request for predictions holds a list of keys and nothing else: {"keys": [1, 2]}.')
    live.check_count(len(value["keys"]), "keys")
    keys, refused = [], {}
    codec = lookups_of(live).keys
    for position, one in enumerate(value["keys"]):
        try:
            keys.append(codec.of_value(one))
        except Refused as error:
            refused[position] = error
    if refused:
        raise no_key(list(refused.values()), list(refused))
    return keys


def no_key(refused: Sequence[Refused], positions: Sequence[int] = (0,)) -> RequestError:
    mistakes = [
        Mistake(position, column, expected)
        for position, error in zip(positions, refused, strict=True)
        for column, expected in error.mistakes
    ]
    what = "This is no key" if len(refused) == 1 else f"{len(refused):,} of these are no keys"
    return RequestError(422, f"{what} of this model.", mistakes)


def _live_items(live: Live, answers: Sequence[Any]) -> list[bytes | None]:
    """The JSON of each answer; None where fetch does not know the key. Raises the first other RequestError."""
    items: list[bytes | None] = []
    for answer in answers:
        if isinstance(answer, RequestError):
            if answer.status != 422:
                raise answer
            items.append(None)
        else:
            items.append(lookups_of(live).live_item(live.encode(answer)))
    return items


def _list(items: Sequence[bytes | None]) -> Reply:
    body = b"[%b]" % b",".join(b"null" if item is None else item for item in items)
    return Reply(200, body, JSON, (NO_STORE,))
