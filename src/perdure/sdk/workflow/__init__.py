"""Workflows: functions and classes that survive; the `workflow` decorator and namespace."""

from perdure.sdk.runtime.children import ChildHandle, ChildOptions
from perdure.sdk.runtime.handlers import UpdateInfo
from perdure.sdk.runtime.info import WorkflowInfo
from perdure.sdk.workflow.decorators import Child, Update, Workflow
from perdure.sdk.workflow.definition import (
    Handler,
    WorkflowDefinition,
    definition_of,
    handler_name,
)
from perdure.sdk.workflow.external import ExternalWorkflow
from perdure.sdk.workflow.namespace import workflow

__all__ = [
    "Child",
    "ChildHandle",
    "ChildOptions",
    "ExternalWorkflow",
    "Handler",
    "Update",
    "UpdateInfo",
    "Workflow",
    "WorkflowDefinition",
    "WorkflowInfo",
    "definition_of",
    "handler_name",
    "workflow",
]
