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
from sereno.serve.lookup import NO_STORE, Lookup, matches
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


def lookup_of(live: Live) -> Lookup:
    assert live.lookup is not None
    return live.lookup


def read_one(live: Live, request: Request) -> Asked:
    """Raises RequestError: 422 no key, 404 unknown, 503 nothing to look up in."""
    lookup = lookup_of(live)
    try:
        key = lookup.keys.of_texts([_text(segment) for segment in _segments(request.path)])
    except Refused as refused:
        raise no_key([refused]) from None
    asked = ask(live, key)
    none_match = request.header(b"if-none-match")
    if asked.reply is not None and none_match is not None and matches(none_match, lookup.etag):
        asked.reply = Reply(304, b"", headers=asked.reply.headers)
    return asked


def ask(live: Live, key: Key) -> Asked:
    """What is to be done about one key. Raises RequestError: 404 unknown, 503."""
    lookup = lookup_of(live)
    (prediction,) = lookup.find([key])
    if prediction is not None:
        return Asked([], reply=Reply(200, lookup.item(prediction), headers=lookup.headers))
    row = live.row_of_key(key) if lookup.asks_live else None
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
    lookup = lookup_of(live)
    keys = _keys(live, request.body)
    found = lookup.find(keys)
    items = [None if prediction is None else lookup.item(prediction) for prediction in found]
    missing = [i for i, item in enumerate(items) if item is None]
    asked = {}
    if missing and lookup.asks_live:
        asked = {i: row for i in missing if (row := live.row_of_key(keys[i])) is not None}
    if not asked:
        return Asked([], reply=_list(items))
    return Asked(list(asked.values()), context=(items, list(asked)), one_by_one=True)


def write_many(live: Live, asked: Asked, answers: Sequence[Any]) -> Reply:
    items, positions = asked.context
    for position, item in zip(positions, _live_items(live, answers), strict=True):
        items[position] = item
    return _list(items)


def read_message(live: Live, request: Request) -> Asked:
    """One key as JSON, from a WebSocket. Raises RequestError: 400 no JSON, and what `read_one` raises."""
    live.check_json(request.body)
    try:
        key = lookup_of(live).keys.of_value(json_value(request.body))
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
    lookup = lookup_of(live)
    found = lookup.find(keys)
    asks_live = lookup.asks_live
    looked = []
    for key, prediction in zip(keys, found, strict=True):
        if prediction is not None:
            looked.append(Looked(answer=live.answer_of(prediction)))
        else:
            looked.append(Looked(row=live.row_of_key(key)) if asks_live else Looked())
    lookup.counts["live"] += found.count(None) if asks_live else 0
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
    lookup = lookup_of(live)
    if not rows:
        return lookup.headers
    if not known or lookup.standing is None:
        return (NO_STORE,)
    return ((b"age", b"%d" % lookup.standing.age_seconds), NO_STORE)  # of the oldest


def origin_of(live: Live, asked: Asked) -> dict[str, str | int | bool]:
    """Where the answers to keys come from, as flat values."""
    standing = lookup_of(live).standing
    if standing is None or (asked.rows and not asked.known):
        return {"age_seconds": 0, "stale": False, "origin": "live"}
    return {**standing._asdict(), "origin": "mixed" if asked.rows else "lookup"}


ONE = Exchange("lookup", read_one, write_one, native.refuse, asks_model=False)
MANY = Exchange("lookup", read_many, write_many, native.refuse, asks_model=False)
STREAM = Exchange("lookup stream", read_message, write_one, native.refuse, asks_model=False)


def unknown_key() -> RequestError:
    return RequestError(404, UNKNOWN_KEY)


def _segments(path: bytes) -> list[bytes]:
    """What comes after /predictions/, as it was sent."""
    parts = path.split(b"/")
    return parts[4:] if parts[1] == b"models" else parts[2:]


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
    codec = lookup_of(live).keys
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
            items.append(lookup_of(live).live_item(live.encode(answer)))
    return items


def _list(items: Sequence[bytes | None]) -> Reply:
    body = b"[%b]" % b",".join(b"null" if item is None else item for item in items)
    return Reply(200, body, JSON, (NO_STORE,))
