"""Hints for workers that scale their pollers by themselves: one more, one less, or as it is.

Only workers of other processes get them, and only with a task: what an empty answer means they know
by themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from temporalio.api.workflowservice.v1 import (
    PollActivityTaskQueueResponse,
    PollWorkflowTaskQueueResponse,
)

from perdure.api.times import MILLISECOND_NS, SECOND_NS
from perdure.service.queue import Poll

if TYPE_CHECKING:
    from perdure.service.node import Node

_IDLE_NS: Final = SECOND_NS
"""A poll that waited this long was not needed."""

_BEHIND_NS: Final = 200 * MILLISECOND_NS
"""Tasks that wait this long need another poll."""

Response = TypeVar("Response", PollActivityTaskQueueResponse, PollWorkflowTaskQueueResponse)


def advised(node: Node, poll: Poll, response: Response) -> Response:
    """The response to a poll, with a hint where there is one."""
    if poll.in_process or not response.task_token:
        return response
    now_ns = node.clock.now_ns()
    rows = poll.queue.rows
    if rows and now_ns - rows.first.created_ns >= _BEHIND_NS:
        response.poller_scaling_decision.poll_request_delta_suggestion = 1
    elif now_ns - poll.parked_ns >= _IDLE_NS:
        response.poller_scaling_decision.poll_request_delta_suggestion = -1
    return response
