"""The proof that a cut is right, and the measurement of what its quantiser costs.

Without the quantiser, tail(head(x)) has to be bit for bit model(x): same execution provider, and the same level of
graph optimisation, `PROOF_LEVEL`. That is the lowest, at which every node runs as it is written; with optimisation,
nodes are fused across the cut in the whole model and cannot be in its halves, and the sums come in another order.
With the quantiser, everything is measured as it is deployed: fully optimised.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import ModelError, ProofError
from ..runtime.manifest import Quality
from .data import Frame
from .runner import Remembered, Runner

logger = logging.getLogger(__name__)

Array = NDArray[Any]
Kind = Literal["logits", "probabilities", "scores", "tensor"]

PROOF_LEVEL = "disabled"
_PROOF_FRAMES = 3
_BATCH_TOLERANCE = 1e-3
"""Of an output's largest value: kernels may sum in another order for another batch."""
_HALF_TOLERANCE = 1e-2
"""Of an output's largest value, where float16 is rounded in other places."""
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Feeder:
    """Turns frames into what a session takes."""

    names: tuple[str, ...]
    batched: bool

    def one(self, frame: Frame) -> dict[str, Array]:
        """A single frame."""
        return {n: a[None] if self.batched else a for n, a in zip(self.names, frame, strict=True)}

    def groups(self, frames: Sequence[Frame], size: int) -> Iterator[tuple[dict[str, Array], int]]:
        """Frames in groups of equal shapes, with the number of frames in each."""
        start = 0
        while start < len(frames):
            stop = start + 1
            shapes = [array.shape for array in frames[start]]
            while self.batched and stop < min(len(frames), start + size):
                if [array.shape for array in frames[stop]] != shapes:
                    break
                stop += 1
            group = frames[start:stop]
            if self.batched:
                yield {n: np.stack([f[i] for f in group]) for i, n in enumerate(self.names)}, len(group)
            else:
                yield self.one(group[0]), 1
            start = stop


AnyRunner = Runner | Remembered


def check_batch(whole: AnyRunner, feeder: Feeder, frames: Sequence[Frame]) -> bool:
    """Whether a batch of two gives what two single runs give."""
    pair = [frames[0], next((f for f in frames[1:] if _same_shapes(f, frames[0])), frames[0])]
    try:
        (feed, _), *_ = feeder.groups(pair, 2)
        together = whole(feed)
        alone = [whole(feeder.one(frame)) for frame in pair]
    except ModelError as error:
        logger.info("no batch of any length: %s", error)
        return False
    return all(
        array.ndim > 0
        and len(array) == 2
        and array.shape[1:] == alone[i][name].shape[1:]
        and _close(array[i], alone[i][name][0])
        for name, array in together.items()
        for i in range(2)
    )


def _same_shapes(a: Frame, b: Frame) -> bool:
    return [x.shape for x in a] == [y.shape for y in b]


def _close(a: Array, b: Array, tolerance: float = _BATCH_TOLERANCE) -> bool:
    if a.dtype.kind not in "fiub":
        return bool(np.array_equal(a, b))
    x, y = a.astype(np.float64), b.astype(np.float64)
    scale = float(np.max(np.abs(y), initial=0.0, where=np.isfinite(y)))
    return bool(np.allclose(x, y, rtol=0, atol=tolerance * scale + 1e-6, equal_nan=True))


def check_steady(whole: Runner, feeder: Feeder, frames: Sequence[Frame]) -> None:
    """Hold a model against itself.

    Raises:
        ProofError: it answers differently every time.
    """
    feed = feeder.one(frames[0])
    again = whole(feed)
    for name, array in whole(feed).items():
        if not identical(array, again[name]):
            raise ProofError(f"{name!r}: the model answers differently every time, so no cut can be proven")


def check_exact(
    whole: AnyRunner, parts: Sequence[Runner], feeder: Feeder, frames: Sequence[Frame], *, half: bool = False
) -> bool:
    """Hold the unquantised parts against the whole model, bit for bit, on single frames and on a batch.

    Args:
        whole: the model.
        parts: its graphs, in the order in which they run.
        feeder: for the model's inputs.
        frames: what to try; a few are enough.
        half: the model computes in float16. A CPU has few kernels for it: ONNX Runtime then computes in float32 and
            leaves out the rounding between nodes, but not across a cut. Then a few steps of float16 may lie between.

    Returns:
        Whether every output was the same bit for bit.

    Raises:
        ProofError: an output differs.
    """
    some = frames[:_PROOF_FRAMES]
    feeds = [feeder.one(frame) for frame in some] + [
        feed for feed, count in feeder.groups(some, len(some)) if count > 1
    ]
    exact = True
    for feed in feeds:
        expected = whole(feed)
        made = dict(feed)
        for part in parts:
            made |= part(made)
        for name, array in expected.items():
            if identical(array, made[name]):
                continue
            exact = False
            if half and array.shape == made[name].shape and _close(made[name], array, _HALF_TOLERANCE):
                continue
            raise ProofError(
                f"{name!r} of the two halves differs from the whole model's by up to "
                f"{_distance(array, made[name])[0]:.3g} (CPU, optimisation {PROOF_LEVEL}); cut elsewhere"
            )
    return exact


def identical(a: Array, b: Array) -> bool:
    """Whether two arrays are the same bit for bit; any NaN equals any other."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


def _distance(a: Array, b: Array) -> tuple[float, float, int]:
    """Largest and summed |a - b| over finite values, and how many there are."""
    if a.shape != b.shape or a.dtype.kind not in "fiub":
        return math.inf, math.inf, 1
    with np.errstate(invalid="ignore"):  # infinity from infinity; what is not finite is left out below
        difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
    difference = difference[np.isfinite(difference)]
    return float(np.max(difference, initial=0.0)), float(np.sum(difference)), max(1, difference.size)


def classify(references: Sequence[Mapping[str, Array]], name: str, batched: bool) -> Kind:
    """What an output is, judged by its values on the calibration data.

    Args:
        references: the model's outputs, group by group.
        name: the output.
        batched: whether axis 0 counts frames.

    Returns:
        `probabilities`, `logits`, `scores` or `tensor`, as in `OutputSpec.kind`.
    """
    rows = np.concatenate([_rows(group[name], batched) for group in references])
    if rows.ndim != 2 or rows.shape[1] < 2:
        return "tensor"
    if rows.dtype.kind in "iu":
        return "scores"
    if rows.dtype.kind != "f":
        return "tensor"
    values = rows.astype(np.float64)
    if values.min(initial=0.0) >= 0 and np.allclose(values.sum(axis=1), 1, atol=_SUM_TOLERANCE):
        return "probabilities"
    return "logits"


def _rows(array: Array, batched: bool) -> Array:
    """`[frames, classes]` where that is what the array is, with or without axes of one after it."""
    if not batched and not (array.ndim > 1 and array.shape[0] == 1):
        array = array[None]
    wide = [size for size in array.shape[1:] if size != 1]
    return (
        array.reshape(len(array), -1) if len(wide) == 1 and array.ndim in (2, 4) else array.reshape(len(array), -1, 1)
    )


@dataclass
class _Tally:
    """Sums of one quality while frames go by."""

    frames: int = 0
    payload_bytes: int = 0
    max_deviation: float = 0.0
    deviation: float = 0.0
    values: int = 0
    agreeing: int = 0
    encoders: dict[int, Any] = field(default_factory=dict)


def measure(
    parts: Sequence[AnyRunner],
    feeder: Feeder,
    *,
    groups: Sequence[tuple[Mapping[str, Array], int]],
    references: Sequence[Mapping[str, Array]],
    payload_bytes: Callable[[Mapping[str, Array], int], int],
    qualities: Sequence[float],
    quality_input: str | None,
    classifier: str | None,
    progress: Callable[[int, int], None],
) -> tuple[Quality, ...]:
    """What each quality costs and keeps, through the graphs that are deployed.

    Args:
        parts: the graphs of the cut, in the order in which they run.
        feeder: as the frames were grouped with.
        groups: frames, as sessions take them, and their number in each group.
        references: what the whole model answers to each group.
        payload_bytes: called with what a group's graphs made and the quality; the bytes of all its frames.
        qualities: nominal bits of each quality.
        quality_input: name of that input; None where nothing is quantised.
        classifier: the output whose best class counts; None for no classifier.
        progress: called with (groups done, groups in all).
    """
    tallies = [_Tally() for _ in qualities]
    for done, ((feed, count), expected) in enumerate(zip(groups, references, strict=True)):
        for quality, tally in enumerate(tallies):
            chosen = {} if quality_input is None else {quality_input: np.full(count, quality, np.int32)}
            made = {**feed, **chosen}
            for part in parts:
                made |= part(made)
            tally.payload_bytes += payload_bytes(made, quality)
            _compare(tally, made, expected, classifier, feeder.batched)
            tally.frames += count
        progress(done + 1, len(groups))
    return tuple(
        Quality(
            bits=bits,
            payload_bytes=tally.payload_bytes / tally.frames,
            max_deviation=tally.max_deviation,
            mean_deviation=tally.deviation / max(1, tally.values),
            agreement=tally.agreeing / tally.frames if classifier else None,
        )
        for bits, tally in zip(qualities, tallies, strict=True)
    )


def _compare(
    tally: _Tally, made: Mapping[str, Array], expected: Mapping[str, Array], classifier: str | None, batched: bool
) -> None:
    for name, array in expected.items():
        largest, total, values = _distance(array, made[name])
        tally.max_deviation = max(tally.max_deviation, largest)
        tally.deviation += total
        tally.values += values
    if classifier is not None:
        best, other = (_rows(a[classifier], batched).argmax(axis=1) for a in (expected, made))
        tally.agreeing += int(np.count_nonzero(best == other))
