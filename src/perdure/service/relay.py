"""Requests that need a worker which polls another node: passed on to that node, and answered here.

Queries and updates wait in the memory of the node that has the run's worker, so that is where they
have to be. The request travels as a letter through the database, addressed to a task queue: a node
that has polls of that queue takes it and makes the same call itself; the answer comes back as a
letter to this node. A letter that nobody takes is taken back; so it is when a poll comes to this
node first.

A worker's polls may come to any node, as a balancer likes, so they can be gone when a node has
taken a letter: it says so, and who asked looks again. When a node died that may have taken it, the
letter is sent once more, and the first answer counts: to be asked twice does no harm.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import msgspec
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from temporalio.api import errordetails
from temporalio.api.workflowservice import v1 as workflowservice

from perdure.api.caller import CALLER, Caller
from perdure.api.errors import DeadlineExceeded, RPCError, StatusCode, Unavailable
from perdure.store.contract import StoreError
from perdure.store.sharing import Letter, Queue, Sharing

if TYPE_CHECKING:
    from perdure.service.node import Node

log = logging.getLogger("perdure.service")

_AT_ONCE: Final = 100
_LOOK_EVERY_S: Final = 0.5
_WANTED_MAX: Final = 10_000
_NODE: Final = "node "
_DIED_BEFORE_NS: Final = 10_000_000_000
"""It takes at least so long until a node is known to be dead: what it took, it took before."""

RELAYED: Final[ContextVar[bool]] = ContextVar("relayed", default=False)
"""Whether the present call came from another node: it goes no further."""


class NotHere(Exception):
    """The polls that a call was passed on for are not at this node (any more)."""


class Ask(msgspec.Struct, tag=True):
    """A call that another node is to make.

    Its times are of the clock of the node that asks: another's may be far ahead for a while, if it
    was there before a fail-over to a server whose clock is behind. Nodes of the former version
    do not say when they asked.
    """

    number: int
    reply_to: str
    method: str
    request: bytes
    deadline_ns: int
    asked_ns: int = 0

    def until(self, now_ns: int) -> int:
        """When the caller gives up, by the clock of who has the letter now."""
        return now_ns + self.deadline_ns - self.asked_ns if self.asked_ns else self.deadline_ns


class Reply(msgspec.Struct, tag=True):
    """What became of it: the response, or an error's code, message and details.

    With `not_here` nothing did.
    """

    number: int
    response: bytes = b""
    code: int = 0
    message: str = ""
    details: list[bytes] = []
    not_here: bool = False


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Ask | Reply).decode


class _Call:
    """A call that another node is asked to make.

    Attributes:
        address: who may take its letter.
        posted_ns: when the letter was.
        reply: what became of it; None when its letter came back to this node.
        needless: done when a poll came here.
        may_be_lost: whether a node is gone that may have taken the letter.
    """

    def __init__(self, address: str, posted_ns: int) -> None:
        loop = asyncio.get_running_loop()
        self.address = address
        self.posted_ns = posted_ns
        self.reply: asyncio.Future[Reply | None] = loop.create_future()
        self.needless: asyncio.Future[None] = loop.create_future()
        self.may_be_lost = False


def node_address(node: int) -> str:
    """Where a node's own letters go."""
    return f"{_NODE}{node}"


def queue_address(queue: Queue) -> str:
    """Where letters go for any node that has polls of a task queue."""
    return msgspec.json.encode(queue).decode()


_queue_of = msgspec.json.Decoder(Queue).decode


class Relay:
    """Letters of this node.

    Args:
        node: makes the calls that others ask for.
        sharing: carries the letters.
        addresses: where this node takes letters, beside its own.
        takes: whether the address of a workflow task queue is one of them.
        spawn: runs something beside the calls.
    """

    def __init__(
        self,
        node: Node,
        sharing: Sharing,
        addresses: Callable[[], list[str]],
        takes: Callable[[Queue], bool],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._node = node
        self._sharing = sharing
        self._addresses = addresses
        self._takes = takes
        self._spawn = spawn
        self._asked: dict[int, _Call] = {}
        self._lying: dict[str, set[_Call]] = {}  # by address
        self._wanted: OrderedDict[str, None] = OrderedDict()  # where others' letters may lie
        self._last = 0
        self._collecting = False
        self._again = False

    @property
    def addresses(self) -> list[str]:
        """Where this node takes letters."""
        return [node_address(self._sharing.node), *self._addresses()]

    # -- this node asks ----------------------------------------------------------------------------

    async def ask(
        self,
        address: str,
        method: str,
        request: Message,
        deadline_ns: int,
        *,
        patience_ns: int,
    ) -> Any:
        """The response of another node; None when none took the letter, or a poll came here first.

        A caller that gives up meanwhile leaves its letter to be taken in vain, or to be swept.

        Args:
            address: who may take it.
            method: of the service.
            request: for it.
            deadline_ns: when the caller gives up.
            patience_ns: how long the letter may lie there.

        Raises:
            RPCError: what the call raised there.
            NotHere: there were no polls any more, or the node that has the letter leaves, or died.
            DeadlineExceeded: no answer in time.
            Unavailable: the database failed.
        """
        self._last += 1
        number = self._last
        call = self._asked[number] = _Call(address, self._node.clock.now_ns())
        self._lying.setdefault(address, set()).add(call)
        ask = Ask(
            number, node_address(self._sharing.node), method, request.SerializeToString(),
            deadline_ns, call.posted_ns,
        )  # fmt: skip
        try:
            if await self._is_left(call, Letter(address, _encode(ask)), deadline_ns, patience_ns):
                return None
            answer = call.reply.result()
            return None if answer is None else _opened(method, answer)
        except StoreError as error:
            raise Unavailable(f"The database cannot be written: {error}") from error
        finally:
            del self._asked[number]
            self._forget(call)

    def gone(self, nodes: Iterable[int]) -> None:
        """Nodes left or died: those that died answer nothing any more.

        Who took a letter to a task queue is not known, only that one who died did so long ago.
        """
        addresses = set(map(node_address, nodes))
        died_before_ns = self._node.clock.now_ns() - _DIED_BEFORE_NS
        for number, call in self._asked.items():
            if call.address in addresses:
                self._replied(number, Reply(number, not_here=True))
            elif addresses and not call.address.startswith(_NODE):
                call.may_be_lost |= call.posted_ns <= died_before_ns

    def _forget(self, call: _Call) -> None:
        lying = self._lying[call.address]
        lying.discard(call)
        if not lying:
            del self._lying[call.address]

    async def _is_left(
        self, call: _Call, letter: Letter, deadline_ns: int, patience_ns: int
    ) -> bool:
        """Wait for the reply; whether instead the letter was taken back, as nobody wanted it."""
        number = await self._sharing.post(letter)
        lies_there = True
        while not call.reply.done():
            awaited: list[asyncio.Future[Any]] = [call.reply]
            if lies_there:
                awaited.append(call.needless)
            await asyncio.wait(awaited, timeout=_LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
            if call.reply.done():
                break
            now_ns = self._node.clock.now_ns()
            patient_until_ns = min(deadline_ns, call.posted_ns + patience_ns)
            if lies_there and (now_ns >= patient_until_ns or call.needless.done()):
                if await self._sharing.take_back_letter(number):
                    return True
                lies_there = False
            if call.may_be_lost:
                call.may_be_lost, call.posted_ns = False, now_ns
                await self._sharing.take_back_letter(number)
                number = await self._sharing.post(letter)
                lies_there = True
            if now_ns >= deadline_ns:
                raise DeadlineExceeded("the node that has the run's worker did not answer in time")
        return False

    # -- other nodes ask ---------------------------------------------------------------------------

    def heard(self, address: str) -> None:
        """A letter was posted."""
        if address.startswith(_NODE):
            if address == node_address(self._sharing.node):
                self.look()
        elif self._takes(_queue_of(address)):
            self.look()
        else:
            self._wanted[address] = None
            if len(self._wanted) > _WANTED_MAX:  # it is found with the next beat
                self._wanted.popitem(last=False)

    def arrived(self, queue: Queue) -> None:
        """A queue got a poll, having none: calls may wait for that, here or at other nodes."""
        if not self._wanted and not self._lying:
            return
        address = queue_address(queue)
        for call in self._lying.get(address, ()):
            if not call.needless.done():
                call.needless.set_result(None)
        if address in self._wanted:
            del self._wanted[address]
            self.look()

    def look(self) -> None:
        """Letters may wait."""
        if self._collecting:
            self._again = True
            return
        self._collecting = True
        self._spawn(self._collect())

    async def _collect(self) -> None:
        try:
            while True:
                self._again = False
                letters = await self._sharing.collect(self.addresses, _AT_ONCE)
                for letter in letters:
                    self._open(letter)
                if not letters and not self._again:
                    return
        except StoreError as error:  # the next beat looks again
            log.warning("letters of other nodes cannot be read: %s", error)
        finally:
            self._collecting = False

    def _open(self, letter: Letter) -> None:
        try:
            read = _decode(letter.body)
        except msgspec.MsgspecError:
            log.warning("a letter for %s cannot be read; another version's?", letter.address)
            return
        if isinstance(read, Reply):
            self._replied(read.number, read)
        elif read.reply_to == node_address(self._sharing.node):  # a poll came, here of all nodes
            self._replied(read.number, None)
        else:
            now_ns = self._node.clock.now_ns()
            if (deadline_ns := read.until(now_ns)) > now_ns:
                self._spawn(self._serve(read, deadline_ns))

    def _replied(self, number: int, reply: Reply | None) -> None:
        call = self._asked.get(number)
        if call is not None and not call.reply.done():
            call.reply.set_result(reply)

    async def _serve(self, ask: Ask, deadline_ns: int) -> None:
        """Make a call for another node. The context is this task's own."""
        RELAYED.set(True)
        CALLER.set(Caller(in_process=False, deadline_ns=deadline_ns))
        try:
            reply = await self._make(ask)
        except asyncio.CancelledError:  # this node leaves: who asked looks elsewhere
            await self._answer(ask, _not_here(ask))
            raise
        await self._answer(ask, reply)

    async def _make(self, ask: Ask) -> Reply:
        try:
            request = _message(ask.method, "Request").FromString(ask.request)
            response = await getattr(self._node.service, ask.method)(request)
        except NotHere:
            return _not_here(ask)
        except RPCError as error:
            details = [_packed(detail) for detail in error.details]
            return Reply(ask.number, b"", int(error.code), error.message, details)
        except Exception as error:
            log.exception("a call for another node failed")
            return Reply(ask.number, b"", int(StatusCode.INTERNAL), repr(error))
        return Reply(ask.number, response.SerializeToString())

    async def _answer(self, ask: Ask, reply: Reply) -> None:
        try:
            await self._sharing.post(Letter(ask.reply_to, _encode(reply)))
        except StoreError as error:  # the caller asks again
            log.warning("an answer for another node cannot be sent: %s", error)


def _not_here(ask: Ask) -> Reply:
    """For nodes of the former version it is an error, after which one tries again."""
    return Reply(
        ask.number,
        code=int(StatusCode.ABORTED),
        message="The worker is elsewhere; try again.",
        not_here=True,
    )


def _opened(method: str, reply: Reply) -> Any:
    if reply.not_here:
        raise NotHere
    if reply.code:
        details = [_unpacked(detail) for detail in reply.details]
        raise RPCError.of(reply.code, reply.message, [d for d in details if d is not None])
    return _message(method, "Response").FromString(reply.response)


@cache
def _message(method: str, suffix: str) -> Any:
    name = "".join(word.capitalize() for word in method.split("_"))
    return getattr(workflowservice, f"{name}{suffix}")


def _packed(detail: Message) -> bytes:
    packed = AnyMessage()
    packed.Pack(detail)
    return packed.SerializeToString()


def _unpacked(body: bytes) -> Message | None:
    packed = AnyMessage.FromString(body)
    kind = getattr(errordetails.v1, packed.type_url.rpartition(".")[2], None)
    if kind is None:
        return None
    detail: Message = kind()
    packed.Unpack(detail)
    return detail
