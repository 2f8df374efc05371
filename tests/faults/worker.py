"""A worker of the official SDK, in a process that may be killed.

python -m tests.faults.worker ADDRESS NAME
"""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import timedelta

from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from .workflows import ACTIVITIES, QUEUE, WORKFLOWS

START_WITHIN_S = 60.0
SDK_ASKS_FOR_S = 15.0


async def connected(address: str, name: str) -> Client:
    """A client, as soon as the server is there.

    Raises:
        TimeoutError: it was not there for a minute.
    """
    async with asyncio.timeout(START_WITHIN_S):
        while True:
            try:
                client = await Client.connect(address, identity=name)
                await client.count_workflows()
                return client
            except (RuntimeError, RPCError):
                await asyncio.sleep(0.05)


async def main(address: str, name: str) -> None:
    """Work until killed. What the SDK does not survive ends the process, and so the test."""
    while True:
        worker = Worker(
            await connected(address, name),
            task_queue=QUEUE,
            workflows=WORKFLOWS,
            activities=ACTIVITIES,
            workflow_runner=UnsandboxedWorkflowRunner(),
            sticky_queue_schedule_to_start_timeout=timedelta(seconds=1),
        )
        begin = time.monotonic()
        try:
            await worker.run()
        except RuntimeError as error:
            # Before it polls, the SDK asks for its namespace, and gives up if nobody answers.
            if time.monotonic() - begin > SDK_ASKS_FOR_S:
                raise
            print(f"the server is gone again: {error}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
