"""Processes that live side by side on one loop: each can be killed with all that it was doing."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

from perdure import Client
from perdure.api.caller import CALLER, Caller
from perdure.api.errors import Unavailable
from perdure.service.clock import SystemClock
from perdure.service.node import Node
from perdure.store.contract import StoreUnavailable
from perdure.testing import VirtualLoop
from perdure.testing.faults import Faults

from .shared import Database, SharedStore
from .watched import WatchedService
from .workload import ACTIVITIES, WORKFLOWS, Ledger

DOWN_S = 8.0
SKEW_S = 30.0
LATENCY_S = 0.002


class Life:
    """All tasks of one process from its start to its end."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[Any], None] = {}  # in order
        self.context = contextvars.copy_context()
        self.context.run(_LIFE.set, self)

    def begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something in this process."""
        return asyncio.get_running_loop().create_task(work, context=self.context.copy())

    def add(self, task: asyncio.Task[Any]) -> None:
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    async def end(self) -> None:
        """Nothing of it goes on."""
        for _ in range(50):
            tasks = list(self._tasks)
            if not tasks:
                return
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=0.001)
        raise AssertionError(f"tasks that cannot be ended: {self._tasks}")


_LIFE: ContextVar[Life | None] = ContextVar("life", default=None)


def track(loop: VirtualLoop) -> None:
    """From now on every task belongs to the process that began it."""

    def factory(same: Any, work: Any, *, context: Any = None, **options: Any) -> Any:
        task = loop.new_task(same, work, context=context, **options)
        life = _LIFE.get() if context is None else context.get(_LIFE)
        if life is not None:
            life.add(task)
        return task

    loop.set_task_factory(factory)


class Process:
    """A node, perhaps with a worker of its own, that dies, leaves, and comes back.

    Args:
        rng: decides over its lives.
        has_worker: workflows and activities run in it.
        restless: how long a life lasts at the most, in seconds; 0: it ends with the simulation.
    """

    def __init__(
        self,
        name: str,
        database: Database,
        ledger: Ledger,
        rng: random.Random,
        *,
        faults: Faults,
        has_worker: bool,
        restless: float,
    ) -> None:
        self.name, self.database, self.ledger, self.rng = name, database, ledger, rng
        self.faults, self.has_worker, self.restless = faults, has_worker, restless
        self.service: Any = None  # while it serves
        self.gone = asyncio.Event()
        self.stopping = False
        self.leave = asyncio.Event()
        self.life = Life()
        self.store = SharedStore(database, faults, rng)
        self.opened: asyncio.Future[Node]  # of this life
        self.crashes = self.commits = 0

    async def run(self) -> None:
        """One life after the other."""
        while not self.stopping:
            await self.live()
            await asyncio.sleep(self.rng.random() * DOWN_S)

    async def live(self) -> None:
        """From the start to a crash, or until it is told to leave."""
        self.life, self.gone, self.leave = Life(), asyncio.Event(), asyncio.Event()
        self.store = SharedStore(self.database, self.faults, self.rng)
        self.opened = asyncio.get_running_loop().create_future()
        work = self.life.begin(self._work())
        crash = asyncio.ensure_future(self.store.crashed.wait())
        end = self.leave.set if self.rng.random() < 0.3 else self.store.crash
        timer = None
        if self.restless:
            timer = asyncio.get_running_loop().call_later(self.rng.random() * self.restless, end)
        await asyncio.wait([work, crash], return_when=asyncio.FIRST_COMPLETED)
        crash.cancel()
        if timer is not None:
            timer.cancel()
        self.crashes += self.store.crashed.is_set()
        await self.kill()
        if work.done() and not work.cancelled():
            work.result()

    async def kill(self) -> None:
        """The process dies with all that it was doing."""
        self.commits += self.store.commits
        self.store.commits = 0
        self.service = None
        self.gone.set()
        self.store.crash()
        await self.life.end()

    async def _work(self) -> None:
        loop: Any = asyncio.get_running_loop()
        skew_ns = round((self.rng.random() - 0.5) * 2 * SKEW_S * 1e9)
        clock = SystemClock(lambda: loop.now_ns() + skew_ns, loop.now_ns)
        try:
            node = await Node.open(self.store, clock=clock, rng=self.rng)
        except (StoreUnavailable, Unavailable):
            return
        self.service = node.service
        self.opened.set_result(node)
        if self.has_worker:
            client = Client(WatchedService(node.service, self.ledger), identity=self.name)
            async with client.worker(workflows=WORKFLOWS, activities=ACTIVITIES):
                await self.leave.wait()
        else:
            await self.leave.wait()
        await node.close()


class Connection:
    """The service of one of the processes, as somebody outside of them reaches it.

    Args:
        fixed: stay with one process while it lives; else another one may answer each call.
    """

    is_remote = True

    def __init__(self, processes: list[Process], rng: random.Random, *, fixed: bool) -> None:
        self._processes, self._rng, self._fixed = processes, rng, fixed
        self._process: Process | None = None

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_") or method == "advances_in_process":
            raise AttributeError(method)

        async def call(request: Any) -> Any:
            await asyncio.sleep(self._rng.random() * LATENCY_S)
            process = self._choose()
            if process is None:
                raise Unavailable("injected: no connection")
            return await _ask(process, method, request)

        return call

    def _choose(self) -> Process | None:
        if self._fixed and self._process is not None and self._process.service is not None:
            return self._process
        there = [process for process in self._processes if process.service is not None]
        self._process = self._rng.choice(there) if there else None
        return self._process


async def _ask(process: Process, method: str, request: Any) -> Any:
    """A call that ends with the process."""
    service, gone = process.service, process.gone

    async def answer() -> Any:
        CALLER.set(Caller(in_process=False))
        return await getattr(service, method)(request)

    work = process.life.begin(answer())
    died = asyncio.ensure_future(gone.wait())
    try:
        await asyncio.wait([work, died], return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        work.cancel()
        raise
    finally:
        died.cancel()
    if not work.done() or work.cancelled():
        raise Unavailable("injected: the node went away")
    return work.result()
