"""``perdure server`` as a process: what it says, who holds the file, how it ends."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import grpc.aio
import pytest
from temporalio import activity, workflow
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueRequest,
    DescribeTaskQueueResponse,
    PollActivityTaskQueueRequest,
)
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

COMMAND = [sys.executable, "-m", "perdure.cli", "server"]
READY = re.compile(r"perdure \S+: gRPC on (\S+), data in (\S+?)(?:, node \d+)?\n")

POLL = "/temporal.api.workflowservice.v1.WorkflowService/PollActivityTaskQueue"
DESCRIBE = "/temporal.api.workflowservice.v1.WorkflowService/DescribeTaskQueue"

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running = []

    def launch(*options: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*COMMAND, *options],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield launch
    for process in running:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> tuple[str, str]:
    """(address, data) of a server that is ready."""
    assert process.stdout is not None
    line = process.stdout.readline()
    found = READY.fullmatch(line)
    assert found is not None, line
    return found[1], found[2]


def failed(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, error = process.communicate(timeout=30)
    return process.returncode, error


@activity.defn
async def charge(cents: int) -> str:
    return f"paid {cents}"


@workflow.defn
class Order:
    def __init__(self) -> None:
        self.sent = False

    @workflow.run
    async def run(self, cents: int) -> str:
        paid = await workflow.execute_activity(
            charge, cents, start_to_close_timeout=timedelta(seconds=10)
        )
        await workflow.wait_condition(lambda: self.sent)
        return paid

    @workflow.signal
    def send(self) -> None:
        self.sent = True


def worker(client: Client) -> Worker:
    return Worker(
        client,
        task_queue="queue",
        workflows=[Order],
        activities=[charge],
        workflow_runner=UnsandboxedWorkflowRunner(),
    )


async def test_a_killed_server_goes_on_where_it_was(start: Start, tmp_path: Path) -> None:
    first = start("--port", "0", "--namespace", "shop")
    address, data = said(first)
    assert data == str(tmp_path / "perdure.db")
    client = await Client.connect(address, namespace="shop")
    async with worker(client):
        handle = await client.start_workflow(Order.run, 42, id="order", task_queue="queue")
        async for event in handle.fetch_history_events(wait_new_event=True):
            if event.HasField("activity_task_completed_event_attributes"):
                break
        first.kill()
        first.wait()
        second = start("--port", address.rpartition(":")[2])
        assert said(second)[0] == address
        await handle.signal(Order.send)  # the client has reconnected
        assert await handle.result() == "paid 42"
    second.send_signal(signal.SIGTERM)
    code, error = failed(second)
    assert (code, "Traceback" in error) == (0, False)
    assert "stopping: polls are released, running calls may finish" in error


async def test_ctrl_c_releases_polls_and_ends_at_once(start: Start) -> None:
    process = start("--port", "0", "--db", "memory://")
    address, data = said(process)
    assert data == "memory"
    client = await Client.connect(address)
    request = PollActivityTaskQueueRequest(namespace="default", task_queue=TaskQueue(name="q"))
    poll = asyncio.ensure_future(client.workflow_service.poll_activity_task_queue(request))
    await asyncio.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert not (await asyncio.wait_for(poll, 20)).task_token  # else it would last a minute
    code, error = failed(process)
    assert (code, "Traceback" in error) == (0, False)


def test_a_file_that_another_process_holds(start: Start) -> None:
    first = start("--port", "0")
    said(first)
    code, error = failed(start("--port", "0"))
    assert code == 1
    assert f"perdure.db is in use by process {first.pid}" in error
    assert error.count("\n") == 1


def test_a_port_that_is_taken(start: Start) -> None:
    address, _ = said(start("--port", "0"))
    code, error = failed(start("--db", "other.db", "--port", address.rpartition(":")[2]))
    assert code == 1
    assert f"cannot listen on {address}" in error
    assert "--port" in error


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--port", "70000"], "--port: 70000"),
        (["--db", "grpc://host:7233"], "--db: "),
        (["--db", "postgresql://u:secret@nowhere.invalid/x"], "u@nowhere.invalid/x cannot be"),
        (["--db", "sqlite:///no/such/folder/x.db"], "no such directory"),
        (["--config", "none.toml"], "none.toml: No such file"),
        (["--config", "bad.toml"], "did you mean limit.blobSize.error"),
        (["--transport", "pigeon"], "'pigeon' is none of grpcio, native"),
        (["--namespace", "x" * 2_000], "Namespace length exceeds limit"),
    ],
)
def test_what_makes_no_sense(start: Start, tmp_path: Path, options: list[str], why: str) -> None:
    (tmp_path / "bad.toml").write_text("limit.blobSize.eror = 1\n")
    port = [] if "--port" in options else ["--port", "0"]
    code, error = failed(start(*options, *port))
    assert code in {1, 2}
    assert error.startswith("error: ")
    assert why in error


def test_settings_hold(start: Start, tmp_path: Path) -> None:
    (tmp_path / "perdure.toml").write_text("frontend.shutdownDrainDuration = '1s'\n")
    process = start("--port", "0", "--config", "perdure.toml")
    said(process)
    process.terminate()
    assert failed(process)[0] == 0


def test_a_missing_extra_says_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['grpc_health'] = None\n"
        "from perdure.cli import main\n"
        "sys.argv = ['perdure', 'server', '--port', '0']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert "pip install 'perdure[server]'" in done.stderr
    assert not (tmp_path / "perdure.db").exists()


@pytest.mark.parametrize("transport", ["grpcio", "native"])
async def test_all_parked_polls_are_answered_before_it_ends(start: Start, transport: str) -> None:
    process = start("--port", "0", "--db", "memory://", "--transport", transport)
    address, _ = said(process)
    queue = TaskQueue(name="q")
    requests = [
        PollActivityTaskQueueRequest(namespace="default", task_queue=queue, identity=str(number))
        for number in range(900)
    ]
    described = DescribeTaskQueueRequest(namespace="default", task_queue=queue, task_queue_type=2)
    async with grpc.aio.insecure_channel(address) as channel:
        polls = [channel.unary_unary(POLL)(request.SerializeToString()) for request in requests]
        parked = 0
        while parked < len(polls):
            answer = await channel.unary_unary(DESCRIBE)(described.SerializeToString())
            parked = len(DescribeTaskQueueResponse.FromString(answer).pollers)
        process.send_signal(signal.SIGTERM)
        assert {await poll.code() for poll in polls} == {grpc.StatusCode.OK}
    assert failed(process)[0] == 0


@activity.defn
async def say_hello(name: str) -> str:
    return f"hello {name}"


@workflow.defn
class Greeting:
    @workflow.run
    async def run(self, name: str) -> str:
        timeout = timedelta(seconds=30)
        return await workflow.execute_activity(say_hello, name, start_to_close_timeout=timeout)


@pytest.mark.parametrize("transport", ["grpcio", "native"])
async def test_it_serves_a_database_on_postgresql(
    start: Start, transport: str, postgres_dsn: str
) -> None:
    address, _ = said(start("--port", "0", "--db", postgres_dsn, "--transport", transport))
    client = await Client.connect(address)
    worker = Worker(
        client,
        task_queue="q",
        workflows=[Greeting],
        activities=[say_hello],
        workflow_runner=UnsandboxedWorkflowRunner(),
    )
    async with worker:
        answers = await asyncio.gather(
            *(
                client.execute_workflow(Greeting.run, str(n), id=str(n), task_queue="q")
                for n in range(5)
            )
        )
    assert answers == [f"hello {n}" for n in range(5)]
