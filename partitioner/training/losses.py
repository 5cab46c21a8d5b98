"""What training makes small."""

from __future__ import annotations

import math
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
    parts = [functional.mse_loss(m.float(), w.float()) / s for m, w, s in zip(made, wanted, scales, strict=True)]
    return torch.stack(parts).mean()


def distillation(answer: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of softened answers, times T² (Hinton et al., 2015)."""
    soft = functional.log_softmax(answer.float() / temperature, dim=1)
    target = functional.log_softmax(wanted.float() / temperature, dim=1)
    return functional.kl_div(soft, target, reduction="batchmean", log_target=True) * temperature**2


def answer_loss(answer: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """How far an answer is from the teacher's: distillation of logits `[B, classes]`, else the share of variance."""
    if answer.ndim == 2:
        return distillation(answer, wanted, temperature)
    return functional.mse_loss(answer.float(), wanted.float()) / wanted.float().var().clamp(min=1e-6)


class RateControl:
    """What a byte costs at each quality: a constant, or what keeps the rate at its target.

    With a target the multiplier follows by gradient ascent on its logarithm (the dual of the constrained problem), so
    a bottleneck of 120 bytes is asked for as that, and not as a beta that somebody has to find.
    """

    _SMOOTH = 0.9
    """Of the mean rate that the multiplier follows."""
    _TRAVEL = 30.0
    """A multiplier could change by exp(this) within a stage, if its target were missed all along."""
    _LEAST_GAIN = 0.005
    _RAMP_SHARE = 0.4
    """Of a stage, in which the target comes down from where the rate began: what is far off is not yet asked for."""
    _FIRST_COST = 1.0
    """What a frame at its target costs at first, in a loss whose other terms begin at about 1."""
    _MOST, _LEAST = 1.0, 1e-7

    def __init__(self, beta: Sequence[float], target_bytes: Sequence[float]) -> None:
        self.target = tuple(target_bytes)
        self.beta = [self._FIRST_COST / target for target in self.target] or list(beta)
        self.mean = [0.0] * len(self.beta)
        self.first = [0.0] * len(self.beta)
        """Rates that the stage began with."""
        self.scale = [1.0] * len(self.beta)
        """Bytes of the codec to one of the prior, which knows nothing of neighbours."""

    def loss(self, bits: Tensor, quality: Tensor) -> Tensor:
        """Mean cost of the frames' bytes."""
        beta = torch.tensor(self.beta, device=bits.device)[quality]
        return (beta * bits / 8).mean()

    def begin(self) -> None:
        """Let a stage begin: its ramps start from its own first rates."""
        self.first = [0.0] * len(self.beta)

    def follow(self, bits: Tensor, quality: Tensor, done: float, steps: int) -> None:
        """Move each multiplier towards where its target is met.

        Args:
            bits: `float32 [B]`.
            quality: `int64 [B]`.
            done: share of the stage that is behind, 0 to 1.
            steps: of the stage, which say how fast to move.
        """
        gain = max(self._LEAST_GAIN, self._TRAVEL / steps)
        for q in range(len(self.beta)):
            rows = bits.detach()[quality == q]
            if not len(rows):
                continue
            now = max(float(rows.mean()) / 8 * self.scale[q], 1e-3)
            self.mean[q] = now if not self.mean[q] else self._SMOOTH * self.mean[q] + (1 - self._SMOOTH) * now
            self.first[q] = self.first[q] or now
            if self.target:
                left = max(0.0, 1 - done / self._RAMP_SHARE)
                goal = self.target[q] * (self.first[q] / self.target[q]) ** left
                missed = max(-1.0, min(1.0, 2 * math.log(self.mean[q] / goal)))
                self.beta[q] = max(self._LEAST, min(self._MOST, self.beta[q] * math.exp(gain * missed)))

    def measured(self, coded_bytes: Sequence[float]) -> None:
        """Hear what the codec made of held-out frames at each quality."""
        for q, coded in enumerate(coded_bytes):
            if self.mean[q]:
                ratio = self.scale[q] * coded / self.mean[q]
                self.scale[q] = max(0.5, min(2.0, ratio))
                self.mean[q] = coded

    def state(self) -> dict[str, list[float]]:
        """What a checkpoint keeps."""
        return {"beta": list(self.beta), "mean": list(self.mean), "first": list(self.first), "scale": list(self.scale)}

    def restore(self, state: dict[str, list[float]]) -> None:
        """Go on from what `state` gave."""
        for name in ("beta", "mean", "first", "scale"):
            setattr(self, name, list(state[name]))
