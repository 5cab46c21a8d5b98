"""Batches of augmented pictures: the same ones for the same seed, epoch and step, however many threads make them.

So a training that was killed goes on with the very batches it would have seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ...runtime.errors import UsageError
from .data import Part

_KEPT_BYTES = 8 << 30
"""Of what is made of views; beyond, it is made again each time."""


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a picture on its way into a training step; nothing, by default."""

    flip: bool = False
    """Left and right are exchanged in half of the pictures."""
    shift: float = 0.0
    """Moved by up to this share of its sides, in whole pixels; what comes in is mirrored."""
    crop: float = 1.0
    """The smallest share of its sides that is cut out and enlarged; 1 for none."""
    aspect: float = 0.0
    """How far the sides of that crop are stretched against each other: up to `exp(aspect)`."""
    brightness: float = 0.0
    """Factor up to 1 ± this."""
    contrast: float = 0.0
    """Factor on the distance to the picture's mean, up to 1 ± this."""
    mix: float = 0.0
    """The share of pictures into which another one of the batch is mixed, with at most as much weight. Labels stay, and
    are half of the truth then: a teacher's answer is all of it (function matching: Beyer et al., CVPR 2022)."""

    def __post_init__(self) -> None:
        if not (0 < self.crop <= 1 and 0 <= self.shift < 1 and 0 <= self.aspect <= 1):
            raise UsageError("augmentation: 0 < crop ≤ 1, 0 ≤ shift < 1, 0 ≤ aspect ≤ 1")
        if not (0 <= self.brightness < 1 and 0 <= self.contrast < 1):
            raise UsageError("augmentation: brightness and contrast are at least 0 and below 1")
        if not 0 <= self.mix <= 1:
            raise UsageError(f"augmentation: a share of pictures, 0 to 1, is mixed with others, not {self.mix}")

    @property
    def moves(self) -> bool:
        """Whether pixels change places."""
        return self.flip or self.shift > 0 or self.crop < 1 or self.aspect > 0

    @property
    def recolours(self) -> bool:
        """Whether pixels change values."""
        return self.brightness > 0 or self.contrast > 0


PHOTOGRAPHS = Augmentation(flip=True, shift=0.03, crop=0.65, aspect=0.15, brightness=0.25, contrast=0.2)
"""Photographs of things that are the same seen in a mirror and from nearer."""
SMALL_PICTURES = Augmentation(flip=True, shift=0.125)
"""CIFAR's usual augmentation: four pixels of shift, no interpolation."""
CHARACTERS = Augmentation(shift=0.06)
"""Digits and letters: mirrored they are others."""
AUGMENTATIONS = {
    "none": Augmentation(),
    "characters": CHARACTERS,
    "small-pictures": SMALL_PICTURES,
    "photographs": PHOTOGRAPHS,
}
"""By the names that the command line has for them."""


def augment(pictures: NDArray[np.uint8], how: Augmentation, rng: np.random.Generator) -> torch.Tensor:
    """Augment a batch.

    Args:
        pictures: `uint8 [B, height, width, 3]`.
        how: what may happen.
        rng: decides what does.

    Returns:
        `uint8 [B, height, width, 3]`.
    """
    x = torch.from_numpy(np.ascontiguousarray(pictures))
    if not (how.moves or how.recolours or how.mix):
        return x
    x = x.permute(0, 3, 1, 2).float()
    if how.moves:
        grid = functional.affine_grid(_placements(x.shape, how, rng), list(x.shape), align_corners=False)
        x = functional.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if how.recolours:
        mean = x.mean((1, 2, 3), keepdim=True)
        x = ((x - mean) * _factors(len(x), how.contrast, rng) + mean) * _factors(len(x), how.brightness, rng)
    if how.mix:
        mixed = rng.random(len(x)) < how.mix
        own = torch.from_numpy(np.where(mixed, rng.uniform(0.5, 1.0, len(x)), 1.0).astype(np.float32))[
            :, None, None, None
        ]
        x = own * x + (1 - own) * x[torch.from_numpy(rng.permutation(len(x)))]
    return x.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _placements(shape: torch.Size, how: Augmentation, rng: np.random.Generator) -> torch.Tensor:
    """`float32 [B, 2, 3]`: where each picture's pixels come from, sides running from -1 to 1."""
    count, _, height, width = shape
    scale = rng.uniform(how.crop, 1.0, count)
    stretch = np.exp(rng.uniform(-how.aspect, how.aspect, count))
    # Neither side of a crop is longer than the picture's.
    across, down = np.minimum(scale * stretch, 1.0), np.minimum(scale / stretch, 1.0)
    mirrored = np.where(rng.random(count) < 0.5, -1.0, 1.0) if how.flip else np.ones(count)
    away = rng.uniform(-1.0, 1.0, (count, 2))
    pixels = np.round(rng.uniform(-how.shift, how.shift, (count, 2)) * (width, height))
    made = np.zeros((count, 2, 3), np.float32)
    made[:, 0, 0], made[:, 1, 1] = across * mirrored, down
    made[:, 0, 2] = away[:, 0] * (1 - across) + 2 * pixels[:, 0] / width
    made[:, 1, 2] = away[:, 1] * (1 - down) + 2 * pixels[:, 1] / height
    return torch.from_numpy(made)


def _factors(count: int, most: float, rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(rng.uniform(1 - most, 1 + most, (count, 1, 1, 1)).astype(np.float32))


@dataclass(frozen=True)
class Batches:
    """The steps of an epoch."""

    part: Part
    size: int
    """Pictures in a batch."""
    augmentation: Augmentation = Augmentation()
    seed: int = 0
    workers: int = 1
    """Threads that prepare batches ahead; with 0, each is made when it is asked for."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.workers < 0 or not len(self.part):
            raise UsageError("batches need pictures, a size of 1 or more, and no negative number of workers")

    @property
    def steps(self) -> int:
        """Batches an epoch. A last one that is not full is left out: its pictures come in another epoch."""
        return max(1, len(self.part) // self.size)

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Go through an epoch's batches.

        Args:
            number: of the epoch, which decides order and augmentation together with the seed.
            first: step to begin with.

        Yields:
            Pictures `uint8 [B, height, width, 3]` and classes `int64 [B]`.
        """
        order = np.random.default_rng((self.seed, number)).permutation(len(self.part))
        if not self.workers:
            for step in range(first, self.steps):
                yield self._batch(order, number, step)
            return
        with ThreadPoolExecutor(self.workers, thread_name_prefix="batches") as pool:
            ahead: deque[Future[tuple[torch.Tensor, torch.Tensor]]] = deque()
            try:
                for step in range(first, self.steps):
                    ahead.append(pool.submit(self._batch, order, number, step))
                    if len(ahead) > self.workers + 1:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for one in ahead:
                    one.cancel()

    def _batch(self, order: NDArray[np.int64], epoch: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = np.sort(order[step * self.size : (step + 1) * self.size])  # in order, for the disk's sake
        rng = np.random.default_rng((self.seed, epoch, step))
        pictures = augment(self.part.pictures[rows], self.augmentation, rng)
        return pictures, torch.from_numpy(self.part.labels[rows])


class InMemory(Protocol):
    """What knows how much memory it takes."""

    @property
    def size_bytes(self) -> int:
        """Of memory."""


Made = TypeVar("Made", bound=InMemory)


class Views(Generic[Made]):
    """Epochs whose batches come round again: what is made of one is kept, as far as memory is allowed."""

    def __init__(self, batches: Batches, count: int, make: Callable[[torch.Tensor, torch.Tensor], Made]) -> None:
        """Over `batches`.

        Args:
            batches: pictures and labels.
            count: augmented versions of each picture that epochs meet in turn; 0: new ones all the time.
            make: makes of a batch what a step needs.
        """
        self.batches, self.count, self.make = batches, count, make
        self._kept: dict[tuple[int, int], Made] = {}
        self._kept_bytes = 0

    def epoch(self, number: int, first: int = 0) -> Iterator[Made]:
        """An epoch's batches from a step on; those that were met before come from memory."""
        if self.count:
            number %= self.count
        steps = range(first, self.batches.steps)
        if all((number, step) in self._kept for step in steps):
            yield from (self._kept[number, step] for step in steps)
            return
        for step, (pictures, labels) in zip(steps, self.batches.epoch(number, first), strict=True):
            made = self.make(pictures, labels)
            if self.count and self._kept_bytes < _KEPT_BYTES:
                self._kept[number, step] = made
                self._kept_bytes += made.size_bytes
            yield made

    def forget(self) -> None:
        """Make everything anew from here on."""
        self._kept, self._kept_bytes = {}, 0
