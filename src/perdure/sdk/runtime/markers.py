"""Values that workflow code computed once and history remembers: side effects and patches.

Each is a MarkerRecorded event whose details are ordinary payloads:

==========================  ================================================================
marker name                 details
==========================  ================================================================
``perdure.side_effect``     ``id``: a number in the run; ``result``
``perdure.patch``           ``id``: the patch's id; ``deprecated``: true or false
``perdure.local_activity``  ``id``: the activity id; ``type``; ``attempt``; ``result``;
                            ``retry_after_ns`` if a durable timer and another try follow;
                            the marker's own failure field if it failed
==========================  ================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec
from temporalio.api.command.v1 import Command
from temporalio.api.enums.v1 import CommandType, EventType
from temporalio.api.history.v1 import MarkerRecordedEventAttributes

if TYPE_CHECKING:
    from perdure.sdk.runtime.run import Run

SIDE_EFFECT: Final = "perdure.side_effect"
PATCH: Final = "perdure.patch"
LOCAL_ACTIVITY: Final = "perdure.local_activity"

_RECORDED: Final = EventType.EVENT_TYPE_MARKER_RECORDED
_RECORD: Final = CommandType.COMMAND_TYPE_RECORD_MARKER


def detail(attributes: MarkerRecordedEventAttributes, name: str) -> Any:
    """One of a marker's details as plain data; None if it is not there."""
    found = attributes.details.get(name)
    if found is None or not found.payloads:
        return None
    data = found.payloads[0].data
    return msgspec.json.decode(data) if data else None


def marker_id(attributes: MarkerRecordedEventAttributes) -> str:
    """What tells a marker from others of its name; "" for markers that are not ours."""
    return str(detail(attributes, "id") or "")


class Markers:
    """Side effects and patches of one run."""

    __slots__ = ("_patches", "_side_effects", "ahead", "run")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.ahead: dict[tuple[str, str], MarkerRecordedEventAttributes] = {}
        self._patches: dict[str, bool] = {}
        self._side_effects = 0

    def side_effect(self, function: Callable[[], Any], type_: Any) -> Any:
        """The value that the function gave when this point was first reached."""
        run = self.run
        run.check_writable("workflow.side_effect()")
        self._side_effects += 1
        marker = str(self._side_effects)
        if not run.replaying:
            value = function()
            self.record(SIDE_EFFECT, marker, result=value)
            return value
        recorded = self.ahead.get((SIDE_EFFECT, marker))
        self.record(SIDE_EFFECT, marker)
        if recorded is None:
            raise run.misplaced(run.commands[-1])
        return run.converter.result(recorded.details["result"], type_)

    def patched(self, patch_id: str) -> bool:
        """Does this run execute the new code? The answer is the same for the whole run."""
        run = self.run
        known = self._patches.get(patch_id)
        if known is None:
            run.check_writable("workflow.patched()", f"patch {patch_id!r} is asked for first")
            known = not run.replaying or (PATCH, patch_id) in self.ahead
            self._patches[patch_id] = known
            if known:
                self.record(PATCH, patch_id, deprecated=False)
        return known

    def deprecate(self, patch_id: str) -> None:
        """Record that the old code is gone, and accept histories with either marker."""
        run = self.run
        if patch_id in self._patches:
            return
        run.check_writable("workflow.deprecate_patch()")
        self._patches[patch_id] = True
        if not run.replaying or (PATCH, patch_id) in self.ahead:
            self.record(PATCH, patch_id, deprecated=True)

    def record(self, name: str, marker: str, **details: Any) -> Command | None:
        """Emit a marker command with these details; the message to add to, unless replaying."""
        run = self.run
        key = (name, marker)
        if run.replaying:
            run.emit(_RECORDED, key, None)
            return None
        command = run.new_command()
        command.command_type = _RECORD
        attributes = command.record_marker_command_attributes
        attributes.marker_name = name
        run.converter.fill(attributes.details["id"], [marker])
        for label, value in details.items():
            run.converter.fill(attributes.details[label], [value])
        run.emit(_RECORDED, key, command)
        return command

    def is_dispensable(self, attributes: MarkerRecordedEventAttributes) -> bool:
        """May the code have lost the call behind this marker? So it is with deprecated patches."""
        return attributes.marker_name == PATCH and detail(attributes, "deprecated") is True
