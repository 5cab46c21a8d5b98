"""Steps by what they do to the model's output: bits go to the channels that the tail listens to.

`measure` quantises one channel at a time, at a few steps, and looks at the tail's outputs: what a step does to the
output is not its squared error (a coarse step silences a channel everywhere at once, and a pooling tail hears that much
better than noise). `allocate` then gives each channel the step that minimises

    harm(step) + λ · bits(step)

with one λ for all channels (Shoham and Gersho, 1988), found for each quality by bisection on the mean rate. For fine
steps this is the rule of equal slopes; for coarse ones channels fall silent, as in reverse water-filling (Cover and
Thomas, section 10.3.3). Bits are the entropy of a symbol given its left neighbour, about what the context coder needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import UsageError
from .quantise import QuantiserTable

Array = NDArray[Any]
Floats = NDArray[np.float64]
Tail = Callable[[Array], Array]
"""float32 [N, C, ...] features -> [N, ...] outputs."""

_COARSEST, _OCTAVES, _STEPS_PER_OCTAVE = 2.5, 8, 3
"""Candidate steps: from one that silences a channel (2.5 times its range) to one of a hundredth of its range."""
_MAX_VALUES = 50_000
"""Per channel, for entropies."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """What to aim for."""

    bits_per_symbol: tuple[float, ...] = (0.15, 0.25, 0.4, 0.6, 0.9, 1.3, 2.0, 3.0)
    """Mean entropy at each quality, smallest first, neighbours not yet taken into account."""
    max_levels: int = 256
    """Largest alphabet. Up to 16 the coder is fastest."""
    tail_share: float = 5e-4
    """Share of a channel's values beyond its range at either end: they saturate."""

    def __post_init__(self) -> None:
        rates = self.bits_per_symbol
        if not rates or sorted(rates) != list(rates) or rates[0] <= 0:
            raise UsageError(f"rates must be positive and rise, not {rates}")
        if not 2 <= self.max_levels <= 1 << 16:
            raise UsageError(f"an alphabet has 2 to 65536 levels, not {self.max_levels}")


@dataclass(frozen=True, slots=True)
class Curve:
    """What each candidate step of one channel costs, coarsest first."""

    steps: Floats
    bits: Floats
    """Per symbol."""
    harm: Floats
    """Mean squared change of the outputs, in units of their variance over the frames."""
    low: float
    high: float


def measure(features: Array, probes: Array, tail: Tail, axis: int = 1, aim: Allocation | None = None) -> list[Curve]:
    """Each channel's bits and harm at every candidate step.

    Args:
        features: float [N, ...] calibration features, for ranges and entropies.
        probes: float [M, ...], some tens of them: the tail sees them eight times per channel.
        tail: features to outputs.
        axis: of the channels, the batch axis counted.
        aim: how much may saturate, and the largest alphabet.
    """
    aim = aim or Allocation()
    reference = _rows(tail(probes))
    scale = float(reference.var(axis=0).mean()) or 1.0
    by_channel, moved = np.moveaxis(features, axis, 0), np.moveaxis(probes, axis, 1)

    def harm(c: int, step: float, low: float, high: float) -> float:
        noisy = moved.copy()
        noisy[:, c] = _symbols(moved[:, c], step, low, high) * step
        change = _rows(tail(np.ascontiguousarray(np.moveaxis(noisy, 1, axis)))) - reference
        return float((change**2).mean()) / scale

    return [_curve(channel, lambda *at, c=c: harm(c, *at), aim) for c, channel in enumerate(by_channel)]


def allocate(curves: Sequence[Curve], axis: int = 1, aim: Allocation | None = None) -> QuantiserTable:
    """Steps per quality and channel.

    Args:
        curves: one per channel, from `measure`.
        axis: of the channels, the batch axis counted.
        aim: the ladder of rates.

    Returns:
        `steps` and `zeros` float32 [Q, C] and `levels` per quality, as the quantiser's graphs take them.
    """
    aim = aim or Allocation()
    chosen = [_at_rate(curves, rate) for rate in aim.bits_per_symbol]
    steps = np.array([[curve.steps[i] for curve, i in zip(curves, row, strict=True)] for row in chosen])
    low, high = (np.array([getattr(curve, end) for curve in curves]) for end in ("low", "high"))
    below, above = np.floor(low / steps + 0.5), np.floor(high / steps + 0.5)
    levels = np.maximum.accumulate(np.maximum((above - below).max(axis=1) + 1, 2)).astype(int)
    return QuantiserTable(tuple(levels.tolist()), axis, steps.astype(np.float32), (0.0 - below).astype(np.float32))


def _curve(channel: Array, harm: Callable[[float, float, float], float], aim: Allocation) -> Curve:
    low, high = _range(channel, aim.tail_share)
    width = high - low
    if width <= 0:
        return Curve(np.ones(1), np.zeros(1), np.zeros(1), 0.0, 0.0)
    octaves = np.arange(_OCTAVES * _STEPS_PER_OCTAVE) / _STEPS_PER_OCTAVE
    steps = _COARSEST * width / np.exp2(octaves)
    allowed = width / steps <= aim.max_levels - 2
    measured = [max(harm(step, low, high), 1e-12) for step in steps[::_STEPS_PER_OCTAVE]]
    # Harm is about a power of the step: straight between measured steps on a log-log plot. Never less when coarser.
    falling = np.maximum.accumulate(np.array(measured)[::-1])[::-1]
    between = np.exp(np.interp(octaves, octaves[::_STEPS_PER_OCTAVE], np.log(falling)))
    rows = channel.reshape(-1, channel.shape[-1])
    rows = rows[:: max(1, rows.size // _MAX_VALUES)]
    bits = np.array([_conditional_entropy(_symbols(rows, step, low, high)) for step in steps])
    return Curve(steps[allowed], bits[allowed], between[allowed], low, high)


def _conditional_entropy(symbols: Array) -> float:
    """Bits per symbol of rows [..., columns], given the left neighbour."""
    if symbols.shape[-1] < 2:
        return _entropy(symbols.reshape(-1))
    left, right = symbols[:, :-1].reshape(-1), symbols[:, 1:].reshape(-1)
    return _entropy(left.astype(np.int64) * 65_536 + right.astype(np.int64)) - _entropy(left)


def _entropy(values: Array) -> float:
    shares = np.unique(values, return_counts=True)[1] / values.size
    return float(-(shares * np.log2(shares)).sum())


def _at_rate(curves: Sequence[Curve], rate: float) -> list[int]:
    """Of each curve the step that is best at the multiplier whose mean rate is `rate`."""
    little, much = -80.0, 80.0
    best: list[int] = []
    for _ in range(60):
        middle = (little + much) / 2
        weight = 2.0**middle
        best = [int(np.argmin(curve.harm + weight * curve.bits)) for curve in curves]
        if float(np.mean([curve.bits[i] for curve, i in zip(curves, best, strict=True)])) > rate:
            little = middle
        else:
            much = middle
    return best


def _range(values: Array, share: float) -> tuple[float, float]:
    """Where all but the saturating values lie; zero is inside."""
    low, high = np.quantile(values, [share, 1 - share])
    return min(float(low), 0.0), max(float(high), 0.0)


def _symbols(values: Array, step: float, low: float, high: float) -> Array:
    return np.floor(np.clip(values, low, high) / step + 0.5)


def _rows(outputs: Array) -> Floats:
    return np.asarray(outputs, np.float64).reshape(len(outputs), -1)
