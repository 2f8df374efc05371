"""What a call costs the server on each transport: CPU per unary call, memory per parked poll.

    .venv/bin/python benchmarks/transports.py

The server is a process of its own; the calls come from the official SDK's client (gzip, one
connection), the parked polls from a gRPC client with ten connections. Linux only.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import grpc.aio
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    PollActivityTaskQueueRequest,
)
from temporalio.client import Client

from perdure.server.transports import NAMES

CALLS = 5_000
AT_ONCE = 50
POLLS = 5_000
CONNECTIONS = 10
ROUNDS = 3
POLL = "/temporal.api.workflowservice.v1.WorkflowService/PollActivityTaskQueue"
COMMAND = Path(sys.executable).with_name("perdure")


def cpu_s(pid: int) -> float:
    """CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_kib(pid: int) -> int:
    """Memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


async def unary(client: Client, pid: int, at_once: int, calls: int) -> float:
    """µs of server CPU per call."""

    async def some(count: int) -> None:
        for _ in range(count):
            await client.workflow_service.describe_namespace(
                DescribeNamespaceRequest(namespace="default")
            )

    before_s = cpu_s(pid)
    await asyncio.gather(*[some(calls // at_once) for _ in range(at_once)])
    return (cpu_s(pid) - before_s) / calls * 1e6


async def parked(address: str, pid: int) -> float:
    """KiB of server memory per parked poll."""
    request = PollActivityTaskQueueRequest(namespace="default", identity="bench")
    request.task_queue.name = "queue"
    body = request.SerializeToString()
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options) for _ in range(CONNECTIONS)]
    for channel in channels:
        await channel.channel_ready()
    before_kib = resident_kib(pid)
    calls = []
    for number in range(POLLS):
        calls.append(channels[number % CONNECTIONS].unary_unary(POLL)(body))
        if number % 200 == 0:
            await asyncio.sleep(0.05)
    await asyncio.sleep(2)
    used_kib = resident_kib(pid) - before_kib
    for channel in channels:
        await channel.close()
    return used_kib / POLLS


def started(name: str) -> subprocess.Popen[str]:
    """A server on that transport."""
    return subprocess.Popen(
        [COMMAND, "server", "--db", "memory://", "--port", "0", "--transport", name],
        stdout=subprocess.PIPE,
        text=True,
    )


async def measure(name: str) -> str:
    """One line of the table."""
    server = started(name)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split("gRPC on ")[1].partition(",")[0]
        client = await Client.connect(address)
        await unary(client, server.pid, AT_ONCE, 500)
        many = [await unary(client, server.pid, AT_ONCE, CALLS) for _ in range(ROUNDS)]
        one = [await unary(client, server.pid, 1, 1_000) for _ in range(ROUNDS)]
        kib = await parked(address, server.pid)
    finally:
        server.terminate()
        await asyncio.to_thread(server.wait, 30)
    return f"{name:10} {min(many):12.0f} {min(one):12.0f} {kib:12.1f}"


async def main() -> None:
    """All transports, one after the other."""
    print(f"{'':10} {'µs, 50 at once':>12} {'µs, 1 by 1':>12} {'KiB/parked':>12}")
    for name in NAMES:
        print(await measure(name), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
