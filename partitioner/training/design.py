"""Encoder and decoder from the shapes alone: as much encoder as the budget has room for, and a decoder to match."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import nn

from ...runtime.errors import UsageError
from .options import TrainOptions
from .teacher import Halves, Teacher, macs_of, nominal_stride, params_of

Tensor = torch.Tensor

_WIDTHS = (4, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96)
"""Of the first convolution. Multiples of four, as vector units like them."""
_GROWTHS = (1.0, 1.25, 1.5, 2.0)
"""Of the width from stage to stage."""
_BLOCKS = (0, 1, 2, 3)
_KERNELS = (5, 3)
"""Of the first convolution, the better one first."""
_MAX_WIDTH = 192
_MACS_SHARE = 2
"""The encoder may take one part in so many of the work that it replaces."""
_PARAMS_SHARE = 90
_LARGE_TEACHER = 1_000_000
_SMALLEST_SIDE = 4
"""Columns of a bottleneck, where nobody asks for a stride."""


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


@dataclass(frozen=True)
class Pair:
    """What is trained into the teacher."""

    encoder: nn.Module
    """Normalised picture `float32 [B, 3, H, W]` to the bottleneck `[B, C, h, w]`."""
    decoder: nn.Module
    """The bottleneck to the teacher's features."""


@dataclass(frozen=True)
class Design:
    """A pair before it is made."""

    image: tuple[int, int]
    features: tuple[int, int, int]
    """Of the teacher at the cut: channels, height, width."""
    channels: int
    widths: tuple[int, ...]
    """Of the encoder's halvings, from the picture on."""
    kernel: int
    """Of the first convolution."""
    blocks: int
    """Residual blocks of the encoder, at the bottleneck's size."""
    decoder_width: int
    decoder_blocks: int
    activation: str

    def make(self) -> Pair:
        """The modules, with random weights of torch's global generator."""
        return Pair(_encoder(self), _decoder(self))


@dataclass(frozen=True)
class Price:
    """What a part costs."""

    part: str
    params: int
    macs: int
    """Multiply-accumulates for one picture."""
    shape: tuple[int, ...]
    """Of what it puts out for one picture."""


def design(teacher: Teacher, halves: Halves, options: TrainOptions, activation: str = "relu") -> Design:
    """The largest encoder within the budget.

    Raises:
        UsageError: not even the smallest fits.
    """
    image = (teacher.preprocess.height, teacher.preprocess.width)
    stride = options.stride or _stride(nominal_stride(halves, teacher.preprocess), image)
    stages = max(0, (stride - 1).bit_length())
    if 1 << stages != stride:
        raise UsageError(f"the stride is a power of two, not {stride}")
    most_macs = options.head_macs or halves.front_macs // _MACS_SHARE
    most_params = options.head_params or (
        teacher.params // _PARAMS_SHARE if teacher.params >= _LARGE_TEACHER else halves.front_params
    )
    best: tuple[int, int, Design] | None = None
    smallest = (0, 0)
    for width, growth, blocks, kernel in product(_WIDTHS, _GROWTHS, _BLOCKS, _KERNELS):
        widths = tuple(min(_MAX_WIDTH, 4 * round(width * growth**i / 4)) for i in range(max(1, stages)))
        tried = Design(
            image=image,
            features=halves.features,
            channels=options.channels,
            widths=widths if stages else (),
            kernel=kernel,
            blocks=blocks if stages else 0,
            decoder_width=options.decoder_width,
            decoder_blocks=options.decoder_blocks,
            activation=activation,
        )
        params, macs = _encoder_price(tried)
        smallest = min(smallest, (params, macs)) if smallest[0] else (params, macs)
        if params <= most_params and macs <= most_macs and (best is None or (params, macs) > best[:2]):
            best = (params, macs, tried)
    if best is None:
        raise UsageError(
            f"no encoder of {most_params:,} parameters and {most_macs:,} MACs: the smallest here has {smallest[0]:,} "
            f"and {smallest[1]:,}; raise --head-params or --head-macs, or cut later"
        )
    return best[2]


def prices(teacher: Teacher, halves: Halves, pair: Pair) -> list[Price]:
    """The table to print: the teacher's own head beside the encoder, the decoder, and the tail that stays."""
    example = teacher.example
    with torch.no_grad():
        bottleneck = pair.encoder.eval()(example)
        restored = pair.decoder.eval()(bottleneck)
    channels, height, width = halves.features
    if tuple(restored.shape[1:]) != halves.features:
        raise UsageError(
            f"the decoder puts out {'×'.join(map(str, restored.shape[1:]))}, and {halves.at!r} is "
            f"{channels}×{height}×{width}"
        )
    return [
        Price("teacher's head", halves.front_params, halves.front_macs, halves.features),
        Price("encoder", params_of(pair.encoder), macs_of(pair.encoder, example), tuple(bottleneck.shape[1:])),
        Price("decoder", params_of(pair.decoder), macs_of(pair.decoder, bottleneck), halves.features),
        Price("teacher's tail", params_of(halves.tail), halves.tail_macs, ()),
        Price("teacher", teacher.params, halves.front_macs + halves.tail_macs, ()),
    ]


def _stride(own: int, image: tuple[int, int]) -> int:
    return own * 2 if min(image) // (own * 2) >= _SMALLEST_SIDE else own


def _encoder_price(tried: Design) -> tuple[int, int]:
    """Parameters and MACs, by arithmetic: hundreds are tried."""
    height, width = tried.image
    params = macs = 0
    before = 3
    for i, after in enumerate(tried.widths):
        height, width = -(-height // 2), -(-width // 2)
        weights = before * after * (tried.kernel if i == 0 else 3) ** 2
        params += weights + 2 * after + (after * after + after if tried.activation == "gdn" else 0)
        macs += (weights + (after * after if tried.activation == "gdn" else 0)) * height * width
        before = after
    block = 2 * before * before * 9
    params += tried.blocks * (block + 4 * before) + before * tried.channels + tried.channels
    macs += (tried.blocks * block + before * tried.channels) * height * width
    return params, macs


def _encoder(made: Design) -> nn.Module:
    layers: list[nn.Module] = []
    before = 3
    for i, after in enumerate(made.widths):
        layers += _convolution(before, after, made.kernel if i == 0 else 3, stride=2, activation=made.activation)
        before = after
    layers += [_Residual(before) for _ in range(made.blocks)]
    return nn.Sequential(*layers, nn.Conv2d(before, made.channels, 1))


def _decoder(made: Design) -> nn.Module:
    channels, height, width = made.features
    inner = made.decoder_width
    return nn.Sequential(
        *_convolution(made.channels, inner, 3),
        *(_Residual(inner) for _ in range(made.decoder_blocks)),
        nn.Upsample(size=(height, width), mode="nearest"),
        *_convolution(inner, inner, 3),
        nn.Conv2d(inner, channels, 3, padding=1),
    )


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, activation: str = "relu") -> list[nn.Module]:
    """A convolution, normalised and activated; GDN is both at once."""
    gdn = activation == "gdn"
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=gdn)
    return [convolution, GDN(outputs)] if gdn else [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class _Residual(nn.Module):
    """Two convolutions and what goes past them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(width, width, 3), nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`float32 [B, C, H, W]`, the same shape."""
        return nn.functional.relu(x + self.body(x))
