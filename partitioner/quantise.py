"""The lossy part: static per-channel steps, calibrated on data, and the plain ONNX ops that apply them.

Quality `q` and channel `c` have a step `s[q, c]` and a zero point `z[q, c]`. The head makes

    symbol = min(max(floor(x / s + z + 0.5), 0), levels[q] - 1)

and the tail takes `x' = (symbol - z) · s`. Zero is always a symbol's exact value, so what a ReLU made zero stays zero.
Where there are many levels the whole observed range is used; where there are few, the range is clipped to where the
squared error over the calibration data is least (as in ACIQ, Banner et al., NeurIPS 2019, but on histograms instead of
a fitted distribution). `Floor`, not `Round`, because every opset and every execution provider has it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..runtime.errors import UsageError
from .shapes import TensorInfo

Array = NDArray[Any]
Floats = NDArray[np.float64]

_BINS = 512
_CLIPPED_BELOW = 128
"""With fewer levels than this the range is clipped; with more, an outlier costs less than clipping it."""
_FRACTIONS = np.linspace(1.0, 0.08, 40)
"""Of the observed range, tried as the clipping range."""
_MIN_SAMPLES = 256
"""Per channel; with fewer, one step serves the whole tensor."""
_MAX_CHANNELS = 4096
_DEAD_SHARE = 0.05
"""Of the tensor's largest value: the range of a channel that was always zero."""


@dataclass(frozen=True)
class Quantiser:
    """What the ladder of qualities looks like."""

    levels: tuple[int, ...] = (4, 6, 8, 12, 16, 32, 64, 256)
    """Size of the alphabet at each quality, smallest first: here about 2 to 8 bits."""
    per_channel: bool = True
    """Steps along the channel axis; one step for the tensor otherwise."""
    channel_axis: int | None = None
    """Axis of the tensor, its batch axis counted; found from the graph when None."""

    def __post_init__(self) -> None:
        if not self.levels or sorted(self.levels) != list(self.levels) or not 2 <= self.levels[0] <= self.levels[-1]:
            raise UsageError(f"levels must rise and begin at 2 or more, not {self.levels}")
        if self.levels[-1] > 1 << 16:
            raise UsageError(f"more than 65536 levels do not fit into uint16, and {self.levels[-1]} were asked for")


@dataclass(frozen=True)
class QuantiserTable:
    """Steps and zero points of one tensor."""

    levels: tuple[int, ...]
    axis: int | None
    """Channel axis of the tensor, its batch axis counted; None for one step per tensor."""
    steps: NDArray[np.float32]
    """`[qualities, channels]`, above 0."""
    zeros: NDArray[np.float32]
    """`[qualities, channels]`, whole numbers."""


class RangeStatistics:
    """Smallest and largest value of each channel, over frames that pass by one after the other."""

    def __init__(self, axis: int | None) -> None:
        self.axis = axis
        self.low: Floats | None = None
        self.high: Floats | None = None

    def add(self, features: Array) -> None:
        """Take in features of any shape; what is not finite is left out."""
        rows = channel_rows(features, self.axis)
        finite = np.isfinite(rows)
        low = np.min(rows, axis=1, initial=np.inf, where=finite)
        high = np.max(rows, axis=1, initial=-np.inf, where=finite)
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)

    def bounds(self, useful: tuple[float, float] = (-math.inf, math.inf)) -> tuple[Floats, Floats]:
        """Per channel: a range that holds zero, is not empty, and leaves out what is outside `useful`."""
        if self.low is None or self.high is None:
            raise UsageError("no calibration data: nothing was seen of this tensor")
        low = np.minimum(np.maximum(self.low, useful[0]), 0.0)
        high = np.maximum(np.minimum(self.high, useful[1]), 0.0)
        widest = float(np.max(high - low, initial=0.0)) or 1.0
        return low, np.where(high - low > 0, high, _DEAD_SHARE * widest)


class Histograms:
    """How often each channel's values fall into each of equal bins of its range."""

    def __init__(self, axis: int | None, low: Floats, high: Floats) -> None:
        self.axis = axis
        self.low, self.high = low, high
        self.counts: Floats = np.zeros((len(low), _BINS))

    def add(self, features: Array) -> None:
        """Take in features of any shape; what is not finite is left out."""
        rows = channel_rows(features, self.axis)
        with np.errstate(invalid="ignore", over="ignore"):
            bins = (rows - self.low[:, None]) * (_BINS / (self.high - self.low))[:, None]
        finite = np.isfinite(bins)
        index = np.clip(np.where(finite, bins, 0), 0, _BINS - 1).astype(np.int64)
        index += np.arange(len(rows))[:, None] * _BINS
        self.counts += np.bincount(index[finite], minlength=self.counts.size).reshape(self.counts.shape)

    @property
    def centres(self) -> Floats:
        """`[channels, bins]`: the middle of each bin."""
        ramp = (np.arange(_BINS) + 0.5) / _BINS
        centres: Floats = self.low[:, None] + ramp * (self.high - self.low)[:, None]
        return centres


def channel_rows(features: Array, axis: int | None) -> Floats:
    """Features as `float64 [channels, values]`."""
    if axis is None:
        return features.astype(np.float64).reshape(1, -1)
    moved = np.moveaxis(features, axis, 0)
    return moved.astype(np.float64).reshape(moved.shape[0], -1)


def solve(histograms: Histograms, config: Quantiser) -> QuantiserTable:
    """The table that fits the data."""
    rows = [_solve_level(histograms, levels) for levels in config.levels]
    steps = np.stack([step for step, _ in rows]).astype(np.float32)
    zeros = np.stack([zero for _, zero in rows]).astype(np.float32)
    return QuantiserTable(config.levels, histograms.axis, steps, zeros)


def _solve_level(histograms: Histograms, levels: int) -> tuple[Floats, Floats]:
    if levels >= _CLIPPED_BELOW:
        return _grid(histograms.low, histograms.high, levels)
    centres, counts = histograms.centres, histograms.counts
    best = np.full(len(counts), np.inf)
    steps, zeros = _grid(histograms.low, histograms.high, levels)
    for fraction in _FRACTIONS:
        step, zero = _grid(histograms.low * fraction, histograms.high * fraction, levels)
        symbols = np.clip(np.floor(centres / step[:, None] + zero[:, None] + 0.5), 0, levels - 1)
        errors = np.sum(counts * ((symbols - zero[:, None]) * step[:, None] - centres) ** 2, axis=1)
        better = errors < best
        best = np.where(better, errors, best)
        steps, zeros = np.where(better, step, steps), np.where(better, zero, zeros)
    return steps, zeros


def _grid(low: Floats, high: Floats, levels: int) -> tuple[Floats, Floats]:
    """Steps and zero points of a range: zero falls on a symbol."""
    floor = float(np.finfo(np.float32).tiny) * levels
    step = np.maximum(high - low, floor) / (levels - 1)
    return step, np.clip(np.round(-low / step), 0, levels - 1)


def choose_axis(info: TensorInfo, axis: int | None, frames: int) -> int | None:
    """The axis to have steps along: the one proposed, unless too little was seen of each of its channels."""
    dims = info.dims or ()
    if axis is None or not -len(dims) <= axis < len(dims) or len(dims) < 3:
        return None
    axis %= len(dims)
    channels = dims[axis].size
    samples = frames * math.prod(dim.size for dim in dims) // max(1, channels)
    fits = dims[axis].fixed and 1 < channels <= _MAX_CHANNELS and samples >= _MIN_SAMPLES
    return axis if fits and not (axis == 0 and info.batched) else None


def quantiser_nodes(
    graph: onnx.GraphProto, source: str, target: str, *, info: TensorInfo, table: QuantiserTable, quality: str
) -> None:
    """Append the nodes that turn `source` into symbols `target`."""
    build = _Builder(graph, target, info, table, quality)
    signed = bool(np.any(table.zeros))
    offset = table.zeros + np.float32(0.5)
    tops = np.array(table.levels, np.float32)[:, None] - 1
    x = build.cast(source, TensorProto.FLOAT) if info.dtype != TensorProto.FLOAT else source
    x = build.op("Mul", x, build.per_channel("inverse_steps", 1 / table.steps))
    x = build.op("Add", x, build.per_channel("offsets", offset) if signed else build.scalar("half", 0.5))
    x = build.op("Floor", x)
    x = build.op("Max", x, build.scalar("zero", 0.0))
    x = build.op("Min", x, build.per_channel("tops", tops))
    build.cast(x, TensorProto.UINT8 if max(table.levels) <= 256 else TensorProto.UINT16, target)


def dequantiser_nodes(
    graph: onnx.GraphProto, source: str, target: str, *, info: TensorInfo, table: QuantiserTable, quality: str
) -> None:
    """Append the nodes that turn symbols `source` into features `target`."""
    build = _Builder(graph, source, info, table, quality)
    x = build.cast(source, TensorProto.FLOAT)
    if np.any(table.zeros):
        x = build.op("Sub", x, build.per_channel("zeros", table.zeros))
    steps = build.per_channel("steps", table.steps)
    if info.dtype == TensorProto.FLOAT:
        build.op("Mul", x, steps, target=target)
    else:
        build.cast(build.op("Mul", x, steps), info.dtype, target)


class _Builder:
    """Appends nodes whose names begin alike."""

    def __init__(
        self, graph: onnx.GraphProto, prefix: str, info: TensorInfo, table: QuantiserTable, quality: str
    ) -> None:
        self.graph = graph
        self.prefix = f"narrows/{prefix}"
        self.info = info
        self.table = table
        self.quality = quality

    def op(self, kind: str, *inputs: str, target: str | None = None, **attributes: Any) -> str:
        name = target or f"{self.prefix}/{kind.lower()}{len(self.graph.node)}"
        self.graph.node.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def cast(self, source: str, dtype: int, target: str | None = None) -> str:
        return self.op("Cast", source, target=target, to=dtype)

    def constant(self, name: str, array: Array) -> str:
        name = f"{self.prefix}/{name}"
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def scalar(self, name: str, value: float) -> str:
        return self.constant(name, np.array(value, np.float32))

    def per_channel(self, name: str, rows: Array) -> str:
        """Rows `[qualities, channels or 1]` of each frame's quality, shaped to be combined with the tensor."""
        rank = len(self.info.dims or ())
        shape = [1] * rank
        if self.info.batched:
            shape[0] = -1
        if self.table.axis is not None and rows.shape[1] > 1:
            shape[self.table.axis] = rows.shape[1]
        gathered = self.op("Gather", self.constant(name, rows.astype(np.float32)), self.quality, axis=0)
        return self.op("Reshape", gathered, self.constant(f"{name}_shape", np.array(shape, np.int64)))
