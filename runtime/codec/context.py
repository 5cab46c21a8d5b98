"""The context coder: each symbol by a distribution that its already coded neighbours choose.

A payload is one tag byte and what the tag says:

    0  the raw bytes, where nothing was gained
    1  byte planes, then zstandard: a tensor that crosses as it is (see `bitplane.py`)
    2  coder states (4 bytes each), then 16-bit words of interleaved rANS, all little-endian
    3  one symbol, little-endian: every symbol is this one

The model is in `model.py`, the inner loops are in `_kernel.c` and, for an installation without a compiler, in
`_twin.py`; both read and write the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import CoderError
from . import _twin
from .base import BoundCoder, Symbols, SymbolSpec
from .bitplane import BoundBitplaneZstd
from .model import DIGIT, LANES, Geometry, Model, Table, default_table, unpack
from .raw import BoundRaw

try:
    from . import _kernel
except ImportError:
    _kernel = None  # type: ignore[assignment]

_RAW, _PLANES, _CONTEXT, _CONSTANT = b"\x00", b"\x01", b"\x02", b"\x03"

_ESTIMATE_STEP = 8
"""A size estimate looks at one group of channels of at most this many, ..."""
_ESTIMATE_SYMBOLS = 4096
"""... and at no fewer symbols than this."""


class Engine(Protocol):
    """The kernel or its twin; `model.Model` says what `numbers` and `arrays` are."""

    def encode(
        self, numbers: tuple[int, ...], arrays: tuple[NDArray[Any], ...], symbols: Symbols, capacity: int, /
    ) -> bytes | None: ...

    def decode(
        self,
        numbers: tuple[int, ...],
        arrays: tuple[NDArray[Any], ...],
        payload: bytes | memoryview,
        symbols: Symbols,
        /,
    ) -> bool: ...

    def tally(
        self,
        numbers: tuple[int, ...],
        arrays: tuple[NDArray[Any], ...],
        symbols: Symbols,
        step: int,
        counts: NDArray[np.uint32],
        /,
    ) -> None: ...


def has_kernel() -> bool:
    """Whether the compiled kernel serves; otherwise its Python twin does."""
    return _kernel is not None


def kernel_status() -> str:
    """What runs the context coder here, in a sentence."""
    if has_kernel():
        return "compiled kernel"
    return "pure Python twin (same bytes, hundreds of times slower: reinstall where a C compiler is)"


def engine() -> Engine:
    """What runs the inner loops here."""
    return _twin if _kernel is None else _kernel


@dataclass(frozen=True, eq=False)
class BoundContext:
    """The context coder for one tensor of symbols."""

    spec: SymbolSpec
    table: Table
    engine: Engine

    @cached_property
    def _geometry(self) -> Geometry:
        return Geometry.of(self.spec)

    @cached_property
    def model(self) -> Model:
        return Model(self._geometry, self.table)

    @cached_property
    def _raw(self) -> BoundRaw:
        return BoundRaw(self.spec)

    def encode(self, symbols: Symbols) -> bytes:
        planes = self._planes(symbols)
        if not planes.size:
            return _RAW
        if planes.min() == planes.max():
            self._check(planes)
            return _CONSTANT + self._one(planes)
        try:
            coded = self.engine.encode(self.model.numbers, self.model.arrays, planes, self.spec.raw_bytes)
        except ValueError:
            raise self._outside(planes) from None
        return _CONTEXT + coded if coded is not None else _RAW + self._raw.encode(symbols)

    def decode(self, payload: bytes | memoryview) -> Symbols:
        view = memoryview(payload)
        tag, body = bytes(view[:1]), view[1:]
        if tag == _RAW:
            return self._checked(self._raw.decode(body))
        if tag == _CONSTANT and len(body) == self.spec.dtype.itemsize and self.spec.elements:
            value = np.frombuffer(body, self.spec.dtype.newbyteorder("<"))[0]
            return self._checked(np.full(self.spec.shape, value, self.spec.dtype))
        if tag != _CONTEXT or not self.spec.elements:
            raise CoderError(f"a context-coded payload begins with 0, 2 or 3, this one with {tag.hex() or 'nothing'}")
        geometry = self._geometry
        planes = np.empty((geometry.channels, geometry.rows, geometry.cols), self.spec.dtype)
        if not self.engine.decode(self.model.numbers, self.model.arrays, body, planes):
            raise CoderError("the payload is damaged, or was made with another table")
        return geometry.restore(planes, self.spec.shape)

    def estimate_bytes(self, symbols: Symbols) -> int:
        """About how many bytes `encode` will make of `symbols`, from a sample of channels and without coding them."""
        planes = self._planes(symbols)
        if not planes.size:
            return 1
        channels = len(planes)
        step = max(1, min(_ESTIMATE_STEP, planes.size // _ESTIMATE_SYMBOLS, channels // (2 * LANES)))
        looked_at = np.arange(channels) // LANES % step == 0
        counts = np.zeros((len(self.table.counts), DIGIT), np.uint32)
        try:
            self.engine.tally(self.model.numbers, self.model.arrays, planes, step, counts)
        except ValueError:
            raise self._outside(planes) from None
        bits = self._bits_of(counts.astype(np.float64)) + self._raw_bits(planes[looked_at])
        whole = int(bits / 8 * channels / looked_at.sum()) + 1 + 4 * self.model.states
        return min(whole, self.spec.raw_bytes + 1)

    def _bits_of(self, counts: NDArray[np.float64]) -> float:
        """Bits that counted digits take, distributions adapting from the table's to what is counted."""
        start = self.model.arrays[8].astype(np.int64) + (1 << 15)
        prior = np.diff(start[:-1], axis=1, append=1 << 15) / float(1 << 15)
        weight = 4.0 + self.table.counts[:, None].astype(np.float64)
        if self.table.slowest:
            total = counts.sum(axis=1, keepdims=True)
            prior = (counts + weight * prior) / (total + weight)
        used = counts > 0
        return float(-(counts[used] * np.log2(prior[used])).sum())

    def _raw_bits(self, planes: Symbols) -> float:
        """Bits below the two digits of an alphabet of more than 8 bits."""
        if not self._geometry.wide:
            return 0.0
        modulus = 1 << self._geometry.bits
        away = (planes.astype(np.int64) - self.table.centre) % modulus
        folded = np.where(away >= modulus // 2, 2 * (modulus - away) - 1, 2 * away)
        return float(np.maximum(np.log2(np.maximum(folded, 1)).astype(np.int64) - 4, 0).sum())

    def _planes(self, symbols: Symbols) -> Symbols:
        if symbols.shape != self.spec.shape:
            raise CoderError(f"symbols of shape {self.spec.shape} were expected, {symbols.shape} came")
        return self._geometry.planes(np.asarray(symbols, self.spec.dtype))

    def _one(self, planes: Symbols) -> bytes:
        return planes.reshape(-1)[:1].astype(self.spec.dtype.newbyteorder("<")).tobytes()

    def _outside(self, symbols: Symbols) -> CoderError:
        return CoderError(f"every symbol was to be below {self.spec.levels}, one is {int(symbols.max())}")

    def _check(self, symbols: Symbols) -> None:
        if symbols.size and int(symbols.max()) >= (self.spec.levels or 0):
            raise self._outside(symbols)

    def _checked(self, symbols: Symbols) -> Symbols:
        self._check(symbols)
        return symbols


class Context:
    name: ClassVar[str] = "context"
    version: ClassVar[int] = 1
    number: ClassVar[int] = 2

    def bind(self, spec: SymbolSpec, table: bytes | memoryview | None = None) -> BoundCoder:
        # Symbols that are not one or two bytes cannot come from a quantiser: they cross as they are.
        if spec.levels is None or spec.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)) or spec.levels > 1 << 16:
            return BoundBitplaneZstd(SymbolSpec(spec.shape, spec.dtype, None, spec.channel_axis))
        geometry = Geometry.of(spec)
        made = default_table(geometry) if table is None else unpack(geometry, table)
        return BoundContext(spec, made, engine())
