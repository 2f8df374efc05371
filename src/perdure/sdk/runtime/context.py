"""Which run's code is executing on this thread, if any.

Two variables, because they part in ``with workflow.unsafe()``: there is still a current run, but
time, randomness and I/O are the real ones.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from perdure.sdk.errors import NonDeterminismError
    from perdure.sdk.options import ActivityOptions
    from perdure.sdk.runtime.run import Run
    from perdure.sdk.signature import Signature


class Runtime(Protocol):
    """What an activity's definition needs of the current run."""

    def schedule_activity(
        self,
        name: str,
        args: Sequence[Any],
        signature: Signature | None,
        options: ActivityOptions,
        *,
        local: bool = False,
        result_type: Any = None,
    ) -> Awaitable[Any]:
        """Schedule an activity now; the awaitable gives its result.

        Args:
            args: by position, as `Signature.bind` gives them.
            signature: types of arguments and result; None for an activity known by name only.
            local: run it in this worker's process, recorded as a marker.
            result_type: of an activity known by name only.

        Raises:
            NonDeterminismError: in a query handler or a validator, which must change nothing.
            ConversionError: an argument does not convert.
        """


class _State(threading.local):
    run: Run | None = None
    guarded: Run | None = None


state = _State()


def current() -> Run | None:
    """The run whose workflow code is executing on this thread, else None."""
    return state.run


def remembered(error: NonDeterminismError) -> NonDeterminismError:
    """Note what the code did, so that its task fails even if it swallows the error."""
    if state.run is not None and state.run.violation is None:
        state.run.violation = error
    return error
