"""A small client of the wire contract, so that tests of the server need no device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

import grpc
import numpy as np
from narrows.protos import split_pb2 as pb
from narrows.protos import split_pb2_grpc
from narrows.runtime.answer import Reply
from narrows.runtime.bundle import Bundle
from narrows.runtime.codec import labels
from narrows.runtime.frame import Frame, FrameCodec
from narrows.runtime.halves import Head, Tail
from narrows.runtime.wire import frame_to_wire, reply_from_wire


class Frames:
    """Real frames of a bundle, and what its tail says to each of them alone."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._codec = FrameCodec(bundle, 0)
        self._head = Head(bundle, bundle.manifest.cuts[0])
        self._tail = Tail(bundle, bundle.manifest.cuts[0])

    def make(self, frame_id: int, picture: np.ndarray, quality: int = 1, deadline_ms: int = 0) -> Frame:
        symbols = self._head.run([picture], quality).symbols
        return self._codec.pack(frame_id, symbols, quality, labels()[0], deadline_ms)

    def expected(self, frame: Frame) -> np.ndarray:
        return self._tail.run([self._codec.unpack(frame)], [frame.quality])[0]["logits"]


class StreamClient:
    """One stream. Messages are sent when told to, so that tests decide what is on the way."""

    def __init__(self, channel: grpc.Channel, hello: pb.Hello | None) -> None:
        self._outgoing: SimpleQueue[pb.ClientMessage | None] = SimpleQueue()
        self.call = split_pb2_grpc.SplitInferenceStub(channel).Stream(iter(self._outgoing.get, None))
        if hello is not None:
            self.send(pb.ClientMessage(hello=hello))

    def send(self, message: pb.ClientMessage | Frame) -> None:
        if isinstance(message, Frame):
            message = pb.ClientMessage(frame=frame_to_wire(message))
        self._outgoing.put(message)

    def close(self) -> None:
        """Half-close: no more frames from here."""
        self._outgoing.put(None)

    def receive(self) -> pb.ServerMessage:
        return next(self.call)

    def reply(self) -> Reply:
        return reply_from_wire(self.receive().outcome)

    def replies(self, count: int) -> dict[int, Reply]:
        return {reply.id: reply for reply in (self.reply() for _ in range(count))}


def hello(bundle: Bundle, /, **changes) -> pb.Hello:
    fields = {"protocol": 1, "model": bundle.manifest.name, "bundle": bundle.digest, "coders": labels(), **changes}
    return pb.Hello(**fields)


@contextmanager
def stream(address: str, greeting: pb.Hello | None) -> Iterator[StreamClient]:
    """A stream on a connection of its own, cancelled at the end if it is still open."""
    with grpc.insecure_channel(address) as channel:
        client = StreamClient(channel, greeting)
        try:
            yield client
        finally:
            client.close()
            client.call.cancel()


def code_of(error: grpc.RpcError) -> str | None:
    """The error's stable name out of the trailing metadata."""
    return dict(error.trailing_metadata() or ()).get("narrows-code")
