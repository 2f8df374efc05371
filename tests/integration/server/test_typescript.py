"""Temporal's TypeScript SDK against perdure's server and against Temporal's own, unchanged.

The npm project is in ``tests/typescript``: a worker, and a client that runs programs and prints
what each came to. Beside it runs a perdure worker over gRPC, so that each language calls the other.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryRequest

import perdure
from perdure import ActivityError, activity, workflow
from targets import SERVERS, new_namespace

PROJECT = Path(__file__).parents[2] / "typescript"
QUEUE, FOREIGN = "typescript", "python"
INSTALL_TIMEOUT_S = 300
RUN_TIMEOUT_S = 90

pytestmark = [
    pytest.mark.timeout(INSTALL_TIMEOUT_S + 2 * RUN_TIMEOUT_S),
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm and node are not installed"),
]

EXPECTED = {
    "greeting": "Hello, World!",
    "retried": 3,
    "failing": "Broken: the lamp is broken",
    "twice": "refused",
    "basket": {
        "held": ["apple", "pear"],
        "refused": "Error: there is no plum",
        "renamed": "apple, Hello, quince!",
        "result": ["apple", "Hello, quince!"],
        "afterwards": ["apple", "Hello, quince!"],
    },
    "family": ["Hello, child!", "Broken: the lamp is broken"],
    "countdown": 4,
    "nap": False,
    "tagged": "tagged",
    "patient": "CancelledFailure: Workflow canceled",
    "unknown": "WorkflowNotFoundError",
    "abroad": {"cents": 250, "with_tax": 300, "labels": ["taxed"]},
    "abroadFailing": "BadPrice: less than nothing",
}
WORKFLOWS = [name for name in EXPECTED if name != "unknown"]


# -- the perdure side ------------------------------------------------------------------------------


@dataclass
class Order:
    cents: int


@activity(name="price", start_to_close_timeout=timedelta(seconds=30))
async def price(order: Order) -> dict[str, Any]:
    """What the TypeScript workflow calls."""
    if order.cents < 0:
        raise perdure.ApplicationError("less than nothing", type="BadPrice", non_retryable=True)
    return {"cents": order.cents, "with_tax": order.cents * 6 // 5, "labels": ["taxed"]}


@workflow
async def weighed(grams: int) -> Any:
    """Calls an activity of the TypeScript worker."""
    parcel = {"id": "p-1", "grams": grams, "labels": ["new"]}
    try:
        return await workflow.execute_activity(
            "weigh",
            parcel,
            task_queue=QUEUE,
            start_to_close_timeout=timedelta(seconds=30),
            retry=perdure.RetryPolicy(maximum_attempts=1),
        )
    except ActivityError as error:
        cause = error.__cause__
        assert isinstance(cause, perdure.ApplicationError)
        return f"{cause.type}: {cause.message}"


# -- the stage -------------------------------------------------------------------------------------


@dataclass
class Played:
    """What came of one server: the programs' results, the perdure workflow's, and histories."""

    told: dict[str, Any]
    weighed: list[Any]
    histories: dict[str, list[str]]


def npm(*arguments: str) -> None:
    """Run npm in the project; raises with its output."""
    done = subprocess.run(
        ["npm", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"npm {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def project() -> Path:
    """The project, installed and compiled."""
    lock = hashlib.sha256((PROJECT / "package-lock.json").read_bytes()).hexdigest()
    installed = PROJECT / "node_modules" / ".installed"
    if not installed.exists() or installed.read_text() != lock:
        npm("ci", "--no-audit", "--no-fund", "--loglevel=error")
        installed.write_text(lock)
    npm("run", "build")
    return PROJECT


@contextmanager
def typescript_worker(project: Path, address: str, namespace: str) -> Iterator[None]:
    command = ["node", "lib/worker.js", address, namespace, QUEUE]
    with subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield
        finally:
            process.kill()


@asynccontextmanager
async def perdure_worker(address: str, namespace: str) -> AsyncIterator[perdure.Client]:
    async with (
        perdure.connect(f"grpc://{address}", namespace=namespace) as client,
        client.worker(FOREIGN, workflows=[weighed], activities=[price]),
    ):
        yield client


async def history(client: perdure.Client, namespace: str, workflow_id: str) -> list[str]:
    """The event types of a workflow's last run. Tasks of the workflow are left out: how many there
    are depends on who is quicker."""
    request = GetWorkflowExecutionHistoryRequest(
        namespace=namespace, execution=WorkflowExecution(workflow_id=workflow_id)
    )
    found = await client.service.get_workflow_execution_history(request)
    names = [EventType.Name(event.event_type) for event in found.history.events]
    return [name for name in names if "WORKFLOW_TASK" not in name]


async def node(project: Path, *arguments: str) -> bytes:
    """What a program prints. Raises TimeoutError."""
    process = await asyncio.create_subprocess_exec(
        "node", *arguments, cwd=project, stdout=asyncio.subprocess.PIPE
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), RUN_TIMEOUT_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    return output


async def play(project: Path, address: str) -> Played:
    async with perdure.connect(f"grpc://{address}") as client:
        namespace = await new_namespace(client)
    with typescript_worker(project, address, namespace):
        async with perdure_worker(address, namespace) as client:
            output = await node(project, "lib/client.js", address, namespace, QUEUE, FOREIGN)
            results = [
                await client.execute(weighed, grams, task_queue=FOREIGN, id=f"weighed-{grams}")
                for grams in (100, -1)
            ]
            ids = [*WORKFLOWS, "weighed-100", "weighed--1"]
            histories = {name: await history(client, namespace, name) for name in ids}
    return Played(json.loads(output), results, histories)


@pytest.fixture(scope="module")
def played(project: Path, server_addresses: Callable[[str], list[str]]) -> Callable[[str], Played]:
    """Everything on a server; once, also when it fails."""

    @cache
    def playing(server: str) -> Played | Exception:
        try:
            return asyncio.run(play(project, server_addresses(server)[0]))
        except Exception as error:
            return error

    def on(server: str) -> Played:
        came = playing(server)
        if isinstance(came, Exception):
            pytest.fail(f"nothing could be played on {server}: {came!r}")
        return came

    return on


# -- the tests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("program", EXPECTED)
def test_program(played: Callable[[str], Played], server: str, program: str) -> None:
    assert played(server).told[program] == EXPECTED[program]


@pytest.mark.parametrize("server", SERVERS)
def test_a_perdure_workflow_calls_a_typescript_activity(
    played: Callable[[str], Played], server: str
) -> None:
    assert played(server).weighed == [
        {"id": "p-1", "grams": 120, "labels": ["new", "weighed"]},
        "BadWeight: less than nothing",
    ]


def test_nothing_was_left_out(played: Callable[[str], Played]) -> None:
    assert played("perdure").told.keys() == EXPECTED.keys()


@pytest.mark.parametrize("workflow_id", [*WORKFLOWS, "weighed-100"])
def test_both_servers_keep_the_same_history(
    played: Callable[[str], Played], workflow_id: str
) -> None:
    histories = [played(server).histories[workflow_id] for server in SERVERS]
    assert histories[0] == histories[1]
    assert histories[0][0] == "EVENT_TYPE_WORKFLOW_EXECUTION_STARTED"
