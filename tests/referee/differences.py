"""Where perdure differs from Temporal's server on purpose, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """Lines that are left out of the comparison.

    Attributes:
        programs: regular expression for the whole names of the tests it is for.
        line: regular expression, looked for in each line.
        reason: why perdure does it another way.
    """

    programs: str
    line: str
    reason: str

    @property
    def is_for_one(self) -> bool:
        """Is it for one program? Then that must really differ."""
        return re.fullmatch(r"\w+", self.programs) is not None

    def without(self, lines: list[str]) -> list[str]:
        """The lines that are to be compared."""
        return [line for line in lines if re.search(self.line, line) is None]


DIFFERENCES = [
    Difference(
        programs=".*",
        line=r"^      (worker_version\.build_id|binary_checksum): ",
        reason="Worker versioning is not there and so not advertised: the SDK then sends the build "
        "id as a binary checksum.",
    ),
]


def applicable(program: str) -> list[Difference]:
    """The differences that are for a program."""
    return [one for one in DIFFERENCES if re.fullmatch(one.programs, program)]
