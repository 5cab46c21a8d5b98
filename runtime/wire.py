"""Between protobuf messages and the core's dataclasses: messages stop at the doors of `server/` and `device/`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ..protos import split_pb2 as pb
from .answer import DEFAULT_TOP, Array, Form, Reply, ServerTiming, TailAnswer, TopClass, Wanted
from .errors import FrameError, NarrowsError, OverloadedError, from_code
from .frame import CodedTensor, Frame, Mode

PROTOCOL = 1
_MICRO = 1000.0
_UINT32_MAX = (1 << 32) - 1


def frame_to_wire(frame: Frame) -> pb.Frame:
    """A frame as a message."""
    return pb.Frame(
        id=frame.id,
        mode=pb.Mode.Name(frame.mode),
        cut=frame.cut,
        quality=frame.quality,
        coder=frame.coder,
        checksum=frame.checksum,
        deadline_ms=min(frame.deadline_ms, _UINT32_MAX),
        tensors=[pb.CodedTensor(payload=tensor.payload, shape=tensor.shape) for tensor in frame.tensors],
        trace=frame.trace,
    )


def frame_from_wire(message: pb.Frame) -> Frame:
    """A message as a frame; nothing in it has been believed yet.

    Raises:
        FrameError: a mode that this release does not know.
    """
    try:
        mode = Mode(message.mode)
    except ValueError:
        raise FrameError(f"frames of mode {message.mode} are unknown here; this end is older than the peer") from None
    return Frame(
        id=message.id,
        cut=message.cut,
        quality=message.quality,
        coder=message.coder,
        checksum=message.checksum,
        tensors=tuple([CodedTensor(tensor.payload, tuple(tensor.shape)) for tensor in message.tensors]),
        deadline_ms=message.deadline_ms,
        mode=mode,
        trace=message.trace,
    )


def wanted_to_wire(wanted: Wanted) -> pb.Answer:
    """The form of answer as a message."""
    form = pb.Answer.TOP if wanted.form is Form.TOP else pb.Answer.TENSORS
    return pb.Answer(form=form, top=wanted.top, tails=wanted.tails)


def wanted_from_wire(message: pb.Answer) -> Wanted:
    """The form of answer that a device asked for; zero classes mean the usual five.

    Raises:
        UsageError: an absurd number of classes or of tails, or a tail twice.
    """
    form = Form.TOP if message.form == pb.Answer.TOP else Form.TENSORS
    return Wanted(form, message.top or DEFAULT_TOP, tuple(message.tails))


def reply_to_wire(reply: Reply) -> pb.Outcome:
    """A reply as a message."""
    # Filled in place: on a server this runs for every frame, and messages made apart would be copied into this one.
    message = pb.Outcome(id=reply.id)
    timing, own = message.timing, reply.timing
    timing.queue_us = _micro(own.queue_ms)
    timing.decode_us = _micro(own.decode_ms)
    timing.tail_us = _micro(own.tail_ms)
    timing.batch = own.batch
    for best in reply.top:
        message.top.add(index=best.index, score=best.score)
    if reply.outputs:
        message.outputs.extend(_tensors_to_wire(reply.outputs))
    for tail, answer in reply.further.items():
        message.further.add(tail=tail, outputs=_tensors_to_wire(answer.outputs), top=_top_to_wire(answer.top))
    if reply.error is not None:
        message.error.CopyFrom(error_to_wire(reply.error))
    return message


def reply_from_wire(message: pb.Outcome) -> Reply:
    """A message as a reply.

    Raises:
        FrameError: a tensor whose bytes and shape do not agree.
    """
    timing = message.timing
    return Reply(
        id=message.id,
        outputs=_tensors_from_wire(message.outputs),
        top=_top_from_wire(message.top),
        error=error_from_wire(message.error) if message.HasField("error") else None,
        timing=ServerTiming(timing.queue_us / _MICRO, timing.decode_us / _MICRO, timing.tail_us / _MICRO, timing.batch),
        further={
            answer.tail: TailAnswer(_tensors_from_wire(answer.outputs), _top_from_wire(answer.top))
            for answer in message.further
        },
    )


def error_to_wire(error: NarrowsError) -> pb.Error:
    """An error as a message: its stable name and its public text."""
    retry_ms = error.retry_ms if isinstance(error, OverloadedError) else 0
    return pb.Error(code=error.code, text=str(error), retry_ms=min(retry_ms, _UINT32_MAX))


def error_from_wire(message: pb.Error) -> NarrowsError:
    """A message as the error that the peer raised."""
    error = from_code(message.code, message.text)
    if isinstance(error, OverloadedError):
        error.retry_ms = message.retry_ms
    return error


def _tensors_to_wire(outputs: Mapping[str, Array]) -> list[pb.Tensor]:
    return [_tensor_to_wire(name, array) for name, array in outputs.items()]


def _tensors_from_wire(messages: Iterable[pb.Tensor]) -> dict[str, Array]:
    return {message.name: _tensor_from_wire(message) for message in messages}


def _top_to_wire(top: Iterable[TopClass]) -> list[pb.TopClass]:
    return [pb.TopClass(index=best.index, score=best.score) for best in top]


def _top_from_wire(messages: Iterable[pb.TopClass]) -> tuple[TopClass, ...]:
    return tuple(TopClass(best.index, best.score) for best in messages)


def _tensor_to_wire(name: str, array: Array) -> pb.Tensor:
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return pb.Tensor(name=name, dtype=array.dtype.name, shape=array.shape, data=data)


def _tensor_from_wire(message: pb.Tensor) -> Array:
    try:
        dtype = np.dtype(message.dtype)
        array: Array = np.frombuffer(message.data, dtype.newbyteorder("<")).reshape(tuple(message.shape))
    except (TypeError, ValueError) as error:
        raise FrameError(f"the server's tensor {message.name!r} is damaged ({error})") from None
    return array.astype(dtype, copy=False)


def _micro(duration_ms: float) -> int:
    return min(round(duration_ms * _MICRO), _UINT32_MAX)
