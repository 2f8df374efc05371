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
        r"prev_auto_reset_points\S*): |indexed_fields\[BuildIds\]|\.auto_reset_points",
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
        line=r"((Bad|Start|Schedule|Pending)\w+(Attributes|DuplicateId|LimitExceeded)): .*",
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
        programs=".*",
        line="(A valid retention period is not set on request)[.:].*",
        becomes=r"\1",
        reason="perdure says how long it must be.",
    ),
    Difference(
        programs=".*",
        line=r"(invalid value for search attribute \w+ of type \w+): .*",
        becomes=r"\1",
        reason="perdure shows the value as it came, in JSON.",
    ),
    Difference(
        programs="test_(terminate_long_id|start_long_identity)",
        line=".*",
        reason="perdure refuses all ids and identities over the limit, in every request.",
    ),
    Difference(
        programs="test_reset_bad_requests",
        line="^(event [25]: RPCError INVALID_ARGUMENT): .*",
        becomes=r"\1",
        reason="perdure says which events can be reset to; Temporal names its own machinery.",
    ),
    Difference(
        programs="test_reset_twice_with_one_request_id",
        line=".*",
        reason="A reset that is sent again does nothing more in perdure, as every request with "
        "the same id; Temporal resets the run that the first one made.",
    ),
    Difference(
        programs="test_list_by_exact_time",
        line=".*",
        reason="Temporal on SQLite compares a time that is given to the second with one that was "
        "stored with fractions, as text; perdure compares times.",
    ),
    Difference(
        programs="test_list_queries_that_are_wrong",
        line="(RPCError INVALID_ARGUMENT): invalid (query|filter).*",
        becomes=r"\1",
        reason="perdure says where in the filter it is, and what could stand there.",
    ),
    Difference(
        programs="test_(list_what_temporal_refuses|count_by_other_groups)",
        line=".*",
        reason="perdure can do more: order, prefixes of text, any groups.",
    ),
    Difference(
        programs="test_list_bad_page_token",
        line=".*",
        reason="Temporal answers 'something went wrong'; perdure says what.",
    ),
    Difference(
        programs="test_list_shows_each_run",
        line=r"^  first_run_id: |RefDouble\]|RefTime\]",
        reason="Temporal makes search attributes anew from its columns; perdure keeps what it was "
        "given: 1.0 stays 1.0. It also tells the first run of the chain.",
    ),
    Difference(
        programs="test_search_attribute_unknown",
        line=".*",
        reason="An unknown search attribute is registered by its first use; a setting.",
    ),
    Difference(
        programs="test_namespace_life",
        line=r"supports_schedules|replication_config\.state",
        reason="There are no schedules yet, and no replication.",
    ),
    Difference(
        programs="test_what_is_not_there_yet",
        line=".*",
        reason="What perdure has not answers UNIMPLEMENTED, and is not advertised.",
    ),
    Difference(
        programs=".*",
        line="(exceeded workflow execution limit for signal events).*",
        becomes=r"\1",
        reason="perdure says how many are allowed, and what to do.",
    ),
    Difference(
        programs="test_history_too_long",
        line=r"^(answer: |  \d+ (TIMER_STARTED|WORKFLOW_))|^      ",
        reason="Both end the run; perdure keeps in history what the last answer did.",
    ),
    Difference(
        programs="test_activity_(paused_and_unpaused|reset|options_updated)",
        line=r"last_failure\.|last_heartbeat_time|current_retry_interval",
        reason="perdure goes on showing the last failure, counts a start as a sign of life, and "
        "does not double an interval because of a change to other options.",
    ),
    Difference(
        programs="test_cron_backwards",
        line=".*",
        reason="Temporal takes '@every -1s' for '@every 1s'; perdure refuses it.",
    ),
    Difference(
        programs="test_activity_by_id_without_a_workflow_id",
        line="^(completed: |    detail )",
        reason="Without a workflow id Temporal looks for a standalone activity. There are none.",
    ),
    # --- the command line ---------------------------------------------------------------------
    Difference(
        programs=".*",
        line=r"\.(workerVersion\.buildId|binaryChecksum|autoResetPoints\.points\S*|"
        r"mostRecentWorkerVersionStamp\.\w+|indexedFields\.BuildIds\.\S+): ",
        reason="Worker versioning is not there; see the first of this list.",
    ),
    Difference(
        programs="test_cli_list_and_count",
        line=r"\.firstRunId: ",
        reason="perdure also tells the first run of the chain.",
    ),
    Difference(
        programs="test_cli_list_and_count",
        line="invalid (query|filter).*",
        becomes="invalid",
        reason="perdure says where in the filter it is, and what could stand there.",
    ),
    Difference(
        programs="test_cli_activity_.*",
        line=r"\.(lastHeartbeatTime|lastFailure\.\S+|currentRetryInterval): ",
        reason="perdure counts a start as a sign of life, and goes on showing the last failure.",
    ),
    Difference(
        programs="test_cli_search_attributes",
        line=r"^  (exit status 1|! Error: unable to remove search attributes: .*doesn't exist\.)$",
        reason="Temporal removes an attribute that is not there without a word.",
    ),
    Difference(
        programs="test_cli_task_queue",
        line=r"\.(rate_per_second|task_id_block\.\w+)|^  versioning_info\.",
        reason="Blocks of task ids and build ids are machinery that perdure has not.",
    ),
    Difference(
        programs="test_cli_namespaces",
        line=r"capabilities\.(reportedProblemsSearchAttribute|standaloneActivit\w+)|"
        r"workflowTaskCompletionSizeLimitError|supportsSchedules|replicationConfig\.state",
        reason="What perdure has not is not advertised.",
    ),
    Difference(
        programs=".*",
        line=r"capabilities\.(workerPollCompleteOnShutdown|worker_poll_complete_on_shutdown): ",
        reason="perdure answers the polls of a worker that stops; the dev server does so if told.",
    ),
    Difference(
        programs="test_cli_namespaces",
        line=r"(deletedNamespace: \"[a-z0-9-]+?)-deleted-\w+",
        becomes=r"\1",
        reason="perdure deletes at once, so nothing is renamed until it is gone.",
    ),
]


def applicable(program: str) -> list[Difference]:
    """The differences that are for a program."""
    return [one for one in DIFFERENCES if re.fullmatch(one.programs, program)]
