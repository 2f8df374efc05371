"""A referee program: run on both servers, it must leave the same behind.

    @program
    async def test_start_twice(env: Env) -> None:
        await env.start(Hello.run, "a")
        await env.error("again", env.start(Hello.run, "b"))

The decorator makes a test of it. What is compared: the histories of all runs that the program
started (and of their successors and children), and what it noted.
"""

from __future__ import annotations

import asyncio
import difflib
import inspect
import traceback
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import ModuleType

import pytest
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from referee.differences import applicable
from referee.env import Env

PROGRAMS_AT_ONCE = 8
PROGRAM_TIMEOUT_S = 60.0

Body = Callable[[Env], Awaitable[None]]


@dataclass(frozen=True)
class Program:
    """A program and its name, which is the test's."""

    name: str
    body: Body


@dataclass(frozen=True)
class Servers:
    """``host:port`` of each."""

    temporal: str
    perdure: str


@dataclass(frozen=True)
class Outcome:
    """What a program left on each server, line by line."""

    temporal: list[str]
    perdure: list[str]


Outcomes = dict[str, Outcome]


def program(body: Body) -> Callable[[Outcomes], None]:
    """Make a test of a program."""
    name = body.__name__

    def test(outcomes: Outcomes) -> None:
        compare(name, outcomes[name])

    test.__name__ = test.__qualname__ = name
    test.__module__ = body.__module__
    test.__doc__ = body.__doc__
    test.program = Program(name, body)  # type: ignore[attr-defined]
    return test


def compare(name: str, outcome: Outcome) -> None:
    """Fail the test, with a diff, where the two differ in what is on no list."""
    assert outcome.temporal, "the program leaves nothing that could be compared"
    broken = [line for line in outcome.temporal if line.startswith(RAISED)]
    if broken:
        pytest.fail("on Temporal:\n" + "\n".join(outcome.temporal), pytrace=False)
    temporal, perdure = outcome.temporal, outcome.perdure
    for difference in applicable(name):
        left, right = difference.without(temporal), difference.without(perdure)
        if difference.is_for_one and temporal == perdure:
            pytest.fail(f"no longer different: {difference.reason}", pytrace=False)
        temporal, perdure = left, right
    if temporal != perdure:
        diff = difflib.unified_diff(temporal, perdure, "temporal", "perdure", n=6, lineterm="")
        pytest.fail("\n".join(diff), pytrace=False)


# --- running ------------------------------------------------------------------------------------

RAISED = "the program raised "


def run_all(module: ModuleType, programs: list[Program], servers: Servers) -> Outcomes:
    """Run programs of one file, several at a time, on both servers at once."""

    async def both() -> Outcomes:
        temporal, perdure = await asyncio.gather(
            _run_on(servers.temporal, "temporal", module, programs),
            _run_on(servers.perdure, "perdure", module, programs),
        )
        return {
            one.name: Outcome(left, right)
            for one, left, right in zip(programs, temporal, perdure, strict=True)
        }

    return asyncio.run(both())


async def _run_on(
    address: str, server: str, module: ModuleType, programs: list[Program]
) -> list[list[str]]:
    client = await Client.connect(address, identity="referee")
    subject = module.__name__.rpartition(".")[2].removeprefix("test_referee_")
    limit = asyncio.Semaphore(PROGRAMS_AT_ONCE)

    async def one(each: Program) -> list[str]:
        async with limit:
            return await _run(each, Env(client, server, subject, each.name.removeprefix("test_")))

    async with AsyncExitStack() as stack:
        worker = _worker(client, subject, module)
        if worker is not None:
            await stack.enter_async_context(worker)
        return await asyncio.gather(*(one(each) for each in programs))


def _worker(client: Client, queue: str, module: ModuleType) -> Worker | None:
    """A worker for all workflows and activities that the file defines; None if there are none."""
    workflows = [
        found for _, found in inspect.getmembers(module, inspect.isclass)
        if hasattr(found, "__temporal_workflow_definition")
        and not hasattr(found, "not_for_all")
    ]  # fmt: skip
    activities = [
        found for _, found in inspect.getmembers(module, inspect.isfunction)
        if hasattr(found, "__temporal_activity_definition")
    ]  # fmt: skip
    if not workflows and not activities:
        return None
    return Worker(
        client,
        task_queue=queue,
        workflows=workflows,
        activities=activities,
        workflow_runner=UnsandboxedWorkflowRunner(),
    )


async def _run(each: Program, env: Env) -> list[str]:
    try:
        async with asyncio.timeout(PROGRAM_TIMEOUT_S):
            await each.body(env)
    except Exception as error:  # what it did until then tells more than the error alone
        env.lines.append(f"{RAISED}{type(error).__name__}: {error}")
        env.lines += traceback.format_exc(limit=-3).splitlines()
    try:
        async with asyncio.timeout(PROGRAM_TIMEOUT_S):
            await env.finish()
    except Exception as error:
        env.lines.append(f"{RAISED}when its histories were read: {error!r}")
    return env.lines
