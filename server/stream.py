"""One device's stream: a greeting, then frames in and outcomes out, until one side ends it."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import Any

import grpc.aio

from ..protos import split_pb2 as pb
from ..runtime.answer import Reply
from ..runtime.codec import best_common
from ..runtime.errors import DeadlineError, DrainingError, FrameError, NarrowsError, OverloadedError, UsageError
from ..runtime.version import VERSION
from ..runtime.wire import PROTOCOL, frame_from_wire, reply_to_wire, wanted_from_wire
from .catalogue import Served
from .clients import Client
from .plane import DataPlane, Taken
from .status import Context, public

_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # not in the stubs

HELLO_S = 20.0
"""A stream that has not said hello by then is ended."""
LINGER_S = 0.5
"""After telling a device that it drains, the server keeps reading for so long: frames that were on the way get an
outcome instead of silence."""
TOGETHER_BYTES = 64 << 10
"""Outcomes that are ready at the same time share a message up to about this size. On its own, one costs the server as
much to send as to make."""


class DeviceStream:
    """What the server knows of one stream. One task reads, the handler's own writes; no task is made for a frame."""

    def __init__(self, plane: DataPlane, context: Context, client: Client, served: Served, hello: pb.Hello) -> None:
        """After the hello; `open` is the way in."""
        self._plane = plane
        self._context = context
        self._client = client
        self.served = served
        self._wanted = wanted_from_wire(hello.answer)
        self._several = hello.several
        self._pending: dict[int, Taken] = {}
        self._outbox: deque[pb.Outcome | pb.ServerMessage] = deque()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._leaving = False
        self._lingered = False
        self.frames = 0
        """That came in so far."""
        limits = plane.limits
        welcome = pb.Welcome(
            coder=best_common(hello.coders),
            max_frame_bytes=limits.max_frame_bytes,
            max_in_flight=limits.max_in_flight,
            server_version=VERSION,
            several=True,
        )
        self._send(pb.ServerMessage(welcome=welcome))

    @classmethod
    async def open(cls, plane: DataPlane, context: Context, client: Client) -> DeviceStream:
        """Wait for the device's hello.

        Raises:
            NarrowsError: no hello, or one that does not fit: another protocol, model, bundle, or no coder in common.
        """
        try:
            message = await asyncio.wait_for(context.read(), HELLO_S)
        except TimeoutError:
            raise DeadlineError(f"no hello within {HELLO_S:.0f} s") from None
        if message is _EOF or not message.HasField("hello"):
            raise UsageError("a stream's first message is hello")
        hello = message.hello
        if hello.protocol != PROTOCOL:
            raise UsageError(f"protocol {hello.protocol} is unknown; this server speaks {PROTOCOL}")
        client.check(hello.model)
        served = plane.catalogue.find(hello.model, require_digest(hello.bundle))
        return cls(plane, context, client, served, hello)

    async def serve(self, max_age_s: float = 0.0) -> None:
        """Serve until the device half-closes, or, while draining, until it had time to.

        Args:
            max_age_s: seconds after which the device is told to connect again, a tenth more or less; 0 for never.

        Raises:
            UsageError: a message that is no frame.
        """
        reader = asyncio.create_task(self._read(), name="read frames")
        reader.add_done_callback(lambda _: self._wake.set())
        ageing = self._age(max_age_s) if max_age_s else None
        try:
            await self._write(reader)
        finally:
            if ageing is not None:
                ageing.cancel()
            reader.cancel()
            for taken in self._pending.values():
                self._plane.cancel(taken)

    def drain(self) -> None:
        """Tell the device in-band, and end the stream once its frames are answered and it had time to half-close."""
        if self._leaving:
            return
        self._leaving = True
        self._send(pb.ServerMessage(draining=pb.Draining()))
        asyncio.get_running_loop().call_later(LINGER_S, self._linger_over)

    async def _read(self) -> None:
        most = self._plane.limits.max_in_flight
        capacity = 2 * most
        while (message := await self._context.read()) is not _EOF:
            kind = message.WhichOneof("message")
            if kind == "frame":
                self._take(message.frame)
            elif kind == "frames" and len(message.frames.frames) <= most:
                for frame in message.frames.frames:
                    self._take(frame)
            else:
                raise UsageError(f"after hello, every message of a stream is a frame, or up to {most} of them")
            # A device that sends and does not read fills this queue of its own, and is not read from until it has.
            while len(self._outbox) >= capacity:
                self._room.clear()
                await self._room.wait()

    async def _write(self, reader: asyncio.Task[None]) -> None:
        while True:
            while self._outbox:
                await self._context.write(self._next_message())
                self._room.set()
            if reader.done() and not reader.cancelled():
                reader.result()  # raises what ended it
            if not self._pending and (reader.done() or self._lingered):
                return
            self._wake.clear()
            await self._wake.wait()

    def _next_message(self) -> pb.ServerMessage:
        """The outbox's first, with those behind it that may go together with it."""
        first = self._outbox.popleft()
        if isinstance(first, pb.ServerMessage):
            return first
        if not self._several or not self._outbox:
            return pb.ServerMessage(outcome=first)
        together, size = [first], first.ByteSize()
        while self._outbox and size < TOGETHER_BYTES and isinstance(following := self._outbox[0], pb.Outcome):
            self._outbox.popleft()
            together.append(following)
            size += following.ByteSize()
        return pb.ServerMessage(outcomes=pb.Outcomes(outcomes=together))

    def _take(self, message: pb.Frame) -> None:
        self.frames += 1
        try:
            if self._leaving:
                raise DrainingError("this stream is about to end and takes no new frame; connect again")
            if message.id in self._pending:
                raise FrameError(f"frame {message.id} is in flight already; give every frame of a stream its own id")
            limit = self._plane.limits.max_in_flight
            if len(self._pending) + len(self._outbox) >= limit:
                raise OverloadedError(f"{limit} frames of this stream wait for their outcome; no more may")
            self._pending[message.id] = self._plane.submit(
                self.served, frame_from_wire(message), self._wanted, self._client, self._done
            )
        except NarrowsError as error:
            self._answer(Reply(message.id, error=error))
        except Exception as error:  # noqa: BLE001 - logged there, and kept from strangers
            # Whatever a stranger's frame brings about, it must not cost the stream's other frames.
            self._answer(Reply(message.id, error=public(error)))

    def _done(self, reply: Reply) -> None:
        del self._pending[reply.id]
        self._answer(reply)

    def _answer(self, reply: Reply) -> None:
        self._send(reply_to_wire(reply))

    def _send(self, message: pb.Outcome | pb.ServerMessage) -> None:
        self._outbox.append(message)
        self._wake.set()

    def _age(self, max_age_s: float) -> asyncio.TimerHandle:
        # Streams that began together, after a restart, would otherwise come back together for ever.
        return asyncio.get_running_loop().call_later(max_age_s * random.uniform(0.9, 1.1), self.drain)

    def _linger_over(self) -> None:
        self._lingered = True
        self._wake.set()


def require_digest(digest: str) -> str:
    """A bundle's digest, said by a device.

    Raises:
        UsageError: it said none, so nothing would keep halves of different bundles apart.
    """
    if not digest:
        raise UsageError("say which bundle the head is of: its digest is missing")
    return digest
