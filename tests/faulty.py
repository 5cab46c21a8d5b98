"""A real gRPC server that misbehaves as it is told to, for tests of the device."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path

import grpc
from narrows.device import Device
from narrows.protos import split_pb2 as pb
from narrows.protos import split_pb2_grpc
from narrows.runtime.answer import Reply
from narrows.runtime.bundle import Bundle
from narrows.runtime.codec import best_common
from narrows.runtime.errors import NarrowsError
from narrows.runtime.frame import FrameCodec
from narrows.runtime.halves import Tail
from narrows.runtime.wire import frame_from_wire, reply_to_wire

Say = Iterator[pb.ServerMessage]


class Answers:
    """Right answers, for a server to give or to spoil."""

    def __init__(self, bundle: Bundle) -> None:
        self._codec = FrameCodec(bundle, 0)
        self._tail = Tail(bundle, bundle.manifest.cuts[0])

    def to(self, message: pb.Frame) -> pb.ServerMessage:
        """The right answer to a frame."""
        frame = frame_from_wire(message)
        outputs = self._tail.run([self._codec.unpack(frame)], [frame.quality])[0]
        return pb.ServerMessage(outcome=reply_to_wire(Reply(frame.id, outputs)))


def refusal(message: pb.Frame, error: NarrowsError) -> pb.ServerMessage:
    return pb.ServerMessage(outcome=reply_to_wire(Reply(message.id, error=error)))


def welcome(hello: pb.Hello, **changes: object) -> pb.ServerMessage:
    fields = {"coder": best_common(hello.coders), "max_frame_bytes": 1 << 20, "max_in_flight": 16, **changes}
    return pb.ServerMessage(welcome=pb.Welcome(**fields))


class FaultyServer(split_pb2_grpc.SplitInferenceServicer):
    """Greets, and hands every frame to `behave`, which yields what is to be said and may raise or abort."""

    def __init__(self, behave: Callable[[pb.Frame, grpc.ServicerContext], Say], **changes: object) -> None:
        self.behave = behave
        self.changes = changes
        self.hellos: list[pb.Hello] = []
        self.frames: list[pb.Frame] = []
        self.messages: list[pb.ClientMessage] = []
        """That brought them."""
        self.gone = threading.Event()

    def Stream(self, messages: Iterator[pb.ClientMessage], context: grpc.ServicerContext) -> Say:  # noqa: N802
        hello = next(messages).hello
        self.hellos.append(hello)
        yield welcome(hello, **self.changes)
        for message in messages:
            self.messages.append(message)
            for frame in message.frames.frames if message.HasField("frames") else (message.frame,):
                self.frames.append(frame)
                yield from self.behave(frame, context)


@contextmanager
def serving(servicer: split_pb2_grpc.SplitInferenceServicer, port: int = 0) -> Iterator[str]:
    """Serve on a loopback port; its address."""
    server = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    split_pb2_grpc.add_SplitInferenceServicer_to_server(servicer, server)
    number = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{number}"
    finally:
        if isinstance(servicer, FaultyServer):
            servicer.gone.set()
        server.stop(None).wait()


def open_descriptors() -> int:
    """Files and sockets that this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def wait_connected(device: Device) -> None:
    """A frame has to have been sent to be rescued."""
    for _ in range(500):
        if device.status().connected:
            return
        time.sleep(0.02)
    raise AssertionError("no connection")
