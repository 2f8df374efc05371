"""Pages of history: tokens, and cutting stored blobs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.api.history.v1 import History, HistoryEvent

from perdure.api.errors import InvalidArgument, NotFound
from perdure.service import pages
from perdure.service.pages import END, PageToken
from perdure.store.contract import ANY_SIZE, HistoryBatch

RUN, OTHER = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"


def batch(first: int, last: int, padding: int = 0) -> HistoryBatch:
    events = []
    for event_id in range(first, last + 1):
        event = HistoryEvent(event_id=event_id, event_type=1)
        event.workflow_execution_signaled_event_attributes.identity = "x" * padding
        events.append(event)
    return HistoryBatch(first, last, History(events=events).SerializeToString())


def ids(events: bytes) -> list[int]:
    return [event.event_id for event in History.FromString(events).events]


def test_a_token_comes_back() -> None:
    token = PageToken(RUN, 7, 12, 20)
    assert pages.decode_token(pages.encode_token(token), RUN) == token


@pytest.mark.parametrize("raw", [b"x", b"junk" * 5, b"\0\0\0\0\x90"])
def test_a_made_up_token_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidArgument, match="NextPageToken"):
        pages.decode_token(raw)


def test_a_damaged_token_is_refused() -> None:
    raw = bytearray(pages.encode_token(PageToken(RUN, 7, 12)))
    raw[-1] ^= 1
    with pytest.raises(InvalidArgument, match="NextPageToken"):
        pages.decode_token(bytes(raw))


def test_a_token_is_bound_to_its_run_and_direction() -> None:
    raw = pages.encode_token(PageToken(RUN, 7, 12))
    with pytest.raises(InvalidArgument, match="RunId in the request does not match"):
        pages.decode_token(raw, OTHER)
    with pytest.raises(InvalidArgument, match="NextPageToken"):
        pages.decode_token(raw, RUN, reverse=True)


def test_a_page_takes_whole_batches_while_they_fit() -> None:
    page = pages.join([batch(1, 3), batch(4, 5), batch(6, 9)], 1, END, 5, 10_000)
    assert (ids(page.events), page.last_event_id, page.more) == ([1, 2, 3, 4, 5], 5, True)


def test_a_batch_larger_than_a_page_is_cut() -> None:
    page = pages.join([batch(1, 9)], 1, END, 4, 10_000)
    assert (ids(page.events), page.more) == ([1, 2, 3, 4], True)


def test_a_page_has_at_least_one_event_however_large() -> None:
    page = pages.join([batch(1, 2, padding=5_000)], 1, END, 100, 1_000)
    assert (ids(page.events), page.more) == ([1], True)


def test_a_range_cuts_both_ends() -> None:
    page = pages.join([batch(1, 4), batch(5, 9)], 3, 6, 100, 10_000)
    assert (ids(page.events), page.first_event_id, page.last_event_id) == ([3, 4, 5, 6], 3, 6)
    assert not page.more


def test_nothing_there_is_an_empty_page() -> None:
    page = pages.join([], 5, END, 10, 100)
    assert (page.events, page.last_event_id, page.more) == (b"", 4, False)


def test_what_is_not_whole_any_more_is_not_shown() -> None:
    with pytest.raises(NotFound, match="being deleted"):
        pages.join([batch(3, 4)], 1, END, 10, 10_000)


class FakeStore:
    """History of one run, as a store gives it.

    Attributes:
        read_bytes: how much it gave.
    """

    def __init__(self, batches: list[HistoryBatch]) -> None:
        self.batches = batches
        self.read_bytes = 0

    async def history(
        self,
        key: int,
        first: int,
        last: int,
        *,
        limit: int,
        max_bytes: int = ANY_SIZE,
        reverse: bool = False,
    ) -> list[HistoryBatch]:
        found: list[HistoryBatch] = []
        for batch in self.batches[::-1] if reverse else self.batches:
            if batch.last_event_id >= first and batch.first_event_id <= last and max_bytes > 0:
                found.append(batch)
                max_bytes -= len(batch.events)
        self.read_bytes += sum(len(batch.events) for batch in found[:limit])
        return found[:limit]


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    padding=st.sampled_from([0, 200]),
    max_events=st.integers(1, 9),
    max_bytes=st.integers(1, 2_000),
)
async def test_pages_together_are_the_history_both_ways(
    sizes: list[int], padding: int, max_events: int, max_bytes: int
) -> None:
    batches, end = [], 0
    for size in sizes:
        batches.append(batch(end + 1, end + size, padding))
        end += size
    store, limits = FakeStore(batches), {"max_events": max_events, "max_bytes": max_bytes}
    seen, more = [], True
    while more:
        page = await pages.read(store, 1, len(seen) + 1, END, **limits)  # type: ignore[arg-type]
        found = ids(page.events)
        assert len(found) <= max_events
        assert found or not sizes, "a page that was not needed"
        seen += found
        more = page.more
    assert seen == list(range(1, end + 1))

    back: list[int] = []
    more = True
    while more:
        last = back[-1] - 1 if back else END
        events, more = await pages.read_reverse(store, 1, 1, last, **limits)  # type: ignore[arg-type]
        assert events or not more
        back += [event.event_id for event in events]
    assert back == seen[::-1]


async def test_not_much_more_is_read_than_a_page_holds() -> None:
    batches = [batch(n, n, 900) for n in range(1, 200)]
    store = FakeStore(batches)
    page = await pages.read(store, 1, 1, END, max_events=100, max_bytes=5_000)  # type: ignore[arg-type]
    assert ids(page.events) == [1, 2, 3, 4, 5]
    assert page.more
    events, more = await pages.read_reverse(store, 1, 1, END, max_events=100, max_bytes=5_000)  # type: ignore[arg-type]
    assert [event.event_id for event in events] == [199, 198, 197, 196, 195]
    assert more
    assert store.read_bytes < 2 * 6_000


async def test_a_page_of_a_range_without_events_is_empty() -> None:
    page = await pages.read(FakeStore([batch(1, 2)]), 1, 3, 2, max_events=9, max_bytes=9)  # type: ignore[arg-type]
    assert (page.events, page.more) == (b"", False)
