"""What training makes small."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

Tensor = torch.Tensor


def feature_loss(made: Sequence[Tensor], wanted: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
    """Generalised head network distillation: squared errors of several maps of features, each over its own variance.

    BottleFit sums plain squared errors, so that the map with the largest values decides; a share of variance weighs
    every map alike, and means the same for every teacher.

    Args:
        made: `[B, C, H, W]` each.
        wanted: the teacher's.
        scales: variance of each of the teacher's.
    """
    parts = [functional.mse_loss(m, w) / s for m, w, s in zip(made, wanted, scales, strict=True)]
    return torch.stack(parts).mean()


def distillation(answer: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of softened answers, times T² (Hinton et al., 2015)."""
    soft = functional.log_softmax(answer / temperature, dim=1)
    target = functional.log_softmax(wanted / temperature, dim=1)
    return functional.kl_div(soft, target, reduction="batchmean", log_target=True) * temperature**2


def answer_loss(answer: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """How far an answer is from the teacher's: distillation of logits `[B, classes]`, else the share of variance."""
    if answer.ndim == 2:
        return distillation(answer, wanted, temperature)
    return functional.mse_loss(answer, wanted) / wanted.var().clamp(min=1e-6)


class RateControl:
    """What a byte costs at each quality: a constant, or what keeps the rate at its target.

    With a target the multiplier follows by gradient ascent on its logarithm (the dual of the constrained problem), so
    a bottleneck of 120 bytes is asked for as that, and not as a beta that somebody has to find.
    """

    _GAIN = 0.02
    _SMOOTH = 0.95
    _MOST, _LEAST = 1.0, 1e-7

    def __init__(self, beta: Sequence[float], target_bytes: Sequence[float]) -> None:
        count = len(target_bytes) or len(beta)
        self.target = tuple(target_bytes)
        self.beta = list(beta) if len(beta) == count else [beta[0]] * count
        self.mean: list[float] = [0.0] * count

    def loss(self, bits: Tensor, quality: Tensor) -> Tensor:
        """Mean cost of the frames' bytes."""
        beta = torch.tensor(self.beta, device=bits.device)[quality]
        return (beta * bits / 8).mean()

    def follow(self, bits: Tensor, quality: Tensor) -> None:
        """Move each multiplier towards where its target is met."""
        seen = bits.detach() / 8
        for q in range(len(self.beta)):
            rows = seen[quality == q]
            if not len(rows):
                continue
            now = float(rows.mean())
            self.mean[q] = now if not self.mean[q] else self._SMOOTH * self.mean[q] + (1 - self._SMOOTH) * now
            if self.target:
                over = max(-1.0, min(1.0, self.mean[q] / self.target[q] - 1))
                self.beta[q] = max(self._LEAST, min(self._MOST, self.beta[q] * (1 + self._GAIN * over)))

    def state(self) -> dict[str, list[float]]:
        """What a checkpoint keeps."""
        return {"beta": list(self.beta), "mean": list(self.mean)}

    def restore(self, state: dict[str, list[float]]) -> None:
        """Go on from what `state` gave."""
        self.beta, self.mean = list(state["beta"]), list(state["mean"])
