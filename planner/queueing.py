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
_LEAST_MASS = 1e-7
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
    most = curve.most_frames
    # Long queues die away about as exp(-2 (1 - load) n / batch): so many states leave next to nothing out.
    size = 64 + round(10 * most / (1 - rate * curve.seconds[-1] / most))
    while True:
        size = min(size, _MOST_STATES)
        steps = np.zeros((size, size))
        arrivals = [_poisson(rate * seconds, size) for seconds in curve.seconds]
        for waiting in range(size):
            run = min(max(waiting, 1), most)
            left = max(0, waiting - run)
            steps[waiting, left:] = arrivals[run - 1][: size - left]
        steps[:, -1] += 1 - steps.sum(axis=1)
        system = steps.T - np.eye(size)
        system[-1] = 1.0  # one balance equation follows from the others; that all add up to 1 does not
        found = np.clip(np.linalg.solve(system, np.eye(size)[-1]), 0, None)
        if found[-most:].sum() < _LEAST_MASS or size == _MOST_STATES:
            return np.asarray(found / found.sum())
        size *= 2


def _waits(curve: BatchCurve, rate: float, ending: Array) -> Wait:
    """Times at the server by where in a run, or in idleness, a frame arrives."""
    most = curve.most_frames
    # A cycle begins as a run ends: idle for 1 / rate where nobody waits, then a run.
    waiting = np.arange(len(ending))
    runs = np.clip(waiting, 1, most)
    seconds = np.asarray(curve.seconds)
    busy_s = float(np.sum(ending * seconds[runs - 1]))
    cycle_s = busy_s + ending[0] / rate
    # A frame that comes in idleness runs at once, alone.
    times, shares = [seconds[:1]], [np.array([ending[0] / rate / cycle_s])]
    wait_s = 0.0
    for run in range(1, most + 1):
        here = (runs == run) & (ending > 0)
        left, weight = np.maximum(0, waiting[here] - run), ending[here] * seconds[run - 1] / cycle_s / _MOMENTS
        for moment in (np.arange(_MOMENTS) + 0.5) / _MOMENTS if len(left) else ():
            rest_s = (1 - moment) * seconds[run - 1]
            before, after = _poisson_short(rate * moment * seconds[run - 1]), _poisson_short(rate * rest_s)
            ahead = left[:, None] + np.arange(len(before))
            probability = weight[:, None] * before
            full = ahead // most
            wait = rest_s + full * seconds[-1]
            wait_s += float(np.sum(probability * wait))
            # Where full runs lie between, so many come later that its own run is full, too.
            later = full > 0
            times.append((wait + seconds[-1])[later])
            shares.append(probability[later])
            # Otherwise those who come until the next run begins fill its batch.
            place = ahead[~later]
            fill = np.minimum(place[:, None] + 1 + np.arange(len(after)), most)
            times.append((wait[~later][:, None] + seconds[fill - 1]).ravel())
            shares.append((probability[~later][:, None] * after).ravel())
    all_times, all_shares = np.concatenate(times), np.concatenate(shares)
    order = np.argsort(all_times)
    all_times, all_shares = all_times[order], all_shares[order]
    total = float(all_shares.sum())
    return Wait(
        mean_wait_s=wait_s / total,
        mean_s=float(np.sum(all_times * all_shares)) / total,
        mean_batch=float(rate * cycle_s),
        utilisation=busy_s / float(cycle_s),
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
