"""What a worker's command or message is refused with: its workflow task fails, the run goes on."""

from __future__ import annotations


class BadCommand(Exception):
    """A command or protocol message that breaks the rules; raised before anything has changed.

    Attributes:
        cause: number of ``temporal.api.enums.v1.WorkflowTaskFailedCause``.
        message: what is wrong, for the worker's author.
    """

    def __init__(self, cause: int, message: str) -> None:
        super().__init__(message)
        self.cause = cause
        self.message = message
