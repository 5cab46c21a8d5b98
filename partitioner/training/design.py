"""Encoder and decoder from the shapes alone: as much encoder as the budget has room for, and a decoder to match.

A small teacher's encoder is all new: a convolution for every halving, and residual blocks where it is narrow. Under a
large one, which has seen more pictures than the student ever will, the encoder begins with the teacher's own first
layers, as many as the budget has room for (the **stem**), and goes on with separable convolutions, which have few
parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import nn

from ...runtime.errors import UsageError
from .halves import Halves, Stem, nominal_stride, stem_at, stems
from .layers import Layer, Residual, convolution
from .options import AUTO, NO_STEM, TrainOptions
from .teacher import Teacher, macs_of, params_of

Tensor = torch.Tensor

_WIDTHS = (4, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128)
"""Of the first new layer. Multiples of four, as vector units like them."""
_GROWTHS = (1.0, 1.25, 1.5, 2.0)
"""Of the width from halving to halving."""
_BLOCKS = (0, 1, 2, 3)
_KERNELS = (5, 3)
"""Of the first convolution, the better one first."""
_SEPARABLE_KERNEL = 5
_MAX_WIDTH = 192
_MACS_SHARE = 2
"""The encoder may take one part in so many of the work that it replaces."""
_PARAMS_SHARE = 81
"""The encoder may have one in so many of a large teacher's parameters."""
_SMALL_PARAMS_SHARE = 3
"""The same of a teacher that is small itself, whose head needs no shrinking to be sent to a device."""
_STEM_SHARE = 0.8
"""Of either budget, at most, that a stem found by itself may take."""
_LARGE_TEACHER = 1_000_000
_NARROWEST_DECODER, _WIDEST_DECODER = 32, 128
_SMALLEST_SIDE = 4
"""Columns of a bottleneck, where nobody asks for a stride."""


@dataclass(frozen=True)
class Pair:
    """What is trained into the teacher."""

    encoder: nn.Module
    """Normalised picture `float32 [B, 3, H, W]` to the bottleneck `[B, C, h, w]`."""
    decoder: nn.Module
    """The bottleneck to the teacher's features."""
    has_stem: bool = False
    """The encoder is a sequence whose first member comes from the teacher."""
    even: bool = False
    """The channels are alike in what an error in them does, as after an orthonormal transform: all begin with one step,
    and those that vary little cost little. Otherwise each begins with a step of its own."""


@dataclass(frozen=True)
class Budget:
    """What the encoder may cost."""

    params: int
    macs: int

    def holds(self, params: int, macs: int, share: float = 1.0) -> bool:
        """Whether so much fits into a share of it."""
        return params <= share * self.params and macs <= share * self.macs


@dataclass(frozen=True)
class Design:
    """A pair before it is made."""

    image: tuple[int, int]
    features: tuple[int, int, int]
    """Of the teacher at the cut: channels, height, width."""
    stem: Stem | None
    layers: tuple[Layer, ...]
    """Of the encoder, behind the stem."""
    decoder_width: int
    decoder_blocks: int

    @property
    def price(self) -> tuple[int, int]:
        """Parameters and multiply-accumulates of the encoder."""
        params, macs = (self.stem.params, self.stem.macs) if self.stem else (0, 0)
        height, width = self.stem.shape[1:] if self.stem else self.image
        for layer in self.layers:
            height, width = -(-height // layer.stride), -(-width // layer.stride)
            params, macs = params + layer.params, macs + layer.macs(height, width)
        return params, macs

    def make(self) -> Pair:
        """The modules; what is new has random weights of torch's global generator, the stem those of the teacher."""
        stem = [copy.deepcopy(self.stem.module)] if self.stem else []
        return Pair(nn.Sequential(*stem, *(layer.make() for layer in self.layers)), _decoder(self), has_stem=bool(stem))


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
        UnknownTensorError: a stem that the teacher does not have.
        CutError: a stem whose output does not separate the teacher.
    """
    image = (teacher.preprocess.height, teacher.preprocess.width)
    stride = options.stride or _stride(nominal_stride(halves.features, image), image)
    if stride & (stride - 1):
        raise UsageError(f"the stride is a power of two, not {stride}")
    large = teacher.params >= _LARGE_TEACHER
    budget = budget_of(teacher, halves, options)
    stem = _stem(teacher, halves, options, budget, stride)
    inner = options.decoder_width or min(_WIDEST_DECODER, max(_NARROWEST_DECODER, 2 * halves.features[0]))
    tried = [
        Design(image, halves.features, stem, layers, inner, options.decoder_blocks)
        for layers in _layers(stem, image, stride, options.channels, separable=large, gdn=activation == "gdn")
    ]
    fitting = [one for one in tried if budget.holds(*one.price)]
    if not fitting:
        params, macs = min(one.price for one in tried)
        raise UsageError(
            f"no encoder of {budget.params:,} parameters and {budget.macs:,} MACs: the smallest here has {params:,} "
            f"and {macs:,}; raise --head-params or --head-macs, cut later, or do without a stem"
        )
    return max(fitting, key=lambda one: one.price)


def budget_of(teacher: Teacher, halves: Halves, options: TrainOptions) -> Budget:
    """What an encoder may cost, as asked for or by the teacher's size."""
    share = _PARAMS_SHARE if teacher.params >= _LARGE_TEACHER else _SMALL_PARAMS_SHARE
    return Budget(options.head_params or teacher.params // share, options.head_macs or halves.front_macs // _MACS_SHARE)


def prices(teacher: Teacher, halves: Halves, pair: Pair) -> list[Price]:
    """The table to print: the teacher's own head beside the encoder, the decoder, and the tail that stays.

    Raises:
        UsageError: the decoder does not put out what the cut has.
    """
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


def _stem(teacher: Teacher, halves: Halves, options: TrainOptions, budget: Budget, stride: int) -> Stem | None:
    """The stem that is asked for, or the longest one that leaves room in the budget."""
    image = (teacher.preprocess.height, teacher.preprocess.width)
    if options.stem == NO_STEM or (options.stem == AUTO and teacher.params < _LARGE_TEACHER):
        return None
    if options.stem != AUTO:
        found = stem_at(teacher, options.stem)
        if nominal_stride(found.shape, image) > stride:
            raise UsageError(f"the stem {options.stem!r} is narrower than a bottleneck of stride {stride}: --stride")
        return found
    fitting = [
        stem
        for stem in stems(teacher, halves.at)
        if budget.holds(stem.params, stem.macs, _STEM_SHARE) and nominal_stride(stem.shape, image) <= stride
    ]
    return fitting[-1] if fitting else None


def _layers(
    stem: Stem | None, image: tuple[int, int], stride: int, channels: int, *, separable: bool, gdn: bool
) -> Iterator[tuple[Layer, ...]]:
    """Encoders of every size."""
    before = stem.shape[0] if stem else 3
    own = nominal_stride(stem.shape, image) if stem else 1
    halvings = (stride // own).bit_length() - 1
    for first, growth, blocks, kernel in product(_WIDTHS, _GROWTHS, _BLOCKS, _KERNELS):
        widths = [min(_MAX_WIDTH, 4 * round(first * growth**i / 4)) for i in range(halvings)]
        inner: list[Layer] = []
        last = before
        for i, width in enumerate(widths):
            new = stem is None and i == 0  # three colours are too few to be worth separating
            if separable and not new:
                inner.append(Layer("separable", last, width, _SEPARABLE_KERNEL, 2))
            else:
                inner.append(Layer("convolution", last, width, kernel if new else 3, 2, gdn))
            last = width
        for _ in range(blocks if last > 3 else 0):
            block = Layer("separable", last, last, _SEPARABLE_KERNEL) if separable else Layer("residual", last, last)
            inner.append(block)
        yield (*inner, Layer("plain", last, channels, 1))


def _decoder(made: Design) -> nn.Module:
    channels, height, width = made.features
    inner = made.decoder_width
    return nn.Sequential(
        convolution(made.layers[-1].outputs, inner, 3),
        *(Residual(inner) for _ in range(made.decoder_blocks)),
        nn.Upsample(size=(height, width), mode="nearest"),
        nn.Conv2d(inner, channels, 3, padding=1),
    )
