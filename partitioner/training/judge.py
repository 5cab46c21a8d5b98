"""How good a student is on held-out pictures, as torch sees it: accuracy, loss, and about how many bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .data import Part
from .losses import RateControl
from .student import Student
from .teacher import Teacher

_FRAMES = 2_000
_BATCH = 250


@dataclass(frozen=True)
class Score:
    """Of one quality."""

    accuracy: float
    """Share of right answers."""
    loss: float
    """Cross-entropy with the labels, and what the bytes cost."""
    bytes: float
    """A frame, as the order-0 entropy of the symbols of each channel would have it: about what a table without any
    context needs. The codec's own count stands in the manifest."""


@torch.no_grad()
def judge(teacher: Teacher, student: Student, part: Part, control: RateControl, frames: int = _FRAMES) -> list[Score]:
    """Score every quality; the student is in evaluation mode.

    Args:
        teacher: for its normalisation.
        student: to be judged.
        part: held-out pictures.
        control: prices of a byte.
        frames: at most so many pictures, evenly spread.
    """
    rows = np.unique(np.linspace(0, len(part) - 1, min(frames, len(part))).round().astype(np.int64))
    device = next(student.parameters()).device
    count = student.quantiser.qualities
    right, loss = np.zeros(count), np.zeros(count)
    levels, channels = student.quantiser.levels, student.quantiser.log_steps.shape[1]
    seen = np.zeros((count, channels, levels))
    for chunk in np.array_split(rows, max(1, -(-len(rows) // _BATCH))):
        labels = torch.from_numpy(part.labels[chunk]).to(device)
        features = student.encoder(teacher.normalised(part.pictures[chunk]).to(device))
        for q in range(count):
            quality = torch.full((len(chunk),), q, device=device)
            answer = student.tail(student.decoder(student.quantiser(features, quality)))
            if answer.ndim == 2:
                right[q] += int((answer.argmax(1) == labels).sum())
                loss[q] += float(torch.nn.functional.cross_entropy(answer, labels, reduction="sum"))
            _count(seen[q], student.quantiser.symbols(features, quality).cpu().numpy())
    sizes = [_entropy_bytes(seen[q]) / len(rows) for q in range(count)]
    cost = [control.beta[q] * sizes[q] if student.prior is not None else 0.0 for q in range(count)]
    return [Score(right[q] / len(rows), loss[q] / len(rows) + cost[q], sizes[q]) for q in range(count)]


@torch.no_grad()
def teacher_accuracy(teacher: Teacher, part: Part, device: str = "cpu") -> float:
    """Share of right answers of the teacher itself."""
    right = 0
    for start in range(0, len(part), _BATCH):
        rows = slice(start, start + _BATCH)
        answer = teacher.module(teacher.normalised(part.pictures[rows]).to(device))
        right += int((answer.argmax(1).cpu() == torch.from_numpy(part.labels[rows])).sum())
    return right / len(part)


def _count(seen: NDArray[np.float64], symbols: NDArray[np.uint8]) -> None:
    channels, levels = seen.shape
    index = symbols.transpose(1, 0, 2, 3).reshape(channels, -1).astype(np.int64) + levels * np.arange(channels)[:, None]
    seen += np.bincount(index.ravel(), minlength=seen.size).reshape(seen.shape)


def _entropy_bytes(seen: NDArray[np.float64]) -> float:
    share = seen / np.maximum(seen.sum(axis=1, keepdims=True), 1)
    bits = np.log2(share, where=share > 0, out=np.zeros_like(share))
    return float(-(seen * bits).sum() / 8)
