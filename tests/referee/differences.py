"""Where perdure differs from Temporal's server on purpose, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """Lines, or parts of lines, that are left out of the comparison.

    Attributes:
        programs: regular expression for the whole names of the tests it is for.
        line: regular expression, looked for in each line.
        reason: why perdure does it another way.
        becomes: what stands for the part that was found; None leaves out the whole line.
    """

    programs: str
    line: str
    reason: str
    becomes: str | None = None

    @property
    def is_for_one(self) -> bool:
        """Is it for one program? Then that must really differ."""
        return re.fullmatch(r"\w+", self.programs) is not None

    def without(self, lines: list[str]) -> list[str]:
        """The lines that are to be compared."""
        if self.becomes is not None:
            return [re.sub(self.line, self.becomes, line) for line in lines]
        return [line for line in lines if re.search(self.line, line) is None]


DIFFERENCES = [
    Difference(
        programs=".*",
        line=r"^      (worker_version\.build_id|binary_checksum|inherit_build_id|"
        r"prev_auto_reset_points\S*): |^  indexed_fields\[BuildIds\]",
        reason="Worker versioning is not there and so not advertised: the SDK then sends the build "
        "id as a binary checksum. Points to reset to by build id go with it.",
    ),
    Difference(
        programs=".*",
        line=r"(length exceeds limit|Blob data size exceeds limit)[.:].*",
        becomes=r"\1",
        reason="perdure says how much it was and how much is allowed.",
    ),
    Difference(
        programs=".*",
        line="[Ii]nvalid CronSchedule.*",
        becomes="invalid CronSchedule",
        reason="perdure says what is wrong with it.",
    ),
    Difference(
        programs="test_bad_.*",
        line=r"((Bad|Start|Schedule)\w+(Attributes|DuplicateId|SearchAttributes)): .*",
        becomes=r"\1",
        reason="What is wrong with a command is for people to read: perdure names the field or "
        "the id instead of its own machinery, and is shorter.",
    ),
    Difference(
        programs="test_bad_child_in_an_unknown_namespace",
        line=".*",
        reason="Temporal answers the worker with an error and lets the task time out, again and "
        "again; perdure records that the child could not be started.",
    ),
    Difference(
        programs="test_large_.*",
        line=".*",
        reason="Temporal terminates the run; perdure fails the workflow task with the size and "
        "the limit, so that mended code can go on.",
    ),
    Difference(
        programs="test_cron_backwards",
        line=".*",
        reason="Temporal takes '@every -1s' for '@every 1s'; perdure refuses it.",
    ),
    Difference(
        programs="test_upserts",
        line=r"(binary/null) .*",
        becomes=r"\1",
        reason="A search attribute that is unset needs no type.",
    ),
    Difference(
        programs="test_activity_by_id_without_a_workflow_id",
        line="^(completed: |    detail )",
        reason="Without a workflow id Temporal looks for a standalone activity. There are none.",
    ),
]


def applicable(program: str) -> list[Difference]:
    """The differences that are for a program."""
    return [one for one in DIFFERENCES if re.fullmatch(one.programs, program)]
