"""A question about runs, free of any SQL: what the list filter means, for a store to render.

The service parses the users' filter language into these; each store turns them into its own
parameterised SQL.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

Scalar = str | int | float | bool


class Column(StrEnum):
    """The built-in attributes a filter may name, by their column in the store."""

    WORKFLOW_ID = "workflow_id"
    RUN_ID = "run_id"
    WORKFLOW_TYPE = "workflow_type"
    TASK_QUEUE = "task_queue"
    STATUS = "status"
    START = "start_ns"
    EXECUTION = "execution_ns"
    CLOSE = "close_ns"  # 0 while open; IS NULL means 0
    HISTORY_LENGTH = "history_length"
    HISTORY_SIZE = "history_size_bytes"
    TRANSITION_COUNT = "transition_count"
    DURATION = "duration_ns"  # computed: close_ns - execution_ns of closed runs
    PARENT_WORKFLOW_ID = "parent_workflow_id"
    PARENT_RUN_ID = "parent_run_id"
    ROOT_WORKFLOW_ID = "root_workflow_id"
    ROOT_RUN_ID = "root_run_id"


class Kind(StrEnum):
    """What the values of a custom attribute are; a run with another kind there has none."""

    TEXT = "text"  # in the order of its code points
    NUMBER = "number"  # times are nanoseconds, true and false are 1 and 0
    LIST = "list"  # of texts; a comparison means 'contains'


class Custom(msgspec.Struct, frozen=True):
    """A custom search attribute."""

    name: str
    kind: Kind = Kind.TEXT

    @property
    def is_list(self) -> bool:
        """Whether it has several values at a time, and no order."""
        return self.kind is Kind.LIST


Field = Column | Custom


class Compare(msgspec.Struct, frozen=True, tag=True):
    """`field op value` with op one of = != < <= > >= ."""

    field: Field
    op: str
    value: Scalar


class StartsWith(msgspec.Struct, frozen=True, tag=True):
    field: Field
    prefix: str


class In(msgspec.Struct, frozen=True, tag=True):
    field: Field
    values: tuple[Scalar, ...]


class IsNull(msgspec.Struct, frozen=True, tag=True):
    field: Field


class Not(msgspec.Struct, frozen=True, tag=True):
    term: Condition


class And(msgspec.Struct, frozen=True, tag=True):
    terms: tuple[Condition, ...]


class Or(msgspec.Struct, frozen=True, tag=True):
    terms: tuple[Condition, ...]


Condition = Compare | StartsWith | In | IsNull | Not | And | Or


class Order(msgspec.Struct, frozen=True):
    field: Field
    descending: bool = False


class Query(msgspec.Struct, frozen=True):
    """Which runs, in which order, and which page.

    `after` is the sort values and key of the last row of the former page, as `Record`s were
    returned; stores add the key as the last sort term, so that pages never overlap.
    Without `order`: newest start first.
    """

    namespace: str
    where: Condition | None = None
    order: tuple[Order, ...] = ()
    group_by: tuple[Field, ...] = ()
    limit: int = 1000
    after: tuple[Scalar | None, ...] | None = None
