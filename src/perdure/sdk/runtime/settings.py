"""What all runs of one worker share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from perdure.sdk.converter import Converter
from perdure.sdk.errors import UnknownTypeError

if TYPE_CHECKING:
    from perdure.sdk.interceptors import WorkflowInterceptor
    from perdure.sdk.workflow.definition import WorkflowDefinition


@dataclass(slots=True, kw_only=True)
class RunSettings:
    """Settings of the runs of one worker.

    Args:
        workflows: definitions by type name.
        dynamic: the definition for every other type name.
        interceptors: around what happens in workflow code, outermost first.
        failure_exception_types: exceptions that fail a run instead of its workflow task, for all
            workflows of the worker.
        deadlock_timeout_s: how long workflow code may run without waiting; infinite for no limit.
        eager_activities: can this worker take activities with the answer to a workflow task?
        namespace, task_queue: where the worker works.
    """

    workflows: Mapping[str, WorkflowDefinition]
    converter: Converter = field(default_factory=Converter)
    namespace: str = "default"
    task_queue: str = ""
    interceptors: Sequence[WorkflowInterceptor] = ()
    failure_exception_types: tuple[type[BaseException], ...] = ()
    deadlock_timeout_s: float = 20.0
    eager_activities: bool = False
    dynamic: WorkflowDefinition | None = None

    def definition(self, type_name: str) -> WorkflowDefinition:
        """The definition for a type name.

        Raises:
            UnknownTypeError: listing the names that there are.
        """
        found = self.workflows.get(type_name) or self.dynamic
        if found is None:
            raise UnknownTypeError("workflow", type_name, list(self.workflows))
        return found
