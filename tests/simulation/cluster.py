"""One simulation of three nodes on one database, on virtual time, from one seed."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable

from perdure import Client
from perdure.store.contract import Store
from perdure.store.sqlite import SqliteStore
from perdure.testing import VirtualLoop
from perdure.testing.faults import Faults

from .chronicle import Chronicle
from .clients import Customer
from .invariants import check, digest, read_runs, stranded_faults
from .late import Late
from .processes import Connection, Life, Process, track
from .refusals import Evidence
from .shared import LATE_S, Database, Network
from .simulate import FAULTY_S, LIMIT_S, SETTLE_S, Outcome, deterministic, end, silent
from .watched import WatchedService
from .workload import ACTIVITIES, WORKFLOWS, Ledger, Plan, World, make_plans

NODES = 3


class Cluster:
    """Everything of one seed.

    Args:
        seed: decides all.
        wrap: stands before the database's rows, to plant a bug.
    """

    def __init__(self, seed: int, wrap: Callable[[Store], Store] | None = None) -> None:
        rng = self.rng = random.Random(seed)
        self.faults = _faults(rng)
        self.outcome = Outcome(seed, faults=self.faults)
        chronicle = Chronicle(SqliteStore(":memory:"))
        self.ledger = World.ledger = Ledger(random.Random(rng.random()), Evidence(chronicle))
        self.plans: list[Plan] = make_plans(rng)
        self.customers = [Customer(plan, self.ledger, rng) for plan in self.plans]
        self.rows: Store = wrap(chronicle) if wrap else chronicle
        network = _network(rng)
        late_s = LATE_S if network.late else 0.0
        self.ledger.clocks_differ_ns = round((4 * network.delay_s + 2 * late_s) * 1e9)
        self.database = Database(network, self.rows, Late(seed))
        self.restless = rng.choice([0.0, 0.0, 60.0, 20.0])
        self.outside = rng.choice([0, 1, 1, 2])  # workers that are no part of a node
        self.processes: list[Process] = []

    async def run(self) -> Outcome:
        """Simulate, and look at what is left."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        track(loop)
        await self.rows.open()
        self.processes = [self._process(number) for number in range(NODES)]
        lives = [asyncio.ensure_future(process.run()) for process in self.processes]
        workers = [self._worker(number) for number in range(self.outside)]
        healing = loop.call_later(FAULTY_S, self.heal)
        over = asyncio.ensure_future(self.work())
        await asyncio.wait([over, *lives], return_when=asyncio.FIRST_COMPLETED)
        for life in lives:
            if life.done():
                life.result()  # a node must not end with an error
        over.result()
        healing.cancel()
        await self.stop(lives, workers)
        await self.inspect()
        return self.outcome

    def _process(self, number: int) -> Process:
        has_worker = number == 0 if not self.outside else self.rng.random() < 0.5
        return Process(
            f"node {number}",
            self.database,
            self.ledger,
            random.Random(self.rng.random()),
            faults=self.faults,
            has_worker=has_worker or self.rng.random() < 0.5,
            restless=self.restless,
        )

    def _worker(self, number: int) -> Life:
        """A worker in a process of its own."""
        rng = random.Random(self.rng.random())
        connection = Connection(self.processes, rng, fixed=rng.random() < 0.3)
        service = WatchedService(connection, self.ledger)
        client = Client(service, identity=f"worker {number}")
        life = Life()

        async def work() -> None:
            async with client.worker(workflows=WORKFLOWS, activities=ACTIVITIES):
                await asyncio.Event().wait()

        life.begin(work())
        return life

    async def work(self) -> None:
        """All that the customers want, and time for what nobody waits for."""
        connection = Connection(self.processes, self.rng, fixed=False)
        client = Client(WatchedService(connection, self.ledger), identity="customer")
        try:
            async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
                for customer in self.customers:
                    group.create_task(customer.run(client))
        except TimeoutError:
            left = [errand for customer in self.customers for errand in customer.left()]
            self.outcome.wrong += [f"after two hours this is not done: {errand}" for errand in left]
        self.heal()
        await asyncio.sleep(SETTLE_S)

    def heal(self) -> None:
        """Nothing goes wrong any more."""
        self.faults.refused = self.faults.unanswered = self.faults.crash = 0.0
        self.database.network.heal()
        self.database.late.share = 0.0
        self.restless = 0.0
        for process in self.processes:
            process.restless = 0.0

    async def stop(self, lives: list[asyncio.Future[None]], workers: list[Life]) -> None:
        """The end of all processes."""
        for worker in workers:
            await worker.end()
        for life in lives:
            life.cancel()
        for process in self.processes:
            await process.kill()
            self.outcome.crashes += process.crashes
            self.outcome.commits += process.commits

    async def inspect(self) -> None:
        """Look at the database as the next process would find it."""
        process = self._process(NODES)
        process.has_worker = False
        life = asyncio.ensure_future(process.live())
        await asyncio.sleep(0)
        node = await process.opened
        runs = await read_runs(node)
        self.outcome.wrong += await check(node, runs, self.plans, self.ledger)
        if not self.outside:
            self.outcome.wrong += stranded_faults(runs)
        self.outcome.runs = len(runs)
        self.outcome.events = sum(len(run.events) for run in runs)
        self.outcome.held = self.database.late.strangers.held
        self.outcome.digest = digest(runs)
        process.leave.set()
        await life
        await self.rows.close()


def simulate_cluster(seed: int, wrap: Callable[[Store], Store] | None = None) -> Outcome:
    """Simulate one seed."""
    loop = VirtualLoop()
    with deterministic(seed, loop), silent():
        cluster = Cluster(seed, wrap)
        try:
            return loop.run_until_complete(cluster.run())
        except Exception as error:
            cluster.outcome.wrong.append(f"{type(error).__name__}: {error!r}")
            if os.environ.get("SIMULATION_TRACE"):
                raise
            return cluster.outcome
        finally:
            end(loop)


def _faults(rng: random.Random) -> Faults:
    return Faults(
        refused=rng.choice([0.0, 0.0, 0.02, 0.1]),
        unanswered=rng.choice([0.0, 0.0, 0.02, 0.1]),
        crash=rng.choice([0.0, 0.0, 0.005, 0.02]),
    )


def _network(rng: random.Random) -> Network:
    return Network(
        severed=rng.choice([0.0, 0.0, 0.01, 0.1]),
        unheard=rng.choice([0.0, 0.0, 0.1, 1.0]),
        delay_s=rng.choice([0.0, 0.001, 0.01, 0.2]),
        late=rng.choice([0.0, 0.1, 0.3, 0.5]),
    )
