"""The one place that makes gRPC channels and servers. Every option stands here with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from .credentials import LinkSecurity
from .errors import UsageError

Option = tuple[str, Any]

FRAME_OVERHEAD_BYTES = 64 << 10
"""Room in one message beside the payloads: ids, shapes, a handshake with many coders."""
SHORTEST_PING_S = 5.0
"""Between two tests of an idle connection by a device, as servers allow it."""
HTTP2_FRAME_BYTES = 16_384
HTTP2_HEADER_BYTES = 9
GRPC_PREFIX_BYTES = 5
PACKET_BYTES = 1400
"""What one TCP segment carries through nearly any network: what fits into it together arrives together anyway."""


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """How a device's connection behaves."""

    max_message_bytes: int = 64 << 20
    """Largest message that is accepted from the server; an answer of full tensors may be far larger than a frame."""
    keepalive_s: float = 10.0
    """Silence after which the connection is tested; servers hang up on who tests more often than `SHORTEST_PING_S`."""
    keepalive_timeout_s: float = 5.0
    """No answer to the test for so long: the connection is lost."""
    security: LinkSecurity = field(default_factory=LinkSecurity)
    via: str = ""
    """ "host:port" of a proxy that passes everything on to the server; names and errors stay those of the server."""

    def __post_init__(self) -> None:
        if self.max_message_bytes < 1 or self.keepalive_s <= 0 or self.keepalive_timeout_s <= 0:
            raise UsageError("link options must be positive")


def _common(max_receive_bytes: int) -> list[Option]:
    return [
        # gRPC's own 4 MiB is below one uncoded early feature map. The cap that matters is checked per frame.
        ("grpc.max_receive_message_length", max_receive_bytes),
        # What this end sends is its own, and was held against the peer's cap before.
        ("grpc.max_send_message_length", -1),
        # Payloads are entropy-coded already: no compressor will find anything in them.
        ("grpc.default_compression_algorithm", int(grpc.Compression.NoCompression)),
    ]


def channel_options(options: LinkOptions) -> list[Option]:
    """Options of a device's channel."""
    return [
        *_common(options.max_message_bytes),
        # A Wi-Fi that vanished sends no FIN: without pings a stream would hang for TCP's quarter of an hour.
        ("grpc.keepalive_time_ms", round(options.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(options.keepalive_timeout_s * 1000)),
        # A device between two frames is idle, and wants to know of a dead link before the next one.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # The device runs its own back-off and decides per frame: gRPC's would hide for minutes that a server is back.
        ("grpc.enable_retries", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # In spite of its name also the time that a try to connect may take: below the round trips of the handshake no
        # try would ever succeed. The device hangs up by its own clock, so this is no more than a lid.
        ("grpc.min_reconnect_backoff_ms", 20_000),
        # Each Device has its own connection: with the shared pool, closing one would not close its socket.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def server_options(max_frame_bytes: int) -> list[Option]:
    """Options of a server whose frames carry at most `max_frame_bytes` of payload."""
    return [
        *_common(max_frame_bytes + FRAME_OVERHEAD_BYTES),
        # A second server on the same port is a mistake to be told, not a load balancer.
        ("grpc.so_reuseport", 0),
        # Devices ping every ten seconds, and between frames too; gRPC takes less than five minutes for an attack, and
        # ends the connection with "too many pings". (The option is called so, whatever gRPC's constant for it says.)
        ("grpc.http2.min_ping_interval_without_data_ms", round(SHORTEST_PING_S * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        # The server's own test, so that a device that lost its power does not hold a stream for ever.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]


def open_channel(target: str, options: LinkOptions | None = None) -> grpc.Channel:
    """A channel to `target` ("host:port"). Connects when it is first used.

    Raises:
        UsageError: the target is no address, or a file of certificates cannot be read.
    """
    check_target(target)
    options = options or LinkOptions()
    security, settings = options.security, channel_options(options)
    if options.via:
        check_target(options.via)
        settings += [
            ("grpc.default_authority", target),
            ("grpc.ssl_target_name_override", target.rpartition(":")[0].strip("[]")),
        ]
    if security.encrypted:
        channel = grpc.secure_channel(options.via or target, security.credentials(), options=settings)
    else:
        channel = grpc.insecure_channel(options.via or target, options=settings)
    return security.authorize(channel)


def new_server(
    max_frame_bytes: int, interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]] = ()
) -> grpc.aio.Server:
    """A server without services and ports yet."""
    return grpc.aio.server(options=server_options(max_frame_bytes), interceptors=tuple(interceptors))


def check_target(target: str) -> None:
    """Refuse what is no "host:port".

    Raises:
        UsageError: with the form that is expected.
    """
    host, _, port = target.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"a server's address is HOST:PORT, such as 127.0.0.1:8470; {target!r} is none")


def wire_bytes(message_bytes: int) -> int:
    """Bytes that one gRPC message of `message_bytes` takes in the TCP stream.

    The message, gRPC's prefix of five bytes, and nine bytes of HTTP/2 header for each DATA frame of 16 KiB (RFC 9113,
    sections 4.1 and 4.2; a peer may come to allow larger frames, so large messages can cost a few bytes less). A test
    holds this against what the kernel counts on a real connection.
    """
    body = message_bytes + GRPC_PREFIX_BYTES
    return body + HTTP2_HEADER_BYTES * -(-body // HTTP2_FRAME_BYTES)
