"""What a further tail's answers are measured by, on held-out pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]

IGNORED = 255
"""Of a mask: pixels that belong to no class, which are neither learned from nor measured."""
_PEAK = 1.0


class Measure(Protocol):
    """Takes in batches, and then has a value."""

    name: str
    """With its unit, for people."""

    def add(self, answers: Array, targets: Array) -> None:
        """Take in a batch: answers as the deployed graph gives them, and what was wanted, both `[B, …]`."""

    @property
    def value(self) -> float:
        """Of all that was taken in."""


@dataclass
class Accuracy:
    """Share of right classes: answers `[B, classes]`, targets `[B]`."""

    name: str = "right"
    right: int = 0
    seen: int = 0

    def add(self, answers: Array, targets: Array) -> None:
        """Take in a batch."""
        self.right += int(np.count_nonzero(answers.reshape(len(answers), -1).argmax(1) == targets))
        self.seen += len(targets)

    @property
    def value(self) -> float:
        """0 to 1."""
        return self.right / self.seen


class MeanIoU:
    """Mean over classes of what prediction and truth share, of what either has: class maps `[B, H, W]`."""

    name = "mean IoU"

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.confusion = np.zeros((classes, classes), np.int64)

    def add(self, answers: Array, targets: Array) -> None:
        """Take in a batch."""
        known = targets != IGNORED
        pairs = targets[known].astype(np.int64) * self.classes + answers[known].astype(np.int64)
        self.confusion += np.bincount(pairs, minlength=self.classes**2).reshape(self.classes, self.classes)

    @property
    def value(self) -> float:
        """0 to 1, over the classes that occur."""
        shared = np.diag(self.confusion)
        either = self.confusion.sum(0) + self.confusion.sum(1) - shared
        return float(np.mean(shared[either > 0] / either[either > 0]))


class Psnr:
    """Mean peak signal-to-noise ratio of pictures `[B, 3, H, W]`, 0 to 1."""

    name = "PSNR, dB"

    def __init__(self) -> None:
        self.each: list[float] = []

    def add(self, answers: Array, targets: Array) -> None:
        """Take in a batch."""
        errors = np.square(answers.astype(np.float64) - targets).reshape(len(answers), -1).mean(1)
        self.each += list(10 * np.log10(_PEAK**2 / np.maximum(errors, 1e-10)))

    @property
    def value(self) -> float:
        """In dB."""
        return float(np.mean(self.each))


class MeanLoss:
    """The training's own loss, where nothing else is known."""

    name = "loss"

    def __init__(self, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        self.loss = loss
        self.sum, self.seen = 0.0, 0

    def add(self, answers: Array, targets: Array) -> None:
        """Take in a batch."""
        self.sum += float(self.loss(torch.from_numpy(answers), torch.from_numpy(targets))) * len(answers)
        self.seen += len(answers)

    @property
    def value(self) -> float:
        """Mean over batches, each by its size."""
        return self.sum / self.seen


@dataclass(frozen=True)
class HeldOut:
    """How good a tail is on held-out pictures."""

    measure: str
    values: tuple[float, ...]
    """One a quality."""
