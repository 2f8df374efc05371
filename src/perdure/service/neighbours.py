"""A node among others that share its database: what it tells them, and what it hears.

News comes as notices, within milliseconds. A beat every few seconds is the safety net: one
statement that gives a sign of life and asks for everything that a lost notice may have told.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import Message
from temporalio.api.workflowservice.v1 import ListNamespacesRequest

from perdure.api.caller import until
from perdure.api.errors import RPCError
from perdure.api.trouble import Trouble
from perdure.engine.execution import Execution
from perdure.service.background import Background
from perdure.service.clock import SystemClock
from perdure.service.heir import Heir
from perdure.service.queue import WORKFLOW, TaskQueue
from perdure.service.relay import RELAYED, NotHere, Relay, node_address, queue_address
from perdure.service.watches import Watches
from perdure.store import sharing as notices
from perdure.store.contract import StoreError, StoreTooNew
from perdure.store.sharing import Beat, Queue, Sharing

if TYPE_CHECKING:
    from perdure.service.node import Node

log = logging.getLogger("perdure.service")

BEAT_S: Final = 5.0
_DEAF_BEAT_S: Final = 0.5
_SWEEP_S: Final = 500.0
_RENEWED_AT_ONCE: Final = 2_000
_STICKY_PATIENCE_NS: Final = 1_000_000_000
_HOLDER_PATIENCE_NS: Final = 2_000_000_000
_SURVEY_PATIENCE_NS: Final = 1_000_000_000
_ANSWER_NS: Final = 10_000_000_000


class Neighbours:
    """The other nodes, as far as this one has to do with them.

    Attributes:
        relay: passes calls on to them.
        watches: runs that they may change while somebody here waits.
    """

    def __init__(self, node: Node, sharing: Sharing) -> None:
        self._node = node
        self._sharing = sharing
        self._living: frozenset[int] = frozenset()
        self._namespaces = ""
        self._schema = 0
        self._wake = asyncio.Event()
        self._has_missed = False  # what others told
        self._sweep_pause_s = BEAT_S
        self._died: frozenset[int] = frozenset()
        self._trouble = Trouble(log, "the database does not answer")
        self._background = Background()
        self._heir = Heir(node, sharing, lambda: self.is_eldest)
        self.relay = Relay(
            node, sharing, self._queue_addresses, self._takes, self._background.spawn
        )
        self.watches = Watches(node.executions, sharing, self._run_changed)

    @property
    def living(self) -> frozenset[int]:
        """The nodes that lived at the last beat."""
        return self._living

    @property
    def has_company(self) -> bool:
        """Whether other nodes are there."""
        return self._sharing.has_company

    @property
    def is_eldest(self) -> bool:
        """Whether this node is the one to do what one is enough for, and two do no harm."""
        return self._sharing.node <= min(self._living, default=self._sharing.node)

    async def open(self) -> None:
        """Say hello, and begin to listen. Raises StoreError."""
        self._note(await self._give_sign())
        # The others know it by its number only, and name that if it dies.
        log.info("this is node %d of %s", self._sharing.node, self._node.store.name)
        if self.is_eldest:  # for those that went before it came
            self._heir.look()
        self._sharing.listener = self._heard
        await self._sharing.tell(notices.HELLO)
        self._background.repeat(self._next_beat, "perdure-neighbours")
        self._background.repeat(self._heir.turn, "perdure-heir")
        self._background.repeat(self._sweep, "perdure-sweep")

    async def close(self) -> None:
        """Leave: what this node's own workers held is offered again by others."""
        self._sharing.listener = lambda _: None
        await self._background.close()
        await self.watches.close()
        try:
            await self._sharing.bury([self._sharing.node])
            await self._sharing.tell(notices.HELLO)
        except StoreError as error:
            log.warning("the other nodes could not be told that this one leaves: %s", error)

    # -- what this node hears ----------------------------------------------------------------------

    def _heard(self, notice: str) -> None:
        word, _, about = notice.partition(" ")
        if word == notices.TASKS:
            for queue in notices.queues_of(about) or self._node.matching.polled():
                self._node.matching.has_more(queue)
        elif word == notices.AWAITED:
            self.watches.heard(map(int, about.split()))
        elif word == notices.LETTER:
            self.relay.heard(about)
        elif word == notices.NAMESPACES:
            self._background.spawn(self._read_namespaces())
        else:  # hello, or notices were missed
            self._has_missed = True
            self._wake.set()

    async def _next_beat(self) -> None:
        pause_s = _DEAF_BEAT_S if self._sharing.deaf else BEAT_S
        try:
            async with asyncio.timeout(pause_s):  # wait_for may swallow a cancellation
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()
        try:
            await self._beat()
            self._trouble.over()
        except StoreTooNew as error:
            self._node.end(error)
        except StoreError as error:
            self._trouble.met(error)

    async def _beat(self) -> None:
        """Give a sign of life. What follows from it is not waited for: silence counts as death."""
        beat = await self._give_sign()
        self._note(beat)
        self._react(beat)

    async def _give_sign(self) -> Beat:
        matching = self._node.matching
        sent_ns = self._node.clock.now_ns()
        had_company = self.has_company
        beat = await self._sharing.beat(matching.polled(), self.relay.addresses)
        if self.has_company != had_company:
            self._has_missed = True
            matching.company_changed()
        self._follow_clock(beat, sent_ns)
        return beat

    def _note(self, beat: Beat) -> None:
        """What this node knows from now on."""
        self._notice_schema(beat.newer_schema)
        for node in sorted(beat.died - self._died):
            log.warning("no sign of life from node %d: what it held is offered again", node)
        self._died = beat.died
        gone = self._living - beat.nodes
        self._living = beat.nodes
        self._heir.inherit(beat.died)
        self.relay.gone(gone)
        if gone and self.is_eldest:  # those that left have nobody else who would be told
            self._heir.look()

    def _react(self, beat: Beat) -> None:
        """What waits, or was missed, is looked at."""
        node = self._node
        for queue in beat.queues:
            node.matching.has_more(queue)
        if beat.letters:
            self.relay.look()
        if beat.messages:
            self._background.spawn(node.courier.reread())
        if beat.namespaces != self._namespaces:
            self._namespaces = beat.namespaces
            self._background.spawn(self._read_namespaces())
        if beat.overdue:
            self._background.spawn(node.alarms.open())
        self.watches.renew(None if self._has_missed else _RENEWED_AT_ONCE)
        self._has_missed = False
        node.companions.pass_on()

    async def _sweep(self) -> None:
        """Remove what nobody takes any more, a page at a time."""
        await asyncio.sleep(self._sweep_pause_s)
        has_more = self.is_eldest and await self._sharing.sweep()
        self._sweep_pause_s = BEAT_S if has_more else _SWEEP_S

    def _notice_schema(self, newer: int) -> None:
        """Say, once, that a newer perdure migrated the database, and left room for this one."""
        if newer != self._schema:
            self._schema = newer
            log.warning(
                "%s has schema version %d, of a newer perdure: this node can go on, but install "
                "the newer one",
                self._node.store.name, newer,
            )  # fmt: skip

    def _follow_clock(self, beat: Beat, sent_ns: int) -> None:
        """Go by the database's clock, which all nodes share."""
        clock = self._node.clock
        if isinstance(clock, SystemClock):
            clock.follow(beat.now_ns, sent_ns)

    async def _read_namespaces(self) -> None:
        try:
            await self._node.namespaces.reread()
        except RPCError as error:  # the next beat sees that they differ
            self._namespaces = "?"
            log.warning("the namespaces are not known anew: %s", error.message)

    def _run_changed(self, key: int) -> None:
        if self._node.executions.is_awaited(key):  # notices go to all nodes
            self._background.spawn(self._look_at(key))

    async def _look_at(self, key: int) -> None:
        """Wake who waits for a run, if it really changed."""
        node = self._node
        try:
            await node.executions.look_again(key)
            await node.companions.look_again(key)
        except RPCError as error:
            log.warning("run %d cannot be read: %s", key, error.message)
            self.watches.forget(key)

    # -- where a run's worker is -------------------------------------------------------------------

    async def ask_worker(
        self, run: Execution, method: str, request: Message, deadline_ns: int
    ) -> Any:
        """Have a call made by a node where the run's worker polls; None if this one is to make it.

        Raises what the call raises there, DeadlineExceeded, and Unavailable.
        """
        names = [name for name in (run.state.sticky_queue, run.info.task_queue) if name]
        return await self.ask_queues(run.info.namespace, names, method, request, deadline_ns)

    async def ask_queues(
        self, namespace: str, names: list[str], method: str, request: Message, deadline_ns: int
    ) -> Any:
        """The same for the first of some task queues that has workers.

        Raises NotHere for another node's call, if there are none here any more.
        """
        if not self.has_company:
            return None
        if RELAYED.get():
            if not any(self.is_here(namespace, name) for name in names):
                raise NotHere
            return None
        while True:
            try:
                return await self._ask_in_turn(namespace, names, method, request, deadline_ns)
            except NotHere:
                continue

    async def _ask_in_turn(
        self, namespace: str, names: list[str], method: str, request: Message, deadline_ns: int
    ) -> Any:
        for name in names:
            if self.is_here(namespace, name):
                return None
            is_last = name == names[-1]
            patience_ns = self._node.settings.query_poller_ns if is_last else _STICKY_PATIENCE_NS
            answer = await self.relay.ask(
                queue_address((namespace, name, WORKFLOW)), method, request, deadline_ns,
                patience_ns=patience_ns,
            )  # fmt: skip
            if answer is not None:
                return answer
        return None

    async def ask_holder(self, node: int, method: str, request: Message) -> Any:
        """Have an answer taken by the node that waits for it; None if this one is to take it.

        Raises what the call raises there, DeadlineExceeded, and Unavailable.
        """
        if node in (0, self._sharing.node) or RELAYED.get():
            return None
        deadline_ns = until(self._node.clock.now_ns(), _ANSWER_NS)
        try:
            return await self.relay.ask(
                node_address(node), method, request, deadline_ns, patience_ns=_HOLDER_PATIENCE_NS
            )
        except NotHere:  # it leaves, and what waited there with it
            return None

    async def ask_others(self, method: str, request: Message) -> list[Any]:
        """What a call says at every other node that answers soon: for what only memory knows."""
        return (await self.survey(method, request))[0]

    async def survey(self, method: str, request: Message) -> tuple[list[Any], bool]:
        """The same, and whether all nodes said it: what the others know is unknown."""
        if not self.has_company or RELAYED.get():
            return [], not self.has_company
        deadline_ns = until(self._node.clock.now_ns(), _ANSWER_NS)
        asked = [
            self.relay.ask(
                node_address(number), method, request, deadline_ns, patience_ns=_SURVEY_PATIENCE_NS
            )
            for number in sorted(self._living - {self._sharing.node})
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, NotHere):
                continue  # it leaves
            if isinstance(answer, RPCError):
                log.warning("a node did not say what it knows (%s): %s", method, answer.message)
            elif isinstance(answer, BaseException):
                raise answer
        said = [a for a in answers if a is not None and not isinstance(a, Exception)]
        return said, len(said) == len(asked)

    async def spread_namespaces(self) -> None:
        """One was changed here: wait until the others know."""
        await self.ask_others("list_namespaces", ListNamespacesRequest(page_size=1))

    def is_here(self, namespace: str, name: str) -> bool:
        """Whether a worker waits at this node for the next task of a workflow task queue.

        That one did a moment ago says nothing: its next poll may come to any node.
        """
        queue = self._node.matching.known(namespace, name, WORKFLOW)
        return queue is not None and bool(queue.polls)

    def has_worker(self, run: Execution) -> bool:
        """Whether this node can have a run's worker look at it now; without company it always is
        the one to try."""
        name = run.state.sticky_queue or run.info.task_queue
        return not self.has_company or self.is_here(run.info.namespace, name)

    def workers_arrived(self, queue: TaskQueue) -> None:
        """A queue has its first open poll: calls may wait for that."""
        if queue.key.kind == WORKFLOW:  # even without company: a letter to who left may lie there
            self.relay.arrived(queue.key)

    def _takes(self, queue: Queue) -> bool:
        return self.is_here(queue[0], queue[1])

    def _queue_addresses(self) -> list[str]:
        return [
            queue_address(queue) for queue in self._node.matching.polled() if queue[2] == WORKFLOW
        ]
