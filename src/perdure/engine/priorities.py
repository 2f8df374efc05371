"""Priority and fairness: which waiting task goes first.

A task's priority is that of its activity over that of its workflow, field by field; a child's is
its own over its parent's. Serialised ``temporal.api.common.v1.Priority`` throughout; empty bytes
are the default.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from temporalio.api.common.v1 import Priority

FAIRNESS_KEY_BYTES_MAX: Final = 64


def fault(priority: Priority) -> str:
    """What is wrong with a priority, in Temporal's words; empty when nothing is."""
    if priority.priority_key < 0:
        return "priority key can't be negative"
    if len(priority.fairness_key.encode()) > FAIRNESS_KEY_BYTES_MAX:
        return "fairness key length exceeds limit"
    if "\0" in priority.fairness_key:
        return "fairness key must not contain a NUL character"
    if not priority.fairness_weight >= 0 or priority.fairness_weight == float("inf"):
        return "must be greater than zero"
    return ""


def merged(base: bytes, override: bytes) -> bytes:
    """Both together: what the override leaves open is taken from the base."""
    return _merged(base, override) if base and override else base or override


@lru_cache(1_000)
def _merged(base: bytes, override: bytes) -> bytes:
    made = Priority.FromString(base)
    made.MergeFrom(Priority.FromString(override))  # a field left at its default overrides nothing
    return made.SerializeToString()
