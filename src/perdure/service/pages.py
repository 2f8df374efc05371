"""Pages of history: what a page token says, and how stored blobs become one.

A stored blob holds events that were committed together, framed as the field ``events`` of a
History message. Blobs joined are a History message, so a page costs one parse of the joined bytes.
Only a blob that a page's range cuts through is looked into.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import History, HistoryEvent

from perdure.api import wire
from perdure.api.errors import InvalidArgument, NotFound
from perdure.store.contract import HistoryBatch, Store

END = (1 << 62) - 1  # an event id after all others
_READ_BATCHES = 256
_FRAME = wire.tag(1, wire.LENGTH_DELIMITED)[0]

CLOSING = frozenset(
    {
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW,
    }
)
"""The events that end a run; nothing follows them."""


def size(asked: int, most: int, usual: int | None = None) -> int:
    """How many things to put on a page: what is asked, at most `most`; `usual` if none is asked."""
    return min(asked if asked > 0 else usual or most, most)


class PageToken(msgspec.Struct, array_like=True, frozen=True):
    """Where the next page of one run's history starts, and where the last one ends.

    Attributes:
        run_id: the run; a request for another run is refused.
        key: the store's number of the run.
        next_event_id: the first event of the next page (in reverse: the last).
        last_event_id: where to stop; 0 means at the end of history.
        reverse: whether pages go backwards.
    """

    run_id: str
    key: int
    next_event_id: int
    last_event_id: int = 0
    reverse: bool = False


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(PageToken).decode


def encode_token(token: PageToken) -> bytes:
    """An opaque page token: MessagePack behind a checksum."""
    body = _encode(token)
    return binascii.crc32(body).to_bytes(4, "big") + body


def decode_token(token: bytes, run_id: str = "", *, reverse: bool = False) -> PageToken:
    """Read a page token, of that run where one is named.

    Raises:
        InvalidArgument: the token is damaged, made up, of the other direction or of another run.
    """
    body = token[4:]
    if binascii.crc32(body).to_bytes(4, "big") != token[:4]:
        raise InvalidArgument("Invalid NextPageToken.")
    try:
        found = _decode(body)
    except msgspec.MsgspecError:
        raise InvalidArgument("Invalid NextPageToken.") from None
    if found.reverse is not reverse:
        raise InvalidArgument("Invalid NextPageToken.")
    if run_id and run_id != found.run_id:
        raise InvalidArgument("RunId in the request does not match the NextPageToken.")
    return found


class Page(NamedTuple):
    """Consecutive events of a run.

    Attributes:
        events: framed as a History message, in order of event id.
        first_event_id, last_event_id: the range; last < first when there are none.
        more: whether the store has events of the asked range beyond it.
    """

    events: bytes
    first_event_id: int
    last_event_id: int
    more: bool


def trimmed(batch: HistoryBatch, first: int, last: int) -> HistoryBatch:
    """The part of a batch within a range; the batch itself when it lies within."""
    if first <= batch.first_event_id and batch.last_event_id <= last:
        return batch
    history = History.FromString(batch.events)
    kept = [event for event in history.events if first <= event.event_id <= last]
    assert kept, "a store returns only batches that overlap the range"
    events = History(events=kept).SerializeToString()
    return HistoryBatch(kept[0].event_id, kept[-1].event_id, events)


def frames(events: bytes) -> Iterator[bytes]:
    """The events of a blob one by one, each still framed."""
    at = 0
    while at < len(events):
        assert events[at] == _FRAME, "a blob holds nothing but events"
        body, shift, size_bytes = at + 1, 0, 0
        while True:
            byte = events[body]
            body += 1
            size_bytes |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        yield events[at : body + size_bytes]
        at = body + size_bytes


def join(
    batches: Sequence[HistoryBatch], first: int, last: int, max_events: int, max_bytes: int
) -> Page:
    """As many events as fit a page, at least one; `more` when some are left over.

    Raises NotFound: what comes first is gone, as the run is being deleted.
    """
    parts: list[bytes] = []
    end, size_bytes = first - 1, 0
    for batch in batches:
        kept = trimmed(batch, end + 1, last)
        if kept.first_event_id != end + 1:
            raise _going()
        size_bytes += len(kept.events)
        if kept.last_event_id - first < max_events and size_bytes <= max_bytes:
            parts.append(kept.events)
            end = kept.last_event_id
            continue
        size_bytes -= len(kept.events)
        for frame in frames(kept.events):
            size_bytes += len(frame)
            if parts and (end + 1 - first >= max_events or size_bytes > max_bytes):
                break
            parts.append(frame)
            end += 1
        if end < kept.last_event_id:
            return Page(b"".join(parts), first, end, True)
    return Page(b"".join(parts), first, end, False)


def _going() -> NotFound:
    """A long history goes piece by piece, from its beginning, before the run itself."""
    return NotFound("The workflow execution is being deleted, and its history is not whole.")


async def read(
    store: Store, key: int, first: int, last: int, *, max_events: int, max_bytes: int
) -> Page:
    """A page of committed history, from `first` on and not beyond `last`. Raises NotFound."""
    batches: list[HistoryBatch] = []
    start, size_bytes = first, 0
    while start <= last:
        limit = min(_READ_BATCHES, max_events + 1)
        rest_bytes = max_bytes - size_bytes + 1
        found = await store.history(key, start, last, limit=limit, max_bytes=rest_bytes)
        batches += found
        size_bytes += sum(len(batch.events) for batch in found)
        if len(found) < limit and size_bytes <= max_bytes:
            return join(batches, first, last, max_events, max_bytes)
        start = found[-1].last_event_id + 1
        if start - first > max_events or size_bytes > max_bytes:
            break
    page = join(batches, first, last, max_events, max_bytes)
    if batches and page.last_event_id == batches[-1].last_event_id < last:
        # It ends with an event that is larger than a page: nothing behind it was read.
        beyond = await store.history(key, page.last_event_id + 1, last, limit=1)
        return page._replace(more=bool(beyond))
    return page._replace(more=page.last_event_id < last)


async def read_reverse(
    store: Store, key: int, first: int, last: int, *, max_events: int, max_bytes: int
) -> tuple[list[HistoryEvent], bool]:
    """A page of committed history backwards from `last`, and whether there is more before it.

    Raises NotFound: there is nothing, as the run is being deleted.
    """
    limit = min(_READ_BATCHES, max_events + 1)
    found = await store.history(key, first, last, limit=limit, max_bytes=max_bytes, reverse=True)
    if not found:
        raise _going()
    events: list[HistoryEvent] = []
    size_bytes = 0
    for batch in found:
        size_bytes += len(batch.events)
        count = len(events) + batch.last_event_id - batch.first_event_id + 1
        if events and (count > max_events or size_bytes > max_bytes):
            break
        events += reversed(History.FromString(trimmed(batch, first, last).events).events)
    return events, bool(events) and events[-1].event_id > first
