"""What encoders and decoders are made of, with what each layer costs before it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

Tensor = torch.Tensor
Kind = Literal["convolution", "separable", "residual", "plain"]


@dataclass(frozen=True)
class Layer:
    """One layer of an encoder."""

    kind: Kind
    """`convolution`, normalised and activated; `separable`, one depthwise and one pointwise; `residual`, two
    convolutions and what goes past them; `plain`, a convolution with a bias alone."""
    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    gdn: bool = False
    """Divisive normalisation in place of batch normalisation and ReLU."""

    @property
    def params(self) -> int:
        """Parameters of the layer."""
        area = self.kernel**2
        if self.kind == "residual":
            return 2 * self.inputs**2 * area + 4 * self.inputs
        if self.kind == "separable":
            return self.inputs * (area + 2) + self.inputs * self.outputs + 2 * self.outputs
        if self.kind == "plain":
            return (self.inputs * area + 1) * self.outputs
        own = self.outputs * (self.outputs + 2) if self.gdn else 2 * self.outputs
        return self.inputs * self.outputs * area + own

    def macs(self, height: int, width: int) -> int:
        """Multiply-accumulates where the layer puts out `height` by `width`."""
        area = self.kernel**2
        if self.kind == "residual":
            each = 2 * self.inputs**2 * area
        elif self.kind == "separable":
            each = self.inputs * area + self.inputs * self.outputs
        else:
            each = self.inputs * self.outputs * area + (self.outputs**2 if self.gdn else 0)
        return each * height * width

    def make(self) -> nn.Module:
        """The module, `[B, inputs, H, W]` to `[B, outputs, ceil(H / stride), ceil(W / stride)]`."""
        if self.kind == "residual":
            return Residual(self.inputs, self.kernel)
        if self.kind == "separable":
            return Separable(self.inputs, self.outputs, self.kernel, self.stride)
        if self.kind == "plain":
            return nn.Conv2d(self.inputs, self.outputs, self.kernel, self.stride, self.kernel // 2)
        return convolution(self.inputs, self.outputs, self.kernel, self.stride, gdn=self.gdn)


class GDN(nn.Module):
    """Divisive normalisation with absolute values, y = x / (beta + gamma · |x|) (Johnston et al., ICIP 2019, GDN1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(channels))
        self.gamma = nn.Parameter(0.1 * torch.eye(channels))

    def forward(self, x: Tensor) -> Tensor:
        """`float32 [B, C, H, W]`, the same shape."""
        gamma = self.gamma.abs()[:, :, None, None]
        return x / nn.functional.conv2d(x.abs(), gamma, self.beta.abs() + 1e-6)


class Residual(nn.Module):
    """Two convolutions and what goes past them."""

    def __init__(self, width: int, kernel: int = 3) -> None:
        super().__init__()
        last = nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False)
        self.body = nn.Sequential(convolution(width, width, kernel), last, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """`float32 [B, C, H, W]`, the same shape."""
        return nn.functional.relu(x + self.body(x))


class Separable(nn.Module):
    """A depthwise convolution and a pointwise one; what goes past them where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(inputs, inputs, kernel, stride, kernel // 2, groups=inputs, bias=False)
        self.body = nn.Sequential(depthwise, nn.BatchNorm2d(inputs), convolution(inputs, outputs, 1))
        self.past = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """`float32 [B, inputs, H, W]` to `[B, outputs, H / stride, W / stride]`."""
        made: Tensor = self.body(x)
        return x + made if self.past else made


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, *, gdn: bool = False) -> nn.Sequential:
    """A convolution, normalised and activated; divisive normalisation is both at once."""
    first = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=gdn)
    rest = [GDN(outputs)] if gdn else [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(first, *rest)
