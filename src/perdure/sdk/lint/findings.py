"""What the linter tells of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One place in workflow code that will not replay.

    Attributes:
        path: the file; `line` and `column` count from 1.
        rule: the rule's id.
        message: what is wrong.
        remedy: what to write instead.
    """

    path: str
    line: int
    column: int
    rule: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}: {self.rule}: {self.message}; {self.remedy}"
