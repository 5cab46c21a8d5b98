"""How good a student is on held-out pictures, as torch sees it: accuracy, loss, and about how many bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...runtime.codec import TRAINED_CODER, SymbolSpec, by_label, train_table
from ..blas import ONE_THREAD
from .data import Part
from .losses import RateControl
from .student import Student
from .teacher import Teacher

Tensor = torch.Tensor

_FRAMES = 2_000
_BATCH = 250
_CODED = 200
"""Frames that are coded to see how many bytes they take."""


@dataclass(frozen=True)
class Score:
    """Of one quality."""

    accuracy: float
    """Share of right answers."""
    loss: float
    """Cross-entropy with the labels, and what the bytes cost."""
    bytes: float
    """Mean payload of a frame: half of the pictures through the context coder, with a table that the others taught."""


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
    count = student.quantiser.qualities
    right, loss, total = np.zeros(count), np.zeros(count), 0
    seen: list[list[NDArray[np.uint8]]] = [[] for _ in range(count)]
    for rows, features in _encoded(teacher, student, part, frames):
        labels = torch.from_numpy(part.labels[rows]).to(features.device)
        total += len(rows)
        for q in range(count):
            quality = torch.full((len(rows),), q, device=features.device)
            answer = student.tail(student.decoder(student.quantiser(features, quality)))
            if answer.ndim == 2:
                right[q] += int((answer.argmax(1) == labels).sum())
                loss[q] += float(torch.nn.functional.cross_entropy(answer, labels, reduction="sum"))
            seen[q].append(student.quantiser.symbols(features, quality).cpu().numpy())
    sizes = [payload_bytes(np.concatenate(symbols), student.quantiser.levels) for symbols in seen]
    cost = [control.beta[q] * sizes[q] if student.prior is not None else 0.0 for q in range(count)]
    # Plain numbers: a checkpoint holds nothing else.
    return [Score(float(right[q] / total), float(loss[q] / total + cost[q]), sizes[q]) for q in range(count)]


@torch.no_grad()
def coded_bytes(teacher: Teacher, student: Student, part: Part) -> list[float]:
    """Mean payload of a frame at every quality, as `judge` measures it but without the answers."""
    features = torch.cat([some for _, some in _encoded(teacher, student, part, 2 * _CODED)])
    quality = torch.zeros(len(features), dtype=torch.int64, device=features.device)
    symbols = [student.quantiser.symbols(features, quality + q) for q in range(student.quantiser.qualities)]
    return [payload_bytes(one.cpu().numpy(), student.quantiser.levels) for one in symbols]


def _encoded(teacher: Teacher, student: Student, part: Part, frames: int) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Rows of so many pictures at most, evenly spread, and what the encoder makes of them, batch by batch."""
    rows = np.unique(np.linspace(0, len(part) - 1, min(frames, len(part))).round().astype(np.int64))
    device = next(student.parameters()).device
    for chunk in np.array_split(rows, max(1, -(-len(rows) // _BATCH))):
        yield chunk, student.encoder(teacher.normalised(part.pictures[chunk]).to(device))


@torch.no_grad()
def prior_bytes(teacher: Teacher, student: Student, part: Part, frames: int = _FRAMES) -> list[float]:
    """Mean bytes of a frame at every quality if the prior itself coded the symbols; empty where there is none."""
    if student.prior is None:
        return []
    total, seen = np.zeros(student.quantiser.qualities), 0
    for rows, features in _encoded(teacher, student, part, frames):
        seen += len(rows)
        for q in range(len(total)):
            quality = torch.full((len(rows),), q, device=features.device)
            restored, steps = student.quantiser(features, quality), student.quantiser.steps(quality)
            total[q] += float(student.prior.bits(restored, steps).sum()) / 8
    return [float(t / seen) for t in total]


def payload_bytes(symbols: NDArray[np.uint8], levels: int) -> float:
    """Mean payload of frames `uint8 [N, C, h, w]` through the context coder.

    Of the first frames, every other one teaches the table and the others are coded.
    """
    chosen = symbols[: 2 * _CODED]
    spec = SymbolSpec(chosen.shape[1:], chosen.dtype, levels, channel_axis=0)
    with ONE_THREAD:
        bound = by_label(TRAINED_CODER).bind(spec, train_table(spec, chosen[::2]))
    return float(np.mean([len(bound.encode(frame)) for frame in chosen[1::2]]))
