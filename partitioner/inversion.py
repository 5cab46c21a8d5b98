"""An attacker's network: out of the symbols that cross a link, the picture that they were made of.

As in the black-box attack on split inference of He et al., "Model Inversion Attacks Against Collaborative Inference"
(ACSAC 2019, section 5): whoever can run the head on pictures of their own has pairs of symbols and pictures to learn
from, and a bundle's head is no secret. The network is plain and small: it says what is easy, not what is possible.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ..runtime.errors import UsageError
from ..runtime.manifest import CrossingTensor

Steps = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""

_WIDTH, _LEAST_WIDTH = 64, 24
_BATCH = 16
_RATE = 3e-3
_TIMED_STEPS = 5
_MAX_BYTES = 4 << 30
_KNOWN = 64
"""Frames that the mean and the variance of a channel are taken from."""


@dataclass(frozen=True, slots=True)
class Training:
    """How the network is trained."""

    steps: int = 400
    seed: int = 0
    limit_s: float | None = None
    """Time for the training, at most; fewer steps are then planned."""

    def __post_init__(self) -> None:
        if self.steps < 1 or (self.limit_s is not None and self.limit_s <= 0):
            raise UsageError("training takes one step at least, and a positive time")


@dataclass(frozen=True)
class Attacker:
    """A trained network."""

    net: nn.Module
    steps: int
    """That it was trained for."""

    def reconstruct(self, planes: Tensor) -> Tensor:
        """Pictures out of symbols.

        Args:
            planes: as `as_planes` gives them.

        Returns:
            `float32 [B, 3, H, W]`, 0…1.
        """
        with torch.no_grad():
            return torch.cat([self.net(part) for part in torch.split(planes, _BATCH)]).clamp(0, 1)


def as_planes(symbols: Sequence[Sequence[NDArray[np.generic]]], tensors: Sequence[CrossingTensor]) -> Tensor:
    """What crosses, as planes that a convolution takes, whatever the tensors' shapes.

    Args:
        symbols: of every frame, one array per crossing tensor, without a batch axis.
        tensors: what they are.

    Returns:
        `[B, C, h, w]`, `uint8` where one tensor of such symbols crosses and `float32` otherwise: the tensors' channels
        one after the other, each brought to the largest's size.

    Raises:
        UsageError: more than the audit holds in memory.
    """
    if (held := len(symbols) * sum(array.size for array in symbols[0]) * 4) > _MAX_BYTES:
        raise UsageError(f"the symbols of {len(symbols)} pictures take {held >> 20} MiB; audit with fewer (--pictures)")
    parts = []
    for i, tensor in enumerate(tensors):
        stacked = np.stack([frame[i] for frame in symbols])
        if stacked.dtype != np.uint8 or len(tensors) > 1:
            stacked = stacked.astype(np.float32)
        parts.append(torch.from_numpy(_planes(stacked, tensor.channel_axis)))
    if len(parts) == 1:
        return parts[0]
    height, width = (max(part.shape[axis] for part in parts) for axis in (2, 3))
    return torch.cat([functional.interpolate(part, (height, width)) for part in parts], 1)


def _planes(array: NDArray[Any], channel_axis: int | None) -> NDArray[Any]:
    """`[B, C, h, w]` out of pictures in either layout, of tokens on a square grid, or of anything as one long pixel."""
    if array.ndim == 4:
        return np.ascontiguousarray(np.moveaxis(array, 3, 1)) if channel_axis == 2 else array
    if array.ndim == 3:  # tokens, perhaps with one that stands for the class
        side = math.isqrt(array.shape[1])
        if side > 1 and array.shape[1] - side**2 in (0, 1):
            grid = array[:, array.shape[1] - side**2 :].reshape(len(array), side, side, -1)
            return np.ascontiguousarray(np.moveaxis(grid, 3, 1))
    return array.reshape(len(array), -1, 1, 1)


def train_attacker(planes: Tensor, pictures: Tensor, training: Training, progress: Steps) -> Attacker:
    """Train a network on pairs; the same every time on one machine, unless a time limit changes its steps.

    Args:
        planes: of `as_planes`.
        pictures: `float32 [B, 3, H, W]`, 0…1.
        training: how.
        progress: told of every step.
    """
    draw = torch.Generator().manual_seed(training.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        net = _network(planes, pictures)
    steps = _affordable(net, planes, pictures, training)
    optimiser = torch.optim.Adam(net.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=_RATE, total_steps=steps + 1)
    for step in range(steps):
        rows = torch.randint(len(planes), (_BATCH,), generator=draw)
        loss = functional.mse_loss(net(planes[rows]), pictures[rows])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        progress(step + 1, steps)
    return Attacker(net.eval(), steps)


def _affordable(net: nn.Module, planes: Tensor, pictures: Tensor, training: Training) -> int:
    """The steps that there is time for, by a few that are only timed."""
    if training.limit_s is None:
        return training.steps
    began = time.monotonic()
    for _ in range(_TIMED_STEPS):
        functional.mse_loss(net(planes[:_BATCH]), pictures[:_BATCH]).backward()  # type: ignore[no-untyped-call]
    net.zero_grad()
    took_s = (time.monotonic() - began) / _TIMED_STEPS
    return max(1, min(training.steps, int(training.limit_s / took_s) - _TIMED_STEPS))


class _Standard(nn.Module):
    """Every channel with mean 0 and variance 1, as in the pairs that were learnt from."""

    def __init__(self, planes: Tensor) -> None:
        super().__init__()
        known = planes[:_KNOWN].float()
        self.register_buffer("mean", known.mean((0, 2, 3), keepdim=True))
        self.register_buffer("scale", 1 / known.std((0, 2, 3), keepdim=True).clamp_min(1e-3))

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() - self.mean) * self.scale  # type: ignore[operator]


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = functional.relu(x + self.body(x))
        return made


class _FromMean(nn.Module):
    """What is made is added to the mean picture, so that learning begins with what anyone knows."""

    def __init__(self, pictures: Tensor) -> None:
        super().__init__()
        self.mean: Tensor
        self.register_buffer("mean", pictures.mean(0, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.mean.shape[2:]
        return self.mean + x[:, :, :height, :width]


def _network(planes: Tensor, pictures: Tensor) -> nn.Module:
    """From the planes' size up to half of the picture's, doubling (down by area where the planes are larger), and from
    there by shuffling channels into pixels (Shi et al., CVPR 2016), which costs a quarter of a layer at full size."""
    height, width = planes.shape[2:]
    half = tuple(-(-side // 2) for side in pictures.shape[2:])
    layers: list[nn.Module] = [_Standard(planes)]
    if height > half[0] or width > half[1]:
        # What two neighbours say apart becomes channels first, so that it is not averaged away.
        height, width = min(height, half[0]), min(width, half[1])
        layers += [nn.Conv2d(planes.shape[1], _WIDTH, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d((height, width))]
    channels = _WIDTH
    first = planes.shape[1] if len(layers) == 1 else channels
    layers += [nn.Conv2d(first, channels, 3, padding=1), nn.ReLU(), _Residual(channels)]
    while height < half[0] or width < half[1]:
        height, width = min(2 * height, half[0]), min(2 * width, half[1])
        narrower = max(_LEAST_WIDTH, channels // 2) if min(height, width) > 8 else channels
        layers += [nn.Upsample((height, width)), nn.Conv2d(channels, narrower, 3, padding=1), nn.ReLU()]
        channels = narrower
    last = nn.Conv2d(channels, 12, 3, padding=1)
    nn.init.zeros_(last.weight)
    layers += [_Residual(channels), last, nn.PixelShuffle(2), _FromMean(pictures)]
    return nn.Sequential(*layers)
