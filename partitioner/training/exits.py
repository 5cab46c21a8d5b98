"""How sure an early exit may be of itself: a temperature fitted to held-out pictures, and what each threshold does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...runtime.manifest import ExitPoint, ExitQuality

Floats = NDArray[np.float64]
Classes = NDArray[np.int64]

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_TEMPERATURES = np.geomspace(0.25, 8.0, 101)


def calibrated(logits: Floats, teacher: Classes, labels: Classes) -> ExitQuality:
    """Fit the temperature on every other picture, and measure the exit on the rest.

    Args:
        logits: the exit's, `[N, classes]`.
        teacher: the whole model's best classes, `[N]`.
        labels: the right ones, `[N]`.
    """
    temperature = fit_temperature(logits[::2], labels[::2])
    sure = softmax(logits[1::2] / temperature)
    best, confidence = sure.argmax(1), sure.max(1)
    agrees, right = best == teacher[1::2], best == labels[1::2]
    return ExitQuality(
        agreement=float(agrees.mean()),
        temperature=temperature,
        accuracy=float(right.mean()),
        points=tuple(_point(threshold, confidence >= threshold, agrees, right) for threshold in THRESHOLDS),
    )


def fit_temperature(logits: Floats, labels: Classes) -> float:
    """The temperature of least cross-entropy (Guo et al., "On calibration of modern neural networks", ICML 2017)."""
    rows = np.arange(len(labels))
    losses = [-np.log(softmax(logits / t)[rows, labels] + 1e-12).mean() for t in _TEMPERATURES]
    return float(_TEMPERATURES[int(np.argmin(losses))])


def calibration_error(confidence: Floats, right: NDArray[np.bool_], bins: int = 15) -> float:
    """Expected calibration error: mean |confidence - share right| over equal bins of confidence, weighed by frames."""
    index = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    each = [
        np.count_nonzero(index == b) * abs(_mean(confidence, index == b) - _mean(right, index == b))
        for b in range(bins)
    ]
    return float(sum(each) / max(1, len(confidence)))


def softmax(logits: Floats) -> Floats:
    """Probabilities along the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Floats = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def _point(
    threshold: float, taken: NDArray[np.bool_], agrees: NDArray[np.bool_], right: NDArray[np.bool_]
) -> ExitPoint:
    some = bool(taken.any())
    return ExitPoint(
        threshold=threshold,
        coverage=float(taken.mean()),
        agreement=float(agrees[taken].mean()) if some else 1.0,
        accuracy=float(right[taken].mean()) if some else None,
    )


def _mean(values: Sequence[float] | NDArray[np.float64] | NDArray[np.bool_], rows: NDArray[np.bool_]) -> float:
    chosen = np.asarray(values)[rows]
    return float(chosen.mean()) if len(chosen) else 0.0
