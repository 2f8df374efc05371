"""The two servers, each a process of its own on a free port, for one test session."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.client import Client
from temporalio.service import RPCError

SEARCH_ATTRIBUTES = {
    "RefKeyword": "Keyword",
    "RefKeywords": "KeywordList",
    "RefText": "Text",
    "RefInt": "Int",
    "RefDouble": "Double",
    "RefBool": "Bool",
    "RefTime": "Datetime",
}
"""What the programs may use; names and types as the dev server's command line takes them."""

DYNAMIC_CONFIG = (
    'history.continueAsNewMinInterval="0s"',
    'history.workflowIdReuseMinimalInterval="0s"',
    'history.transferProcessorUpdateAckInterval="1s"',
    'history.visibilityProcessorUpdateAckInterval="1s"',
    "matching.numTaskqueueReadPartitions=1",
    "matching.numTaskqueueWritePartitions=1",
    "matching.useNewMatcher=true",
    "matching.enableFairness=true",
    "frontend.WorkflowPauseEnabled=true",
    "frontend.enableCancelWorkerPollsOnShutdown=true",
)
"""Temporal slows down chains of runs that are shorter than a second, and deletes a run half a
minute after it closed; perdure does neither. Of a queue in several partitions nobody can say who
goes first. What the last four ask for is always there in perdure; without the last, a task that
meets a poll as its worker leaves is lost until it times out."""

LIMITS = {
    "history.maximumSignalsPerExecution": 15,
    "limit.historyCount.suggestContinueAsNew": 100,
    "limit.historyCount.error": 150,
    "limit.numPendingActivities.error": 20,
    "limit.numPendingChildExecutions.error": 5,
    "limit.numPendingSignals.error": 5,
    "limit.numPendingCancelRequests.error": 5,
}
"""For both servers, under the names that they share; low, so that tests can meet them."""

READY_WITHIN_S = 30.0
_BIN = Path(sys.executable).parent


def temporal_command(port: int) -> list[str]:
    """The dev server, with its data in memory."""
    command = [str(_BIN / "temporal"), "server", "start-dev", "--headless", "--ip", "127.0.0.1"]
    command += ["--port", str(port), "--log-level", "error"]
    for setting in (*DYNAMIC_CONFIG, *(f"{name}={value}" for name, value in LIMITS.items())):
        command += ["--dynamic-config-value", setting]
    for name, kind in SEARCH_ATTRIBUTES.items():
        command += ["--search-attribute", f"{name}={kind}"]
    return command


def perdure_command(port: int, folder: Path, database: str) -> list[str]:
    """perdure's server."""
    config = folder / "perdure.toml"
    config.write_text("".join(f"{name} = {value}\n" for name, value in LIMITS.items()))
    command = [str(_BIN / "perdure"), "server", "--port", str(port), "--config", str(config)]
    return [*command, "--db", database]


async def add_search_attributes(address: str) -> None:
    """Register what the dev server is told to have by its command line."""
    client = await Client.connect(address)
    types = {
        name: IndexedValueType.Value(f"INDEXED_VALUE_TYPE_{_words(kind)}")
        for name, kind in SEARCH_ATTRIBUTES.items()
    }
    request = AddSearchAttributesRequest(namespace="default", search_attributes=types)
    await client.operator_service.add_search_attributes(request)


def _words(kind: str) -> str:
    return "KEYWORD_LIST" if kind == "KeywordList" else kind.upper()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(command: Sequence[str], port: int, log: Path) -> Iterator[str]:
    """Run a server until the block ends; yields ``host:port`` once it answers.

    Raises:
        RuntimeError: it is not there, ended, or does not answer; holds what it wrote.
    """
    if not Path(command[0]).exists():
        raise RuntimeError(f"{command[0]} is not there: run ./dev setup")
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        address = f"127.0.0.1:{port}"
        try:
            asyncio.run(_answers(address, process))
        except RuntimeError as error:
            raise RuntimeError(f"{command}: {error}\n{log.read_text()}") from error
        yield address
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _answers(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while True:
        try:
            client = await Client.connect(address)
            await client.count_workflows()
            return
        except (RuntimeError, RPCError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(str(error)) from error
        await asyncio.sleep(0.05)
