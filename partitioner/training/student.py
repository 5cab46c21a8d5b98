"""The student: a teacher whose early layers gave way to an encoder, a quantiser and a decoder."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from .design import Pair
from .folding import folded
from .halves import Halves, Tail
from .inherit import Kept
from .options import TrainOptions
from .prior import FactorisedPrior
from .quantiser import Quantiser

Tensor = torch.Tensor

TRUE_EVERY = 4
"""Frames of a batch to one whose symbols are priced as they are."""


@dataclass(frozen=True)
class Made:
    """What a student makes of a batch in training."""

    answer: Tensor
    """`[B, classes]`"""
    features: list[Tensor]
    """The decoder's, then the taps'."""
    bits: Tensor | None
    """Of each frame, `float32 [B]`, by the prior, with noise for rounding; None where there is no prior."""
    true_bits: Tensor | None
    """The same of the symbols themselves, without gradient: noise overstates or understates coarse steps. Of every
    `TRUE_EVERY`-th frame, since the prior is half of a small student's work."""


class Student(nn.Module):
    """Encoder, quantiser, decoder and tail as one module."""

    def __init__(self, pair: Pair, halves: Halves, options: TrainOptions) -> None:
        super().__init__()
        self.encoder, self.decoder = pair.encoder, pair.decoder
        self.quantiser = Quantiser(options.channels, _levels(halves, pair, options), options.qualities)
        self.prior = FactorisedPrior(options.channels) if options.rated else None
        self.tail: Tail = copy.deepcopy(halves.tail)
        self.options = options
        self.even = pair.even
        self.kept = ("tail.", *(["encoder.0."] if pair.has_stem else []))
        """Beginnings of the names of parameters that come from the teacher."""

    @torch.no_grad()
    def start(self, pictures: Tensor) -> None:
        """Set scales from a first batch of normalised pictures."""
        self.eval()
        features = self.encoder(pictures)
        rated = self.prior is not None
        self.quantiser.start(features, rated=rated, target_bytes=self.options.target_bytes, even=self.even)
        if self.prior is not None:
            self.prior.start(features, self.quantiser.log_steps.exp())

    @property
    def keeps(self) -> bool:
        """Whether the encoder begins with layers that do not change."""
        return self.kept_layers is not None and not self.kept_layers.learns

    @property
    def kept_layers(self) -> Kept | None:
        """What the encoder begins with of the teacher's, where it inherits."""
        first = self.encoder[0] if isinstance(self.encoder, nn.Sequential) else None
        return first if isinstance(first, Kept) else None

    def before(self, pictures: Tensor) -> Tensor:
        """What the encoder's unchanging layers make of normalised pictures; the pictures where it has none."""
        return self.encoder[0](pictures) if self.keeps else pictures  # type: ignore[index]

    def made(self, before: Tensor, quality: Tensor, generator: torch.Generator) -> Made:
        """Run as in training, from what `before` gave."""
        learning = self.encoder[1:] if self.keeps else self.encoder  # type: ignore[index]
        features = learning(before).float()
        # What decides the symbols and what they cost is never computed in less than float32.
        with torch.autocast(features.device.type, enabled=False):
            seen, bits, true_bits = self._quantised(features, quality, generator)
        restored = self.decoder(seen)
        answer, *taps = self.tail.tapped(restored)
        return Made(answer, [restored, *taps], bits, true_bits)

    def _quantised(
        self, features: Tensor, quality: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What the decoder sees, and the bits of it: with noise for rounding, and as it is."""
        seen: Tensor = self.quantiser(features, quality)
        if self.prior is None:
            return seen, None, None
        noisy, steps = self.quantiser.noisy(features, quality, generator), self.quantiser.steps(quality)
        bits = self.prior.bits(noisy, steps)
        with torch.no_grad():
            true_bits = self.prior.bits(seen[::TRUE_EVERY], steps[::TRUE_EVERY])
        return noisy if self.options.relaxation == "noise" else seen, bits, true_bits

    def forward(self, pictures: Tensor, quality: Tensor) -> Tensor:
        """The answer as it is deployed: normalised pictures `[B, 3, H, W]`, qualities `int64 [B]`."""
        answer: Tensor = self.tail(self.decoder(self.quantiser(self.encoder(pictures), quality)))
        return answer

    def folded(self) -> Student:
        """A copy that only answers (`folding.py`), to be judged while this one goes on learning."""
        made = copy.deepcopy(self).requires_grad_(False).eval()
        made.encoder, made.decoder, made.tail = folded(made.encoder), folded(made.decoder), made.tail.folded()
        return made

    @torch.no_grad()
    def symbols(self, pictures: Tensor, quality: Tensor) -> Tensor:
        """`uint8 [B, C, h, w]`: what crosses the link."""
        return self.quantiser.symbols(self.encoder(pictures), quality)


def _levels(halves: Halves, pair: Pair, options: TrainOptions) -> int:
    return options.levels or (16 if options.rated else 8)
