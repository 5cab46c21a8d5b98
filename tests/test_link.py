"""Wire bytes as they are reported, against what the kernel counts."""

from __future__ import annotations

import queue
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from narrows.runtime import link
from narrows.runtime.errors import UsageError
from narrows.runtime.link import (
    GRPC_PREFIX_BYTES,
    HTTP2_HEADER_BYTES,
    LinkOptions,
    check_target,
    open_channel,
    wire_bytes,
)

TCP_INFO_BYTES_ACKED = 120  # offset of tcpi_bytes_acked in Linux's struct tcp_info


def identity(data: bytes) -> bytes:
    return data


def bytes_acked(port: int) -> int:
    """What this process has sent to `port`, as the kernel counts it."""
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not entry.readlink().name.startswith("socket:"):
                continue
            connection = socket.socket(fileno=int(entry.name))
        except OSError:
            continue
        try:
            if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.getpeername()[1] == port:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
                total += struct.unpack_from("<Q", info, TCP_INFO_BYTES_ACKED)[0]
        except OSError:
            pass
        finally:
            connection.detach()
    return total


@pytest.fixture
def port():
    """A server that answers every message with an empty one."""
    handler = grpc.stream_stream_rpc_method_handler(
        lambda messages, _: (b"" for _ in messages), request_deserializer=identity, response_serializer=identity
    )
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("echo", {"Stream": handler})])
    number = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield number
    server.stop(None).wait()


@pytest.mark.parametrize("size", [100, 5_000, 40_000, 300_000])
def test_wire_bytes_are_what_the_kernel_counts(port: int, size: int) -> None:
    frames, turn = 100, threading.Semaphore()

    def one_at_a_time() -> Iterator[bytes]:
        for n in range(frames + 1):
            turn.acquire()
            yield bytes([n % 251]) * size

    with open_channel(f"127.0.0.1:{port}") as channel:
        stream = channel.stream_stream("/echo/Stream", request_serializer=identity, response_deserializer=identity)
        replies = stream(one_at_a_time())
        next(replies)  # connection, settings and headers are behind
        before = bytes_acked(port)
        for _ in range(frames):
            turn.release()
            next(replies)
        sent = bytes_acked(port) - before
    if sent == 0:
        pytest.skip("this kernel does not tell what a socket has sent")
    # Less: HTTP/2 frames above 16 KiB, which a peer may come to allow. More: a window update or a ping now and then.
    assert frames * (size + GRPC_PREFIX_BYTES + HTTP2_HEADER_BYTES) <= sent <= frames * (wire_bytes(size) * 1.02 + 60)


@pytest.mark.parametrize("target", ["localhost", ":8470", "host:", "host:port", "host:0", "host:70000", ""])
def test_what_is_no_address_is_told(target: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        check_target(target)


def test_an_address_is_taken() -> None:
    check_target("127.0.0.1:8470")
    check_target("[::1]:8470")


def test_a_server_bears_a_devices_pings_on_an_idle_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "SHORTEST_PING_S", 0.1)
    handler = grpc.stream_stream_rpc_method_handler(
        lambda messages, _: (message for message in messages),
        request_deserializer=identity,
        response_serializer=identity,
    )
    # The synchronous server takes the same options, and needs no event loop here.
    server = grpc.server(futures.ThreadPoolExecutor(1), options=link.server_options(1 << 20))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("echo", {"Stream": handler})])
    number = server.add_insecure_port("127.0.0.1:0")
    server.start()
    outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with open_channel(f"127.0.0.1:{number}", LinkOptions(keepalive_s=1.0)) as channel:
        stream = channel.stream_stream("/echo/Stream", request_serializer=identity, response_deserializer=identity)
        replies = stream(iter(outbox.get, None))
        outbox.put(b"here")
        assert next(replies) == b"here"
        time.sleep(5.5)  # five pings, a second apart at least; gRPC hangs up on the third that comes too soon
        outbox.put(b"still here")
        assert next(replies) == b"still here"
        outbox.put(None)
    server.stop(None).wait()
