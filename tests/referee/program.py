"""A referee program: run on both servers, it must leave the same behind.

    @program
    async def test_start_twice(env: Env) -> None:
        await env.start(Hello.run, "a")
        await env.error("again", env.start(Hello.run, "b"))

The decorator makes a test of it. What is compared: the histories of all runs that the program
started (and of their successors and children), and what it noted. A busy machine may order events
of different sources now this way and now that; so where the two differ, the program is run again,
and fails if they differ each time.
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
ATTEMPTS = 3

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
Again = Callable[["Program", int], Outcome]
"""Runs a program once more; the number tells the ids of this attempt from the others."""


def program(body: Body) -> Callable[[Outcomes, Again], None]:
    """Make a test of a program."""
    name = body.__name__

    def test(outcomes: Outcomes, again: Again) -> None:
        problem = compare(name, outcomes[name])
        for attempt in range(2, ATTEMPTS + 1):
            if not problem:
                return
            problem = compare(name, again(Program(name, body), attempt))
        if problem:
            pytest.fail(problem, pytrace=False)

    test.__name__ = test.__qualname__ = name
    test.__module__ = body.__module__
    test.__doc__ = body.__doc__
    test.program = Program(name, body)  # type: ignore[attr-defined]
    return test


def compare(name: str, outcome: Outcome) -> str:
    """Where the two differ in what is on no list, as a diff; "" if nowhere."""
    assert outcome.temporal, "the program leaves nothing that could be compared"
    if any(line.startswith(RAISED) for line in outcome.temporal):
        return "on Temporal:\n" + "\n".join(outcome.temporal)
    temporal, perdure = outcome.temporal, outcome.perdure
    for difference in applicable(name):
        left, right = difference.without(temporal), difference.without(perdure)
        if difference.is_for_one and temporal == perdure:
            return f"no longer different: {difference.reason}"
        temporal, perdure = left, right
    diff = difflib.unified_diff(temporal, perdure, "temporal", "perdure", n=6, lineterm="")
    return "\n".join(diff)


# --- running ------------------------------------------------------------------------------------

RAISED = "the program raised "


def run_all(
    module: ModuleType, programs: list[Program], servers: Servers, attempt: int = 1
) -> Outcomes:
    """Run programs of one file, several at a time, on both servers at once."""

    async def both() -> Outcomes:
        temporal, perdure = await asyncio.gather(
            _run_on(servers.temporal, "temporal", module, programs, attempt),
            _run_on(servers.perdure, "perdure", module, programs, attempt),
        )
        return {
            one.name: Outcome(left, right)
            for one, left, right in zip(programs, temporal, perdure, strict=True)
        }

    return asyncio.run(both())


async def _run_on(
    address: str, server: str, module: ModuleType, programs: list[Program], attempt: int
) -> list[list[str]]:
    client = await Client.connect(address, identity="referee")
    subject = module.__name__.rpartition(".")[2].removeprefix("test_referee_")
    limit = asyncio.Semaphore(PROGRAMS_AT_ONCE)

    async def one(each: Program) -> list[str]:
        async with limit:
            name = each.name.removeprefix("test_") + (f"_{attempt}" if attempt > 1 else "")
            return await _run(each, Env(client, server, subject, name))

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
