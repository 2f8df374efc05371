"""Page tokens of lists: where a page ended, and what the next one must know of the first."""

from __future__ import annotations

import binascii

import msgspec
from msgspec.msgpack import Ext

from perdure.api.errors import InvalidArgument
from perdure.store.contract import Record
from perdure.store.paging import position
from perdure.store.query import Query, Scalar


class ListToken(msgspec.Struct, array_like=True, frozen=True):
    """Where a page ended; only good for the question that it came from.

    Attributes:
        question: its fingerprint.
        after: `Query.after` of the next page, packed.
        now_ns: what ``now()`` stands for on all pages, so that they answer one question; 0 when
            the filter cannot name it.
        runs: how many to read for the next page, at most; 0 is as many as are asked for.
    """

    question: int
    after: list[str | int | float | bool | Ext | None]
    now_ns: int = 0
    runs: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ListToken).decode
_INT64 = 1 << 63
_LARGE = 1  # the code of integers that MessagePack has no form for


def _pack(value: Scalar | None) -> Scalar | Ext | None:
    """A large Double that is whole comes from PostgreSQL as an integer of any length."""
    if isinstance(value, int) and not -_INT64 <= value < _INT64:
        return Ext(_LARGE, b"%d" % value)
    return value


def _unpack(value: Scalar | Ext | None) -> Scalar | None:
    return int(bytes(value.data)) if isinstance(value, Ext) else value


def _question(query: Query) -> int:
    """A fingerprint of all of a query but its page."""
    whole = msgspec.structs.replace(query, limit=0, after=None)
    return binascii.crc32(repr(whole).encode())


def following(query: Query, last: Record, now_ns: int, runs: int) -> bytes:
    """The token of the page after one that ends with `last`."""
    packed = [_pack(value) for value in position(query, last)]
    body = _encode(ListToken(_question(query), packed, now_ns, runs))
    return binascii.crc32(body).to_bytes(4, "big") + body


def read(token: bytes) -> ListToken:
    """Where the page before the wanted one ended.

    Raises:
        InvalidArgument: the token is damaged.
    """
    body = token[4:]
    if binascii.crc32(body).to_bytes(4, "big") != token[:4]:
        raise InvalidArgument("Invalid NextPageToken.")
    try:
        return _decode(body)
    except msgspec.MsgspecError:
        raise InvalidArgument("Invalid NextPageToken.") from None


def after(query: Query, token: bytes) -> Query:
    """The query for the page that a token names.

    Raises:
        InvalidArgument: the token is damaged or came from another query.
    """
    if not token:
        return query
    found = read(token)
    if found.question != _question(query):
        raise InvalidArgument("Invalid NextPageToken: it was made for another query.")
    limit = min(query.limit, found.runs or query.limit)
    return msgspec.structs.replace(query, after=tuple(map(_unpack, found.after)), limit=limit)
