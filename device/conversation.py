"""One gRPC stream with one server, from hello to its end. Protobuf messages stop here."""

from __future__ import annotations

import queue
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import grpc

from ..protos import split_pb2 as pb
from ..protos.split_pb2_grpc import SplitInferenceStub
from ..runtime import codec
from ..runtime.answer import Reply, Wanted
from ..runtime.errors import FrameError, NarrowsError, ServerUnavailableError, UsageError, from_code
from ..runtime.frame import Frame
from ..runtime.link import PACKET_BYTES, LinkOptions, open_channel, wire_bytes
from ..runtime.wire import PROTOCOL, frame_to_wire, reply_from_wire, wanted_to_wire

APPLICATION = "application"
"""Metadata that names the model, for proxies that route by it, such as Ray Serve's."""
_CODE = "narrows-code"
_SETUP_FAULTS = {
    grpc.StatusCode.UNIMPLEMENTED: "no Narrows server",
    grpc.StatusCode.UNAUTHENTICATED: "asks for credentials",
    grpc.StatusCode.PERMISSION_DENIED: "refuses this device",
}


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a device says first."""

    model: str
    bundle: str
    """Digest of the manifest; the server's half must have the same."""
    wanted: Wanted
    coders: tuple[str, ...] = field(default_factory=lambda: tuple(codec.labels()))
    """Labels of the coders that frames may use, best first."""

    def to_wire(self) -> pb.ClientMessage:
        """The greeting as a message."""
        return pb.ClientMessage(
            hello=pb.Hello(
                protocol=PROTOCOL,
                model=self.model,
                bundle=self.bundle,
                coders=self.coders,
                answer=wanted_to_wire(self.wanted),
                several=True,
            )
        )


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the server says first."""

    coder: str
    """Label of the coder that frames are to use."""
    max_frame_bytes: int
    """A frame's payloads together."""
    max_in_flight: int
    """Frames that may be waiting for their outcome."""


class Draining:
    """The server is going down: it answers what it has and takes nothing new."""


Event = Welcome | Reply | Draining


class Link(Protocol):
    """What an uplink holds with one server: frames out, events in. See `Conversation`."""

    target: str

    def events(self) -> Iterator[Event]:
        """What the server says, until it ends with the error that says why."""
        ...

    def send(self, frame: Frame) -> int:
        """Send a frame; its bytes on the wire."""
        ...

    def hang_up(self) -> None:
        """Break off: `events` raises, wherever it is waiting."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


class Conversation:
    """One stream with one server.

    One thread iterates `events`; any thread may `send` and `hang_up`.
    """

    def __init__(self, target: str, greeting: Greeting, options: LinkOptions) -> None:
        self.target = target
        self._outbox: queue.SimpleQueue[pb.Frame | None] = queue.SimpleQueue()
        self._several = False
        """The server takes several frames in one message."""
        self._channel = open_channel(target, options)
        stub = SplitInferenceStub(self._channel)  # type: ignore[no-untyped-call]
        self._call = stub.Stream(self._messages(greeting), metadata=[(APPLICATION, greeting.model)])

    def events(self) -> Iterator[Event]:
        """What the server says, until the stream ends.

        Raises:
            NarrowsError: why it ended. A `LinkError`, `DrainingError` or `InternalError` may go away by itself, any
                other is a fault of how the two ends are set up.
        """
        try:
            for message in self._call:
                kind = message.WhichOneof("message")
                if kind == "outcomes":
                    yield from map(_reply, message.outcomes.outcomes)
                elif kind is not None:  # a proxy may say an error in the wake of an empty one
                    yield self._event(kind, message)
        except grpc.RpcError as error:
            raise reason(error, self.target) from None
        raise ServerUnavailableError(f"{self.target} ended the stream")

    def send(self, frame: Frame) -> int:
        """Hand a frame to gRPC; the bytes that it takes in the TCP stream, or a few less where it shares a message."""
        message = frame_to_wire(frame)
        size = pb.ClientMessage(frame=message).ByteSize()
        self._outbox.put(message)
        return wire_bytes(size)

    def hang_up(self) -> None:
        """Break the stream off: `events` raises, wherever it is waiting."""
        self._call.cancel()

    def close(self) -> None:
        """Let go of the connection and of gRPC's threads."""
        self._outbox.put(None)
        self._call.cancel()
        self._channel.close()

    def _messages(self, greeting: Greeting) -> Iterator[pb.ClientMessage]:
        """What gRPC sends, taken in a thread of its own until None comes out of the outbox.

        Small frames that wait together go together; larger ones would hold one another up on a slow link.
        """
        yield greeting.to_wire()
        waiting: list[pb.Frame] = []
        size = 0
        for frame in iter(self._outbox.get, None):
            size += frame.ByteSize()
            if waiting and size > PACKET_BYTES:
                yield _carrying(waiting)
                waiting, size = [], frame.ByteSize()
            waiting.append(frame)
            if not self._several or self._outbox.empty():
                yield _carrying(waiting)
                waiting, size = [], 0
        if waiting:
            yield _carrying(waiting)

    def _event(self, kind: str, message: pb.ServerMessage) -> Event:
        if kind == "outcome":
            return _reply(message.outcome)
        if kind == "welcome":
            welcome = message.welcome
            codec.by_label(welcome.coder)
            self._several = welcome.several
            return Welcome(welcome.coder, welcome.max_frame_bytes, max(1, welcome.max_in_flight))
        if kind == "draining":
            return Draining()
        raise ServerUnavailableError(f"{self.target} sent a message that this release does not know")


def _carrying(frames: list[pb.Frame]) -> pb.ClientMessage:
    if len(frames) == 1:
        return pb.ClientMessage(frame=frames[0])
    return pb.ClientMessage(frames=pb.Frames(frames=frames))


def _reply(message: pb.Outcome) -> Reply:
    try:
        return reply_from_wire(message)
    except FrameError as error:
        return Reply(message.id, error=error)


Converse = Callable[[str, Greeting, LinkOptions], Link]
"""Begins to talk to a server, "host:port"."""


def with_time_left(frame: Frame, frame_id: int, left_s: float) -> Frame:
    """The frame as one stream carries it: its id there, and the time that is left until its answer is of no use."""
    return replace(frame, id=frame_id, deadline_ms=max(1, round(left_s * 1000)))


_TRUST = re.compile(r"CERTIFICATE_VERIFY_FAILED(?:: ([^:\n]+))?")
_HANGS_UP = "it hangs up at once; does it want TLS (--ca or --tls), or this device's certificate (--cert and --key)?"
_CONNECTING = {
    "Hostname Verification": "its certificate is for another name; connect by one that is in it",
    "WRONG_VERSION_NUMBER": "it speaks no TLS; leave --tls and --ca out",
    "Socket closed": _HANGS_UP,
    "Connection reset": _HANGS_UP,
    "Connection refused": "connection refused; is a server running there?",
    "No route to host": "no route there",
    "Network is unreachable": "no network",
    "DNS resolution failed": "no such name",
    "timed out": "it does not answer; is the address right, and no firewall in between?",
}
"""What gRPC's words for a connection that was never there mean for the user."""


def _in_short(details: str) -> str:
    """Why there is no connection, in a line that says what to do; gRPC's own words where they are not known."""
    if (untrusted := _TRUST.search(details)) is not None:
        why = f" ({untrusted[1].strip()})" if untrusted[1] else ""
        return f"its certificate is not trusted{why}; give its authority with --ca"
    if "onnect" in details or "DNS" in details or "handshake" in details:
        return next((said for sign, said in _CONNECTING.items() if sign in details), details)
    return details


def reason(error: grpc.RpcError, target: str) -> NarrowsError:
    """Why a call failed: in the server's words where it is one of ours, in gRPC's where it is not."""
    status, details = error.code(), error.details() or ""
    metadata: Iterable[tuple[str, str | bytes]] = error.trailing_metadata() or ()  # type: ignore[assignment]
    for key, value in metadata:
        if key == _CODE and isinstance(value, str):
            return from_code(value, details)
    if status in _SETUP_FAULTS:
        return UsageError(f"{target} is or {_SETUP_FAULTS[status]} ({details})")
    return ServerUnavailableError(f"{target}: {_in_short(details) or status.name}")
