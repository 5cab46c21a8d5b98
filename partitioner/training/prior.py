"""The learned factorised prior: how likely each symbol is, channel by channel, as a function that can be trained.

Each channel's cumulative distribution is a small monotone network (Ballé et al., "Variational image compression with a
scale hyperprior", ICLR 2018, appendix 6.1). It is a density of the features themselves, not of the symbols, so that
one prior serves every step: a symbol's probability is the distribution's rise over its cell.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import nn

Tensor = torch.Tensor

_FILTERS = (3, 3, 3)
_START_STEPS, _START_RATE, _START_VALUES = 200, 0.02, 1 << 15
"""Of the descent that a prior begins with, and how many features it looks at."""
_FIRST_WIDTH = 2.0
"""Of the distribution, in units of the features' scale, before it has learned anything."""
_LEAST = 1e-9
"""Probability of a symbol below which the rate is not believed: it bounds the gradient."""


class FactorisedPrior(nn.Module):
    """Rate of features `[B, C, H, W]` at given steps, in bits."""

    scale: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (1, *_FILTERS, 1)
        spread = _FIRST_WIDTH ** (1 / (len(_FILTERS) + 1))
        self.register_buffer("scale", torch.ones(channels, 1, 1))
        self.matrices, self.biases, self.factors = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            value = math.log(math.expm1(1 / spread / outputs))
            self.matrices.append(nn.Parameter(torch.full((channels, outputs, inputs), value)))
            self.biases.append(nn.Parameter(torch.empty(channels, outputs, 1).uniform_(-0.5, 0.5)))
            if i < len(_FILTERS):
                self.factors.append(nn.Parameter(torch.zeros(channels, outputs, 1)))

    def start(self, features: Tensor, steps: Tensor) -> None:
        """Learn the features of an encoder that has not learned yet.

        A prior that begins far too wide prices symbols at several times their bytes, and who controls the rate by it
        drives the encoder into silence before the prior has caught up.

        Args:
            features: `float32 [B, C, H, W]`.
            steps: `float32 [qualities, C]`.
        """
        self.scale.copy_(features.std(dim=(0, 2, 3)).clamp(min=1e-3)[:, None, None])
        some = features.detach()[: max(1, _START_VALUES // features[0].numel())].cpu()
        generator = torch.Generator().manual_seed(0)
        optimiser = torch.optim.Adam(self.parameters(), lr=_START_RATE)
        with torch.enable_grad():
            for step in range(_START_STEPS):
                widths = steps[step % len(steps)].detach()[None, :, None, None]
                noise = torch.rand(some.shape, generator=generator) - 0.5
                bits = self.bits(some.to(features.device) + noise.to(features.device) * widths, widths)
                optimiser.zero_grad()
                (bits.mean() / features[0].numel()).backward()  # type: ignore[no-untyped-call]
                optimiser.step()

    def bits(self, features: Tensor, steps: Tensor) -> Tensor:
        """Bits of each frame, `float32 [B]`.

        Args:
            features: `float32 [B, C, H, W]`: noisy, or restored from symbols.
            steps: `float32 [B, C, 1, 1]`: the width of a cell.
        """
        lower = self._logits(features - steps / 2)
        upper = self._logits(features + steps / 2)
        # On the side of the smaller values, where the difference of two sigmoids keeps its digits.
        sign = -torch.sign(lower + upper).detach()
        likelihood = torch.abs(torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower))
        return -torch.log2(likelihood.clamp(min=_LEAST)).sum(dim=(1, 2, 3))

    def _logits(self, features: Tensor) -> Tensor:
        """Logits of the cumulative distribution, in the features' shape."""
        batch, channels, height, width = features.shape
        x = features.permute(1, 0, 2, 3).reshape(channels, 1, -1) / self.scale
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            x = torch.bmm(nn.functional.softplus(matrix), x) + bias
            if i < len(self.factors):
                x = x + torch.tanh(self.factors[i]) * torch.tanh(x)
        return x.reshape(channels, batch, height, width).permute(1, 0, 2, 3)
