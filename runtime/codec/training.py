"""Tables for the context coder, from calibration symbols. Floating point ends here: a table is integers.

Each channel's prediction is a least-squares fit of its symbols to their neighbours; which earlier channels it looks at
is chosen greedily, by how much of what is left they explain (orthogonal matching pursuit). The distributions are then
counted with the very contexts that the coder will see.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CoderError
from .base import Symbols, SymbolSpec
from .context import engine
from .model import CAUSAL, DIGIT, LANES, LUT_BITS, Geometry, Model, Table, codes_of, pack, second_contexts

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """What a table may cost and how fast it may adapt."""

    refs: int = 3
    """Earlier channels that one channel looks at."""
    bins: int = 32
    """Parts of a prediction's range."""
    classes: int | None = None
    """Sets of distributions, shared by channels that are predicted about equally well. None: up to 16 for small frames,
    whose channels differ more than their neighbourhoods do, as far as there are samples, and 4 beyond."""
    subs: int = 4
    """Contexts of a second digit per first digit."""
    slowest: int | None = None
    """Largest shift of adaptation inside a frame (4 to 7); 0 freezes the distributions. None adapts up to 4-bit
    symbols. Beyond, where a symbol has two digits and adapting both costs time, it adapts in small frames of which
    most symbols are the same, and fast."""
    max_fit_rows: int = 24_000
    """Symbols per channel that the least squares look at."""


def train_table(spec: SymbolSpec, samples: Iterable[Symbols], options: TrainingOptions | None = None) -> bytes:
    """The context coder's table for one tensor at one quality.

    Args:
        spec: the tensor; its symbols must have an alphabet.
        samples: calibration frames, each `spec.dtype` `spec.shape`. Some tens suffice.
        options: what the table may cost.

    Returns:
        What `Context.bind` takes as `table`: a few KB.

    Raises:
        CoderError: there is no sample, or `spec` has no alphabet or no element.
    """
    if spec.levels is None or not spec.elements:
        raise CoderError("a table needs a tensor of symbols: this one has no alphabet or no element")
    geometry = Geometry.of(spec)
    frames = [geometry.planes(np.asarray(s, spec.dtype)) for s in samples]
    if not frames:
        raise CoderError("a table needs at least one calibration frame")
    return pack(geometry, _Training(geometry, frames, options or TrainingOptions()).table())


_SMALL_FRAME = 8192
"""Symbols below which a frame takes a tenth of a millisecond however it is coded, and every byte counts."""
_SPARSE_BITS = 3.0
"""A symbol below which most are the same."""
_FEW, _MANY = 4, 16
"""Sets of distributions."""
_SYMBOLS_A_SET = 1 << 14
"""Seen in calibration, to tell more of them apart; with fewer, a set learns chance."""
_SLOW, _FAST = 7, 5
"""Largest shifts of adaptation."""


class _Training:
    def __init__(self, geometry: Geometry, frames: list[Symbols], options: TrainingOptions) -> None:
        self.geometry, self.frames, self.options = geometry, frames, options
        most = max(1, options.max_fit_rows // (geometry.rows * geometry.cols))
        chosen = frames[:: max(1, len(frames) // most)][:most]
        self.centre = int(np.median(np.stack(chosen))) if geometry.wide else 0
        seen = np.stack([self._seen(f) for f in chosen]).transpose(1, 0, 2, 3)
        self.seen = np.ascontiguousarray(seen, np.float32)
        """float32 [channels, frames, rows, cols]: what contexts see of the symbols."""
        self.pad = np.rint(self.seen.mean(axis=(1, 2, 3))).astype(np.uint8)

    def _seen(self, planes: Symbols) -> NDArray[Any]:
        if not self.geometry.wide:
            return planes
        modulus = 1 << self.geometry.bits
        away = (planes.astype(np.int64) - self.centre) % modulus
        folded = np.where(away >= modulus // 2, 2 * (modulus - away) - 1, 2 * away)
        return np.floor(np.log2(np.maximum(folded, 1))).astype(np.uint8)

    def table(self) -> Table:
        weights, bias, ref, predicted = self._fit()
        spread = np.abs(self.seen.reshape(len(predicted), -1) - predicted).mean(axis=1)
        classes = min(self.options.classes or self._classes(), self.geometry.channels)
        edges = np.quantile(spread, np.arange(1, classes) / classes)
        scale = (1 << LUT_BITS) / (1 << self.geometry.value_bits)
        pooled = np.clip(predicted.reshape(-1)[:: max(1, predicted.size // 500_000)] * scale, 0, (1 << LUT_BITS) - 1)
        rough = max(0, self.geometry.value_bits - 4)
        subs = self.options.subs if self.geometry.low_alphabet > 1 else 1
        empty = Table(
            centre=self.centre,
            slowest=self._slowest(),
            classes=classes,
            bins=_thresholds(pooled, self.options.bins),
            textures=np.array([1 << rough, 2 << rough, 4 << rough], np.uint16),
            subs=_thresholds(pooled, subs),
            weights=weights,
            bias=bias,
            ref=ref,
            pad=self.pad,
            klass=np.searchsorted(edges, spread, side="right").astype(np.uint8),
            counts=np.zeros(0, np.uint8),
            codes=np.zeros((0, DIGIT), np.uint8),
        )
        return self._with_distributions(empty)

    def _classes(self) -> int:
        enough = len(self.frames) * self.geometry.elements // _SYMBOLS_A_SET
        return min(_MANY, max(_FEW, enough)) if self._small else _FEW

    def _slowest(self) -> int:
        if self.options.slowest is not None:
            return self.options.slowest
        if self.geometry.low_alphabet == 1:
            return _SLOW
        return _FAST if self._small and self._bits() < _SPARSE_BITS else 0

    @property
    def _small(self) -> bool:
        return self.geometry.elements < _SMALL_FRAME and not self.geometry.wide

    def _bits(self) -> float:
        """Of a symbol on average, each by itself."""
        counts = np.bincount(self.seen.astype(np.uint8).reshape(-1))
        share = counts[counts > 0] / self.seen.size
        return float(-(share * np.log2(share)).sum())

    # -- predictions ---------------------------------------------------------------------------------------------------

    def _fit(self) -> tuple[NDArray[np.int8], NDArray[np.int16], NDArray[np.uint16], Floats]:
        """Stored weights, biases and references of every channel, and float32 [channels, symbols] predictions."""
        n, refs = self.geometry.channels, self.options.refs
        flat = self.seen.reshape(n, -1)
        around = _four_neighbours(self.seen).reshape(n, -1)
        centred = flat - flat.mean(axis=1, keepdims=True)
        energy = np.maximum((centred**2).sum(axis=1), 1e-6)
        design = np.empty((n, flat.shape[1], 1 + CAUSAL + 2 * refs), np.float32)
        design[:, :, : 1 + CAUSAL] = self._causal()
        terms = np.full(n, 1 + CAUSAL)
        ref = np.zeros((n, refs), np.uint16)
        solved = _least_squares(design[:, :, : 1 + CAUSAL], flat)
        for r in range(refs):
            left_over = flat - np.stack([design[c, :, :k] @ solved[c, :k] for c, k in enumerate(terms)])
            explained = (left_over @ centred.T) ** 2 / energy
            for c in range(n):
                earlier = c - c % LANES
                explained[c, ref[c, :r]] = -1
                if earlier <= r:
                    continue
                best = int(explained[c, :earlier].argmax())
                ref[c, r] = best
                design[c, :, terms[c]], design[c, :, terms[c] + 1] = flat[best], around[best]
                terms[c] += 2
            grown = terms == 1 + CAUSAL + 2 * (r + 1)
            if grown.any():
                width = 1 + CAUSAL + 2 * (r + 1)
                solved = np.pad(solved, ((0, 0), (0, 2)))
                solved[grown] = _least_squares(design[:, :, :width], flat, grown)
        weights = np.zeros((n, CAUSAL + 2 * refs), np.int8)
        unit = np.array([64] * CAUSAL + [64, 256] * refs, np.float64)
        bias = np.zeros(n, np.int16)
        predicted = np.empty_like(flat)
        for c, k in enumerate(terms):
            stored = np.clip(np.rint(solved[c, 1:k] * unit[: k - 1]), -127, 127)
            weights[c, : k - 1] = stored
            rest = design[c, :, 1:k] @ (stored / unit[: k - 1]).astype(np.float32)
            bias[c] = int(np.clip(np.rint((flat[c] - rest).mean() * 64), -(1 << 15), (1 << 15) - 1))
            predicted[c] = rest + bias[c] / 64
        return weights, bias, ref, predicted

    def _causal(self) -> Floats:
        """float32 [channels, symbols, 6]: 1, left, up, up-left, up-right and the mean so far, borders as the coder has
        them."""
        x = self.seen
        pad = self.pad[:, None, None].astype(np.float32)
        left = np.empty_like(x)
        left[..., 1:] = x[..., :-1]
        left[..., 1:, 0] = x[..., :-1, 0]
        left[..., 0, 0] = pad[..., 0]
        up = left.copy()
        up[..., 1:, :] = x[..., :-1, :]
        up_left, up_right = left.copy(), left.copy()
        up_left[..., 1:, 1:], up_left[..., 1:, 0] = x[..., :-1, :-1], x[..., :-1, 0]
        up_right[..., 1:, :-1], up_right[..., 1:, -1] = x[..., :-1, 1:], x[..., :-1, -1]
        mean = np.empty_like(x)
        mean[..., 0, :] = pad
        rows, cols = x.shape[-2:]
        seen = np.cumsum(x.sum(axis=-1), axis=-1)[..., :-1] / (np.arange(1, rows) * cols)
        mean[..., 1:, :] = seen[..., None]
        parts = (np.ones_like(x), left, up, up_left, up_right, mean)
        return np.stack([part.reshape(len(x), -1) for part in parts], axis=-1)

    # -- distributions -------------------------------------------------------------------------------------------------

    def _with_distributions(self, empty: Table) -> Table:
        g, first = self.geometry, empty.first_contexts
        contexts = first + second_contexts(g, len(empty.subs) + 1)
        blank = replace(
            empty, counts=np.zeros(contexts, np.uint8), codes=np.zeros((contexts, DIGIT), np.uint8), slowest=0
        )
        model = Model(g, blank)
        counts = np.zeros((contexts, DIGIT), np.uint32)
        for frame in self.frames:
            engine().tally(model.numbers, model.arrays, frame, 1, counts)
        codes = np.zeros((contexts, DIGIT), np.uint8)
        shape = (empty.classes, len(empty.textures) + 1, len(empty.bins) + 1, g.alphabet)
        codes[:first] = codes_of(_smooth(counts[:first, : g.alphabet].reshape(shape)).reshape(first, -1))
        if contexts > first:
            shape = (g.alphabet, len(empty.subs) + 1, 1, g.low_alphabet)
            smooth = _smooth(counts[first:, : g.low_alphabet].reshape(shape))
            codes[first:] = codes_of(smooth.reshape(contexts - first, -1))
        worth = np.minimum(counts.sum(axis=1), 255).astype(np.uint8)
        return replace(empty, counts=worth, codes=codes)


def _least_squares(designs: Floats, targets: Floats, chosen: NDArray[np.bool_] | None = None) -> Floats:
    """Weights [chosen, terms] of `designs` [channels, symbols, terms] for `targets` [channels, symbols].

    A little ridge is for dead channels.
    """
    channels = range(len(designs)) if chosen is None else np.flatnonzero(chosen)
    grams = np.stack([designs[c].T @ designs[c] for c in channels]).astype(np.float64)
    sides = np.stack([designs[c].T @ targets[c] for c in channels]).astype(np.float64)
    grams += (1e-4 * targets.shape[1] + 1e-3) * np.eye(designs.shape[2])
    return np.linalg.solve(grams, sides[..., None])[..., 0].astype(np.float32)


def _four_neighbours(seen: Floats) -> Floats:
    padded = np.pad(seen, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    return padded[:, :, :-2, 1:-1] + padded[:, :, 2:, 1:-1] + padded[:, :, 1:-1, :-2] + padded[:, :, 1:-1, 2:]


def _thresholds(values: Floats, parts: int) -> NDArray[np.uint16]:
    """Distinct ascending thresholds that share `values` out among at most `parts` parts."""
    edges = np.ceil(np.quantile(values, np.arange(1, parts) / parts)).astype(np.uint16)
    return np.unique(edges[edges > 0])


def _smooth(counts: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Probabilities [a, b, c, alphabet] from counts, rare contexts leaning on what they share with others.

    Each level of the hierarchy (everything; same c; same a and c; all of a, b, c) is a Dirichlet prior of a few counts
    for the next.
    """
    n = counts.astype(np.float64)
    p = n.sum(axis=(0, 1, 2), keepdims=True) + 0.02
    p /= p.sum(axis=-1, keepdims=True)
    for axes in ((0, 1), (1,), ()):
        level = n.sum(axis=axes, keepdims=True)
        p = (level + 2.0 * p) / (level.sum(axis=-1, keepdims=True) + 2.0)
    return np.broadcast_to(p, n.shape)
