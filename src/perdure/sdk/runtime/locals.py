"""Local activities of one run: executed by this worker, recorded as one marker when done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from temporalio.api.common.v1 import Payload, Payloads
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import MarkerRecordedEventAttributes

from perdure.api.times import timedelta_ns
from perdure.sdk.errors import ActivityError, RetryState
from perdure.sdk.failures import error_from
from perdure.sdk.options import ActivityOptions
from perdure.sdk.runtime.loop import Future
from perdure.sdk.runtime.markers import LOCAL_ACTIVITY, detail
from perdure.sdk.signature import Signature

if TYPE_CHECKING:
    from perdure.sdk.runtime.run import Run

DEFAULT_RETRY_THRESHOLD_NS: Final = 60 * 1_000_000_000
"""The longest wait between attempts that is spent in this process."""


class LocalResult:
    """How a local activity ended.

    Attributes:
        result: of a success.
        failure: of a failure; None for a success.
        attempt: the last attempt's number.
        retry_state: why there is no further attempt.
        retry_after_ns: wait this long with a durable timer, then try again; 0 if it is over.
    """

    __slots__ = ("attempt", "failure", "result", "retry_after_ns", "retry_state")

    def __init__(
        self,
        *,
        attempt: int,
        result: Payloads | None = None,
        failure: Failure | None = None,
        retry_after_ns: int = 0,
        retry_state: RetryState = RetryState.UNSPECIFIED,
    ) -> None:
        self.attempt = attempt
        self.result = result
        self.failure = failure
        self.retry_after_ns = retry_after_ns
        self.retry_state = retry_state


class LocalCall(Future[Any]):
    """A local activity that is wanted: a future of its result.

    Attributes:
        activity_id, name: as for other activities.
        attempt: number of the next attempt.
        input: its arguments; empty while replaying, filled when it has to run.
        scheduled_ns: workflow time of the call.
    """

    __slots__ = (
        "activity_id",
        "args",
        "attempt",
        "headers",
        "locals",
        "name",
        "options",
        "result_type",
        "retry",
        "run",
        "scheduled_ns",
        "signature",
        "started",
    )

    activity_id: str
    args: Sequence[Any]
    attempt: int
    headers: Mapping[str, Payload]
    locals: Locals
    name: str
    options: ActivityOptions
    result_type: Any
    retry: Any
    run: Run
    scheduled_ns: int
    signature: Signature | None
    started: bool

    def cancel(self, msg: Any | None = None) -> bool:
        if self.done():
            return False
        self.locals.wanted.pop(self.activity_id, None)
        if self.retry is not None:
            self.retry.cancel()
        return super().cancel(msg)

    def input(self) -> Payloads:
        """The arguments as payloads.

        Raises:
            ConversionError: an argument does not convert.
        """
        payloads = Payloads()
        self.run.fill_arguments(payloads, self.args, self.signature)
        return payloads

    @property
    def retry_threshold_ns(self) -> int:
        """The longest wait between attempts that is not given to a durable timer."""
        threshold = self.options.local_retry_threshold
        return DEFAULT_RETRY_THRESHOLD_NS if threshold is None else timedelta_ns(threshold)


class Locals:
    """Local activities that are wanted and not over, by activity id, in the order of the calls."""

    __slots__ = ("run", "wanted")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.wanted: dict[str, LocalCall] = {}

    def schedule(
        self,
        name: str,
        args: Sequence[Any],
        signature: Signature | None,
        options: ActivityOptions,
        result_type: Any,
        headers: Mapping[str, Payload] | None = None,
    ) -> LocalCall:
        """Want a local activity; the worker runs it before it answers the workflow task."""
        run = self.run
        run.check_writable(f"local activity {name!r}")
        call = LocalCall(loop=run.loop)
        call.activity_id = options.activity_id or run.activities.next_id()
        call.args = tuple(args)
        call.attempt = 1
        call.headers = headers or {}
        call.locals = self
        call.name = name
        call.options = options
        call.result_type = result_type
        call.retry = None
        call.run = run
        call.scheduled_ns = run.now_ns
        call.signature = signature
        call.started = False
        self.wanted[call.activity_id] = call
        return call

    def finished(self, call: LocalCall, outcome: LocalResult) -> None:
        """The worker has executed it: record the marker and end the call's wait."""
        if self.wanted.pop(call.activity_id, None) is None:
            return  # cancelled by the workflow meanwhile
        details: dict[str, Any] = {"type": call.name, "attempt": outcome.attempt}
        if outcome.retry_after_ns:
            details["retry_after_ns"] = outcome.retry_after_ns
        command = self.run.markers.record(LOCAL_ACTIVITY, call.activity_id, **details)
        assert command is not None, "local activities are executed only outside of replay"
        attributes = command.record_marker_command_attributes
        if outcome.failure is not None:
            attributes.failure.CopyFrom(outcome.failure)
            attributes.failure.activity_failure_info.retry_state = int(outcome.retry_state)  # type: ignore[assignment]
        else:
            attributes.details["result"].CopyFrom(outcome.result or Payloads())
        self._resolve(call, outcome)

    def replayed(self, attributes: MarkerRecordedEventAttributes) -> bool:
        """History holds the marker: end the wait of its call. False if there is no such call."""
        call = self.wanted.pop(str(detail(attributes, "id")), None)
        if call is None:
            return False
        self.run.markers.record(LOCAL_ACTIVITY, call.activity_id)
        failed = attributes.HasField("failure")
        outcome = LocalResult(
            attempt=int(detail(attributes, "attempt") or 1),
            result=attributes.details.get("result"),
            failure=attributes.failure if failed else None,
            retry_after_ns=int(detail(attributes, "retry_after_ns") or 0),
            retry_state=RetryState(attributes.failure.activity_failure_info.retry_state)
            if failed
            else RetryState.UNSPECIFIED,
        )
        self._resolve(call, outcome)
        return True

    def _resolve(self, call: LocalCall, outcome: LocalResult) -> None:
        run = self.run
        if outcome.retry_after_ns:
            call.attempt = outcome.attempt + 1
            call.started = False
            call.retry = run.loop.call_later(outcome.retry_after_ns / 1e9, self._want_again, call)
            return
        if outcome.failure is None:
            type_ = call.result_type
            if call.signature is not None:
                type_ = call.signature.return_type
            result = outcome.result or Payloads()
            call.set_result(run.decode_result(result, type_, call.name))
            return
        failure = outcome.failure
        cause = failure.cause if failure.HasField("cause") else failure
        error = ActivityError(
            "Activity task failed",
            activity_type=call.name,
            activity_id=call.activity_id,
            retry_state=outcome.retry_state,
        )
        error.__cause__ = error_from(cause, run.converter)
        call.set_exception(error)

    def _want_again(self, call: LocalCall) -> None:
        call.retry = None
        if not call.done():
            self.wanted[call.activity_id] = call
