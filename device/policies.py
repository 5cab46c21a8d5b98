"""How each frame's operating point is chosen: small classes with one method.

Static()                          always the same point
Neurosurgeon()                    the least expected latency, frame by frame
Adaptive("accuracy", floor=0.95)  an objective under a deadline, without oscillation, with probes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ..runtime.errors import UsageError
from ..runtime.point import ON_DEVICE, Point

Objective = Literal["latency", "accuracy", "energy", "bytes"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A point that a frame could take, and what it would cost."""

    point: Point
    latency_s: float
    """Expected, from the input to the answer."""
    device_s: float
    """Of this, what the device computes."""
    server_s: float
    """Of this, what the server takes."""
    spread_s: float
    """Mean deviation of that."""
    wire_bytes: float
    accuracy: float
    """Share of the calibration data on which this point and the whole model have the same best class; 1 where the
    bundle does not say."""
    energy_j: float
    """By the power model, on the device."""


@dataclass(frozen=True, slots=True)
class View:
    """What a policy may look at."""

    preferred: Point
    """What the user would take; the device itself where nothing can be sent."""
    candidates: Callable[[], Sequence[Candidate]]
    """Points that can be taken now, with what is expected of them; at least one."""
    deadline_s: float | None
    """From the input to the answer."""
    unheard_s: float
    """Since the link was last heard of."""
    unheard_frames: int
    """Frames since then that were not sent."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do with a frame."""

    point: Point
    probe: Point | None = None
    """Send the frame at this point as well, to hear of the link; whatever comes back is only measured."""


class Policy(Protocol):
    """Chooses."""

    def choose(self, view: View) -> Choice:
        """The point of the next frame."""
        ...


class Static:
    """Always the user's own point."""

    def choose(self, view: View) -> Choice:
        """The preferred one."""
        return Choice(view.preferred)


class Always:
    """One point whatever comes: `LOCAL`, or `Point("offload", quality=90)`; the user's own where it cannot be had."""

    def __init__(self, point: Point) -> None:
        self._point = point

    def choose(self, view: View) -> Choice:
        """That point."""
        there = any(candidate.point == self._point for candidate in view.candidates())
        return Choice(self._point if there else view.preferred)


class Neurosurgeon:
    """The least expected latency or energy, by expectations alone (Kang et al., ASPLOS 2017, section 4.3)."""

    def __init__(self, objective: Literal["latency", "energy"] = "latency") -> None:
        self._cost = _COSTS[objective]

    def choose(self, view: View) -> Choice:
        """The cheapest candidate."""
        return Choice(min(view.candidates(), key=self._cost).point)


class Adaptive:
    """An objective within a deadline and above an accuracy floor.

    Among the points that keep both (expected latency and two of its mean deviations within the deadline), the one that
    serves the objective best; where none keeps the deadline, the fastest. The last choice is kept unless another is
    better by a margin, so that two points of about the same cost do not take turns. While nothing is sent, one frame in
    ten, and two a second at least, is sent besides, at the smallest payload that is accurate enough, to see whether the
    link is back.
    """

    def __init__(
        self,
        objective: Objective = "latency",
        *,
        floor: float = 0.0,
        margin: float = 0.05,
        probe_s: float = 0.5,
        probe_frames: int = 10,
    ) -> None:
        """Configure.

        Args:
            objective: what counts.
            floor: least accuracy that is accepted, 0…1.
            margin: share by which another point must be better than the last one to replace it.
            probe_s: the longest time without hearing of the link.
            probe_frames: the most frames without sending one.

        Raises:
            UsageError: an objective that is none, or a floor that is no share.
        """
        if objective not in _COSTS:
            raise UsageError(f"the objective is one of {', '.join(_COSTS)}, not {objective!r}")
        if not 0 <= floor <= 1 or margin < 0:
            raise UsageError("an accuracy floor is between 0 and 1, and a margin is not negative")
        self._cost = _COSTS[objective]
        self._floor = floor
        self._margin = margin
        self._probe_s = probe_s
        self._probe_frames = probe_frames
        self._last: Point | None = None

    def choose(self, view: View) -> Choice:
        """The best point, with a probe where the link has not been heard of for too long."""
        candidates = view.candidates()
        best = self._best(candidates, view.deadline_s)
        self._last = best.point
        if best.point.mode not in ON_DEVICE or not self._is_due(view):
            return Choice(best.point)
        splits = [c for c in candidates if c.point.mode == "split"]
        # What would be sent is what there has to be news of.
        wanted = [c for c in splits if c.accuracy >= self._floor] or splits
        return Choice(best.point, min(wanted, key=lambda c: c.wire_bytes).point if wanted else None)

    def _best(self, candidates: Sequence[Candidate], deadline_s: float | None) -> Candidate:
        accurate = [c for c in candidates if c.accuracy >= self._floor] or candidates
        timely = [c for c in accurate if deadline_s is None or c.latency_s + 2 * c.spread_s <= deadline_s]
        cost = self._cost if timely else _COSTS["latency"]
        choices = timely or accurate
        best = min(choices, key=lambda c: (cost(c), c.latency_s))
        kept = next((c for c in choices if c.point == self._last), None)
        if kept is not None and cost(kept) <= cost(best) * (1 + self._margin):
            return kept
        return best

    def _is_due(self, view: View) -> bool:
        return view.unheard_s >= self._probe_s or view.unheard_frames >= self._probe_frames


_COSTS: dict[str, Callable[[Candidate], float]] = {
    "latency": lambda c: c.latency_s,
    "accuracy": lambda c: 1.0 - c.accuracy,
    "energy": lambda c: c.energy_j,
    "bytes": lambda c: c.wire_bytes,
}
