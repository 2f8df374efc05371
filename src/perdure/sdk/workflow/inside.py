"""Which run the calling code belongs to."""

from __future__ import annotations

from datetime import timedelta

from perdure.sdk.errors import NotInWorkflowError
from perdure.sdk.runtime.context import current
from perdure.sdk.runtime.run import Run

Duration = timedelta | float
"""A length of time: a timedelta, or seconds."""


def run_here() -> Run:
    """The run whose code calls. Raises NotInWorkflowError."""
    run = current()
    if run is None:
        raise NotInWorkflowError(
            "Not in a workflow: this works only in code that a worker runs as a workflow"
        )
    return run


def seconds(value: Duration) -> float:
    """A length of time in seconds."""
    return value.total_seconds() if isinstance(value, timedelta) else value
