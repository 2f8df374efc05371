"""The `temporal` command line prints the same of both servers, and fails in the same words."""

from __future__ import annotations

import json
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError

from referee.command_line import note, run
from referee.env import Env
from referee.program import Servers, program


@activity.defn
async def never_answers(key: str) -> str:
    """Completed by the command line."""
    activity.raise_complete_async()


@activity.defn
async def breaks(key: str) -> str:
    """Fails."""
    raise ApplicationError("broke")


@workflow.defn
class Greeter:
    """Ends at once."""

    @workflow.run
    async def run(self, name: str) -> str:
        if name == "nobody":
            raise ApplicationError("there is nobody", type="Alone", non_retryable=True)
        return f"hello {name}"


@workflow.defn
class Talker:
    """Waits for a signal, and answers until then."""

    def __init__(self) -> None:
        self.words: list[str] = []

    @workflow.run
    async def run(self) -> list[str]:
        await workflow.wait_condition(lambda: "end" in self.words)
        return self.words

    @workflow.signal
    def tell(self, word: str) -> None:
        self.words.append(word)

    @workflow.query
    def told(self) -> list[str]:
        return self.words

    @workflow.update
    def ask(self, word: str) -> int:
        self.words.append(word)
        return len(self.words)

    @ask.validator
    def _may_ask(self, word: str) -> None:
        if word == "no":
            raise ApplicationError("not that")


@workflow.defn
class Waiter:
    """Waits for an activity of its own."""

    @workflow.run
    async def run(self, name: str) -> str:
        return await workflow.execute_activity(
            name,
            "key",
            activity_id="act",
            start_to_close_timeout=timedelta(hours=2),
            retry_policy=RetryPolicy(initial_interval=timedelta(hours=1)),
        )


async def started(env: Env, kind: str, *values: str, suffix: str = "") -> str:
    """Start a workflow by a command whose output is compared; its id."""
    name = env.id(suffix)
    inputs = [part for value in values for part in ("--input", value)]
    where = ["--workflow-id", name, "--task-queue", env.queue, "--type", kind]
    await note(env, "workflow", "start", *where, *inputs)
    return name


# --- life ---------------------------------------------------------------------------------------


@program
async def test_cli_start_and_result(env: Env) -> None:
    name = await started(env, "Greeter", '"you"')
    await note(env, "workflow", "result", "-w", name)
    await note(env, "workflow", "describe", "-w", name)
    await note(env, "workflow", "show", "-w", name)
    await note(env, "workflow", "show", "-w", name, output="text")
    await note(env, "workflow", "trace", "-w", name, "--no-fold", output="text")


@program
async def test_cli_execute(env: Env) -> None:
    where = ["-w", env.id(), "-t", env.queue, "--type", "Greeter"]
    await note(env, "workflow", "execute", *where, "-i", '"you"', "--memo", 'note="kept"',
               "--search-attribute", 'RefKeyword="word"', "--static-summary", "short",
               "--execution-timeout", "60s", "--run-timeout", "50s")  # fmt: skip
    await note(env, "workflow", "describe", "-w", env.id())
    await note(env, "workflow", "execute", *where, "-i", '"nobody"')
    await note(env, "workflow", "result", "-w", env.id())


@program
async def test_cli_start_what_is_there(env: Env) -> None:
    name = await started(env, "Talker")
    where = ["-w", name, "-t", env.queue, "--type", "Talker"]
    await note(env, "workflow", "start", *where, "--fail-existing")
    await note(env, "workflow", "start", *where, "--id-conflict-policy", "Fail")
    await note(env, "workflow", "start", *where, "--id-conflict-policy", "UseExisting")
    await note(env, "workflow", "terminate", "-w", name, "--reason", "enough")
    await note(env, "workflow", "start", *where, "--id-reuse-policy", "RejectDuplicate")


@program
async def test_cli_nobody(env: Env) -> None:
    name = env.id("nobody")
    for verb in ("describe", "show", "result", "cancel", "stack"):
        await note(env, "workflow", verb, "-w", name)
    await note(env, "workflow", "trace", "-w", name, output="text")
    await note(env, "workflow", "delete", "-w", name, "--yes", output="text")
    await note(env, "workflow", "terminate", "-w", name, "--reason", "none")
    await note(env, "workflow", "signal", "-w", name, "--name", "tell")
    await note(env, "workflow", "query", "-w", name, "--name", "told")
    await note(env, "workflow", "update", "execute", "-w", name, "--name", "ask")
    await note(env, "workflow", "reset", "-w", name, "--event-id", "4", "--reason", "none")
    await note(env, "workflow", "describe", "-w", name, "-r", "no run id")
    await note(env, "workflow", "describe", "-w", name, "--namespace", "no-namespace")


@program
async def test_cli_cancel_and_terminate(env: Env) -> None:
    name = await started(env, "Talker")
    await note(env, "workflow", "cancel", "-w", name)
    await note(env, "workflow", "result", "-w", name)
    await note(env, "workflow", "cancel", "-w", name)
    other = await started(env, "Talker", suffix="other")
    await note(env, "workflow", "terminate", "-w", other, "--reason", "enough")
    await note(env, "workflow", "result", "-w", other)
    await note(env, "workflow", "terminate", "-w", other, "--reason", "again")
    await note(env, "workflow", "show", "-w", other)


@program
async def test_cli_delete(env: Env) -> None:
    name = await started(env, "Greeter", '"you"')
    await note(env, "workflow", "result", "-w", name)
    await note(env, "workflow", "delete", "-w", name, "--yes", output="text")

    async def gone() -> bool:
        return (await run(env, "workflow", "describe", "-w", name))[0] != 0

    await env.until(gone)
    await note(env, "workflow", "describe", "-w", name)


@program
async def test_cli_reset(env: Env) -> None:
    name = await started(env, "Talker")
    await note(env, "workflow", "signal", "-w", name, "--name", "tell", "-i", '"a"')
    await note(env, "workflow", "query", "-w", name, "--name", "told")
    where = ["-w", name, "--reason", "once more"]
    await note(env, "workflow", "reset", *where, "--type", "FirstWorkflowTask")
    await note(env, "workflow", "query", "-w", name, "--name", "told")
    await note(env, "workflow", "reset", *where, "--event-id", "4", "--reapply-exclude", "All")
    await note(env, "workflow", "query", "-w", name, "--name", "told")
    await note(env, "workflow", "reset", *where, "--event-id", "99")
    await note(env, "workflow", "reset", *where, "--type", "LastContinuedAsNew")


# --- messages -----------------------------------------------------------------------------------


@program
async def test_cli_signals_and_queries(env: Env) -> None:
    name = await started(env, "Talker")
    await note(env, "workflow", "signal", "-w", name, "--name", "tell", "-i", '"a"')
    await note(env, "workflow", "query", "-w", name, "--name", "told")
    await note(env, "workflow", "query", "-w", name, "--name", "unknown")
    await note(env, "workflow", "metadata", "-w", name)
    await note(env, "workflow", "describe", "-w", name)
    await note(env, "workflow", "signal", "-w", name, "--name", "tell", "-i", '"end"')
    await note(env, "workflow", "result", "-w", name)
    reject = ["--reject-condition", "not_open"]
    await note(env, "workflow", "query", "-w", name, "--name", "told", *reject)
    await note(env, "workflow", "query", "-w", name, "--name", "told")
    await note(env, "workflow", "signal", "-w", name, "--name", "tell", "-i", '"late"')


@program
async def test_cli_stack(env: Env) -> None:
    name = await started(env, "Talker")
    status, out, err = await run(env, "workflow", "stack", "-w", name)
    env.note("stack", (status, "wait_condition" in out, err))


@program
async def test_cli_updates(env: Env) -> None:
    name = await started(env, "Talker")
    where = ["-w", name, "--name", "ask"]
    await note(env, "workflow", "update", "execute", *where, "-i", '"a"', "--update-id", "one")
    await note(env, "workflow", "update", "execute", *where, "-i", '"a"', "--update-id", "one")
    accepted = ["--wait-for-stage", "accepted"]
    await note(env, "workflow", "update", "start", *where, "-i", '"b"', "--update-id", "two",
               *accepted)  # fmt: skip
    await note(env, "workflow", "update", "result", "-w", name, "--update-id", "two")
    await note(env, "workflow", "update", "describe", "-w", name, "--update-id", "one")
    await note(env, "workflow", "update", "describe", "-w", name, "--update-id", "unknown")
    await note(env, "workflow", "update", "execute", *where, "-i", '"no"', "--update-id", "three")
    await note(env, "workflow", "update", "execute", "-w", name, "--name", "unknown",
               "--update-id", "four")  # fmt: skip


@program
async def test_cli_messages_with_start(env: Env) -> None:
    where = ["-w", env.id("s"), "-t", env.queue, "--type", "Talker"]
    signal = ["--signal-name", "tell", "--signal-input", '"a"']
    await note(env, "workflow", "signal-with-start", *where, *signal)
    await note(env, "workflow", "signal-with-start", *where, *signal)
    await note(env, "workflow", "query", "-w", env.id("s"), "--name", "told")
    where = ["-w", env.id("u"), "-t", env.queue, "--type", "Talker"]
    update = ["--update-name", "ask", "--update-input", '"a"']
    use = ["--id-conflict-policy", "UseExisting"]
    await note(env, "workflow", "execute-update-with-start", *where, *update, *use,
               "--update-id", "one")  # fmt: skip
    await note(env, "workflow", "start-update-with-start", *where, *update, *use,
               "--update-id", "two", "--update-wait-for-stage", "accepted")  # fmt: skip
    await note(env, "workflow", "execute-update-with-start", *where, *update,
               "--id-conflict-policy", "Fail", "--update-id", "three")  # fmt: skip


# --- lists --------------------------------------------------------------------------------------


@program
async def test_cli_list_and_count(env: Env) -> None:
    for number in range(3):
        where = ["-w", env.id(str(number)), "-t", env.queue, "--type", "Greeter"]
        who = '"nobody"' if number == 2 else '"you"'
        await note(env, "workflow", "execute", *where, "-i", who,
                   "--search-attribute", f"RefInt={number}")  # fmt: skip
    query = f"WorkflowId STARTS_WITH '{env.id()}'"

    async def all_closed() -> bool:
        closed = f"{query} AND ExecutionStatus != 'Running'"
        return '"3"' in (await run(env, "workflow", "count", "--query", closed))[1]

    await env.until(all_closed)
    await note(env, "workflow", "list", "--query", query, unordered=True)
    await note(env, "workflow", "list", "--query", f"{query} AND RefInt = 1")
    await note(env, "workflow", "list", "--query", f"{query} AND RefInt = 7")
    await note(env, "workflow", "count", "--query", query)
    await note(env, "workflow", "count", "--query", f"{query} GROUP BY ExecutionStatus")
    limited = ["--limit", "2", "--page-size", "1"]
    _, out, _ = await run(env, "workflow", "list", "--query", query, *limited)
    env.note("limited", out.count('"workflowId"'))
    await note(env, "workflow", "list", "--query", "WorkflowId = ")
    await note(env, "workflow", "list", "--query", "NoSuchAttribute = 1")
    await note(env, "workflow", "count", "--query", "WorkflowId LIKES 'a'")


# --- activities ---------------------------------------------------------------------------------


async def waiting(env: Env, name: str, attempt: int, state: str) -> None:
    """Wait until the workflow's activity is in a state, "STARTED" or "SCHEDULED"."""
    wanted = PendingActivityState.Value(f"PENDING_ACTIVITY_STATE_{state}")

    async def check() -> bool:
        described = await env.call("DescribeWorkflowExecution", execution={"workflow_id": name})
        pending = described.pending_activities
        return bool(pending) and (pending[0].attempt, pending[0].state) == (attempt, wanted)

    await env.until(check)


@program
async def test_cli_activity_completed(env: Env) -> None:
    name = await started(env, "Waiter", '"never_answers"')
    await waiting(env, name, 1, "STARTED")
    await note(env, "workflow", "describe", "-w", name)
    which = ["-w", name, "--activity-id"]
    await note(env, "activity", "complete", *which, "other", "--result", '"done"')
    await note(env, "activity", "complete", *which, "act", "--result", '"done"')
    await note(env, "workflow", "result", "-w", name)
    await note(env, "activity", "complete", *which, "act", "--result", '"done"')


@program
async def test_cli_activity_failed(env: Env) -> None:
    name = await started(env, "Waiter", '"never_answers"')
    await waiting(env, name, 1, "STARTED")
    await note(env, "activity", "fail", "-w", name, "--activity-id", "act",
               "--reason", "no", "--detail", '{"why": 1}')  # fmt: skip
    await note(env, "workflow", "result", "-w", name)


@program
async def test_cli_activity_controlled(env: Env) -> None:
    name = await started(env, "Waiter", '"breaks"')
    await waiting(env, name, 2, "SCHEDULED")
    which = ["-w", name, "--activity-id", "act"]
    await note(env, "activity", "update-options", *which, "--start-to-close-timeout", "33s")
    await note(env, "activity", "pause", *which)
    await note(env, "workflow", "describe", "-w", name)
    await note(env, "activity", "unpause", *which)
    await waiting(env, name, 3, "SCHEDULED")
    await note(env, "activity", "reset", *which)
    await waiting(env, name, 2, "SCHEDULED")
    await note(env, "workflow", "describe", "-w", name)
    for verb in ("pause", "unpause", "reset"):
        await note(env, "activity", verb, "-w", name, "--activity-id", "other")


# --- operators ----------------------------------------------------------------------------------


@program
async def test_cli_task_queue(env: Env) -> None:
    await note(env, "task-queue", "describe", "-t", env.id("nobody-polls"), unordered=True)
    await note(env, "task-queue", "describe", "-t", env.id("nobody-polls"), "--legacy-mode")
    await note(env, "task-queue", "list-partition", "-t", env.id("nobody-polls"))
    _, out, _ = await run(env, "task-queue", "describe", "-t", env.queue)
    env.note("pollers", out.count('"referee"') > 0)


@program
async def test_cli_namespaces(env: Env) -> None:
    name = env.id().replace("_", "-")
    env.name = name
    await note(env, "operator", "namespace", "create", name, "--description", "for tests",
               "--email", "a@example.org", "--retention", "48h", "--data", 'team="a"')  # fmt: skip
    await note(env, "operator", "namespace", "create", name)
    await note(env, "operator", "namespace", "describe", name)
    await note(env, "operator", "namespace", "update", name, "--description", "changed",
               "--retention", "72h")  # fmt: skip
    await note(env, "operator", "namespace", "describe", name)
    _, out, _ = await run(env, "operator", "namespace", "list")
    env.note("listed", name in out)
    await note(env, "operator", "namespace", "delete", name, "--yes")
    await note(env, "operator", "namespace", "describe", env.id("nobody"))
    await note(env, "operator", "namespace", "update", env.id("nobody"), "--description", "x")
    await note(env, "operator", "namespace", "delete", env.id("nobody"), "--yes")
    await note(env, "operator", "namespace", "create", env.id("short"), "--retention", "1s")


@program
async def test_cli_search_attributes(env: Env) -> None:
    create = ["operator", "search-attribute", "create"]
    await note(env, *create, "--name", "CliWord", "--type", "Keyword",
               "--name", "CliNumber", "--type", "Int")  # fmt: skip
    await note(env, *create, "--name", "CliWord", "--type", "Keyword")
    await note(env, *create, "--name", "CliWord", "--type", "Int")
    _, out, _ = await run(env, "operator", "search-attribute", "list")
    env.note("listed", sorted(word for word in ("CliWord", "CliNumber") if word in out))
    remove = ["operator", "search-attribute", "remove", "--yes"]
    await note(env, *remove, "--name", "CliWord", "--name", "CliNumber")
    await note(env, *remove, "--name", "CliNever")
    _, out, _ = await run(env, "operator", "search-attribute", "list")
    env.note("listed", "CliWord" in out)


@program
async def test_cli_cluster(env: Env) -> None:
    await note(env, "operator", "cluster", "health")
    await note(env, "operator", "cluster", "health", output="text")
    for verb, name in (("system", "serverVersion"), ("describe", "clusterName")):
        status, out, err = await run(env, "operator", "cluster", verb)
        env.note(verb, (status, err, name in json.loads(out)))


@program
async def test_cli_workers(env: Env) -> None:
    _, out, _ = await run(env, "worker", "list")
    env.note("listed", '"workerInstanceKey"' in out)
    await note(env, "worker", "list", "--query", "TaskQueue = 'nobody'")
    await note(env, "worker", "describe", "--worker-instance-key", "unknown")


@program
async def test_cli_pause(env: Env) -> None:
    name = await started(env, "Talker")
    await note(env, "workflow", "query", "-w", name, "--name", "told")
    await note(env, "workflow", "pause", "-w", name, "--reason", "wait")
    await note(env, "workflow", "describe", "-w", name)
    await note(env, "workflow", "pause", "-w", name, "--reason", "wait")
    await note(env, "workflow", "signal", "-w", name, "--name", "tell", "-i", '"end"')
    await note(env, "workflow", "unpause", "-w", name, "--reason", "go")
    await note(env, "workflow", "result", "-w", name)
    await note(env, "workflow", "unpause", "-w", name)
    await note(env, "workflow", "pause", "-w", env.id("nobody"))


@program
async def test_cli_task_queue_config(env: Env) -> None:
    which = ["-t", env.id(), "--task-queue-type", "activity"]
    await note(env, "task-queue", "config", "get", *which)
    await note(env, "task-queue", "config", "set", *which, "--queue-rps-limit", "5",
               "--queue-rps-limit-reason", "slow", "--fairness-key-weight", "a=2.5")  # fmt: skip
    await note(env, "task-queue", "config", "get", *which)
    await note(env, "task-queue", "config", "set", *which, "--queue-rps-limit", "default",
               "--fairness-key-weight-clear-all")  # fmt: skip
    await note(env, "task-queue", "config", "get", *which)


# --- what is not there ----------------------------------------------------------------------------

NOT_OFFERED = {
    "schedule list": "ListSchedules",
    "schedule describe -s x": "DescribeSchedule",
    "schedule create -s x --interval 5s -t q --type X -w y": "CreateSchedule",
    "batch list": "ListBatchOperations",
    "batch describe --job-id x": "DescribeBatchOperation",
    "workflow cancel --query WorkflowId='x' --yes": "StartBatchOperation",
    "worker deployment list": "ListWorkerDeployments",
    "operator nexus endpoint list": "ListNexusEndpoints",
    "nexus operation list": "ListNexusOperationExecutions",
    "activity list": "ListActivityExecutions",
    "activity start --type x -t q --activity-id a --start-to-close-timeout 5s": (
        "StartActivityExecution"
    ),
    "task-queue get-build-ids -t q": "GetWorkerBuildIdCompatibility",
    "task-queue versioning get-rules -t q": "GetWorkerVersioningRules",
}
"""Commands, and the RPC that perdure says it does not offer."""


async def test_cli_says_what_is_not_offered(servers: Servers) -> None:
    client = await Client.connect(servers.perdure)
    env = Env(client, "perdure", "command_line", "not_offered")
    for command, rpc in NOT_OFFERED.items():
        status, _, err = await run(env, *command.split(), output="text")
        assert status == 1, command
        assert f"perdure does not offer {rpc}." in err, (command, err)
