"""The quantiser of a trained bottleneck: the arithmetic of `partitioner.quantise`, with steps that learn.

Quality `q` and channel `c` have a step `s[q, c]`; zero points are the middle of the alphabet, since an encoder ends in
a convolution whose bias moves its range wherever that is best. On the way forward the symbols are those that the
exported graph makes; on the way back rounding is taken as the identity, which gives the steps the gradient of LSQ
(Esser et al., ICLR 2020) and the values the straight-through one. What is clipped pulls at the step alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ..quantise import QuantiserTable

Tensor = torch.Tensor

_CHANNEL_AXIS = 1
_CLIP_DEVIATIONS = 2.5
"""Half the first range of a fixed alphabet, in standard deviations."""
_FIRST_BITS = (1.5, 3.5)
"""A symbol, at the coarsest and at the finest quality, where no target says more."""
_FIRST_EXTRA_BITS = 0.75
"""A symbol's bits above the target: what is learned first needs room, and the rate takes away what is not needed."""
_FIRST_EXTRA_BYTES = 1.25
"""Where one step serves all channels: what is learned first is how to use the bytes, not what is worth any."""
_HALVINGS = 12
"""Of the range in which a step is looked for."""
_COARSEST = 2.5
"""First step at most, in standard deviations; beyond, everything is zero and nothing learns."""


class Quantiser(nn.Module):
    """Features `float32 [B, C, H, W]` to what the decoder sees of them."""

    middle: Tensor

    def __init__(self, channels: int, levels: int, qualities: int = 1) -> None:
        """Make it; `start` has to see features before it is of use.

        Args:
            channels: of the bottleneck.
            levels: size of the alphabet.
            qualities: rungs, the coarsest first.
        """
        super().__init__()
        self.levels = levels
        self.log_steps = nn.Parameter(torch.zeros(qualities, channels))
        self.register_buffer("middle", torch.tensor(float(levels // 2)))

    @property
    def qualities(self) -> int:
        """Rungs of the ladder."""
        return int(self.log_steps.shape[0])

    def start(self, features: Tensor, *, rated: bool, target_bytes: Sequence[float] = (), even: bool = False) -> None:
        """First steps, from the features of an untrained encoder.

        Args:
            features: `float32 [B, C, H, W]`.
            rated: the loss has a rate term, so that the alphabet has room and the step is free.
            target_bytes: of a frame at each quality, where that is known.
            even: one step for all channels.
        """
        deviation = features.std(dim=(0, 2, 3)).clamp(min=1e-3)
        if even:
            deviation = deviation.max().expand_as(deviation)
        if even and rated:
            goals = [t * _FIRST_EXTRA_BYTES for t in target_bytes] or [
                bits * features[0].numel() / 8 for bits in _even(_FIRST_BITS, self.qualities)
            ]
            shares = [_step_for(features, goal) / float(deviation[0]) for goal in goals]
        elif not rated:
            shares = [2 * _CLIP_DEVIATIONS / (self.levels - 1)] * self.qualities
        else:
            each = [8 * target / features[0].numel() for target in target_bytes]
            bits = [b + _FIRST_EXTRA_BITS for b in each] or _even(_FIRST_BITS, self.qualities)
            # A normal distribution's entropy in cells of a step's width, solved for the step.
            shares = [min(_COARSEST, math.sqrt(2 * math.pi * math.e) / 2**b) for b in bits]
        with torch.no_grad():
            self.log_steps.copy_((deviation * torch.tensor(shares)[:, None].to(deviation)).log())

    def steps(self, quality: Tensor) -> Tensor:
        """`float32 [B, C, 1, 1]`: the steps of each frame's quality (`int64 [B]`)."""
        return self.log_steps[quality].exp()[:, :, None, None]

    def forward(self, features: Tensor, quality: Tensor) -> Tensor:
        """Round and restore, with gradients for features and steps."""
        steps = self.steps(quality)
        scaled = features / steps
        moved = scaled + (self._rounded(scaled) - scaled).detach()
        return moved.clamp(-self.middle, self.levels - 1 - self.middle) * steps

    def noisy(self, features: Tensor, quality: Tensor, generator: torch.Generator) -> Tensor:
        """Features with additive uniform noise of one step's width, which stands for rounding (Ballé et al., 2017)."""
        noise = torch.rand(features.shape, generator=generator, dtype=features.dtype).to(features.device) - 0.5
        return features + noise * self.steps(quality)

    @torch.no_grad()
    def symbols(self, features: Tensor, quality: Tensor) -> Tensor:
        """`uint8 [B, C, H, W]`: what crosses the link, by the operations of the exported graph."""
        table = self.table()
        inverse = torch.from_numpy(1 / table.steps).to(features.device)[quality][:, :, None, None]
        shifted = torch.floor(features * inverse + (self.middle + 0.5))
        return shifted.clamp(0, self.levels - 1).to(torch.uint8)

    def _rounded(self, scaled: Tensor) -> Tensor:
        return torch.floor(scaled + (self.middle + 0.5)) - self.middle

    def table(self) -> QuantiserTable:
        """The table that goes into the graphs."""
        steps = self.log_steps.detach().exp().cpu().numpy().astype(np.float32)
        zeros = np.full_like(steps, float(self.middle))
        return QuantiserTable((self.levels,) * self.qualities, _CHANNEL_AXIS, steps, zeros)


def _step_for(features: Tensor, goal_bytes: float) -> float:
    """The step at which a frame's symbols have an order-0 entropy of so many bytes, all channels having that step."""
    low, high = (math.log(float(features.std()) * factor) for factor in (0.01, 30.0))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        bits = 0.0
        for channel in torch.round(features.transpose(0, 1).flatten(1) / math.exp(middle)):
            share = torch.unique(channel, return_counts=True)[1] / channel.numel()
            bits -= float((share * share.log2()).sum()) * channel.numel() / len(features)
        low, high = (middle, high) if bits / 8 > goal_bytes else (low, middle)
    return math.exp(high)


def _even(ends: tuple[float, float], count: int) -> list[float]:
    """Numbers evenly spaced from one end to the other; the far end alone where there is one."""
    low, high = ends
    return [high - (high - low) * (count - 1 - i) / max(1, count - 1) for i in range(count)]
