"""A small writer of protobuf's wire format, for messages built thousands of times a second.

Building a message through its Python class costs 4 to 13 µs, most of it in nested constructors.
An event's envelope and the attributes of the hottest events are written as bytes directly instead;
everything else goes through the ordinary classes. Protobuf merges concatenated messages (the last
scalar wins, sub-messages merge), so bytes written here can be joined with serialised messages.
"""

from __future__ import annotations

from functools import lru_cache

VARINT = 0
LENGTH_DELIMITED = 2


def _varint(value: int) -> bytes:
    if value < 0:
        raise ValueError(f"a varint is not negative: {value}")
    if 1 << 21 <= value < 1 << 35:  # most numbers of nanoseconds, so without a loop
        first, second, third = value & 127 | 128, value >> 7 & 127 | 128, value >> 14 & 127 | 128
        if value < 1 << 28:
            return bytes((first, second, third, value >> 21))
        return bytes((first, second, third, value >> 21 & 127 | 128, value >> 28))
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


class _Varints(dict[int, bytes]):
    """Non-negative integers as base-128 varints, by subscription: half the cost of a call.

    Small ones are kept when they were asked for: event ids, lengths and the like.
    """

    __slots__ = ()

    def __missing__(self, value: int) -> bytes:
        made = _varint(value)
        if value < _KEPT:
            self[value] = made
        return made


_KEPT = 65_536
VARINTS = _Varints()


def varint(value: int) -> bytes:
    """A non-negative integer as a base-128 varint."""
    return VARINTS[value]


def tag(field: int, wire_type: int) -> bytes:
    """The key that stands before a field. Compute these once, at import."""
    return varint(field << 3 | wire_type)


def number(key: bytes, value: int) -> bytes:
    """An integer, enum or bool field; nothing for zero, as proto3 has it."""
    if not value:
        return b""
    return key + VARINTS[value]


def block(key: bytes, body: bytes) -> bytes:
    """A sub-message or bytes field, written even when it is empty."""
    return key + VARINTS[len(body)] + body


def text(key: bytes, value: str) -> bytes:
    """A string field; nothing for the empty string."""
    if not value:
        return b""
    body = value.encode()
    return key + VARINTS[len(body)] + body


_SECONDS = tag(1, VARINT)
_NANOS = tag(2, VARINT)


@lru_cache(maxsize=64)  # the moment of a transition is written several times
def time_body(time_ns: int) -> bytes:
    """The body of a Timestamp or Duration of a non-negative number of nanoseconds."""
    seconds, nanos = divmod(time_ns, 1_000_000_000)
    return _seconds(seconds) + (_NANOS + _varint(nanos) if nanos else b"")


@lru_cache(maxsize=64)
def _seconds(seconds: int) -> bytes:
    return number(_SECONDS, seconds)


def frames(body: bytes) -> list[bytes]:
    """The fields of a message of which all are length-delimited with one-byte tags, one by one.

    A History message, taken apart into its events.
    """
    found = []
    start, end = 0, len(body)
    while start < end:
        position = start + 1
        size = shift = 0
        while True:
            byte = body[position]
            position += 1
            size |= (byte & 127) << shift
            if byte < 128:
                break
            shift += 7
        found.append(body[start : position + size])
        start = position + size
    return found
