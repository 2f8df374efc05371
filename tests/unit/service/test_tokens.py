"""Task tokens: what goes in comes out, and nothing else is taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.api.errors import InvalidArgument, NotFound
from perdure.engine.state import RunInfo
from perdure.service import tokens

RUN_ID = "6f9619ff-8b86-4011-b42d-00c04fc964ff"


@given(
    st.integers(1, 1 << 40),
    st.integers(0, 60_000),
    st.integers(0, 60_000),
    st.integers(1, 1 << 20),
    st.sampled_from([0, 1, 1 << 62]),
)
def test_a_token_says_what_it_was_made_of(
    key: int, scheduled: int, started: int, stamp: int, node: int
) -> None:
    tag = tokens.run_tag(RUN_ID)
    token = tokens.encode(tokens.WORKFLOW, key, tag, scheduled, started, 3, stamp, node)
    assert tokens.decode(token, tokens.WORKFLOW) == (
        tokens.WORKFLOW, key, tag, scheduled, started, 3, stamp, node,
    )  # fmt: skip
    anywhere = tokens.encode(tokens.WORKFLOW, key, tag, scheduled, started, 3, stamp)
    assert tokens.for_node(anywhere, node) == token


@given(st.binary(max_size=64))
def test_anything_else_is_refused(token: bytes) -> None:
    with pytest.raises(InvalidArgument):
        tokens.decode(token, tokens.ACTIVITY)


@given(st.integers(0, 60), st.integers(1, 255), st.sampled_from([0, 9]))
def test_a_damaged_token_is_refused(position: int, change: int, node: int) -> None:
    token = bytearray(tokens.encode(tokens.ACTIVITY, 7, tokens.run_tag(RUN_ID), 5, node=node))
    token[position % len(token)] ^= change
    with pytest.raises(InvalidArgument):
        tokens.decode(bytes(token), tokens.ACTIVITY)


def test_a_token_belongs_to_a_run_and_a_namespace() -> None:
    info = RunInfo("default", "id", "wf", RUN_ID, RUN_ID, RUN_ID, "flow", "q", "r", 1)
    token = tokens.decode(
        tokens.encode(tokens.ACTIVITY, 7, tokens.run_tag(RUN_ID), 5), tokens.ACTIVITY
    )
    tokens.check_run(token, info, "default")
    tokens.check_run(token, info, "")
    with pytest.raises(InvalidArgument, match="different namespace"):
        tokens.check_run(token, info, "other")
    stranger = tokens.decode(
        tokens.encode(tokens.ACTIVITY, 7, tokens.run_tag(RUN_ID[::-1]), 5), tokens.ACTIVITY
    )
    with pytest.raises(NotFound):
        tokens.check_run(stranger, info, "default")
