"""One input on its way: symbols into a frame, and a stranger's frame back into symbols.

The checksum is taken over the *symbols*, the cut and the quality, and not over the payload: what it vouches for is
that the tail sees the very integers that the head made, whatever coder stood between.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache

import numpy as np

from .bundle import Bundle
from .codec import BoundCoder, Symbols, SymbolSpec, by_label, by_number, label_of
from .errors import BundleError, ChecksumError, FrameTooLargeError, ShapeError, UsageError
from .manifest import CrossingTensor, Cut

_BOUND_CODERS = 256


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps that are checked before memory is taken."""

    max_frame_bytes: int = 8 << 20
    """A frame's payloads together."""
    max_elements: int = 1 << 24
    """Symbols of one tensor; it binds where the bundle leaves a dimension open."""
    max_in_flight: int = 64
    """Frames of one stream that may be waiting for their outcome."""

    def __post_init__(self) -> None:
        if min(self.max_frame_bytes, self.max_elements, self.max_in_flight) < 1:
            raise UsageError("limits must be 1 or more")


class Mode(IntEnum):
    """What a frame asks of the server."""

    SPLIT = 0
    """Symbols for the tail of a cut."""
    OFFLOAD = 1
    """One compressed picture for the whole model."""
    TENSORS = 2
    """The model's inputs as they are, for the whole model."""


@dataclass(frozen=True, slots=True)
class CodedTensor:
    """One tensor of a cut, coded."""

    payload: bytes
    shape: tuple[int, ...] = ()
    """Without the batch axis; empty where the bundle's own shape is closed."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What crosses the link for one input."""

    id: int
    """Unique within its stream."""
    cut: int
    """Index into the bundle's cuts."""
    quality: int
    coder: int
    """The number of the coder that made the payloads."""
    checksum: int
    """CRC-32 of cut, quality and symbols; of the payloads where nothing is split."""
    tensors: tuple[CodedTensor, ...]
    deadline_ms: int = 0
    """Time left until the answer is of no use; 0 for none."""
    mode: Mode = Mode.SPLIT
    trace: bytes = b""
    """The span that the frame belongs to, as `pack_trace` writes it; empty where nobody traces."""

    @property
    def payload_bytes(self) -> int:
        """What the coder made, without the frame around it."""
        return sum(len(tensor.payload) for tensor in self.tensors)


_TRACE = struct.Struct(">QQQB")


def pack_trace(trace_id: int, span_id: int, flags: int) -> bytes:
    """What W3C Trace Context's `traceparent` says, in 25 bytes: trace (16), span (8) and flags (1)."""
    return _TRACE.pack(trace_id >> 64, trace_id & (1 << 64) - 1, span_id, flags)


def unpack_trace(trace: bytes) -> tuple[int, int, int] | None:
    """Trace, span and flags; None where a stranger's bytes are no trace context."""
    if len(trace) != _TRACE.size:
        return None
    high, low, span_id, flags = _TRACE.unpack(trace)
    return (high << 64 | low, span_id, flags) if (high or low) and span_id else None


def checksum(cut: int, quality: int, symbols: Sequence[Symbols]) -> int:
    """CRC-32 that vouches for a frame's symbols.

    Args:
        cut: index of the cut.
        quality: index of the quality: the same symbols mean other features at another.
        symbols: the tensors in the order of the cut; their bytes are taken little-endian.
    """
    value = zlib.crc32(struct.pack("<II", cut, quality))
    for tensor in symbols:
        value = zlib.crc32(np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<")).data.cast("B"), value)
    return value


def whole_frame(frame_id: int, mode: Mode, tensors: Sequence[CodedTensor], deadline_ms: int = 0) -> Frame:
    """A frame for the whole model.

    Args:
        frame_id: unique within its stream.
        mode: `OFFLOAD` with one picture, or `TENSORS` with one payload for each input, little-endian, in C order.
        tensors: the payloads.
        deadline_ms: time left until the answer is of no use; 0 for none.
    """
    return Frame(frame_id, 0, 0, 0, payload_checksum(tensors), tuple(tensors), deadline_ms, mode)


def payload_checksum(tensors: Sequence[CodedTensor]) -> int:
    """CRC-32 of a whole frame's payloads, one after the other."""
    value = 0
    for tensor in tensors:
        value = zlib.crc32(tensor.payload, value)
    return value


@dataclass(frozen=True)
class FrameCodec:
    """Turns symbols into frames and back, for one cut of a bundle. Safe to use from several threads at once.

    codec = FrameCodec(bundle, cut_index=0)
    frame = codec.pack(7, symbols, quality=3, coder="bitplane-zstd/1")
    assert all(map(np.array_equal, codec.unpack(frame), symbols))
    """

    bundle: Bundle
    cut_index: int
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        # A bound coder holds parsed tables, so it is kept; not without bound, since open shapes come from strangers.
        object.__setattr__(self, "_bound", lru_cache(_BOUND_CODERS)(self._bind))
        # A table serves every shape: it is read once, and there are as many as the bundle itself says.
        object.__setattr__(self, "_table", lru_cache(None)(self._read_table))

    @property
    def cut(self) -> Cut:
        """The cut whose frames these are."""
        return self.bundle.manifest.cuts[self.cut_index]

    def pack(self, frame_id: int, symbols: Sequence[Symbols], quality: int, coder: str, deadline_ms: int = 0) -> Frame:
        """Code one frame.

        Args:
            frame_id: unique within the stream.
            symbols: what the head made, in the order of the cut.
            quality: the quality that it was made at.
            coder: label of the coder that both ends agreed on.
            deadline_ms: time left until the answer is of no use; 0 for none.

        Raises:
            FrameTooLargeError: the payloads are more than the cap.
        """
        tensors = []
        for i, (tensor, array) in enumerate(zip(self.cut.crossing, symbols, strict=True)):
            payload = self._coder(i, quality, array.shape, coder).encode(array)
            tensors.append(CodedTensor(payload, array.shape if _is_open(tensor) else ()))
        frame = Frame(
            id=frame_id,
            cut=self.cut_index,
            quality=quality,
            coder=by_label(coder).number,
            checksum=checksum(self.cut_index, quality, symbols),
            tensors=tuple(tensors),
            deadline_ms=deadline_ms,
        )
        self._check_size(frame)
        return frame

    def unpack(self, frame: Frame) -> tuple[Symbols, ...]:
        """The exact symbols of a frame that may come from a stranger.

        Raises:
            QualityError: a quality that the cut does not have.
            CoderError: an unknown coder, or a payload that it refuses.
            ShapeError: tensors or shapes that are not the bundle's.
            FrameTooLargeError: more bytes or elements than the caps.
            ChecksumError: symbols other than those that were sent.
        """
        cut = self.cut
        cut.check_quality(frame.quality)
        self._check_size(frame)
        if len(frame.tensors) != len(cut.crossing):
            raise ShapeError(f"cut {cut.name!r} has {len(cut.crossing)} tensors; {len(frame.tensors)} came")
        label = label_of(by_number(frame.coder))
        symbols = []
        for i, (tensor, coded) in enumerate(zip(cut.crossing, frame.tensors, strict=True)):
            shape = self._shape(tensor, coded.shape)
            bound = self._coder(i, frame.quality, shape, label)
            if len(coded.payload) > bound.spec.max_payload_bytes:
                raise FrameTooLargeError(
                    f"{len(coded.payload)} bytes for {tensor.name!r}, "
                    f"which needs {bound.spec.max_payload_bytes} at most"
                )
            symbols.append(bound.decode(coded.payload))
        found = checksum(frame.cut, frame.quality, symbols)
        if found != frame.checksum:
            raise ChecksumError(
                f"the symbols of frame {frame.id} do not match their checksum "
                f"({frame.checksum:08x} sent, {found:08x} decoded); send the frame again"
            )
        return tuple(symbols)

    def _coder(self, tensor: int, quality: int, shape: tuple[int, ...], coder: str) -> BoundCoder:
        bound: BoundCoder = self._bound(tensor, quality, shape, coder)  # type: ignore[attr-defined]
        return bound

    def _bind(self, index: int, quality: int, shape: tuple[int, ...], coder: str) -> BoundCoder:
        tensor = self.cut.crossing[index]
        spec = SymbolSpec(
            shape=shape,
            dtype=np.dtype(tensor.symbols.dtype),
            levels=tensor.levels[quality] if tensor.levels else None,
            channel_axis=tensor.channel_axis,
        )
        return by_label(coder).bind(spec, self._table(index, quality, coder))  # type: ignore[attr-defined]

    def _read_table(self, index: int, quality: int, coder: str) -> bytes | None:
        return self.bundle.table(self.cut.crossing[index], quality, coder)

    def _shape(self, tensor: CrossingTensor, sent: tuple[int, ...]) -> tuple[int, ...]:
        """The shape to decode to: the bundle's own, with the open dimensions as sent."""
        own = tensor.symbols.shape
        if not sent:
            if None in own:
                raise ShapeError(f"{tensor.name!r} has open dimensions, and the frame does not give them")
            return tuple(d for d in own if d is not None)
        if len(sent) != len(own) or any(o is not None and o != s for o, s in zip(own, sent, strict=True)):
            raise ShapeError(f"{tensor.name!r} is {list(own)}; the frame says {list(sent)}")
        if math.prod(sent) > self.limits.max_elements:
            raise FrameTooLargeError(
                f"{math.prod(sent)} symbols in {tensor.name!r}; at most {self.limits.max_elements}"
            )
        return sent

    def _check_size(self, frame: Frame) -> None:
        if frame.payload_bytes > self.limits.max_frame_bytes:
            raise FrameTooLargeError(
                f"a frame of {frame.payload_bytes} bytes, where {self.limits.max_frame_bytes} are allowed; "
                "lower the quality, or raise --max-frame-bytes on the server"
            )


def frame_codecs(bundle: Bundle, limits: Limits | None = None) -> tuple[FrameCodec, ...]:
    """One codec per cut of a bundle, in the order of its cuts.

    Raises:
        BundleError: a cut's closed shape alone is over the caps.
    """
    limits = limits or Limits()
    for cut in bundle.manifest.cuts:
        for tensor in cut.crossing:
            elements = math.prod(d for d in tensor.symbols.shape if d is not None)
            if elements > limits.max_elements:
                raise BundleError(f"{tensor.name!r} has {elements} symbols; at most {limits.max_elements} are allowed")
    return tuple(FrameCodec(bundle, index, limits) for index in range(len(bundle.manifest.cuts)))


def _is_open(tensor: CrossingTensor) -> bool:
    return None in tensor.symbols.shape
