"""What every frame ends with, exactly once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..runtime.answer import Array
from ..runtime.errors import NarrowsError
from ..runtime.point import Point

Provenance = Literal["server", "exit", "local"]
"""A server, the early exit at the cut, or the whole model on the device."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One of a classifier's best classes, with its name."""

    index: int
    label: str | None
    """None where the bundle has no labels."""
    score: float
    """A probability for `logits` and `probabilities`, the model's own number for `scores`."""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What one tail says."""

    outputs: Mapping[str, Array]
    """By name, without batch axes; empty where the best classes alone were asked for."""
    top: tuple[Prediction, ...]
    """Best first; empty where it is no classifier."""

    def top_to_json(self) -> list[dict[str, Any]]:
        """The best classes, as values that JSON has."""
        return [{"index": best.index, "label": best.label, "score": best.score} for best in self.top]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """A prediction with where it came from and what it cost, or the error that the frame ended in."""

    id: int
    """Position of the input in its stream, from 0."""
    source: str
    """Where the input came from: a path, "file.npz[3]", or "frame 3" for what a caller passed."""
    point: Point
    """What the answer was made by; for an error, what was tried."""
    error: NarrowsError | None = None
    outputs: Mapping[str, Array] = field(default_factory=dict)
    """The model's outputs by name, without batch axes; empty where the best classes alone were asked for."""
    top: tuple[Prediction, ...] = ()
    """Best first; empty where the model is no classifier."""
    answers: Mapping[str, Answer] = field(default_factory=dict)
    """Where tails were named: what each says, by its name, in their order. `outputs` and `top` are the first one's."""
    provenance: Provenance | None = None
    """Who answered; None for a frame that ended in an error."""
    picture: NDArray[np.uint8] | None = None
    """The input's, where its source was asked to keep it (`Input.picture`)."""
    confidence: float | None = None
    """The early exit's, 0…1, where it was asked, whoever answered then."""
    attempts: int = 0
    """How often the frame was sent."""
    payload_bytes: int = 0
    """What the coder made of the frame."""
    wire_bytes: int = 0
    """What one sending of it takes in the TCP stream, with gRPC's and HTTP/2's framing."""
    ms: Mapping[str, float] = field(default_factory=dict)
    """Durations in milliseconds: `source` (reading and fitting the input), `head`, `exit` (the early exit), `encode`,
    `link` (from the last sending to the answer, without the server's time), the server's `queue`, `decode` and `tail`,
    `final` (the device's last graph of a three-way cut), `local` (the whole model on the device), and `total` (from the
    input being there to the answer, so without `source`; what the other entries leave of it was spent waiting for a
    stage or for a connection). Only what took place is listed."""

    @property
    def outcome(self) -> str:
        """ "ok", or the error's stable code."""
        return "ok" if self.error is None else self.error.code

    def to_json(self) -> dict[str, Any]:
        """All but the raw outputs, as values that JSON has."""
        return {
            "id": self.id,
            "source": self.source,
            "outcome": self.outcome,
            "error": None if self.error is None else str(self.error),
            "top": Answer(self.outputs, self.top).top_to_json(),
            "tails": {tail: answer.top_to_json() for tail, answer in self.answers.items()},
            "point": {
                "mode": self.point.mode,
                "cut": self.point.cut,
                "quality": self.point.quality,
                **({"format": self.point.format} if self.point.mode == "offload" else {}),
            },
            "provenance": self.provenance,
            "confidence": None if self.confidence is None else round(self.confidence, 4),
            "attempts": self.attempts,
            "payload_bytes": self.payload_bytes,
            "wire_bytes": self.wire_bytes,
            "ms": {stage: round(duration, 4) for stage, duration in self.ms.items()},
        }


class Tally:
    """How frames ended. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.server = 0
        self.exit = 0
        """Answered by the early exit, by choice or as a fallback."""
        self.local = 0
        """Answered by the whole model on the device, by choice or as a fallback."""
        self.rescued = 0
        """Answered on the device although they had been sent to a server."""
        self.errors: Counter[str] = Counter()
        """By code."""
        self.dropped = 0
        """Inputs that the user's drop policy let go; they have no outcome."""

    def drop(self) -> None:
        """Count an input that was let go."""
        with self._lock:
            self.dropped += 1

    def count(self, outcome: Outcome) -> None:
        """Take an outcome in."""
        with self._lock:
            if outcome.error is not None:
                self.errors[outcome.error.code] += 1
                return
            self.rescued += outcome.provenance != "server" and outcome.attempts > 0
            self.server += outcome.provenance == "server"
            self.exit += outcome.provenance == "exit"
            self.local += outcome.provenance == "local"
