"""Bit-planes, then zstandard: what an installation without tables and without a compiler can do well.

Symbols are split into planes of one bit each, so that the nearly empty upper planes become runs; tensors that cross
as they are are split into planes of one byte each (the shuffle of Blosc), so that exponents lie together.

A payload is one tag byte and what the tag says: 0, the raw bytes; 1, one zstandard frame of the planes.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import zstandard
from numpy.typing import NDArray

from ..errors import CoderError
from .base import Symbols, SymbolSpec
from .raw import BoundRaw

_RAW, _ZSTD = b"\x00", b"\x01"
_LEVEL = 3
_ESTIMATE_SYMBOLS = 1024


class _Contexts(threading.local):
    """zstandard's contexts are costly to make and not to be shared between threads: one pair a thread."""

    def __init__(self) -> None:
        # No content size, checksum or dictionary id: the bundle knows the first, the frame carries the second.
        self.compressor = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=False, write_checksum=False)
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Contexts()


@dataclass(frozen=True)
class BoundBitplaneZstd:
    spec: SymbolSpec
    _raw: BoundRaw = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_raw", BoundRaw(self.spec))

    @property
    def _bits(self) -> int | None:
        """Bit-planes to a symbol; None where planes are bytes."""
        return None if self.spec.levels is None else max(1, (self.spec.levels - 1).bit_length())

    @property
    def _plane_bytes(self) -> int:
        """Bytes of one bit-plane."""
        return -(-self.spec.elements // 8)

    def encode(self, symbols: Symbols) -> bytes:
        raw = self._raw.encode(symbols)
        coded = _contexts.compressor.compress(self._split(raw).tobytes())
        return _ZSTD + coded if len(coded) < len(raw) else _RAW + raw

    def decode(self, payload: bytes | memoryview) -> Symbols:
        tag, body = bytes(payload[:1]), payload[1:]
        if tag == _RAW:
            return self._raw.decode(body)
        if tag != _ZSTD:
            raise CoderError(f"a bit-plane payload begins with 0 or 1, this one with {tag.hex() or 'nothing'}")
        bits = self._bits
        expected = self.spec.raw_bytes if bits is None else bits * self._plane_bytes
        try:
            # One byte more than is due would show a payload that unpacks to too much; the cap comes before the memory.
            with _contexts.decompressor.stream_reader(body, read_across_frames=False) as reader:
                planes = reader.read(expected + 1)
        except zstandard.ZstdError:
            raise CoderError("the payload is no whole zstandard frame") from None
        if len(planes) != expected:
            raise CoderError(f"the payload was to unpack to {expected} bytes, and did not")
        return self._join(np.frombuffer(planes, np.uint8))

    def estimate_bytes(self, symbols: Symbols) -> int:
        flat = np.ascontiguousarray(symbols, self.spec.dtype).reshape(-1)
        part = flat[: max(_ESTIMATE_SYMBOLS, flat.size // 8)]
        bound = BoundBitplaneZstd(SymbolSpec(part.shape, self.spec.dtype, self.spec.levels))
        return len(bound.encode(part)) * flat.size // max(1, part.size) + 1

    def _split(self, raw: bytes) -> NDArray[np.uint8]:
        size = self.spec.dtype.itemsize
        lanes = np.frombuffer(raw, np.uint8).reshape(-1, size).T
        bits = self._bits
        if bits is None:
            return np.ascontiguousarray(lanes)
        # `lanes[0]` is the low byte: bit b of a symbol is bit b % 8 of lane b // 8. Highest plane first.
        return np.stack([np.packbits(lanes[b // 8] & (1 << b % 8), bitorder="little") for b in reversed(range(bits))])

    def _join(self, planes: NDArray[np.uint8]) -> Symbols:
        count, size, bits = self.spec.elements, self.spec.dtype.itemsize, self._bits
        if bits is None:
            return self._raw.decode(np.ascontiguousarray(planes.reshape(size, count).T).tobytes())
        lanes = np.zeros((size, count), np.uint8)
        rows = planes.reshape(bits, self._plane_bytes)
        for row, b in zip(rows, reversed(range(bits)), strict=True):
            lanes[b // 8] |= np.unpackbits(row, count=count, bitorder="little") << b % 8
        return self._raw.decode(np.ascontiguousarray(lanes.T).tobytes())


class BitplaneZstd:
    name: ClassVar[str] = "bitplane-zstd"
    version: ClassVar[int] = 1
    number: ClassVar[int] = 1

    def bind(self, spec: SymbolSpec, table: bytes | memoryview | None = None) -> BoundBitplaneZstd:
        return BoundBitplaneZstd(spec)
