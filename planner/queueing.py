"""How long frames wait at a server that takes what has gathered as its next batch.

Poisson arrivals at one queue; a free server takes up to *b* of what waits, at least one, and is busy for s(k) seconds
with a batch of *k*. Seen at the moments at which a batch ends, the number waiting is a Markov chain (Bailey, "On
queueing processes with bulk service", 1954; Chaudhry and Templeton, "A First Course in Bulk Queues", 1983, chapter 4;
for inference servers, Inoue, "Queueing analysis of GPU-based inference servers with dynamic batching", 2021). The chain
is solved numerically, and every wait follows from where in a run a frame arrives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import UsageError
from .profile import Batch

Array = NDArray[np.float64]

_MOST_STATES = 4096
_LEAST_MASS = 1e-9
_MOMENTS = 24
"""At which a frame may arrive within a run: the midpoints of as many equal parts."""


@dataclass(frozen=True, slots=True)
class BatchCurve:
    """Seconds of a run by its number of frames."""

    seconds: tuple[float, ...]
    """Of 1, 2, … frames; as many as a batch may have."""

    def __post_init__(self) -> None:
        if not self.seconds or min(self.seconds) <= 0:
            raise UsageError("a batch curve needs a positive time for every size")

    @classmethod
    def of(
        cls, batches: Sequence[Batch], scale: float = 1.0, *, overhead_s: float = 0.0, good: float = 0.9
    ) -> BatchCurve:
        """The curve through measured sizes, up to the one that a server here would take.

        Args:
            batches: measured, in any order; straight lines lie between them.
            scale: of all times.
            overhead_s: of every frame of a batch, beside its run.
            good: share of the best throughput that is good enough; the smallest such size is the largest batch, as
                the server's own rule has it (`server/cost.py`).

        Raises:
            UsageError: nothing was measured.
        """
        known = sorted({batch.frames: batch.ms * scale / 1000 for batch in batches}.items())
        if not known:
            raise UsageError("no batch of this tail was measured; profile the server again")
        fastest = max(frames / seconds for frames, seconds in known)
        most = next(frames for frames, seconds in known if frames / seconds >= good * fastest)
        sizes = np.arange(1, most + 1)
        first = known[0]
        if first[0] > 1:
            known.insert(0, (1, first[1] / first[0]))
        frames, times = zip(*known, strict=True)
        return cls(tuple((np.interp(sizes, frames, times) + overhead_s * sizes).tolist()))

    @property
    def most_frames(self) -> int:
        """Of a batch."""
        return len(self.seconds)

    @property
    def most_fps(self) -> float:
        """Frames a second that can be answered at all."""
        return max(frames / seconds for frames, seconds in enumerate(self.seconds, 1))

    def slowed(self, share: float) -> BatchCurve:
        """The same on a machine that gives this queue only `share` of its time."""
        return BatchCurve(tuple(seconds / share for seconds in self.seconds))


@dataclass(frozen=True, slots=True)
class Wait:
    """What frames meet at a server."""

    mean_wait_s: float
    """From arriving to the run's beginning."""
    mean_s: float
    """From arriving to the run's end."""
    mean_batch: float
    utilisation: float
    """Share of time in which the server runs."""
    _times_s: Array
    _shares: Array

    def quantile_s(self, share: float) -> float:
        """From arriving to the run's end: what `share` of the frames do not exceed."""
        index = int(np.searchsorted(self._shares, share))
        return float(self._times_s[min(index, len(self._times_s) - 1)])


def solve(curve: BatchCurve, rate_fps: float) -> Wait:
    """What frames meet that arrive at random at `rate_fps`.

    Raises:
        UsageError: a rate that is negative, or one that the server cannot keep up with.
    """
    if rate_fps < 0 or math.isnan(rate_fps):
        raise UsageError(f"a rate is 0 or more, not {rate_fps}")
    most = curve.most_frames
    if rate_fps >= most / curve.seconds[-1]:
        raise UsageError(
            f"{rate_fps:.4g} frames a second are more than the {most / curve.seconds[-1]:.4g} that can be answered"
        )
    if rate_fps == 0:
        alone = np.array([curve.seconds[0]])
        return Wait(0.0, curve.seconds[0], 1.0, 0.0, alone, np.ones(1))
    waiting = _stationary(curve, rate_fps)
    return _waits(curve, rate_fps, waiting)


def _stationary(curve: BatchCurve, rate: float) -> Array:
    """Probabilities of 0, 1, … frames waiting when a run ends."""
    most, size = curve.most_frames, max(64, 8 * curve.most_frames)
    while True:
        steps = np.zeros((size, size))
        arrivals = [_poisson(rate * seconds, size) for seconds in curve.seconds]
        for waiting in range(size):
            run = min(max(waiting, 1), most)
            left = max(0, waiting - run)
            steps[waiting, left:] = arrivals[run - 1][: size - left]
        steps[:, -1] += 1 - steps.sum(axis=1)
        system = steps.T - np.eye(size)
        system[-1] = 1.0  # one balance equation follows from the others; that all add up to 1 does not
        found = np.linalg.solve(system, np.eye(size)[-1])
        found = np.clip(found, 0, None)
        found /= found.sum()
        if found[-most:].sum() < _LEAST_MASS or 2 * size > _MOST_STATES:
            return np.asarray(found)
        size *= 2


def _waits(curve: BatchCurve, rate: float, ending: Array) -> Wait:
    """Sojourn times by where in a run, or in idleness, a frame arrives."""
    most = curve.most_frames
    # Of a cycle that begins as a run ends: idle for 1 / rate where nobody waits, then a run of k.
    starting: dict[int, dict[int, float]] = {}
    for n, share in enumerate(ending):
        k = min(max(n, 1), most)
        if share > 0:
            starting.setdefault(k, {})
            left = max(0, n - k)
            starting[k][left] = starting[k].get(left, 0.0) + share
    busy_s = sum(sum(lefts.values()) * curve.seconds[k - 1] for k, lefts in starting.items())
    cycle_s = busy_s + ending[0] / rate
    times: list[Array] = []
    shares: list[Array] = []
    waits = 0.0
    # A frame that comes in idleness runs at once, alone.
    idle = ending[0] / rate / cycle_s
    times.append(np.array([curve.seconds[0]]))
    shares.append(np.array([idle]))
    for k, lefts in starting.items():
        run_s = curve.seconds[k - 1]
        for moment in (np.arange(_MOMENTS) + 0.5) / _MOMENTS:
            before, after = _poisson_short(rate * moment * run_s), _poisson_short(rate * (1 - moment) * run_s)
            for left, share in lefts.items():
                weight = share * run_s / _MOMENTS / cycle_s
                ahead = left + np.arange(len(before))
                full = ahead // most
                wait = (1 - moment) * run_s + full * curve.seconds[-1]
                # Those who come later fill its batch; where full runs lie between, so many come that it is full.
                place = ahead % most
                fill = np.minimum(place[:, None] + 1 + np.arange(len(after))[None, :], most)
                own = np.asarray(curve.seconds)[fill - 1]
                own = np.where(full[:, None] > 0, curve.seconds[-1], own)
                probability = weight * before[:, None] * after[None, :]
                waits += float(weight * np.sum(before * wait))
                times.append((wait[:, None] + own).ravel())
                shares.append(probability.ravel())
    all_times, all_shares = np.concatenate(times), np.concatenate(shares)
    order = np.argsort(all_times)
    all_times, all_shares = all_times[order], all_shares[order]
    total = all_shares.sum()
    return Wait(
        mean_wait_s=float(waits / total),
        mean_s=float(np.sum(all_times * all_shares) / total),
        mean_batch=float(rate * cycle_s),
        utilisation=float(busy_s / cycle_s),
        _times_s=all_times,
        _shares=np.cumsum(all_shares) / total,
    )


def _poisson(mean: float, size: int) -> Array:
    """Probabilities of 0 … size - 1 arrivals."""
    counts = np.arange(size)
    logs = counts * math.log(mean) - mean - np.array([math.lgamma(n + 1) for n in counts])
    return np.asarray(np.exp(logs))


def _poisson_short(mean: float) -> Array:
    """The same, up to where hardly anything is left, made to add up to 1."""
    if mean <= 0:
        return np.ones(1)
    found = _poisson(mean, int(mean + 6 * math.sqrt(mean) + 4))
    return np.asarray(found / found.sum())
