"""What carries the bytes: one seam, several servers behind it.

======================  ==========================================================================
``grpcio``              ``grpc.aio`` of gRPC's own C core
``native``              ``pygrpc-native``, HTTP/2 and gRPC in Rust
======================  ==========================================================================
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from perdure.api.errors import RPCError
from perdure.server.door import Handler
from perdure.server.statuses import DETAILS_KEY, status_of

Adder = Callable[[Any], None]
"""Adds an extra service, written for ``grpc.aio``, to a ``grpc.aio`` server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Limits of a transport.

    Attributes:
        message_bytes_max: the largest request.
        streams_max: calls at one time on one connection.
        keepalive_s: after so long without a word, a client is asked whether it is there.
        keepalive_timeout_s: how long it may take to answer that.
        ping_interval_s: clients may ask us no more often than that.
        metadata_bytes_max: headers of one call.
    """

    message_bytes_max: int = 128 * 1024 * 1024
    streams_max: int = 20_000
    keepalive_s: float = 60.0
    keepalive_timeout_s: float = 20.0
    ping_interval_s: float = 10.0
    metadata_bytes_max: int = 32 * 1024


class Transport(Protocol):
    """A server for handlers."""

    def bind(self, address: str) -> int:
        """Take ``host:port``; the port, if 0 was asked for. Raises OSError."""

    async def start(self) -> None:
        """Serve."""

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, give those under way that long, and close all connections."""


def transport(
    name: str, handlers: Sequence[Handler], extras: Sequence[Adder], options: Options
) -> Transport:
    """A transport by name. Raises ValueError, ImportError."""
    try:
        make = _MAKERS[name]
    except KeyError:
        raise ValueError(f"transport: {name!r} is none of {', '.join(_MAKERS)}") from None
    return make(handlers, extras, options)


def _channel_options(options: Options) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", options.message_bytes_max),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", options.streams_max),
        ("grpc.server.max_pending_requests", options.streams_max),
        ("grpc.server.max_pending_requests_hard_limit", 2 * options.streams_max),
        ("grpc.so_reuseport", 0),
        ("grpc.max_metadata_size", options.metadata_bytes_max),
        ("grpc.absolute_max_metadata_size", options.metadata_bytes_max),
        ("grpc.keepalive_time_ms", int(options.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(options.keepalive_timeout_s * 1000)),
        ("grpc.http2.ping_timeout_ms", int(options.keepalive_timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", int(options.ping_interval_s * 1000)),
    ]


def _grpcio(handlers: Sequence[Handler], extras: Sequence[Adder], options: Options) -> Transport:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it would print is told as an error
    import grpc.aio

    return AioTransport(grpc.aio.server(options=_channel_options(options)), handlers, extras)


def _native(handlers: Sequence[Handler], extras: Sequence[Adder], options: Options) -> Transport:
    from perdure.server.native import NativeTransport

    return NativeTransport(handlers, extras, options)


_Maker = Callable[[Sequence[Handler], Sequence[Adder], Options], Transport]
_MAKERS: Final[dict[str, _Maker]] = {"grpcio": _grpcio, "native": _native}
NAMES: Final = tuple(_MAKERS)
DEFAULT: Final = "native"


def taken(address: str) -> OSError:
    """What `Transport.bind` raises."""
    return OSError(
        f"cannot listen on {address}: it is taken by another process, or no address of this "
        "machine; choose others with --port and --bind"
    )


class AioTransport:
    """Anything with the API of ``grpc.aio.Server``."""

    def __init__(self, server: Any, handlers: Sequence[Handler], extras: Sequence[Adder]) -> None:
        import grpc

        self._server = server
        self._codes = {code.value[0]: code for code in grpc.StatusCode}
        methods: dict[str, dict[str, Any]] = {}
        for handler in handlers:
            made = grpc.unary_unary_rpc_method_handler(self._unary(handler))
            methods.setdefault(handler.rpc.service, {})[handler.rpc.name] = made
        for service, found in methods.items():
            server.add_registered_method_handlers(service, found)
        for add in extras:
            add(server)

    def _unary(self, handler: Handler) -> Any:
        codes = self._codes

        async def serve(body: bytes, context: Any) -> bytes:
            try:
                return await handler.call(body, context.time_remaining())
            except RPCError as error:
                code, message, details = status_of(error)
                trailers = ((DETAILS_KEY, details),) if details else ()
                await context.abort(codes[code], message, trailers)
                raise AssertionError("unreachable") from None

        return serve

    def bind(self, address: str) -> int:
        """See `Transport`."""
        try:
            port: int = self._server.add_insecure_port(address)
        except RuntimeError:
            raise taken(address) from None
        return port

    async def start(self) -> None:
        """See `Transport`."""
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """See `Transport`."""
        await self._server.stop(grace_s)
