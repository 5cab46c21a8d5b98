"""Symbols, specs and tables for the codec's tests, all out of integers so that every machine has the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from narrows.runtime.codec import SymbolSpec
from narrows.runtime.codec.model import CAUSAL, LANES, Geometry, Table, default_table


def spec_of(symbols, levels, channel_axis=None):
    return SymbolSpec(symbols.shape, symbols.dtype, levels, channel_axis)


def smooth_symbols(shape, levels, seed=1):
    """Symbols that are like their neighbours: sums of a small generator's numbers, no float anywhere."""
    count = int(np.prod(shape, dtype=np.int64))
    state, values = seed, np.zeros(count, np.int64)
    for i in range(count):
        state = (state * 1_103_515_245 + 12_345) % (1 << 31)
        values[i] = (state >> 16) % 1000
    rough = values + np.roll(values, 1) + np.roll(values, shape[-1] if shape else 1)
    dtype = np.uint8 if levels <= 256 else np.uint16
    return (np.maximum(rough - 1200, 0) * levels // 1800).clip(0, levels - 1).reshape(shape).astype(dtype)


def crooked_table(spec):
    """A table that uses everything a table can: classes, references, odd weights, centres, slow contexts."""
    geometry = Geometry.of(spec)
    plain: Table = default_table(geometry)
    n, channel = geometry.channels, np.arange(geometry.channels)
    weights = np.zeros((n, CAUSAL + 4), np.int8)
    weights[:, :CAUSAL] = (np.arange(n * CAUSAL).reshape(n, CAUSAL) * 7) % 61 - 20
    weights[LANES:, CAUSAL:] = (np.arange(n * 4).reshape(n, 4)[LANES:] * 5) % 37 - 12
    earlier = np.maximum(channel - channel % LANES - 1, 0)
    first = plain.first_contexts
    codes = np.concatenate([plain.codes[:first], plain.codes[:first][::-1], plain.codes[first:]])
    return replace(
        plain,
        centre=spec.levels // 3 if geometry.wide else 0,
        classes=2,
        weights=weights,
        bias=((channel * 37) % 101 - 40).astype(np.int16),
        ref=np.stack([earlier, earlier // 2], axis=1).astype(np.uint16),
        pad=(channel % min(2, spec.levels)).astype(np.uint8),
        klass=(channel % 2).astype(np.uint8),
        counts=(np.arange(len(codes)) % 256).astype(np.uint8),
        codes=codes,
    )
