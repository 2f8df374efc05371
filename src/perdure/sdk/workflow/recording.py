"""What workflow code has recorded: patches, side effects, memo, search attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from temporalio.api.enums.v1 import CommandType, EventType

from perdure.sdk import search_attributes
from perdure.sdk.runtime.context import state
from perdure.sdk.search_attributes import AnyAttributes
from perdure.sdk.workflow.inside import run_here

T = TypeVar("T")


class Recording:
    """Patches, side effects, memo, search attributes; and what is kept out of it all."""

    def patched(self, id: str) -> bool:
        """May this run take the new way? False where a run went the old way before the change.

        Example:
            >>> if workflow.patched("check-fraud-first"):
            ...     await check_fraud(order)
        """
        return run_here().markers.patched(id)

    def deprecate_patch(self, id: str) -> None:
        """Put this in place of `patched` when no open run takes the old way any more."""
        run_here().markers.deprecate(id)

    def side_effect(self, function: Callable[[], T], type: Any = Any) -> T:
        """The value that a function gives when this line is first reached, recorded in history.

        For what is quick and cannot fail, such as reading a setting. Everything else is an
        activity.

        Args:
            type: what the recorded value is converted to in a replay.
        """
        run = run_here()

        def call() -> T:
            with self.unsafe():
                return function()

        value: T = run.markers.side_effect(call, type)
        return value

    @contextmanager
    def unsafe(self) -> Iterator[None]:
        """A block in which time, randomness and I/O are the real ones.

        For what has no part in the workflow's decisions, such as a metrics library that opens a
        socket. Do not await in the block.
        """
        guarded, state.guarded = state.guarded, None
        try:
            yield
        finally:
            state.guarded = guarded

    def memo(self) -> Mapping[str, Any]:
        """The run's memo."""
        return run_here().memo()

    def upsert_memo(self, values: Mapping[str, Any]) -> None:
        """Change memo values; None removes one."""
        run = run_here()
        run.check_writable("workflow.upsert_memo()")
        command = run.new_command()
        command.command_type = CommandType.COMMAND_TYPE_MODIFY_WORKFLOW_PROPERTIES
        fields = command.modify_workflow_properties_command_attributes.upserted_memo.fields
        for name, value in values.items():
            fields[name].CopyFrom(run.converter.encode(value))
            if value is None:
                run.memo_payloads.pop(name, None)
            else:
                run.memo_payloads[name] = fields[name]
        run.emit(EventType.EVENT_TYPE_WORKFLOW_PROPERTIES_MODIFIED, (), command)

    def upsert_search_attributes(self, values: AnyAttributes) -> None:
        """Change search attributes, by key or by name; None removes one.

        Raises:
            ConversionError: naming the attribute whose value does not fit its type.
        """
        run = run_here()
        run.check_writable("workflow.upsert_search_attributes()")
        command = run.new_command()
        command.command_type = CommandType.COMMAND_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES
        attributes = command.upsert_workflow_search_attributes_command_attributes
        changed = search_attributes.of(values)
        changed.fill(attributes.search_attributes)
        names = {key.name for key in changed}
        kept = {key: v for key, v in run.search_attributes.items() if key.name not in names}
        added = {key: value for key, value in changed.items() if value is not None}
        run.search_attributes = kept | added
        run.emit(EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES, (), command)
