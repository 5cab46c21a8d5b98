"""A stock server of the Open Inference Protocol (Triton, KServe, …) that holds the tail, in the place of Narrows' own.

What such a server takes is the tail graph's own inputs: the symbols as they are (`uint8`, fixed shape) and the quality
of each frame. So the symbols travel uncoded, one unary call a frame, several calls at a time, and the server may batch
them. It knows no bundles: whether its tail is the other half of this head, it cannot say, and names, types and shapes
are all that is checked.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import numpy as np

from ..protos import oip_pb2 as pb
from ..runtime.answer import Array, Reply
from ..runtime.errors import (
    BundleMismatchError,
    DeadlineError,
    FrameError,
    InternalError,
    ModelNotFoundError,
    NarrowsError,
    OverloadedError,
    ServerUnavailableError,
    ShapeError,
    UsageError,
)
from ..runtime.frame import Frame
from ..runtime.link import LinkOptions, open_channel, wire_bytes
from ..runtime.manifest import Cut, Manifest
from ..runtime.oip import SERVICE, datatype_of, tensors_of
from .conversation import Event, Welcome, reason

CODER = "raw/1"
"""Its payload is the tensor's own bytes, which is what the protocol wants."""

_MAX_IN_FLIGHT = 64
_MAX_ELEMENTS = 1 << 28
"""Of one output; the message's own size is bounded by the link's options."""
_BUSY = ("maximum queue size", "timeout expired")
"""What Triton says, with the status of a server that is gone, when its queue is full or a frame waited for too long."""
_FRAMES_OWN = {
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.INVALID_ARGUMENT: FrameError,
    grpc.StatusCode.OUT_OF_RANGE: FrameError,
    grpc.StatusCode.FAILED_PRECONDITION: FrameError,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.UNKNOWN: InternalError,
}
"""Statuses that concern one frame; any other ends the conversation."""


@dataclass(frozen=True, slots=True)
class OpenInference:
    """Which model of a stock server is the tail."""

    model: str = ""
    """Its name there; the bundle's and `.tail` where none is given."""
    version: str = ""
    """Its version there; the server's choice where none is given."""


class OipConversation:
    """Calls of one connection, in the shape of a `Conversation`."""

    def __init__(self, target: str, options: LinkOptions, model: OpenInference, manifest: Manifest, cut: Cut) -> None:
        self.target = target
        self._model = model
        self._manifest = manifest
        self._cut = cut
        self._quality_axes = 1
        self._arrived: queue.SimpleQueue[Reply | NarrowsError] = queue.SimpleQueue()
        self._channel = open_channel(target, options)
        self._infer = _method(self._channel, "ModelInfer")
        request = pb.ModelMetadataRequest(name=model.model, version=model.version)
        self._described = _method(self._channel, "ModelMetadata").future(request)

    def events(self) -> Iterator[Event]:
        """A welcome once the model is known to fit, then replies, until the connection is lost.

        Raises:
            NarrowsError: why it ended.
        """
        try:
            self._check(self._described.result())
        except grpc.FutureCancelledError:
            raise ServerUnavailableError(f"{self.target}: hung up") from None
        except grpc.RpcError as error:
            raise _ended(error, self.target) from None
        yield Welcome(CODER, 1 << 31, _MAX_IN_FLIGHT)
        while True:
            event = self._arrived.get()
            if isinstance(event, NarrowsError):
                raise event
            yield event

    def send(self, frame: Frame) -> int:
        """Begin a frame's call; the bytes of its message in the TCP stream, without the call's headers."""
        request = pb.ModelInferRequest(
            model_name=self._model.model, model_version=self._model.version, id=str(frame.id)
        )
        batch = [1] if self._manifest.batched else []
        for tensor, coded in zip(self._cut.crossing, frame.tensors, strict=True):
            shape = coded.shape or [d or 0 for d in tensor.symbols.shape]
            datatype = datatype_of(tensor.symbols.dtype)
            request.inputs.add(name=tensor.symbols.name, datatype=datatype, shape=[*batch, *shape])
            request.raw_input_contents.append(coded.payload)
        if self._cut.quality_input is not None:
            request.inputs.add(name=self._cut.quality_input, datatype="INT32", shape=[1] * self._quality_axes)
            request.raw_input_contents.append(np.array([frame.quality], "<i4").tobytes())
        timeout_s = frame.deadline_ms / 1000 if frame.deadline_ms else None
        call = self._infer.future(request, timeout=timeout_s)
        call.add_done_callback(partial(self._ended, frame.id))
        return wire_bytes(request.ByteSize())

    def hang_up(self) -> None:
        """Break off: `events` raises, wherever it is waiting."""
        self._described.cancel()
        self._arrived.put(ServerUnavailableError(f"{self.target}: hung up"))

    def close(self) -> None:
        """Let go of the connection; calls under way end nowhere."""
        self._channel.close()

    def _ended(self, frame_id: int, call: Any) -> None:
        """A call is over; runs in gRPC's thread."""
        try:
            self._arrived.put(Reply(frame_id, self._outputs(call.result())))
        except grpc.FutureCancelledError:
            pass  # closed
        except NarrowsError as error:
            self._arrived.put(Reply(frame_id, error=error))
        except grpc.RpcError as error:
            own = _of_frame(error)
            self._arrived.put(_ended(error, self.target) if own is None else Reply(frame_id, error=own))

    def _outputs(self, response: pb.ModelInferResponse) -> dict[str, Array]:
        found = tensors_of(response.outputs, response.raw_output_contents, _MAX_ELEMENTS)
        outputs = {}
        for name in self._cut.tail_outputs:
            array = found.get(name)
            if array is None or isinstance(array, list):
                raise ShapeError(f"the answer lacks {name!r}; the server's model gives {', '.join(found) or 'nothing'}")
            outputs[name] = array[0] if self._manifest.batched else array
        return outputs

    def _check(self, known: pb.ModelMetadataResponse) -> None:
        """Hold what the server says of its model against the tail, as far as it says anything.

        Raises:
            BundleMismatchError: another name, type or shape.
        """
        there = {tensor.name: tensor for tensor in known.inputs}
        if not there:
            return  # some servers know nothing of their models
        where = f"model {self._model.model!r} of {self.target}"
        specs = [tensor.symbols for tensor in self._cut.crossing]
        quality = self._cut.quality_input
        for name in [*(spec.name for spec in specs), *([quality] if quality else [])]:
            if name not in there:
                raise BundleMismatchError(
                    f"{where} takes {', '.join(there)}, and not {name!r}: it is not the tail of this bundle"
                )
        for spec in specs:
            tensor, datatype = there[spec.name], datatype_of(spec.dtype)
            if tensor.datatype != datatype or not _fits(list(tensor.shape), spec.shape):
                raise BundleMismatchError(
                    f"{where} takes {spec.name!r} as {tensor.datatype} {list(tensor.shape)}, "
                    f"and this head makes {datatype} {list(spec.shape)}"
                )
        if quality:
            # Triton wants an axis beside that of the batch, even where the graph has none.
            self._quality_axes = max(1, len(there[quality].shape))


def oip_conversation(
    model: OpenInference, manifest: Manifest, cut: Cut
) -> Callable[[str, object, LinkOptions], OipConversation]:
    """What begins conversations about one cut's tail.

    Raises:
        UsageError: the tail takes or gives what the protocol has no type for.
    """
    for tensor in (*cut.crossing, *cut.back):
        if tensor.symbols.dtype == "bfloat16":
            raise UsageError(f"{tensor.name!r} is bfloat16, which stock servers do not take as raw contents")
    named = model if model.model else OpenInference(f"{manifest.name}.tail", model.version)
    return lambda target, _, options: OipConversation(target, options, named, manifest, cut)


def _fits(there: Sequence[int], shape: Sequence[int | None]) -> bool:
    """Whether a server's shape allows a tensor's, with or without a batch axis before it; -1 stands for anything."""
    own = there[len(there) - len(shape) :] if len(there) >= len(shape) else [0]
    return all(s < 0 or d is None or s == d for s, d in zip(own, shape, strict=False)) and len(there) <= len(shape) + 1


def _method(channel: grpc.Channel, name: str) -> Any:
    return channel.unary_unary(
        f"/{SERVICE}/{name}",
        request_serializer=getattr(pb, f"{name}Request").SerializeToString,
        response_deserializer=getattr(pb, f"{name}Response").FromString,
    )


def _of_frame(error: grpc.RpcError) -> NarrowsError | None:
    """The error of one frame; None where it is the connection's or the set-up's."""
    status, details = error.code(), error.details() or ""
    if status is grpc.StatusCode.UNAVAILABLE and any(text in details for text in _BUSY):
        return OverloadedError(details)
    kind = _FRAMES_OWN.get(status)
    return None if kind is None else kind(f"the server says: {details or status.name}")


def _ended(error: grpc.RpcError, target: str) -> NarrowsError:
    if error.code() is grpc.StatusCode.NOT_FOUND:
        return ModelNotFoundError(f"{target}: {error.details()}")
    return reason(error, target)
