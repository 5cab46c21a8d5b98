"""How alike two pictures are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def psnr(made: Tensor, true: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture.

    Args:
        made, true: `float32 [B, C, H, W]`, 0…1.

    Returns:
        `[B]`, decibels; at most 100, for equal pictures have none.
    """
    error = ((made - true) ** 2).flatten(1).mean(1)
    return -10 * torch.log10(error.clamp_min(1e-10))


def ssim(made: Tensor, true: Tensor) -> Tensor:
    """Structural similarity of each picture, the mean over its channels (Wang et al., "Image quality assessment: from
    error visibility to structural similarity", IEEE TIP 2004, equation 13, with its Gaussian window).

    Args:
        made, true: `float32 [B, C, H, W]`, 0…1; sides of 11 pixels at least, or the window is as small as they are.

    Returns:
        `[B]`, 1 for equal pictures.
    """
    side = min(_WINDOW, *made.shape[2:])
    axis = torch.arange(side, dtype=made.dtype) - (side - 1) / 2
    line = torch.exp(-(axis**2) / (2 * _SIGMA**2))
    channels = made.shape[1]
    window = (line[:, None] * line[None]) / line.sum() ** 2
    kernel = window.expand(channels, 1, side, side)

    def mean(x: Tensor) -> Tensor:
        return functional.conv2d(x, kernel, groups=channels)

    a, b = mean(made), mean(true)
    var_a, var_b, cov = mean(made**2) - a**2, mean(true**2) - b**2, mean(made * true) - a * b
    index = (2 * a * b + _C1) * (2 * cov + _C2) / ((a**2 + b**2 + _C1) * (var_a + var_b + _C2))
    return index.flatten(1).mean(1)
