"""How long what a node does nothing about stays its own."""

from __future__ import annotations

from typing import Final

SECOND_NS: Final = 1_000_000_000

TASK_LEASE_NS: Final = 10 * SECOND_NS
ALARM_LEASE_NS: Final = 5 * SECOND_NS
MESSAGE_LEASE_NS: Final = 30 * SECOND_NS
SILENT_NODE_LIVES_NS: Final = 15 * SECOND_NS
FUNERAL_NS: Final = 30 * SECOND_NS

BEATS_APART_NS: Final = 10 * SECOND_NS
"""A node that was silent for longer cannot tell who else was: perhaps the database was away."""

OVERDUE_NS: Final = SECOND_NS
LETTER_LIVES_NS: Final = 600 * SECOND_NS
RATE_LIVES_NS: Final = 600 * SECOND_NS
