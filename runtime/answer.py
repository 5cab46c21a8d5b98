"""What comes back for a frame, and the best classes out of a classifier's output."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import NarrowsError, UsageError
from .manifest import OutputSpec

Array = NDArray[Any]

DEFAULT_TOP = 5
MAX_TAILS = 16
"""Tails that may answer one frame."""


class Form(StrEnum):
    """How much of the outputs a device wants back."""

    TENSORS = "tensors"
    TOP = "top"
    """The best classes alone; a model that is no classifier answers with tensors all the same."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The form of answer that a device asks for."""

    form: Form = Form.TENSORS
    top: int = DEFAULT_TOP
    """How many classes."""
    tails: tuple[str, ...] = ()
    """Which of the cut's tails are to answer, by name; the cut's own where none is named."""

    def __post_init__(self) -> None:
        if len(self.tails) > MAX_TAILS or len(set(self.tails)) < len(self.tails):
            raise UsageError(f"a frame can be answered by {MAX_TAILS} tails, each named once")
        if not 1 <= self.top <= 1000:
            raise UsageError(f"between 1 and 1000 best classes can be asked for, not {self.top}")


@dataclass(frozen=True, slots=True)
class TopClass:
    """One of a classifier's best classes."""

    index: int
    score: float
    """A probability for `logits` and `probabilities`, the model's own number for `scores`."""


@dataclass(frozen=True, slots=True)
class ServerTiming:
    """Durations on the server, in milliseconds."""

    queue_ms: float = 0.0
    decode_ms: float = 0.0
    tail_ms: float = 0.0
    batch: int = 0
    """Frames that shared the tail's run."""


@dataclass(frozen=True, slots=True)
class TailAnswer:
    """What a further tail says to a frame."""

    outputs: dict[str, Array] = field(default_factory=dict)
    """Without batch axes; empty when the best classes alone were asked for."""
    top: tuple[TopClass, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's word on one frame: of the tail that was asked for first, and of the others."""

    id: int
    outputs: dict[str, Array] = field(default_factory=dict)
    """Without batch axes; empty when the best classes alone were asked for."""
    top: tuple[TopClass, ...] = ()
    error: NarrowsError | None = None
    timing: ServerTiming = field(default_factory=ServerTiming)
    """Of several tails, that of the one that came last."""
    further: dict[str, TailAnswer] = field(default_factory=dict)
    """By the tail's name."""


def classifier(outputs: Iterable[OutputSpec]) -> OutputSpec | None:
    """The output that holds a class for the frame: the first whose kind says so."""
    return next((output for output in outputs if output.kind != "tensor"), None)


def best_classes(output: Array, kind: str, count: int) -> tuple[TopClass, ...]:
    """The best classes of one frame, best first; equal scores in the order of their index.

    Args:
        output: scores of the classes, any shape; taken flat.
        kind: `OutputSpec.kind`.
        count: how many, at most.
    """
    return best_of_each(output[None], kind, count)[0]


def best_of_each(outputs: Array, kind: str, count: int) -> list[tuple[TopClass, ...]]:
    """`best_classes` of several frames at once, which takes a fraction of the time.

    Args:
        outputs: scores of the classes, any shape behind the batch axis.
        kind: `OutputSpec.kind`.
        count: how many, at most.
    """
    scores = outputs.reshape(len(outputs), -1).astype(np.float64)
    if kind == "logits":
        scores = np.exp(scores - scores.max(axis=1, keepdims=True, initial=-np.inf))
        scores /= scores.sum(axis=1, keepdims=True)
    if count == 1 and scores.size and not np.isnan(scores).any():
        order = scores.argmax(axis=1)[:, None]
    else:
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    best = np.take_along_axis(scores, order, axis=1)
    return [
        tuple(map(TopClass, own, own_scores)) for own, own_scores in zip(order.tolist(), best.tolist(), strict=True)
    ]
