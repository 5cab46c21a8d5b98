"""The best operating point under constraints, the front of those that nothing beats, and the nearest miss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ..runtime.errors import NothingPlannedError, UsageError
from .link import Link
from .predict import Conditions, Prediction, predict
from .profile import Profile

Objective = Literal["latency", "throughput", "energy", "bytes", "accuracy"]

UNKNOWN_DROP = 100.0
"""Points of accuracy that a point of unknown accuracy is taken to cost: it meets no bound."""


@dataclass(frozen=True, slots=True)
class Constraints:
    """What a point must keep; None for no bound."""

    deadline_ms: float | None = None
    """On the expected latency."""
    max_accuracy_drop: float | None = None
    """Points of per cent below the whole model. A point whose drop nobody knows does not keep it."""
    min_fps: float | None = None
    max_bytes: float | None = None
    """In the TCP stream, of a mean frame."""
    max_energy_j: float | None = None
    max_memory_bytes: float | None = None
    """Of the device's graph. A point whose memory nobody knows is taken to keep it."""

    def __post_init__(self) -> None:
        bounds = (self.deadline_ms, self.min_fps, self.max_bytes, self.max_energy_j, self.max_memory_bytes)
        if any(bound is not None and not bound > 0 for bound in bounds):
            raise UsageError(f"bounds are positive, not {self}")
        if self.max_accuracy_drop is not None and not 0 <= self.max_accuracy_drop <= 100:
            raise UsageError(f"an accuracy drop is 0 to 100 points, not {self.max_accuracy_drop}")

    def misses(self, one: Prediction) -> dict[str, float]:
        """By which factor, above 1, a prediction exceeds each bound that it does not keep, by the bound's name."""
        drop = UNKNOWN_DROP if one.accuracy_drop is None else one.accuracy_drop
        held = {
            "latency": _excess(one.latency_ms, self.deadline_ms),
            "throughput": _excess(1 / one.throughput_fps, self.min_fps and 1 / self.min_fps),
            "bytes": _excess(one.wire_bytes, self.max_bytes),
            "energy": _excess(one.energy_j, self.max_energy_j),
            "memory": _excess(one.memory_bytes or 0.0, self.max_memory_bytes),
            # Counted from one point below nothing, so that a bound of no drop at all has a ratio, too.
            "accuracy": 1.0
            if _keeps(drop, self.max_accuracy_drop)
            else (1 + drop) / (1 + (self.max_accuracy_drop or 0)),
        }
        return {name: factor for name, factor in held.items() if factor > 1}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with the frames of one device over one link."""

    objective: Objective
    best: Prediction
    """The best of those that keep every bound; the nearest miss where none does."""
    misses: dict[str, float]
    """Empty where the bounds are kept; else by which factor `best` exceeds each."""
    predictions: tuple[Prediction, ...]
    """All points."""
    front: tuple[Prediction, ...]
    """Those that no other beats in latency, bytes, energy and accuracy at once; by rising latency."""

    @property
    def feasible(self) -> bool:
        """Whether the bounds are kept."""
        return not self.misses

    @property
    def split(self) -> bool:
        """Whether splitting is the right thing to do."""
        return self.best.point.mode == "split"


def plan(
    device: Profile,
    server: Profile | None,
    link: Link,
    constraints: Constraints | None = None,
    objective: Objective = "latency",
    conditions: Conditions | None = None,
) -> Plan:
    """The best operating point.

    Args:
        device: profile of the device.
        server: profile of the server; the device's own where None.
        link: between them.
        constraints: what must be kept.
        objective: what counts among those that keep it.
        conditions: scales, load and powers.

    Raises:
        ProfileError: profiles of two models.
        NothingPlannedError: no point can be taken: the profiles have no cut in common, or nothing passes the link, and
            the device's profile lacks the whole model.
    """
    return best_of(predict(device, server, link, conditions), constraints, objective)


def best_of(
    predictions: Sequence[Prediction], constraints: Constraints | None = None, objective: Objective = "latency"
) -> Plan:
    """The best of some predictions.

    Where no point keeps every bound, the nearest miss is given: the least product of all excesses.

    Raises:
        NothingPlannedError: there are none.
        UsageError: an objective that is none.
    """
    if objective not in get_args(Objective):
        raise UsageError(f"the objective is one of {', '.join(get_args(Objective))}, not {objective!r}")
    if not predictions:
        raise NothingPlannedError(
            "no operating point can be taken: nothing passes the link, or the profiles have no measured cut in common, "
            "and the device's profile lacks the whole model; profile a bundle that carries it (narrows cut --local)"
        )
    bounds, cost = constraints or Constraints(), COSTS[objective]
    kept = [one for one in predictions if not bounds.misses(one)]
    if kept:
        best = min(kept, key=lambda one: (cost(one), one.latency_ms))
    else:
        best = min(predictions, key=lambda one: (math.prod(bounds.misses(one).values()), cost(one)))
    return Plan(objective, best, bounds.misses(best), tuple(predictions), front(predictions))


def front(predictions: Iterable[Prediction]) -> tuple[Prediction, ...]:
    """The Pareto front: points that no other beats in latency, bytes, energy and accuracy drop at once.

    Returns:
        By rising latency. Of points that are equal in everything, the first stays.
    """
    kept: list[tuple[tuple[float, ...], Prediction]] = []
    ranked = sorted(((_costs(one), one) for one in predictions), key=lambda pair: pair[0])
    for costs, one in ranked:
        if not any(all(a <= b for a, b in zip(other, costs, strict=True)) for other, _ in kept):
            kept.append((costs, one))
    return tuple(one for _, one in kept)


def _costs(one: Prediction) -> tuple[float, ...]:
    drop = UNKNOWN_DROP if one.accuracy_drop is None else one.accuracy_drop
    return (one.latency_ms, one.wire_bytes, one.energy_j, drop)


def _keeps(drop: float, allowed: float | None) -> bool:
    return allowed is None or drop <= allowed + 1e-9  # 100 × (1 - 0.99) is a little more than 1


def _excess(value: float, bound: float | None) -> float:
    return 1.0 if bound is None else value / bound


COSTS: dict[Objective, Callable[[Prediction], float]] = {
    "latency": lambda one: one.latency_ms,
    "throughput": lambda one: -one.throughput_fps,
    "energy": lambda one: one.energy_j,
    "bytes": lambda one: one.wire_bytes,
    "accuracy": lambda one: UNKNOWN_DROP if one.accuracy_drop is None else one.accuracy_drop,
}
"""What an objective minimises."""
