"""Coder tables: what the context coder is told of a cut's symbols, learnt from the calibration frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.bundle import BundleWriter
from ..runtime.codec import TRAINED_CODER, BoundCoder, SymbolSpec, by_label, labels, train_table
from ..runtime.manifest import CrossingTensor, Half, TableRef
from .blas import ONE_THREAD
from .calibrate import Progress
from .data import Frame, spread
from .plan import Plan
from .prove import AnyRunner

TABLES = "tables.bin"
_SYMBOLS = 1 << 23
"""Of one tensor at one quality that a table is learnt from: some tens of frames of a usual cut, memory for any."""
_MIN_FRAMES = 8


def write_tables(
    plan: Plan,
    head: AnyRunner,
    crossing: Sequence[CrossingTensor],
    quality_input: str | None,
    writer: BundleWriter,
    tell: Progress,
) -> tuple[CrossingTensor, ...]:
    """Write a table for every quantised tensor of closed shape at every quality; the tensors with their references.

    Args:
        plan: the cut and its calibration frames.
        head: the head as it will be deployed.
        crossing: the tensors of the cut.
        quality_input: name of the head's quality input; None where the model alone quantises.
        writer: of the bundle.
        tell: told of every quality.
    """
    chosen = [t for t in crossing if t.quantised and None not in t.symbols.shape and 0 not in t.symbols.shape]
    if not chosen or not plan.calibrated:
        return tuple(crossing)
    refs: dict[str, list[TableRef]] = {tensor.name: [] for tensor in chosen}
    largest = max(plan.graph.elements(tensor.name) for tensor in chosen)
    frames = spread(plan.frames, max(_MIN_FRAMES, _SYMBOLS // largest))
    count = len(chosen[0].levels)
    with writer.add(TABLES, Half.DEVICE, Half.SERVER).open("wb") as stream:
        for quality in range(count):
            made = list(_symbols(plan, head, frames, {} if quality_input is None else {quality_input: quality}))
            for tensor in chosen:
                samples = [symbols[tensor.symbols.name] for symbols in made]
                spec = SymbolSpec(samples[0].shape, samples[0].dtype, tensor.levels[quality], tensor.channel_axis)
                with ONE_THREAD:
                    table = train_table(spec, samples)
                refs[tensor.name].append(TableRef(TRAINED_CODER, stream.tell(), len(table)))
                stream.write(table)
            tell("learning the coder's tables", quality + 1, count)
    return tuple(replace(t, tables=tuple(refs[t.name])) if t.name in refs else t for t in crossing)


def _symbols(
    plan: Plan, head: AnyRunner, frames: Sequence[Frame], quality: Mapping[str, int]
) -> Iterator[dict[str, NDArray[Any]]]:
    """What the head makes of each frame, without batch axes."""
    for feed, count in plan.feeder.groups(frames, plan.group):
        made = head({**feed, **{name: np.full(count, value, np.int32) for name, value in quality.items()}})
        if not plan.graph.batched:
            yield made
            continue
        for i in range(count):
            yield {name: array[i] for name, array in made.items()}


def payload_counter(
    crossing: Sequence[CrossingTensor], writer: BundleWriter, *, batched: bool
) -> Callable[[Mapping[str, NDArray[Any]], int], int]:
    """Counts the bytes that the frames in a head's outputs take at a quality, through the best coder and its tables.

    Args:
        crossing: the tensors of the cut, with their tables.
        writer: of the bundle that holds the tables.
        batched: the outputs have a batch axis.
    """
    label = labels()[0]
    blob = (writer.root / TABLES).read_bytes() if any(tensor.tables for tensor in crossing) else b""

    @cache
    def bound(index: int, quality: int, shape: tuple[int, ...], dtype: str) -> BoundCoder:
        tensor = crossing[index]
        ref = tensor.tables[quality] if tensor.tables else None
        table = blob[ref.offset : ref.offset + ref.size] if ref is not None and ref.coder == label else None
        levels = tensor.levels[quality] if tensor.levels else None
        return by_label(label).bind(SymbolSpec(shape, np.dtype(dtype), levels, tensor.channel_axis), table)

    def count(made: Mapping[str, NDArray[Any]], quality: int) -> int:
        total = 0
        for i, tensor in enumerate(crossing):
            array = made[tensor.symbols.name]
            for symbols in array if batched else [array]:
                total += len(bound(i, quality, symbols.shape, symbols.dtype.name).encode(symbols))
        return total

    return count
