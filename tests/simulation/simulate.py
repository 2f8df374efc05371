"""One simulation: a node with client, worker and failing store, on virtual time, from one seed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing.process  # noqa: F401 - it draws from chance when it is first imported
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from perdure import Client
from perdure.api.errors import Unavailable
from perdure.sdk.runtime import clocks, dice
from perdure.sdk.runtime.context import state
from perdure.store.contract import Store, StoreUnavailable
from perdure.store.sqlite import SqliteStore
from perdure.testing import VirtualLoop
from perdure.testing.faults import Faults

from .chronicle import Chronicle
from .clients import Customer
from .invariants import check, digest, read_runs
from .nodes import Disk
from .refusals import Evidence
from .watched import WatchedService
from .workload import ACTIVITIES, WORKFLOWS, Ledger, Plan, World, make_plans

FAULTY_S = 300.0  # faults stop then, so that everything can come to its end
LIMIT_S = 7_200.0
SETTLE_S = 400.0  # longer than every timeout of the workload
MAX_CRASHES = 8


@dataclass
class Outcome:
    """What became of one seed."""

    seed: int
    wrong: list[str] = field(default_factory=list)
    digest: str = ""
    runs: int = 0
    events: int = 0
    crashes: int = 0
    held: int = 0
    commits: int = 0
    faults: Faults = field(default_factory=Faults)

    def __str__(self) -> str:
        text = "; ".join(self.wrong) if self.wrong else "all well"
        return (
            f"seed {self.seed}: {self.runs} runs, {self.events} events, {self.commits} commits, "
            f"{self.crashes} crashes: {text}"
        )


class Simulation:
    """Everything of one seed.

    Args:
        seed: decides all.
        wrap: stands between the node and the store, to plant a bug.
    """

    def __init__(self, seed: int, wrap: Callable[[Store], Store] | None = None) -> None:
        self.rng = random.Random(seed)
        self.outcome = Outcome(seed, faults=_faults(self.rng))
        chronicle = Chronicle(SqliteStore(":memory:"))
        self.ledger = World.ledger = Ledger(random.Random(self.rng.random()), Evidence(chronicle))
        self.plans: list[Plan] = make_plans(self.rng)
        self.customers = [Customer(plan, self.ledger, self.rng) for plan in self.plans]
        self.disk = Disk(chronicle, faults=self.outcome.faults)
        self.wrap = wrap

    async def run(self) -> Outcome:
        """Simulate, and look at what is left."""
        loop = asyncio.get_running_loop()
        while loop.time() < LIMIT_S:
            over = await self.life()
            await self.bury()
            if over:
                break
        left = [errand for customer in self.customers for errand in customer.left()]
        self.outcome.wrong += [f"after two hours this is not done: {errand}" for errand in left]
        await self.inspect()
        return self.outcome

    async def life(self) -> bool:
        """One process, from its start to its crash (False), or to the end of all work (True)."""
        self.disk.wrap = self.wrap
        work = asyncio.create_task(self.work())
        await asyncio.sleep(0)
        store = self.disk.store
        assert store is not None
        crashed = asyncio.create_task(store.crashed.wait())
        await asyncio.wait([crashed, work], return_when=asyncio.FIRST_COMPLETED)
        return work.done() and work.result()

    async def work(self) -> bool:
        """Do everything that is not done yet; False when the process could not even start."""
        loop = asyncio.get_running_loop()
        try:
            node = await self.disk.open(self.rng)
        except (StoreUnavailable, Unavailable):
            return False
        client = Client(WatchedService(node.service, self.ledger), identity="simulated")
        healing = loop.call_later(max(0.0, FAULTY_S - loop.time()), self.disk.heal)
        deadline = max(0.0, LIMIT_S - loop.time())
        async with client.worker(workflows=WORKFLOWS, activities=ACTIVITIES):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deadline), asyncio.TaskGroup() as group:
                    for customer in self.customers:
                        group.create_task(customer.run(client))
            self.disk.heal()
            await asyncio.sleep(SETTLE_S)  # children and tasks that nobody waits for
        healing.cancel()
        return True

    async def bury(self) -> None:
        """End the process: nothing of it goes on, and its store has stopped answering."""
        store = self.disk.store
        if store is not None:
            self.outcome.commits += store.commits
            self.outcome.crashes += store.crashed.is_set()
            if self.outcome.crashes >= MAX_CRASHES:
                self.disk.faults.crash = 0.0
        await self.disk.kill()

    async def inspect(self) -> None:
        """Look at the store as the next process would find it."""
        self.disk.heal()
        node = await self.disk.open(self.rng)
        runs = await read_runs(node)
        self.outcome.wrong += await check(node, runs, self.plans, self.ledger)
        self.outcome.runs = len(runs)
        self.outcome.events = sum(len(run.events) for run in runs)
        self.outcome.digest = digest(runs)
        await self.disk.close()


def simulate(seed: int, wrap: Callable[[Store], Store] | None = None) -> Outcome:
    """Simulate one seed."""
    loop = VirtualLoop()
    with deterministic(seed, loop), silent():
        simulation = Simulation(seed, wrap)
        try:
            return loop.run_until_complete(simulation.run())
        except Exception as error:
            simulation.outcome.wrong.append(f"{type(error).__name__}: {error!r}")
            if os.environ.get("SIMULATION_TRACE"):
                raise
            return simulation.outcome
        finally:
            end(loop)


def end(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def _faults(rng: random.Random) -> Faults:
    """Some seeds have an easy life, some a hard one."""
    return Faults(
        refused=rng.choice([0.0, 0.0, 0.02, 0.1]),
        unanswered=rng.choice([0.0, 0.0, 0.02, 0.1]),
        crash=rng.choice([0.0, 0.01, 0.03, 0.1]),
        delay_s=rng.choice([0.0, 0.001, 0.1, 1.0]),
    )


@contextlib.contextmanager
def deterministic(seed: int, loop: VirtualLoop) -> Iterator[None]:
    """Chance and time of this process come from the seed and the loop."""
    rng = random.Random(seed)
    kept = (clocks._real_time, clocks._real_time_ns, dice._real_urandom)
    monotonic, monotonic_ns, saved = time.monotonic, time.monotonic_ns, random.getstate()

    clocks._real_time = lambda: loop.now_ns() / 1e9
    clocks._real_time_ns = loop.now_ns
    dice._real_urandom = rng.randbytes  # type: ignore[assignment]
    time.monotonic = lambda: monotonic() if state.guarded else loop.time()
    time.monotonic_ns = lambda: monotonic_ns() if state.guarded else int(loop.time() * 1e9)
    random.seed(seed)
    try:
        yield
    finally:
        clocks._real_time, clocks._real_time_ns, dice._real_urandom = kept
        time.monotonic, time.monotonic_ns = monotonic, monotonic_ns
        random.setstate(saved)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Failures are the point here: their log lines are noise."""
    if os.environ.get("SIMULATION_TRACE"):
        yield
        return
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
