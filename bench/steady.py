"""When a step has been measured for long enough, and what its frames say.

**The rule.** At every look the first quarter of the time so far is left out as warm-up, and the rest is parted into
three windows. The step has settled when each window has at least `LEAST_FRAMES` frames, and both the mean latency and
the throughput of each are within the tolerance of their mean over the three. In an open loop the throughput is counted
as the answered share of what arrived, for a Poisson process varies by itself. The windows grow with the time, so that
whatever grows steadily (a queue under overload) never passes for settled, however long it is looked at.

What is reported is measured over the three windows, all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .lines import Ended

PARTS = 3
WARM_UP = 0.25
LEAST_FRAMES = 34
"""In each window, so that the three have the hundred frames that a p99 takes."""
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}

STAGES = ("waiting", "head", "coding", "link", "queue", "tail", "local", "latency")
_SUMS = {
    "head": ("head",),
    "coding": ("encode", "decode"),
    "link": ("link",),
    "queue": ("queue",),
    "tail": ("tail",),
    "local": ("local",),
}


@dataclass(frozen=True, slots=True)
class Durations:
    """A stage's durations in milliseconds; None for a percentile that takes more frames than there are."""

    mean: float
    p50: float
    p90: float | None
    p99: float | None
    p999: float | None


def measured(frames: Sequence[Ended], elapsed_s: float) -> list[Ended]:
    """The frames that ended after the warm-up."""
    return [frame for frame in frames if WARM_UP * elapsed_s <= frame.done_s < elapsed_s]


def settled(frames: Sequence[Ended], elapsed_s: float, tolerance: float, *, open_loop: bool) -> bool:
    """Whether the step has been measured for long enough; see the module's docstring."""
    edges = np.linspace(WARM_UP * elapsed_s, elapsed_s, PARTS + 1)
    done = np.array([frame.done_s for frame in frames])
    good = np.array([frame.code == "ok" for frame in frames], bool)
    latency = np.array([frame.latency_ms for frame in frames])
    due = np.array([frame.due_s for frame in frames])
    means, rates = [], []
    for begins, ends in itertools.pairwise(edges):
        inside = (done >= begins) & (done < ends) & good
        if inside.sum() < LEAST_FRAMES:
            return False
        means.append(latency[inside].mean())
        arrived = ((due >= begins) & (due < ends)).sum() if open_loop else 1
        rates.append(inside.sum() / max(1, arrived))
    return _close(means, tolerance) and _close(rates, tolerance)


def _close(values: Sequence[float], tolerance: float) -> bool:
    mean = np.mean(values)
    return bool(np.all(np.abs(np.array(values) - mean) <= tolerance * mean))


def stages(frames: Sequence[Ended]) -> dict[str, Durations]:
    """Where the time of answered frames went, by stage: `STAGES` as far as they took place.

    `waiting` is what the other stages leave of the latency: for room, for a stage, for a connection.
    """
    columns: dict[str, list[float]] = {}
    for frame in frames:
        took = {
            name: sum(frame.ms.get(part, 0.0) for part in parts)
            for name, parts in _SUMS.items()
            if any(part in frame.ms for part in parts)
        }
        whole = frame.latency_ms
        took |= {"waiting": max(0.0, whole - sum(took.values())), "latency": whole}
        for name, value in took.items():
            columns.setdefault(name, []).append(value)
    return {name: durations(np.array(columns[name])) for name in STAGES if name in columns}


def durations(values: NDArray[np.float64]) -> Durations:
    """Percentiles, as far as there are frames for them: a p99 takes a hundred."""
    found = {
        name: float(np.quantile(values, q)) if len(values) >= round(1 / (1 - q)) else None
        for name, q in _QUANTILES.items()
    }
    return Durations(mean=float(values.mean()), **found)  # type: ignore[arg-type]
