"""How an answer compares to the whole model's, and to the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..planner.profile import Sizes
from ..runtime.answer import Array, classifier
from ..runtime.manifest import Manifest


@dataclass(slots=True)
class Fidelity:
    """Sums over the frames of one operating point."""

    frames: int = 0
    max_deviation: float = 0.0
    _deviation: float = 0.0
    _values: int = 0
    _agreeing: int = 0
    _labelled: int = 0
    _right: int = 0

    def compare(
        self, manifest: Manifest, made: Mapping[str, Array], whole: Mapping[str, Array], label: int | None
    ) -> None:
        """Take one frame's outputs in, beside the whole model's; no array has a batch axis."""
        self.frames += 1
        for name, expected in whole.items():
            if expected.dtype.kind not in "fiub" or name not in made or made[name].shape != expected.shape:
                continue
            with np.errstate(invalid="ignore"):  # infinity from infinity
                off = np.abs(made[name].astype(np.float64) - expected.astype(np.float64))
            off = off[np.isfinite(off)]
            self.max_deviation = max(self.max_deviation, float(off.max(initial=0.0)))
            self._deviation += float(off.sum())
            self._values += off.size
        best = best_class(manifest, made)
        self._agreeing += best is not None and best == best_class(manifest, whole)
        if label is not None and best is not None:
            self._labelled += 1
            self._right += best == label

    @property
    def mean_deviation(self) -> float | None:
        """Mean |made - whole|; None where nothing was compared."""
        return self._deviation / self._values if self._values else None

    def agreement(self, manifest: Manifest) -> float | None:
        """Share of frames with the whole model's best class; None for no classifier."""
        return self._agreeing / self.frames if self.frames and classifier(manifest.outputs) is not None else None

    @property
    def accuracy(self) -> float | None:
        """Share of right answers; None without labels."""
        return self._right / self._labelled if self._labelled else None


def best_class(manifest: Manifest, outputs: Mapping[str, Array]) -> int | None:
    """A classifier's best class; None for another model, or an answer without its scores."""
    output = classifier(manifest.outputs)
    if output is None or output.tensor.name not in outputs:
        return None
    return int(outputs[output.tensor.name].reshape(-1).argmax())


def sizes_of(sizes: Sequence[int]) -> Sizes:
    """Mean and percentiles of some sizes in bytes."""
    p50, p99 = np.percentile(sizes, (50, 99))
    return Sizes(float(np.mean(sizes)), float(p50), float(p99))
