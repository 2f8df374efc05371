"""Clients that break the rules: a status or a closed connection, and the door serves on."""

from __future__ import annotations

import asyncio
import gzip
import random
import resource
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from door_stage import WORKFLOW_SERVICE, Stage, opened, until
from raw_http2 import Raw, frame
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    PollActivityTaskQueueResponse,
)

from perdure.server.transports import NAMES

INFO = f"{WORKFLOW_SERVICE}GetSystemInfo"
NAMESPACE = f"{WORKFLOW_SERVICE}DescribeNamespace"
POLL = f"{WORKFLOW_SERVICE}PollActivityTaskQueue"
OK, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL = "0", "3", "8", "12", "13"
MEBIBYTE = 1024 * 1024


@pytest.fixture(params=NAMES)
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    async with opened(request.param, message_bytes_max=MEBIBYTE) as made:
        yield made
        await made.alive()  # whatever the test did to it


async def test_the_raw_client_can_behave(stage: Stage) -> None:
    async with Raw(stage.address) as raw:
        answer = await raw.call(INFO, frame(b""))
    assert answer is not None
    assert (answer[":status"], answer["grpc-status"]) == ("200", OK)


# -- bytes that are not HTTP/2 ---------------------------------------------------------------------


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
NOISE = {
    "nothing": b"",
    "http1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "ones": _PREFACE + b"\xff" * 2_000,
    "huge frame": _PREFACE + b"\xff\xff\xff\x04\x00\x00\x00\x00\x00",
    "no hpack": _PREFACE + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    b"\x00\x00\x05\x01\x04\x00\x00\x00\x01\xff\xff\xff\xff\xff",
    "random": random.Random(1).randbytes(4_096),
}


@pytest.mark.parametrize("greeting", NOISE.values(), ids=NOISE)
async def test_noise(stage: Stage, greeting: bytes) -> None:
    reader, writer = await asyncio.open_connection(*stage.address.split(":"))
    writer.write(greeting)
    with suppress(OSError):
        writer.write_eof()
    async with asyncio.timeout(20):
        while True:
            try:
                if not await reader.read(4_096):
                    break
            except ConnectionError:
                break
    writer.close()


async def test_flipped_bits_in_a_good_conversation(stage: Stage) -> None:
    """What a client sends, with one byte changed, again and again."""
    choose = random.Random(7)
    good = await _recorded(stage)
    for _ in range(60):
        bad = bytearray(good)
        for _ in range(choose.randint(1, 4)):
            bad[choose.randrange(24, len(bad))] = choose.randrange(256)
        reader, writer = await asyncio.open_connection(*stage.address.split(":"))
        writer.write(bytes(bad))
        try:
            async with asyncio.timeout(0.02):
                while await reader.read(4_096):
                    pass
        except (TimeoutError, ConnectionError):
            pass
        writer.close()


async def _recorded(stage: Stage) -> bytes:
    raw = Raw(stage.address)
    raw.http.initiate_connection()
    sent = raw.http.data_to_send()
    headers = [(":method", "POST"), (":scheme", "http"), (":authority", "x"), (":path", NAMESPACE),
               ("te", "trailers"), ("content-type", "application/grpc")]  # fmt: skip
    raw.http.send_headers(1, headers)
    body = DescribeNamespaceRequest(namespace="n" * 40).SerializeToString()
    raw.http.send_data(1, frame(body), end_stream=True)
    return sent + raw.http.data_to_send()


# -- calls that are not gRPC -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text/html", "application/json", "", "application/grpcx"])
async def test_a_wrong_content_type(stage: Stage, kind: str) -> None:
    async with Raw(stage.address) as raw:
        answer = await raw.call(INFO, frame(b""), content_type=kind)
    if answer is not None:
        assert answer[":status"] == "415" or answer["grpc-status"] not in {"", INTERNAL}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        b"\x00\x00\x00\x00",
        frame(b"abc", size_bytes=100),
        frame(b"", size_bytes=1),
    ],
)
async def test_a_truncated_message(stage: Stage, body: bytes) -> None:
    """It is refused, or (grpcio) not answered for as long as the connection lasts."""
    async with Raw(stage.address) as raw:
        stream = raw.open(INFO)
        await raw.send(stream, body)
        answer = await raw.answer(stream, patience_s=0.3)
    assert answer is None or answer.get("grpc-status", "x") != OK
    assert stage.service.callers == []  # it never got to the service


@pytest.mark.parametrize("body", [b"\x07\x00\x00\x00\x00", frame(b"", compressed=True)])
async def test_a_flag_that_makes_no_sense(stage: Stage, body: bytes) -> None:
    async with Raw(stage.address) as raw:
        answer = await raw.call(INFO, body)
    assert answer is None or "grpc-status" in answer


@pytest.mark.parametrize("claimed", [2 * MEBIBYTE, 2**31 - 1, 2**32 - 1])
async def test_a_message_that_claims_to_be_huge(stage: Stage, claimed: int) -> None:
    async with Raw(stage.address) as raw:
        stream = raw.open(INFO)
        await raw.send(stream, frame(b"x" * 100, size_bytes=claimed), end=True)
        answer = await raw.answer(stream)
    assert answer is None or answer["grpc-status"] != OK


BAD_GZIP = {
    "none at all": b"no gzip at all",
    "cut off": gzip.compress(b"\x0a\x01x", mtime=0)[:-6],
    "head": b"\x1f\x8b\x08",
    "magic": b"\x1f\x8b" * 50,
}


@pytest.mark.parametrize("data", BAD_GZIP.values(), ids=BAD_GZIP)
async def test_bad_gzip(stage: Stage, data: bytes) -> None:
    async with Raw(stage.address) as raw:
        answer = await raw.call(NAMESPACE, frame(data, compressed=True), grpc_encoding="gzip")
    assert answer is not None
    assert answer["grpc-status"] not in {OK, "2"}


async def test_an_unknown_compression(stage: Stage) -> None:
    async with Raw(stage.address) as raw:
        answer = await raw.call(INFO, frame(b"x", compressed=True), grpc_encoding="zstd")
    assert answer is not None
    assert answer["grpc-status"] in {UNIMPLEMENTED, INTERNAL}  # the latter by grpcio


async def test_a_gzip_bomb(stage: Stage) -> None:
    """Half a megabyte on the wire, a quarter gigabyte unpacked. (native unpacks it.)"""
    size = (64 if stage.name == "native" else 250) * MEBIBYTE
    bomb = gzip.compress(bytes(size), compresslevel=9)
    assert len(bomb) < MEBIBYTE
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with Raw(stage.address) as raw:
        answer = await raw.call(INFO, frame(bomb, compressed=True), grpc_encoding="gzip")
    assert answer is not None
    assert answer["grpc-status"] == RESOURCE_EXHAUSTED
    if stage.name == "grpcio":
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 150 * 1024


async def test_two_messages_in_a_call_for_one(stage: Stage) -> None:
    async with Raw(stage.address) as raw:
        answer = await raw.call(INFO, frame(b"") + frame(b""))
    assert answer is None or "grpc-status" in answer


async def test_headers_that_make_no_sense(stage: Stage) -> None:
    headers = [
        {"grpc_timeout": "soon"},
        {"grpc_timeout": "99999999999999999H"},
        {"grpc_timeout": "-1S"},
        {"trace_bin": "%%% no base 64 %%%"},
        {"odd": "\u00ff\u00fe"},
    ]
    for given in headers:
        async with Raw(stage.address) as raw:
            answer = await raw.call(INFO, frame(b""), **given)
        assert answer is None or answer.get("grpc-status") or answer[":status"] != "200"


@pytest.mark.parametrize("method", ["GET", "PUT", "CONNECT"])
async def test_another_http_method(stage: Stage, method: str) -> None:
    async with Raw(stage.address) as raw:
        stream = raw.http.get_next_available_stream_id()
        raw.http.send_headers(
            stream,
            [(":method", method), (":scheme", "http"), (":authority", "x"), (":path", INFO),
             ("content-type", "application/grpc")],
            end_stream=True,
        )  # fmt: skip
        raw.flush()
        answer = await raw.answer(stream)
    assert answer is None or answer[":status"] != "200" or answer.get("grpc-status") != OK


# -- clients that take and do not give -------------------------------------------------------------


async def test_streams_that_are_reset_at_once(stage: Stage) -> None:
    """The rapid reset attack, on a small scale."""
    async with Raw(stage.address) as raw:
        try:
            for _ in range(2_000):
                stream = raw.open(POLL)
                raw.http.send_data(stream, frame(b""), end_stream=True)
                raw.http.reset_stream(stream)
                raw.flush()
                await raw.writer.drain()
        except ConnectionError:
            pass  # the server has had enough
    await until(lambda: stage.service.cancelled >= len(stage.service.parked))


async def test_clients_that_vanish_without_a_word(stage: Stage) -> None:
    raws = [Raw(stage.address) for _ in range(40)]
    for raw in raws:
        await raw.__aenter__()
        for _ in range(5):
            stream = raw.open(POLL)
            await raw.send(stream, frame(b""))
    await stage.parked(200)
    for raw in raws:
        raw.writer.transport.abort()
    await stage.lost(200)


async def test_ten_thousand_parked_polls(stage: Stage) -> None:
    raws = [Raw(stage.address) for _ in range(4)]
    each = 10_000 // len(raws)
    for number, raw in enumerate(raws, start=1):
        await raw.__aenter__()
        for _ in range(each):
            await raw.send(raw.open(POLL), frame(b""))
        await stage.parked(number * each)
    await stage.alive()
    for future in stage.service.parked[:each]:
        future.set_result(PollActivityTaskQueueResponse())
    for stream in range(1, 2 * each, 2):
        answer = await raws[0].answer(stream)
        assert answer is not None
        assert answer["grpc-status"] == OK
    for raw in raws:
        raw.writer.transport.abort()
    await stage.lost(10_000 - each)


@pytest.mark.parametrize("name", NAMES)
async def test_a_client_that_answers_no_ping_is_let_go_and_another_is_not(name: str) -> None:
    async with (
        opened(name, keepalive_s=1, keepalive_timeout_s=1) as stage,
        Raw(stage.address) as deaf,
        Raw(stage.address) as awake,
    ):
        for number, raw in enumerate((deaf, awake), start=1):
            await raw.send(raw.open(POLL), frame(b""))
            await stage.parked(number)
        while awake.pings < 3 or not stage.service.cancelled:
            assert await awake.listen()
        assert stage.service.parked[0].cancelled()
        stage.service.parked[1].set_result(PollActivityTaskQueueResponse())
        answer = await awake.answer(1)
        assert answer is not None
        assert answer["grpc-status"] == OK


async def test_a_slow_reader_does_not_hold_up_others(stage: Stage) -> None:
    async with Raw(stage.address, window=10) as slow:
        body = DescribeNamespaceRequest(namespace="large").SerializeToString()
        streams = [slow.open(NAMESPACE) for _ in range(5)]
        for stream in streams:
            await slow.send(stream, frame(body))
        for _ in range(3):
            await slow.listen(acknowledge=False)
        await stage.alive()
        assert slow.received_bytes < 70_000 * 5
        assert all("grpc-status" not in answer for answer in slow.answers.values())


async def test_calls_that_are_never_finished(stage: Stage) -> None:
    raws = [Raw(stage.address) for _ in range(20)]
    for raw in raws:
        await raw.__aenter__()
        for _ in range(50):
            stream = raw.open(INFO)
            await raw.send(stream, frame(b"abc", size_bytes=1_000), end=False)
    await stage.alive()
    for raw in raws:
        raw.writer.close()
