"""What every step of a training needs: random numbers, learning rates, qualities, and a mean of the weights."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from .options import TrainOptions
from .student import Student

Tensor = torch.Tensor

_WARM_SHARE = 0.1
"""Of a stage's steps, in which the learning rate rises."""
_LAST_SHARE = 0.01
"""Of the largest learning rate, at the end."""
_PRIOR_FASTER = 5.0
"""A prior that lags behind the encoder misprices its symbols."""
_STEPS_FASTER = 10.0
"""Logarithms of steps move over several units, weights over tenths."""
_MEAN_SHARE = 0.01
"""Of the newest weights in their mean."""


def seeded(*parts: object) -> torch.Generator:
    """A generator of its own for what `parts` name: the same on every machine, and after every restart."""
    return torch.Generator().manual_seed(zlib.crc32(repr(parts).encode()))


def draw_qualities(count: int, qualities: int, generator: torch.Generator) -> Tensor:
    """A quality for every frame of a batch: a quarter the smallest, a quarter the largest, the others drawn.

    The sandwich rule of slimmable networks (Yu and Huang, ICCV 2019), inside a batch: what lies between two rungs that
    are trained at every step comes out well by itself.
    """
    drawn = torch.randint(0, qualities, (count,), generator=generator)
    drawn[: count // 4] = 0
    drawn[count // 4 : count // 2] = qualities - 1
    return drawn


def one_cycle(step: int, total: int) -> float:
    """Share of the largest learning rate at a step: a short rise, then half a cosine down (Smith and Topin, 2018)."""
    warm = max(1, int(_WARM_SHARE * total))
    if step < warm:
        return (step + 1) / warm
    return _LAST_SHARE + (1 - _LAST_SHARE) * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def computing(options: TrainOptions) -> torch.autocast:
    """Let what is inside compute in the precision that was asked for."""
    return torch.autocast(torch.device(options.device).type, torch.bfloat16, enabled=options.precision == "bfloat16")


def optimiser_of(student: Student, options: TrainOptions) -> torch.optim.Optimizer:
    """AdamW, with a group for each kind of parameter: how much faster it learns, and whether it decays."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        if not parameter.requires_grad:
            continue
        faster = {"prior": _PRIOR_FASTER, "quantiser": _STEPS_FASTER}.get(name.partition(".")[0], 1.0)
        if name.startswith(student.kept):
            faster = options.kept_rate
        decays = parameter.ndim > 1 and faster <= 1
        groups.setdefault((faster, options.weight_decay if decays else 0.0), []).append(parameter)
    made = [{"params": ps, "weight_decay": decay, "faster": faster} for (faster, decay), ps in groups.items()]
    return torch.optim.AdamW(made, lr=options.rates[0])


def mean_of(student: nn.Module) -> AveragedModel:
    """Of weights and running statistics, over about the last tenth of the steps and a hundred at most (Polyak, 1992).

    What single steps add at random goes.
    """

    def follow(means: Sequence[Tensor], now: Sequence[Tensor], count: Tensor | int) -> None:
        share = max(_MEAN_SHARE, 9 / (10 + int(count)))
        for mean, value in zip(means, now, strict=True):
            mean.lerp_(value, share) if mean.is_floating_point() else mean.copy_(value)

    return AveragedModel(student, multi_avg_fn=follow, use_buffers=True)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its own multiple of a learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["faster"]
