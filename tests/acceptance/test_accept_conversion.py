"""Values and failures on their way from client to workflow to activity and back; codecs."""

from __future__ import annotations

import asyncio
import enum
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, Optional, TypedDict, Union

import msgspec
import pydantic
import pytest
from temporalio.api.common.v1 import Payload

import perdure
from perdure import (
    ActivityError,
    ApplicationError,
    ChildWorkflowError,
    ConversionError,
    Converter,
    PayloadCodec,
    RetryPolicy,
    WorkflowFailedError,
    activity,
    workflow,
)
from perdure.sdk.codecs import is_wrapped, wrap
from targets import environment

ONCE = RetryPolicy(maximum_attempts=1)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclass
class Line:
    sku: str
    price: Decimal
    colour: Colour | None = None


@dataclass
class Order:
    id: uuid.UUID
    at: datetime
    lines: list[Line]
    due: date = date(2030, 1, 1)
    patience: timedelta = timedelta(0)
    tags: set[str] = field(default_factory=set)
    folder: Path = Path(".")


class Struct(msgspec.Struct):
    n: int
    inner: Line


class Model(pydantic.BaseModel):
    email: str
    born: datetime
    level: Level = Level.LOW


class Point(NamedTuple):
    x: int
    y: float


class Words(TypedDict):
    one: int


LINE = Line("a-1", Decimal("9.99"), Colour.BLUE)
ORDER = Order(
    uuid.UUID(int=7), datetime(2026, 1, 2, 3, 4, 5, 678, UTC), [LINE], date(2027, 2, 3),
    timedelta(days=2, seconds=0.5), {"x"}, Path("/tmp/x"),
)  # fmt: skip


@activity
async def echo_order(value: Order) -> Order:
    assert isinstance(value.lines[0].price, Decimal)
    return value


@activity
async def echo_struct(value: Struct) -> Struct:
    assert isinstance(value.inner, Line)
    return value


@activity
def echo_model(value: Model) -> Model:
    assert isinstance(value.level, Level)
    return value


@activity
async def echo_optional(value: Optional[Colour] = None) -> Optional[Colour]:  # noqa: UP045
    assert value is None or isinstance(value, Colour)
    return value


@activity
async def echo_union(value: Union[int, str, list[uuid.UUID]]) -> Union[int, str, list[uuid.UUID]]:  # noqa: UP007
    return value


@activity
async def echo_shapes(point: Point, words: Words, raw: bytes, many: tuple[int, ...]) -> Any:
    assert (type(point), type(raw), type(many)) == (Point, bytes, tuple)
    return [point.x, words["one"], raw.decode(), len(many)]


@activity
async def takes_int(number: int, note: str = "") -> int:
    return number


@workflow
async def types(order: Order, struct: Struct, model: Model) -> tuple[Order, Struct, Model]:
    assert order == ORDER
    return await echo_order(order), await echo_struct(struct), await echo_model(model)


@workflow
async def more_types() -> list[Any]:
    assert await echo_optional() is None
    assert await echo_optional(Colour.RED) is Colour.RED
    ids = await echo_union([uuid.UUID(int=1)])
    assert ids == [uuid.UUID(int=1)]
    assert await echo_union("x") == "x"
    assert await echo_union(3) == 3
    shapes: list[Any] = await echo_shapes(Point(1, 2.5), {"one": 1}, b"raw", (1, 2, 3))
    return shapes


async def test_values_keep_their_types_all_the_way() -> None:
    struct, model = Struct(3, LINE), Model(email="a@b", born=ORDER.at, level=Level.HIGH)
    async with (
        environment() as env,
        env.client.worker(
            workflows=[types, more_types],
            activities=[
                echo_order, echo_struct, echo_model, echo_optional, echo_union, echo_shapes,
            ],
        ),
    ):  # fmt: skip
        order, same, model_back = await env.client.execute(types, ORDER, struct, model)
        assert order == ORDER
        assert same == struct
        assert (model_back, type(model_back.level)) == (model, Level)
        assert await env.client.execute(more_types) == [1, 1, "raw", 3]


# --- what does not fit ----------------------------------------------------------------------------


@workflow
async def calls_with(value: Any, local: bool = False) -> Any:
    if local:
        return await takes_int.local(value)
    return await takes_int(value)


@workflow
async def calls_by_name(value: Any) -> Any:
    return await workflow.execute_activity("takes_int", value)


@activity
async def returns_badly() -> int:
    return "seven"  # type: ignore[return-value]


@workflow
async def gets_badly(local: bool = False) -> int:
    return await (returns_badly.local() if local else returns_badly())


@workflow
async def wants_order(order: Order) -> None: ...


BAD = [calls_with, calls_by_name, gets_badly, wants_order]


def _bad_worker(client: perdure.Client) -> Any:
    return client.worker(workflows=BAD, activities=[takes_int, returns_badly])


@pytest.mark.parametrize("local", [False, True])
async def test_an_argument_of_the_wrong_type_is_named_in_the_workflow(local: bool) -> None:
    async with environment() as env, _bad_worker(env.client):
        handle = await env.client.start(calls_with, "seven", local)
        while True:
            failures = [
                event.workflow_task_failed_event_attributes.failure.message
                for event in (await handle.fetch_history()).events
                if event.HasField("workflow_task_failed_event_attributes")
            ]
            if failures:
                break
            await asyncio.sleep(0.01)
        assert "takes_int" in failures[0]
        assert "number" in failures[0]
        await handle.terminate()


async def test_an_argument_sent_by_name_is_named_by_the_activity() -> None:
    async with environment() as env, _bad_worker(env.client):
        with pytest.raises(WorkflowFailedError) as caught:
            await env.client.execute(calls_by_name, "seven")
        assert isinstance(caught.value.cause, ActivityError)
        cause = caught.value.cause.cause
        assert isinstance(cause, ApplicationError)
        assert (cause.type, cause.non_retryable) == ("ConversionError", True)
        assert "takes_int" in cause.message
        assert "number" in cause.message


@pytest.mark.parametrize("local", [False, True])
async def test_a_result_of_the_wrong_type_fails_for_good(local: bool) -> None:
    async with environment() as env, _bad_worker(env.client):
        with pytest.raises(WorkflowFailedError) as caught:
            await env.client.execute(gets_badly, local)
        assert isinstance(caught.value.cause, ActivityError)
        cause = caught.value.cause.cause
        assert isinstance(cause, ApplicationError)
        assert cause.type == "ConversionError"
        assert "returns_badly" in cause.message


async def test_a_start_by_name_with_a_bad_argument_is_told_to_the_worker() -> None:
    async with environment() as env, _bad_worker(env.client):
        handle = await env.client.start("wants_order", {"id": "no uuid"})
        while True:
            messages = [
                event.workflow_task_failed_event_attributes.failure.message
                for event in (await handle.fetch_history()).events
                if event.HasField("workflow_task_failed_event_attributes")
            ]
            if messages:
                break
            await asyncio.sleep(0.01)
        assert "wants_order" in messages[0]
        assert "order" in messages[0].replace("wants_order", "")
        await handle.terminate()


# --- failures -------------------------------------------------------------------------------------


class CardDeclined(Exception):
    def __init__(self, card: str) -> None:
        super().__init__(f"card {card} was declined")


@activity(retry=ONCE)
async def declines(card: str) -> None:
    try:
        raise LookupError("no account")
    except LookupError as error:
        raise CardDeclined(card) from error


@workflow
async def pays(card: str) -> None:
    await declines(card)


@workflow
async def shops(card: str) -> None:
    try:
        await pays.options(id=f"pay-{card}")(card)
    except ChildWorkflowError as error:
        raise ApplicationError("nothing bought", {"card": card}, type="NoSale") from error


@workflow
async def gives_up() -> None:
    raise ApplicationError("never again", type="Never", non_retryable=True)


@workflow
async def raises_plainly() -> None:
    raise ApplicationError("plain")


FAILING = [pays, shops, gives_up, raises_plainly]


def _failing_worker(client: perdure.Client) -> Any:
    return client.worker(workflows=FAILING, activities=[declines])


async def test_a_failure_goes_through_child_and_parent_with_its_chain() -> None:
    async with environment() as env, _failing_worker(env.client):
        with pytest.raises(WorkflowFailedError) as caught:
            await env.client.execute(shops, "c-1", id="shop")
        assert "shop" in str(caught.value)
        sale = caught.value.cause
        assert isinstance(sale, ApplicationError)
        assert (sale.type, sale.details) == ("NoSale", ({"card": "c-1"},))
        assert 'raise ApplicationError("nothing bought"' in sale.stack_trace
        child = sale.cause
        assert isinstance(child, ChildWorkflowError)
        assert (child.workflow_id, child.workflow_type) == ("pay-c-1", "pays")
        call = child.cause
        assert isinstance(call, ActivityError)
        assert call.activity_type == "declines"
        declined = call.cause
        assert isinstance(declined, ApplicationError)
        assert (declined.type, declined.message) == ("CardDeclined", "card c-1 was declined")
        assert "raise CardDeclined(card) from error" in declined.stack_trace
        root = declined.cause
        assert isinstance(root, ApplicationError)
        assert (root.type, root.message, root.cause) == ("LookupError", "no account", None)
        assert 'raise LookupError("no account")' in root.stack_trace


@pytest.mark.parametrize(("flow", "attempts"), [(gives_up, 1), (raises_plainly, 3)])
async def test_a_non_retryable_failure_ends_a_workflow_with_retries(
    flow: Any, attempts: int
) -> None:
    async with environment() as env, _failing_worker(env.client):
        with pytest.raises(WorkflowFailedError):
            await env.client.execute(flow, id="w", retry=RetryPolicy(maximum_attempts=3))
        assert (await env.client.count("WorkflowId = 'w'")).count == attempts


# --- codecs ---------------------------------------------------------------------------------------

SECRET = "attack at dawn"


class Scrambled(PayloadCodec):
    """Stands for an encrypting codec: what it makes holds no word of what it was given."""

    def __init__(self, key: int = 0x5A) -> None:
        self.key = key
        self.broken = ""

    def _turn(self, data: bytes) -> bytes:
        return bytes(byte ^ self.key for byte in data)

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        await asyncio.sleep(0)
        if self.broken == "encode":
            raise RuntimeError("the key store is away")
        return [wrap(b"binary/scrambled", self._turn(p.SerializeToString())) for p in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        if self.broken == "decode":
            raise RuntimeError("the key store is away")
        return [
            Payload.FromString(self._turn(p.data)) if is_wrapped(p, b"binary/scrambled") else p
            for p in payloads
        ]


@activity(retry=ONCE)
async def keeps_secret(text: str) -> str:
    assert text.startswith(SECRET)
    activity.heartbeat(text)
    return f"{text}!"


@activity(retry=ONCE)
async def betrays(text: str) -> None:
    raise ApplicationError(text, text, type="Betrayed")


@activity(retry=ONCE, executor="process")
def betrays_from_afar(text: str) -> None:
    raise ApplicationError(text, text, type="Betrayed")


@workflow
async def secret_child(text: str) -> str:
    return text


@workflow
class Secrets:
    def __init__(self) -> None:
        self.heard: list[str] = []

    @workflow.run
    async def run(self, text: str) -> list[str]:
        first = await keeps_secret(text)
        local = await keeps_secret.local(text)
        workflow.side_effect(lambda: text, str)
        workflow.upsert_memo({"after": text})
        child = await secret_child(text)
        for call in (betrays, betrays_from_afar):
            try:
                await call(text)
            except ActivityError as error:
                self.heard.append(getattr(error.cause, "message", ""))
        await workflow.wait_condition(lambda: len(self.heard) >= 5)
        raise ApplicationError("|".join([first, local, child, *self.heard]), text)

    @workflow.signal
    def hear(self, text: str) -> None:
        self.heard.append(text)

    @workflow.query
    def all(self, text: str) -> list[str]:
        return [*self.heard, text]

    @workflow.update
    async def tell(self, text: str) -> str:
        self.heard.append(text)
        return text


def _bytes_in(folder: Path) -> bytes:
    """The database, with its write-ahead log while it is open."""
    return b"".join(file.read_bytes() for file in folder.iterdir())


@pytest.mark.parametrize("cached", [0, 100])
async def test_an_encrypting_codec_leaves_nothing_readable(tmp_path: Path, cached: int) -> None:
    path = tmp_path / "secrets.db"
    converter = Converter(codec=Scrambled(), encode_common_attributes=True)
    async with (
        perdure.connect(f"sqlite:///{path}", converter=converter) as client,
        client.worker(
            workflows=[Secrets, secret_child],
            activities=[keeps_secret, betrays, betrays_from_afar],
            max_processes=1,
            max_cached_runs=cached,
        ),
    ):
        handle = await client.start(Secrets, SECRET, memo={"before": SECRET})
        assert await handle.update(Secrets.tell, SECRET) == SECRET
        for _ in range(2):
            await handle.signal(Secrets.hear, SECRET)
        with pytest.raises(WorkflowFailedError) as caught:
            await handle.result()
        cause = caught.value.cause
        assert isinstance(cause, ApplicationError)
        assert cause.details == (SECRET,)
        assert cause.message.startswith(f"{SECRET}!|{SECRET}!|{SECRET}|")
        assert cause.message.count(SECRET) >= 8
        assert "raise ApplicationError(" in cause.stack_trace
        asked = await handle.query(Secrets.all, SECRET)
        assert asked[-1] == SECRET
        assert (await handle.describe()).memo == {"before": SECRET, "after": SECRET}
        stored = _bytes_in(tmp_path)
    stored += _bytes_in(tmp_path)
    assert b"secret_child" in stored  # names are readable, and this is where they are
    assert b"dawn" not in stored
    assert b"raise ApplicationError" not in stored


async def test_a_client_without_the_codec_is_told_so() -> None:
    async with environment(converter=Converter(codec=Scrambled())) as env:
        async with env.client.worker(workflows=[secret_child], activities=[]):
            await env.client.execute(secret_child, SECRET, id="w")
        plain = perdure.Client(env.client.service, namespace=env.client.namespace)
        with pytest.raises(ConversionError, match="codec"):
            await plain.handle("w", result_type=str).result()


async def test_a_codec_that_fails_in_a_client_stores_nothing() -> None:
    codec = Scrambled()
    async with environment(converter=Converter(codec=codec)) as env:
        codec.broken = "encode"
        with pytest.raises(RuntimeError, match="key store"):
            await env.client.start(secret_child, SECRET)
        assert (await env.client.count()).count == 0


CODEC = Scrambled()


@activity
async def breaks_codec(text: str) -> str:
    CODEC.broken = "encode" if activity.info().attempt == 1 else ""
    activity.heartbeat(text)
    return text


@workflow
async def calls_secret(text: str) -> str:
    return await keeps_secret(text)


@workflow
async def calls_breaking(text: str) -> str:
    return await breaks_codec(text)


async def _task_failure(handle: perdure.WorkflowHandle[str]) -> str:
    """What the history, as it is stored, says about a failed workflow task."""
    plain = perdure.Client(handle._client.service, namespace=handle._client.namespace)
    for _ in range(1000):
        history = await plain.handle(handle.id).fetch_history()
        for event in history.events:
            if event.HasField("workflow_task_failed_event_attributes"):
                return event.workflow_task_failed_event_attributes.failure.message
        await asyncio.sleep(0.01)
    raise AssertionError("no workflow task failed")


@pytest.mark.parametrize(
    ("where", "says"),
    [("encode", "the codec failed with RuntimeError"), ("decode", "the key store is away")],
)
async def test_a_run_waits_for_a_codec_that_fails_for_a_while(where: str, says: str) -> None:
    codec = Scrambled()
    async with environment(converter=Converter(codec=codec)) as env:
        handle = await env.client.start(calls_secret, SECRET)
        codec.broken = where
        async with env.client.worker(workflows=[calls_secret], activities=[keeps_secret]):
            assert says in await _task_failure(handle)
            codec.broken = ""
            assert await handle.result() == f"{SECRET}!"


@workflow
class Asked:
    @workflow.run
    async def run(self) -> None:
        await asyncio.sleep(86_400)

    @workflow.query
    def echo(self, text: str) -> str:
        return text


async def test_a_codec_that_fails_fails_the_query() -> None:
    codec = Scrambled()
    async with environment(converter=Converter(codec=codec)) as env:
        handle = await env.client.start(Asked)
        async with env.client.worker(workflows=[Asked], activities=[], max_cached_runs=0):
            assert await handle.query(Asked.echo, "x") == "x"
            codec.broken = "encode"
            plain = perdure.Client(env.client.service, namespace=env.client.namespace)
            with pytest.raises(perdure.QueryFailedError, match="the codec failed"):
                await plain.handle(handle.id).query("echo", "x")
            codec.broken = "decode"
            with pytest.raises(perdure.QueryFailedError, match="the key store is away"):
                await plain.handle(handle.id).query("echo", "x")


async def test_an_activity_is_tried_again_when_its_answer_cannot_be_encoded() -> None:
    async with (
        environment(converter=Converter(codec=CODEC)) as env,
        env.client.worker(workflows=[calls_breaking], activities=[breaks_codec]),
    ):
        handle = await env.client.start(calls_breaking, SECRET)
        assert await handle.result() == SECRET
        assert CODEC.broken == ""
