"""Codecs, and finding every payload of a message."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.api.workflowservice.v1 import (
    RespondWorkflowTaskCompletedRequest,
    StartWorkflowExecutionRequest,
)

from perdure.sdk.codecs import (
    ChainedCodec,
    FileStorageCodec,
    PayloadCodec,
    ZlibCodec,
    decode_message,
    encode_message,
    is_wrapped,
    wrap,
)
from perdure.sdk.converter import Converter
from perdure.sdk.errors import ConversionError

CONVERTER = Converter()
SMALL = CONVERTER.encode("small")
LARGE = CONVERTER.encode("large " * 10_000)


class Reverse(PayloadCodec):
    """Easy to recognise."""

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [wrap(b"binary/reverse", p.SerializeToString()[::-1]) for p in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [
            Payload.FromString(p.data[::-1]) if is_wrapped(p, b"binary/reverse") else p
            for p in payloads
        ]


async def test_zlib_compresses_only_what_gets_smaller() -> None:
    codec = ZlibCodec()
    small, large = await codec.encode([SMALL, LARGE])
    assert small == SMALL
    assert large.ByteSize() < LARGE.ByteSize() / 10
    assert await codec.decode([small, large]) == [SMALL, LARGE]


async def test_zlib_refuses_bombs_and_damage() -> None:
    (packed,) = await ZlibCodec().encode([LARGE])
    with pytest.raises(ConversionError, match="more than 1000 bytes"):
        await ZlibCodec(maximum_size_bytes=1000).decode([packed])
    packed.data = b"nonsense"
    with pytest.raises(ConversionError, match="damaged"):
        await ZlibCodec().decode([packed])


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


async def test_large_payloads_go_to_files(tmp_path: Path) -> None:
    codec = FileStorageCodec(tmp_path, threshold_size_bytes=1000)
    small, large = await codec.encode([SMALL, LARGE])
    assert small == SMALL
    assert large.ByteSize() < 200
    assert await codec.decode([small, large]) == [SMALL, LARGE]
    assert await codec.encode([LARGE]) == [large]  # the same content is the same file
    assert len(files(tmp_path)) == 1


async def test_stored_payloads_are_checked(tmp_path: Path) -> None:
    codec = FileStorageCodec(tmp_path, threshold_size_bytes=1000)
    (large,) = await codec.encode([LARGE])
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ConversionError, match="damaged"):
        await codec.decode([large])
    path.unlink()
    with pytest.raises(ConversionError, match="cannot be read"):
        await codec.decode([large])
    large.data = b"../../etc/passwd"
    with pytest.raises(ConversionError, match="no name"):
        await codec.decode([large])


async def test_a_chain_is_undone_in_the_opposite_order() -> None:
    codec = ChainedCodec(ZlibCodec(), Reverse())
    encoded = await codec.encode([SMALL, LARGE])
    assert all(is_wrapped(payload, b"binary/reverse") for payload in encoded)
    assert await codec.decode(encoded) == [SMALL, LARGE]


async def test_every_payload_of_a_message_is_found() -> None:
    request = StartWorkflowExecutionRequest(workflow_id="w")
    CONVERTER.fill(request.input, ["a", "b"])
    request.memo.fields["m"].CopyFrom(CONVERTER.encode("c"))
    request.header.fields["h"].CopyFrom(CONVERTER.encode("d"))
    request.user_metadata.summary.CopyFrom(CONVERTER.encode("e"))
    request.search_attributes.indexed_fields["s"].CopyFrom(CONVERTER.encode("plain"))
    before = StartWorkflowExecutionRequest.FromString(request.SerializeToString())
    await encode_message(Reverse(), request)
    found = [*request.input.payloads, request.memo.fields["m"], request.header.fields["h"]]
    found.append(request.user_metadata.summary)
    assert all(is_wrapped(payload, b"binary/reverse") for payload in found)
    assert request.search_attributes == before.search_attributes
    await decode_message(Reverse(), request)
    assert request == before


async def test_payloads_of_nested_failures_are_found() -> None:
    failure = Failure()
    CONVERTER.fill(failure.cause.cause.application_failure_info.details, ["deep"])
    command = Command()
    command.fail_workflow_execution_command_attributes.failure.CopyFrom(failure)
    request = RespondWorkflowTaskCompletedRequest(commands=[command])
    await encode_message(Reverse(), request)
    inner = request.commands[0].fail_workflow_execution_command_attributes.failure.cause.cause
    (payload,) = inner.application_failure_info.details.payloads
    assert is_wrapped(payload, b"binary/reverse")


async def test_a_codec_that_loses_payloads_is_caught() -> None:
    class Losing(Reverse):
        async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
            return []

    request = StartWorkflowExecutionRequest()
    CONVERTER.fill(request.input, ["a"])
    with pytest.raises(ConversionError, match="0 payloads of 1"):
        await encode_message(Losing(), request)
