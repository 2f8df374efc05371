"""What a store is given after each transition is enough to go on from."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from test_replay_walk import Walk

from perdure.engine import alarms, state
from perdure.engine.execution import Execution
from perdure.engine.transition import Transition

INDEXES = (
    "activities", "activity_ids", "timers", "children", "signals", "cancels", "updates",
    "buffered", "requests", "start_attributes",
)  # fmt: skip


class StoredWalk(Walk):
    """A walk whose run is written to rows, and now and then loaded from them again."""

    def __init__(self, seed: int) -> None:
        self.rows: dict[int, bytes] = {}
        super().__init__(seed)

    def do(self, operation: Callable[[Transition], object]) -> Transition:
        before = self.run.state.next_event_id
        tx = super().do(operation)
        assert tx.first_event_id == before
        assert self.run.state.next_event_id == before + len(tx.parts)
        assert [event.event_id for event in self.events] == list(range(1, len(self.events) + 1))
        for item_id in tx.dropped:
            self.rows.pop(item_id, None)
        for item in tx.changed.values():
            self.rows[item.id] = state.encode(item)
        self.check(self.loaded())
        if self.random.random() < 0.2:
            self.run = self.loaded()
        return tx

    def loaded(self) -> Execution:
        return Execution(
            self.run.key,
            state.decode_info(state.encode(self.run.info)),
            state.decode_state(state.encode(self.run.state)),
            (state.decode_item(row) for _, row in sorted(self.rows.items())),
            memo=self.run.memo,
            attributes=self.run.attributes,
        )

    def check(self, loaded: Execution) -> None:
        assert loaded.info == self.run.info
        assert loaded.state == self.run.state
        for name in INDEXES:
            assert getattr(loaded, name) == getattr(self.run, name), name
        held = sum(activity.in_process for activity in loaded.activities.values())
        assert loaded.state.in_process_activities == held
        if loaded.is_open:
            due_ns, wake_ns = alarms.next_ns(loaded), loaded.state.wake_at_ns
            assert not due_ns or 0 < wake_ns <= due_ns, "the alarm would ring too late"
        else:
            assert not loaded.activities
            assert not loaded.timers
            assert not loaded.buffered


def test_items_know_their_kind() -> None:
    timer = state.Timer(3, 5, "t", 7)
    assert state.decode_item(state.encode(timer)) == timer
    assert msgspec.msgpack.decode(state.encode(timer))[0] == 2


@given(seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_a_run_can_be_loaded_after_any_transition(seed: int) -> None:
    walk = StoredWalk(seed)
    for _ in range(60):
        walk.step()
