"""Values to payloads and back.

A value travels as one payload of one of five encodings, those of every Temporal SDK:

=================  ==========================================================================
``json/plain``     nearly everything: plain data, dataclasses, msgspec structs, pydantic models,
                   enums, datetimes, UUIDs, Decimals, sets, tuples, named tuples, typed dicts
``binary/plain``   `bytes`
``binary/null``    `None`
``json/protobuf``  protobuf messages
``binary/protobuf``  protobuf messages, read only
=================  ==========================================================================

What comes back is shaped by the annotation of the parameter or result it is for; without one it is
plain data. An argument is checked against its annotation before anything is sent.
"""

from __future__ import annotations

import ipaddress
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

import msgspec
from google.protobuf import json_format, symbol_database
from google.protobuf.message import DecodeError, Message
from temporalio.api.common.v1 import Payload, Payloads

from perdure.sdk import _pydantic
from perdure.sdk.errors import ConversionError
from perdure.sdk.signature import Signature

if TYPE_CHECKING:
    from perdure.sdk.codecs import PayloadCodec

__all__ = ["Converter", "RawValue"]

_JSON: Final = b"json/plain"
_BINARY: Final = b"binary/plain"
_NULL: Final = b"binary/null"
_JSON_PROTOBUF: Final = b"json/protobuf"
_BINARY_PROTOBUF: Final = b"binary/protobuf"

_Decode = Callable[[bytes], Any]

_STRINGS: Final = (PurePath, ipaddress._BaseAddress, ipaddress._BaseNetwork)
"""Types that travel as their string form and are made from it."""


class RawValue(msgspec.Struct, frozen=True):
    """A payload as it is: an argument or result of this type is neither encoded nor decoded."""

    payload: Payload


class Converter:
    """Turns values into payloads and back. Immutable; share one among clients and workers.

    Args:
        codec: rewrites payloads at the edge of the process: encryption, compression, storage.
        encoders: for types of yours that have no JSON form: a function from the value to one that
            has.
        decoders: the way back: a function from plain data to the value.
        encode_common_attributes: move messages and stack traces of failures into a payload, so
            that the codec encrypts them too.

    Example:
        >>> converter = Converter(encoders={Money: str}, decoders={Money: Money.parse})
        >>> client = Client(service, converter=converter)
    """

    def __init__(
        self,
        *,
        codec: PayloadCodec | None = None,
        encoders: Mapping[type, Callable[[Any], Any]] | None = None,
        decoders: Mapping[type, Callable[[Any], Any]] | None = None,
        encode_common_attributes: bool = False,
    ) -> None:
        self.codec = codec
        self.encode_common_attributes = encode_common_attributes
        self._encoders = dict(encoders or {})
        self._decoders = dict(decoders or {})
        self._json = msgspec.json.Encoder(enc_hook=self._encode_other)
        self._by_type: dict[Any, _Decode] = {Any: msgspec.json.Decoder().decode}

    # --- one value ----------------------------------------------------------------------------

    def encode(self, value: Any) -> Payload:
        """The payload of a value.

        Raises:
            ConversionError: the value has no JSON form.
        """
        if isinstance(value, RawValue):
            return value.payload
        return Payload.FromString(self._wire(value))

    def decode(self, payload: Payload, type_: Any = Any) -> Any:
        """The value of a payload, as the given type.

        Raises:
            ConversionError: the payload does not fit the type, or its encoding is unknown.
        """
        if type_ is RawValue:
            return RawValue(payload)
        encoding = payload.metadata["encoding"]
        try:
            if encoding == _JSON:
                return self._decoder(type_)(payload.data)
            if encoding == _NULL:
                return None
            if encoding == _BINARY:
                return _binary(payload.data, type_)
            if encoding in (_JSON_PROTOBUF, _BINARY_PROTOBUF):
                return _protobuf(payload, encoding, type_)
        except ConversionError:
            raise
        except Exception as error:
            raise ConversionError(_mismatch(type_, error)) from error
        raise ConversionError(
            f"payload encoding {encoding.decode('utf-8', 'replace')!r} is unknown"
            + ("" if encoding else " (the payload has no metadata)")
            + "; is a codec missing from this converter?"
        )

    # --- lists of values ----------------------------------------------------------------------

    def fill(self, payloads: Payloads, values: Sequence[Any]) -> None:
        """Append the payloads of values to a message.

        Raises:
            ConversionError: a value has no JSON form; nothing was appended.
        """
        payloads.MergeFromString(b"".join([_entry(self._wire(value)) for value in values]))

    def decode_all(self, payloads: Payloads, types: Sequence[Any] = ()) -> list[Any]:
        """The values of payloads, as the given types; plain data where the types run out.

        Raises:
            ConversionError: a payload does not fit its type.
        """
        count = len(types)
        return [
            self.decode(payload, types[index] if index < count else Any)
            for index, payload in enumerate(payloads.payloads)
        ]

    # --- calls --------------------------------------------------------------------------------

    def fill_arguments(
        self, payloads: Payloads, values: Sequence[Any], signature: Signature
    ) -> None:
        """Append a call's arguments to a message, each checked against its annotation.

        Raises:
            ConversionError: naming the function and the argument; nothing was appended.
        """
        types = signature.types
        if len(values) > len(types):
            types = tuple([signature.type_at(index) for index in range(len(values))])
        entries = []
        for value, type_ in zip(values, types, strict=False):
            if type(value) is type_ and type_ in _PLAIN:  # most arguments: nothing to check
                try:
                    entries.append(_json_entry(self._json.encode(value)))
                    continue
                except (OverflowError, UnicodeEncodeError):
                    pass
            try:
                entries.append(_entry(self._checked(value, type_)))
            except ConversionError as error:
                argument = signature.argument_name(len(entries))
                raise _in_call(error, signature, argument) from error
        payloads.MergeFromString(b"".join(entries))

    def arguments(self, payloads: Payloads, signature: Signature) -> list[Any]:
        """A call's arguments as its function declares them.

        Raises:
            ConversionError: naming the function and the argument.
        """
        encoded = payloads.payloads[:]  # a list: protobuf's own sequence is slow to go through
        signature.check_count(len(encoded))
        types = signature.types
        if len(encoded) > len(types):
            types = tuple([signature.type_at(index) for index in range(len(encoded))])
        values: list[Any] = []
        for payload, type_ in zip(encoded, types, strict=False):
            try:
                values.append(self.decode(payload, type_))
            except ConversionError as error:
                argument = signature.argument_name(len(values))
                raise _in_call(error, signature, argument) from error
        return values

    def fill_result(self, payloads: Payloads, value: Any, signature: Signature) -> None:
        """Append a function's result, checked against its annotation.

        A function annotated ``-> None`` has the result None, whatever it returned.

        Raises:
            ConversionError: naming the function; nothing was appended.
        """
        type_ = signature.return_type
        if type(value) is type_ and type_ in _PLAIN:
            try:
                payloads.MergeFromString(_json_entry(self._json.encode(value)))
                return
            except (OverflowError, UnicodeEncodeError):
                pass
        try:
            wire = self._wire(None) if type_ is types.NoneType else self._checked(value, type_)
        except ConversionError as error:
            raise _in_call(error, signature, "return") from error
        payloads.MergeFromString(_entry(wire))

    def result(self, payloads: Payloads, type_: Any = Any) -> Any:
        """The value of a result: None if there is no payload.

        Raises:
            ConversionError: the payload does not fit the type.
        """
        encoded = payloads.payloads
        return self.decode(encoded[0], type_) if encoded else None

    # --- encoding -----------------------------------------------------------------------------

    def _wire(self, value: Any) -> bytes:
        """A payload in protobuf's wire format: cheaper to build than the message."""
        if value is None:
            return _NULL_WIRE
        kind = type(value)
        if kind in _SCALARS:
            if kind is float and not math.isfinite(value):
                raise ConversionError(f"{value} has no JSON form")
            return _json_wire(self._to_json(value))
        if isinstance(value, bytes | bytearray | memoryview):
            return _BINARY_HEAD + _sized(bytes(value))
        if isinstance(value, Message):
            return _protobuf_payload(value).SerializeToString()
        if isinstance(value, RawValue):
            return value.payload.SerializeToString()
        return _json_wire(self._to_json(value))

    def _checked(self, value: Any, type_: Any) -> bytes:
        """The wire form of a value, once it is sure that it can be read back as the type."""
        wire = self._wire(value)
        if type(value) is type_ or type_ is Any:
            if type(value) in _SCALARS or type_ is Any or value is None:
                return wire
        elif value is None and not _accepts_none(type_):
            raise ConversionError(f"None, where {type_text(type_)} is expected")
        if wire is not _NULL_WIRE:
            self.decode(Payload.FromString(wire), type_)
        return wire

    def _to_json(self, value: Any) -> bytes:
        try:
            data = self._json.encode(value)
        except OverflowError:
            return _big_json(msgspec.to_builtins(value, enc_hook=self._encode_other))
        except ConversionError:
            raise
        except Exception as error:
            raise ConversionError(f"{type_text(type(value))}: {error}") from error
        if b"null" in data:
            _refuse_non_finite(value)
        return data

    def _encode_other(self, value: Any) -> Any:
        """The JSON-like form of a value that msgspec does not know."""
        for kind in type(value).__mro__:
            if kind in self._encoders:
                return self._encoders[kind](value)
        if _pydantic.is_model(value):
            return _pydantic.dump(value)
        if isinstance(value, _STRINGS):
            return str(value)
        raise ConversionError(
            f"{type_text(type(value))} has no JSON form; make it a dataclass, or give the "
            "Converter an encoder for it"
        )

    # --- decoding -----------------------------------------------------------------------------

    def _decoder(self, type_: Any) -> _Decode:
        try:
            return self._by_type[type_]
        except KeyError:
            decode = self._by_type[type_] = self._build_decoder(type_)
            return decode
        except TypeError:  # not hashable: Annotated[int, [...]] and the like
            return self._build_decoder(type_)

    def _build_decoder(self, type_: Any) -> _Decode:
        if type_ is object or isinstance(type_, typing.TypeVar):
            return self._by_type[Any]
        if _pydantic.is_model_class(type_):
            return _pydantic.validator(type_)
        try:
            return msgspec.json.Decoder(type_, dec_hook=self._decode_other).decode
        except TypeError as error:
            union = typing.get_origin(type_) in (typing.Union, types.UnionType)
            if _pydantic.available():
                return _pydantic.validator(type_)
            if union:
                return _first_that_fits([self._decoder(arm) for arm in typing.get_args(type_)])
            raise ConversionError(f"type {type_text(type_)} is not supported: {error}") from error

    def _decode_other(self, type_: Any, plain: Any) -> Any:
        """The value of a type that msgspec does not know, from plain data."""
        for kind in getattr(type_, "__mro__", ()):
            if kind in self._decoders:
                return self._decoders[kind](plain)
        if _pydantic.is_model_class(type_):
            return _pydantic.validator(type_)(msgspec.json.encode(plain))
        if isinstance(type_, type):
            if issubclass(type_, _STRINGS) and isinstance(plain, str):
                return type_(plain)  # type: ignore[call-arg]
            if isinstance(plain, type_):
                return plain
        raise ValueError(f"cannot make {type_text(type_)} of {type_text(type(plain))}")


# --- wire format ------------------------------------------------------------------------------


def _varint(number: int) -> bytes:
    if number < 0x80:
        return _SHORT[number]
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _sized(data: bytes) -> bytes:
    return _varint(len(data)) + data


def _head(encoding: bytes) -> bytes:
    """A payload's first bytes: its one metadata entry, and the tag of its data."""
    entry = b"\x0a\x08encoding\x12" + bytes((len(encoding),)) + encoding
    return b"\x0a" + bytes((len(entry),)) + entry + b"\x12"


def _entry(payload: bytes) -> bytes:
    """A payload as an element of `Payloads`."""
    return b"\x0a" + _varint(len(payload)) + payload


def _json_wire(data: bytes) -> bytes:
    return _JSON_HEAD + _varint(len(data)) + data


def _json_entry(data: bytes) -> bytes:
    """A JSON payload as an element of `Payloads`."""
    size = len(data)
    if size < len(_JSON_ENTRY_HEADS):
        return _JSON_ENTRY_HEADS[size] + data
    return _entry(_json_wire(data))


_SHORT: Final = [bytes((number,)) for number in range(0x80)]
_JSON_HEAD: Final = _head(_JSON)
_BINARY_HEAD: Final = _head(_BINARY)
_NULL_WIRE: Final = _head(_NULL)[:-1]
_SCALARS: Final = frozenset({str, int, float, bool})
_PLAIN: Final = frozenset({str, int, bool})
_JSON_ENTRY_HEADS: Final = [
    b"\x0a" + _varint(len(_JSON_HEAD) + 1 + size) + _JSON_HEAD + _varint(size) for size in range(96)
]
"""What stands before the data of a short JSON payload inside `Payloads`, by the data's size."""


# --- helpers ----------------------------------------------------------------------------------


def _in_call(error: ConversionError, signature: Signature, argument: str) -> ConversionError:
    where = "result" if argument == "return" else f"argument {argument!r}"
    return ConversionError(
        f"{signature.name}: {where}: {error}", function=signature.name, argument=argument
    )


def _mismatch(type_: Any, error: Exception) -> str:
    return f"expected {type_text(type_)}: {error}"


def type_text(type_: Any) -> str:
    """A type as a reader of an error message would write it."""
    if isinstance(type_, type) and not typing.get_args(type_):
        return type_.__qualname__
    return str(type_).replace("typing.", "")


def _accepts_none(type_: Any) -> bool:
    try:
        msgspec.convert(None, type_)
    except (msgspec.ValidationError, TypeError):
        return False
    return True


def _refuse_non_finite(value: Any) -> None:
    """Raise if a NaN or an infinity is anywhere in plain data: JSON would make it null."""
    pending = [msgspec.to_builtins(value, enc_hook=str)]
    while pending:
        item = pending.pop()
        if isinstance(item, float) and not math.isfinite(item):
            raise ConversionError(f"{item} has no JSON form")
        if isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, list | tuple | set | frozenset):
            pending.extend(item)


def _big_json(plain: Any) -> bytes:
    """JSON with integers over 64 bits, which the fast encoder refuses."""
    try:
        text = json.dumps(plain, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ConversionError(str(error)) from error
    return text.encode()


def _binary(data: bytes, type_: Any) -> Any:
    if type_ is bytes or type_ is Any or type_ is object:
        return data
    return msgspec.convert(data, type_, builtin_types=(bytes, bytearray, memoryview))


def _first_that_fits(decoders: Sequence[_Decode]) -> _Decode:
    """A decoder for a union that cannot be told apart by JSON alone: the first arm that fits."""

    def decode(data: bytes) -> Any:
        problems = []
        for arm in decoders:
            try:
                return arm(data)
            except Exception as error:
                problems.append(str(error))
        raise ValueError("; ".join(problems))

    return decode


def _protobuf_payload(message: Message) -> Payload:
    payload = Payload()
    payload.metadata["encoding"] = _JSON_PROTOBUF
    payload.metadata["messageType"] = message.DESCRIPTOR.full_name.encode()
    text = json_format.MessageToJson(message, indent=None, sort_keys=True)
    payload.data = text.encode()
    return payload


def _protobuf(payload: Payload, encoding: bytes, type_: Any) -> Any:
    if isinstance(type_, type) and issubclass(type_, Message):
        kind: type[Message] = type_
    else:
        name = payload.metadata["messageType"].decode()
        try:
            kind = symbol_database.Default().GetSymbol(name)
        except KeyError:
            raise ConversionError(f"protobuf message {name!r} is not known here") from None
    message = kind()
    try:
        if encoding == _BINARY_PROTOBUF:
            message.ParseFromString(payload.data)
        else:
            json_format.Parse(payload.data, message, ignore_unknown_fields=True)
    except (DecodeError, json_format.ParseError) as error:
        raise ConversionError(_mismatch(kind, error)) from error
    return message
