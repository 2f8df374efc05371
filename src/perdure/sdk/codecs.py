"""Codecs: rewriting payloads at the edge of a process.

A codec sees every payload just before it leaves and just after it arrives, so the server holds
only what the codec made. `ZlibCodec` compresses; `FileStorageCodec` keeps large payloads outside
of the database; `ChainedCodec` puts several in a row. Encryption is a codec of your own:

    class Encryption(PayloadCodec):
        def __init__(self, key: bytes) -> None:
            self._fernet = Fernet(key)  # from the package "cryptography"

        async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
            return [wrap(b"binary/encrypted", self._fernet.encrypt(p.SerializeToString()))
                    for p in payloads]

        async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
            return [Payload.FromString(self._fernet.decrypt(p.data))
                    if is_wrapped(p, b"binary/encrypted") else p for p in payloads]
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from temporalio.api.common.v1 import Payload

from perdure.sdk.errors import ApplicationError, ConversionError

__all__ = [
    "ChainedCodec",
    "FileStorageCodec",
    "PayloadCodec",
    "ZlibCodec",
    "codec_error",
    "decode_message",
    "encode_message",
    "is_wrapped",
    "wrap",
]


class PayloadCodec(ABC):
    """Rewrites payloads: `decode` undoes `encode`. Both may wait for I/O."""

    @abstractmethod
    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """The payloads to send, one for each that is given."""

    @abstractmethod
    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """The original payloads. What this codec did not encode is returned as it is."""


def wrap(encoding: bytes, data: bytes) -> Payload:
    """A payload of a codec's own encoding, which should look like ``binary/<codec>``."""
    return Payload(metadata={"encoding": encoding}, data=data)


def is_wrapped(payload: Payload, encoding: bytes) -> bool:
    """Was this payload made by the codec of that encoding?"""
    return payload.metadata.get("encoding") == encoding


class ChainedCodec(PayloadCodec):
    """Several codecs: encoding goes through them in order, decoding in the opposite order.

    Example:
        >>> ChainedCodec(ZlibCodec(), Encryption(key))  # compress, then encrypt
    """

    def __init__(self, *codecs: PayloadCodec) -> None:
        self._codecs = codecs

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        result = list(payloads)
        for codec in self._codecs:
            result = await codec.encode(result)
        return result

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        result = list(payloads)
        for codec in reversed(self._codecs):
            result = await codec.decode(result)
        return result


class ZlibCodec(PayloadCodec):
    """Compresses payloads where that makes them smaller.

    Args:
        minimum_size_bytes: leave smaller payloads as they are.
        maximum_size_bytes: refuse to inflate a payload to more than this.
    """

    ENCODING: Final = b"binary/zlib"

    def __init__(
        self, *, minimum_size_bytes: int = 512, maximum_size_bytes: int = 256 * 1024 * 1024
    ) -> None:
        self._minimum_size_bytes = minimum_size_bytes
        self._maximum_size_bytes = maximum_size_bytes

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [self._deflate(payload) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [self._inflate(payload) for payload in payloads]

    def _deflate(self, payload: Payload) -> Payload:
        if payload.ByteSize() < self._minimum_size_bytes:
            return payload
        packed = wrap(self.ENCODING, zlib.compress(payload.SerializeToString()))
        return packed if packed.ByteSize() < payload.ByteSize() else payload

    def _inflate(self, payload: Payload) -> Payload:
        if not is_wrapped(payload, self.ENCODING):
            return payload
        inflater = zlib.decompressobj()
        try:
            data = inflater.decompress(payload.data, self._maximum_size_bytes)
        except zlib.error as error:
            raise ConversionError(f"a compressed payload is damaged: {error}") from error
        if inflater.unconsumed_tail:
            raise ConversionError(
                f"a compressed payload holds more than {self._maximum_size_bytes} bytes"
            )
        return Payload.FromString(data)


class FileStorageCodec(PayloadCodec):
    """Keeps large payloads in files, named by their content, and sends only the name.

    All processes must see the same directory. Files are never deleted by perdure.

    Args:
        directory: where the files are; made if it is missing.
        threshold_size_bytes: payloads of at least this size go to a file.
    """

    ENCODING: Final = b"binary/file-sha256"

    def __init__(
        self, directory: str | os.PathLike[str], *, threshold_size_bytes: int = 256 * 1024
    ) -> None:
        self._directory = Path(directory)
        self._threshold_size_bytes = threshold_size_bytes

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [
            await asyncio.to_thread(self._write, payload)
            if payload.ByteSize() >= self._threshold_size_bytes
            else payload
            for payload in payloads
        ]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [
            await asyncio.to_thread(self._read, payload)
            if is_wrapped(payload, self.ENCODING)
            else payload
            for payload in payloads
        ]

    def _write(self, payload: Payload) -> Payload:
        data = payload.SerializeToString(deterministic=True)
        name = hashlib.sha256(data).hexdigest()
        path = self._path(name)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f".{name}.{os.getpid()}.{os.urandom(4).hex()}")
            with fresh.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # history will refer to it: it must survive a power cut
            fresh.replace(path)
            _sync_directory(path.parent)
        return wrap(self.ENCODING, name.encode())

    def _read(self, payload: Payload) -> Payload:
        name = payload.data.decode("ascii", "replace")
        if len(name) != 64 or not name.isalnum():
            raise ConversionError(f"{name!r} is no name of a stored payload")
        try:
            data = self._path(name).read_bytes()
        except OSError as error:
            raise ConversionError(f"stored payload {name} cannot be read: {error}") from error
        if hashlib.sha256(data).hexdigest() != name:
            raise ConversionError(f"stored payload {name} is damaged")
        return Payload.FromString(data)

    def _path(self, name: str) -> Path:
        return self._directory / name[:2] / name


def _sync_directory(directory: Path) -> None:
    """Make a rename durable where the system can open directories."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- whole messages ---------------------------------------------------------------------------


async def encode_message(codec: PayloadCodec, message: Message) -> None:
    """Encode every payload inside a message, in place.

    Search attributes are left alone, since the server has to read them.
    """
    found = list(_payloads(message))
    if found:
        _replace(found, await codec.encode(found))


async def decode_message(codec: PayloadCodec, message: Message) -> None:
    """Decode every payload inside a message, in place; the counterpart of `encode_message`."""
    found = list(_payloads(message))
    if found:
        _replace(found, await codec.decode(found))


def codec_error(error: Exception) -> ApplicationError:
    """What to record when payloads cannot be encoded: nothing that would have had to be."""
    return ApplicationError(
        f"the codec failed with {type(error).__name__}; the worker's log says more",
        type="CodecError",
    )


def _replace(found: list[Payload], fresh: list[Payload]) -> None:
    if len(found) != len(fresh):
        raise ConversionError(f"the codec made {len(fresh)} payloads of {len(found)}")
    copies = [payload.SerializeToString() for payload in fresh]  # the two lists may share messages
    for payload, data in zip(found, copies, strict=True):
        payload.ParseFromString(data)


_SEARCH_ATTRIBUTES: Final = "temporal.api.common.v1.SearchAttributes"
_PAYLOAD: Final = Payload.DESCRIPTOR.full_name
_leads_to_payload: dict[str, tuple[FieldDescriptor, ...]] = {}


def _payloads(message: Any) -> Iterator[Payload]:
    """Every payload inside a message, except for search attributes."""
    for field in _fields_with_payloads(message.DESCRIPTOR):
        kind = field.message_type
        assert kind is not None
        if kind.GetOptions().map_entry:
            values: Any = getattr(message, field.name).values()
        elif field.is_repeated:
            values = getattr(message, field.name)
        elif message.HasField(field.name):
            values = (getattr(message, field.name),)
        else:
            continue
        for value in values:
            if value.DESCRIPTOR.full_name == _PAYLOAD:
                yield value
            else:
                yield from _payloads(value)


def _fields_with_payloads(kind: Descriptor) -> tuple[FieldDescriptor, ...]:
    """The fields of a message type below which a payload can be; found once per type."""
    fields = _leads_to_payload.get(kind.full_name)
    if fields is None:
        fields = tuple(f for f in kind.fields if _reaches(_element(f), set()))
        _leads_to_payload[kind.full_name] = fields
    return fields


def _element(field: FieldDescriptor) -> Descriptor | None:
    """The message type that a field holds, behind a map if it is one."""
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return kind.fields_by_name["value"].message_type
    return kind


def _reaches(kind: Descriptor | None, seen: set[str]) -> bool:
    if kind is None or kind.full_name == _SEARCH_ATTRIBUTES or kind.full_name in seen:
        return False
    if kind.full_name == _PAYLOAD:
        return True
    seen.add(kind.full_name)
    return any(_reaches(_element(field), seen) for field in kind.fields)
