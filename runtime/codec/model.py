"""What the context coder knows of one tensor before the first symbol: integers, from a table or from nothing.

A prediction is a weighted sum of neighbours that both ends already have: left, up, up-left and up-right in the same
channel, the channel's mean so far, and the same place (and its four neighbours) in a few earlier channels. Where the
prediction falls among `bin` thresholds, how rough the neighbourhood is, and the channel's class choose one of a few
hundred distributions. `docs/codec.md` says why, with figures.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from ..errors import BundleError
from .base import Symbols, SymbolSpec

PROBABILITY_BITS = 15
ONE = 1 << PROBABILITY_BITS
DIGIT = 16
CAUSAL = 5
WEIGHT_BITS = 12
MEAN_BITS = 4
LUT_BITS = 10
TEXTURES = 4
"""Parts of a neighbourhood's roughness, at most."""
LANES = 8
"""Channels that are coded in step."""
STATES = 8
"""Coder states, at most."""

_TWO_STATES_FROM, _FOUR_STATES_FROM = 2_048, 8_192
"""Symbols from which further coder states, 4 bytes each, buy speed. Part of the format."""

_STORED_BITS = 6
"""Fraction bits of a stored weight; weights of a four-neighbour sum have two more."""

_HEADER = struct.Struct("<BBBBBBBHII")
_VERSION = 1
_MAX_TABLE_BYTES = 1 << 24
_MAX_REFS, _MAX_CONTEXTS = 8, 1 << 15
_NEVER = (1 << 15) - 1
"""More roughness than there is."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """A tensor as planes of rows of symbols, and how its symbols fall into digits of up to four bits."""

    channels: int
    rows: int
    cols: int
    levels: int
    axis: int | None
    """The axis of the tensor that became the channels; None where there is one channel."""

    @classmethod
    def of(cls, spec: SymbolSpec) -> Geometry:
        if spec.levels is None:
            raise ValueError("a tensor that crosses as it is has no alphabet")
        shape, axis = spec.shape, spec.channel_axis
        if axis is None and len(shape) > 2:
            axis = 0
        rest = [n for i, n in enumerate(shape) if i != axis]
        channels = 1 if axis is None else shape[axis]
        cols = rest[-1] if rest else 1
        return cls(channels, math.prod(rest[:-1]), cols, spec.levels, axis)

    @property
    def bits(self) -> int:
        return max(1, (int(self.levels) - 1).bit_length())

    @property
    def wide(self) -> bool:
        """Symbols that are folded around a centre and written like a float."""
        return self.bits > 8

    @property
    def low_bits(self) -> int:
        """Bits below the first digit, for alphabets of up to 8 bits."""
        return 0 if self.wide else max(0, self.bits - 4)

    @property
    def value_bits(self) -> int:
        """Bits of what contexts see of a symbol."""
        return 4 if self.wide else self.bits

    @property
    def alphabet(self) -> int:
        return self.bits if self.wide else ((self.levels - 1) >> self.low_bits) + 1

    @property
    def low_alphabet(self) -> int:
        """Values of a second digit; 1 where there is none."""
        return DIGIT if self.wide else 1 << self.low_bits

    @property
    def elements(self) -> int:
        return self.channels * self.rows * self.cols

    def planes(self, symbols: Symbols) -> Symbols:
        """`symbols` as a contiguous [channels, rows, cols]."""
        moved = symbols if self.axis is None else np.moveaxis(symbols, self.axis, 0)
        # Aligned, too: symbols that were read out of a payload may begin at an odd address.
        return np.require(moved, requirements=["C", "A"]).reshape(self.channels, self.rows, self.cols)

    def restore(self, planes: Symbols, shape: tuple[int, ...]) -> Symbols:
        """The inverse of `planes`."""
        if self.axis is None:
            return planes.reshape(shape)
        rest = [n for i, n in enumerate(shape) if i != self.axis]
        return np.ascontiguousarray(np.moveaxis(planes.reshape(self.channels, *rest), 0, self.axis))


@dataclass(frozen=True, eq=False)
class Table:
    """What calibration found out, in the units it is stored in. Without calibration: `default_table`."""

    centre: int
    slowest: int
    """Largest adaptation shift; 0 leaves the distributions as they are."""
    classes: int
    bins: NDArray[np.uint16]
    """[bins - 1] ascending thresholds on a prediction, in 1/1024 of the range of what contexts see."""
    textures: NDArray[np.uint16]
    """[textures - 1] ascending thresholds on |left - up| + |up - up-left|."""
    subs: NDArray[np.uint16]
    """[subs - 1] as `bins`, for the second digit."""
    weights: NDArray[np.int8]
    """[channels, 5 + 2 * refs] in 1/64 (1/256 for the four-neighbour sums of refs)."""
    bias: NDArray[np.int16]
    """[channels] in 1/64 symbol."""
    ref: NDArray[np.uint16]
    """[channels, refs] earlier channels."""
    pad: NDArray[np.uint8]
    """[channels] stands for the neighbours of a channel's first symbol."""
    klass: NDArray[np.uint8]
    """[channels] which set of distributions."""
    counts: NDArray[np.uint8]
    """[contexts] adaptation steps that a distribution is worth."""
    codes: NDArray[np.uint8]
    """[contexts, 16] frequencies as eight-bit floats."""

    @property
    def refs(self) -> int:
        return int(self.ref.shape[1])

    @property
    def first_contexts(self) -> int:
        return self.classes * (len(self.textures) + 1) * (len(self.bins) + 1)


def second_contexts(geometry: Geometry, subs: int) -> int:
    """Distributions of the second digit; 0 where there is none."""
    return geometry.alphabet * subs if geometry.low_alphabet > 1 else 0


def frequencies_of(codes: NDArray[np.uint8], alphabet: int) -> NDArray[np.int64]:
    """int64 [contexts, 16] that sum to ONE, from eight-bit floats; 0 past the alphabet."""
    value = (16 + (codes[:, :alphabet].astype(np.int64) & 15)) << (codes[:, :alphabet] >> 4)
    scaled = 1 + value * (ONE - alphabet) // value.sum(axis=1, keepdims=True)
    rows = np.arange(len(scaled))
    scaled[rows, scaled.argmax(axis=1)] += ONE - scaled.sum(axis=1)
    padded: NDArray[np.int64] = np.pad(scaled, ((0, 0), (0, DIGIT - alphabet)))
    return padded


def codes_of(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """The eight-bit floats nearest to `probabilities` [contexts, alphabet], each row in proportion to its largest."""
    relative = probabilities / probabilities.max(axis=1, keepdims=True)
    value = np.clip(relative * (31 << 15), 16, 31 << 15)
    exponent = np.floor(np.log2(value)).astype(np.int64) - 4
    mantissa = np.rint(value / np.exp2(exponent)).astype(np.int64) - 16
    exponent, mantissa = np.where(mantissa == 16, exponent + 1, exponent), np.where(mantissa == 16, 0, mantissa)
    codes = (np.minimum(exponent, 15) << 4 | mantissa).astype(np.uint8)
    return np.pad(codes, ((0, 0), (0, DIGIT - codes.shape[1])))


def rates_of(slowest: int) -> NDArray[np.uint16]:
    """uint16 [256]: how far distributions move after so many steps, in 1 / 2^16; never less than 2^-slowest."""
    steps = np.arange(256)
    return np.maximum((1 << 16) // (steps + 4), 1 << (16 - slowest) if slowest else 0).astype(np.uint16)


@dataclass(frozen=True, eq=False)
class Model:
    """A table made ready for one geometry. `numbers` and `arrays` are what the kernel and the twin are given."""

    geometry: Geometry
    table: Table

    @property
    def states(self) -> int:
        elements = self.geometry.elements
        if elements >= _FOUR_STATES_FROM:
            return 4 if self.geometry.low_alphabet == 1 else 8
        return 2 if elements >= _TWO_STATES_FROM else 1

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        g, t = self.geometry, self.table
        subs = len(t.subs) + 1
        shape = (g.channels, g.rows, g.cols, g.levels, g.bits)
        return (*shape, t.centre, t.refs, subs, self.states, self._adaptation, t.first_contexts)

    @property
    def _adaptation(self) -> int:
        """0: frozen; 1: every distribution at the slowest rate; 2: by counts."""
        if not self.table.slowest:
            return 0
        rates = rates_of(self.table.slowest)
        return 1 if rates[self.table.counts.min(initial=255)] == rates[255] else 2

    @cached_property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """bias, weights, ref, pad, offset, context, texture, sub, cdf, counts, rates: see `Model` in `_loops.h`."""
        t = self.table
        weights = t.weights.astype(np.int16) << (WEIGHT_BITS - _STORED_BITS)
        weights[:, CAUSAL + 1 :: 2] >>= 2
        bins, textures = len(t.bins) + 1, len(t.textures) + 1
        steps = np.arange(1 << LUT_BITS)
        made = (
            t.bias.astype(np.int32) << (WEIGHT_BITS - _STORED_BITS),
            weights,
            t.ref,
            t.pad,
            (t.klass.astype(np.uint16) * (textures * bins)).astype(np.uint16),
            (np.arange(TEXTURES)[:, None] * bins + np.searchsorted(t.bins, steps, side="right")).astype(np.uint16),
            np.pad(np.minimum(t.textures, _NEVER), (0, TEXTURES - textures), constant_values=_NEVER).astype(np.int16),
            np.searchsorted(t.subs, steps, side="right").astype(np.uint8),
            self._cdf(),
            t.counts,
            rates_of(t.slowest),
        )
        return tuple(np.ascontiguousarray(a) for a in made)

    def _cdf(self) -> NDArray[np.int16]:
        """int16 [contexts + 1, 16]: the cumulative frequency below each digit, minus ONE."""
        g, first = self.geometry, self.table.first_contexts
        frequencies = np.concatenate(
            [
                frequencies_of(self.table.codes[:first], g.alphabet),
                frequencies_of(self.table.codes[first:], g.low_alphabet),
            ]
        )
        below = np.cumsum(frequencies, axis=1) - frequencies
        ended: NDArray[np.int64] = np.pad(below, ((0, 1), (0, 0)))
        return (ended - ONE).astype(np.int16)


# -- without calibration -----------------------------------------------------------------------------------------------


def default_table(geometry: Geometry) -> Table:
    """An adaptive start that supposes only that neighbours are alike."""
    bins = np.array([2, 6, 14, 28, 44, *range(64, 1024, 64)], np.uint16)
    rough = max(0, geometry.value_bits - 4)
    textures = np.array([1 << rough, 3 << rough], np.uint16)
    subs = np.array([], np.uint16)
    first = (len(textures) + 1) * (len(bins) + 1)
    second = second_contexts(geometry, 1)
    middle = np.concatenate([[0], bins]).astype(np.float64) / (1 << LUT_BITS) * geometry.alphabet
    distance = np.abs(np.arange(geometry.alphabet)[None] + 0.5 - middle[:, None] - 0.5)
    codes = np.zeros((first + second, DIGIT), np.uint8)
    codes[:first] = np.tile(codes_of(np.exp2(-np.minimum(distance, 12.0))), (len(textures) + 1, 1))
    return Table(
        centre=0,
        slowest=7,
        classes=1,
        bins=bins,
        textures=textures,
        subs=subs,
        weights=np.tile(np.array([26, 20, 0, 8, 8], np.int8), (geometry.channels, 1)),
        bias=np.zeros(geometry.channels, np.int16),
        ref=np.zeros((geometry.channels, 0), np.uint16),
        pad=np.zeros(geometry.channels, np.uint8),
        klass=np.zeros(geometry.channels, np.uint8),
        counts=np.zeros(first + second, np.uint8),
        codes=codes,
    )


# -- the stored form ---------------------------------------------------------------------------------------------------

_FIELDS: tuple[tuple[str, str], ...] = (
    ("bins", "<u2"),
    ("textures", "<u2"),
    ("subs", "<u2"),
    ("weights", "i1"),
    ("bias", "<i2"),
    ("ref", "<u2"),
    ("pad", "u1"),
    ("klass", "u1"),
    ("counts", "u1"),
    ("codes", "u1"),
)


def pack(geometry: Geometry, table: Table) -> bytes:
    """The bytes of a table, as `tables.bin` holds them."""
    header = _HEADER.pack(
        _VERSION,
        table.slowest,
        table.refs,
        len(table.bins) + 1,
        len(table.textures) + 1,
        table.classes,
        len(table.subs) + 1,
        table.centre,
        geometry.channels,
        geometry.levels,
    )
    # Column by column, so that like stands beside like for zstandard.
    body = b"".join(np.asarray(getattr(table, name), dtype).T.tobytes() for name, dtype in _FIELDS)
    return header + zstandard.ZstdCompressor(level=19).compress(body)


def unpack(geometry: Geometry, stored: bytes | memoryview) -> Table:
    """The table in `stored`.

    Raises:
        BundleError: it is damaged, of another version, or made for another tensor.
    """
    if len(stored) < _HEADER.size:
        raise BundleError(
            f"a coder table has at least {_HEADER.size} bytes, this one {len(stored)}; rebuild the bundle"
        )
    header = _HEADER.unpack(stored[: _HEADER.size])
    version, slowest, refs, bins, textures, classes, subs, centre, channels, levels = header
    if version != _VERSION:
        raise BundleError(f"coder table of version {version}, this release reads {_VERSION}; rebuild the bundle")
    # Rows and columns may differ: a table serves every size of an open axis.
    if (channels, levels) != (geometry.channels, geometry.levels):
        raise BundleError(
            f"the coder table was made for {channels} channels of symbols below {levels}, the tensor has "
            f"{geometry.channels} below {geometry.levels}; rebuild the bundle"
        )
    if not (
        min(bins, textures, classes, subs) >= 1
        and textures <= TEXTURES
        and refs <= _MAX_REFS
        and slowest in (0, 4, 5, 6, 7)
    ):
        raise BundleError("the coder table's header is damaged; rebuild the bundle")
    contexts = classes * textures * bins + second_contexts(geometry, subs)
    weights = (channels, CAUSAL + 2 * refs)
    per_channel: list[tuple[int, ...]] = [weights, (channels,), (channels, refs), (channels,), (channels,)]
    sizes = [(bins - 1,), (textures - 1,), (subs - 1,), *per_channel, (contexts,), (contexts, DIGIT)]
    fields = _read_fields(stored[_HEADER.size :], sizes)
    table = Table(centre=centre, slowest=slowest, classes=classes, **fields)
    _check(geometry, table)
    return table


def _read_fields(body: bytes | memoryview, sizes: Sequence[tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    expected = sum(math.prod(size) * np.dtype(dtype).itemsize for size, (_, dtype) in zip(sizes, _FIELDS, strict=True))
    if expected > _MAX_TABLE_BYTES:
        raise BundleError(f"a coder table of {expected} bytes is over the limit of {_MAX_TABLE_BYTES}")
    try:
        with zstandard.ZstdDecompressor().stream_reader(body) as reader:
            flat = reader.read(expected + 1)
    except zstandard.ZstdError:
        flat = b""
    if len(flat) != expected:
        raise BundleError("the coder table is damaged; rebuild the bundle")
    fields, at = {}, 0
    for size, (name, dtype) in zip(sizes, _FIELDS, strict=True):
        count = math.prod(size)
        array = np.frombuffer(flat, dtype, count, at).reshape(size[::-1]).T
        fields[name] = np.ascontiguousarray(array, np.dtype(dtype).newbyteorder("="))
        at += array.nbytes
    return fields


def _check(geometry: Geometry, table: Table) -> None:
    """The kernel trusts a model: nothing in it may lead outside an array."""
    channel = np.arange(geometry.channels)
    ascending: Callable[[NDArray[np.uint16]], bool] = lambda a: bool(np.all(np.diff(a.astype(np.int64)) >= 0))  # noqa: E731
    sound = (
        ascending(table.bins)
        and ascending(table.textures)
        and ascending(table.subs)
        and len(table.counts) <= _MAX_CONTEXTS
        and bool(np.all(table.klass < table.classes))
        and bool(np.all(table.pad < (1 << geometry.value_bits)))
        # No channel looks at one that is coded in step with it. The first looks at nothing.
        and bool(np.all((table.ref < (channel - channel % LANES)[:, None]) | (table.ref == 0)))
        and bool(np.all(table.weights[:LANES, CAUSAL:] == 0))
        and table.centre < geometry.levels
    )
    if not sound:
        raise BundleError("the coder table is damaged; rebuild the bundle")
