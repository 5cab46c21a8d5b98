"""What a graph's runs cost on this machine, learned from runs, and what follows for the size of batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_NEWEST = 0.1
"""Weight of the newest run in the moving mean: a neighbour's burst on the same cores is forgotten in some twenty."""
_ENOUGH = 0.95
"""A batch size is good enough at this share of the best throughput; the smallest such answers soonest."""
_ENOUGH_RUNS = 0.9
"""The same for runs at the same time, of which each slows down the others."""
_PATIENCE = 2
"""Sizes without gain before trying larger ones ends."""
_TRIES = 3
_EXPLORE = 64
"""Every so many runs, a batch may be twice the best size: what was learned in a bad moment is not believed for ever."""


class BatchCost:
    """Seconds of a run by its number of frames, at powers of two.

    Larger is not better as such: on a processor, a batch that falls out of the cache can halve the throughput that
    frames have alone, while on an accelerator it multiplies it. So it is measured. Not safe to change from several
    threads at once.
    """

    def __init__(self, max_batch: int, max_run_s: float = math.inf) -> None:
        """Batches are of `max_batch` frames at most, and of those that run within `max_run_s`."""
        self._max_batch = max_batch
        self._max_run_s = max_run_s
        self._seconds: dict[int, float] = {}
        self._best = max_batch  # until something is known
        self._runs = 0

    @property
    def best_batch(self) -> int:
        """Frames of a run that are worth gathering, at least 1: the smallest size that is nearly the fastest."""
        return self._best

    def next_batch(self) -> int:
        """Frames to take for the next run, at most: the best size, and now and then twice that."""
        return min(2 * self._best, self._max_batch) if self._runs % _EXPLORE == _EXPLORE - 1 else self._best

    def observe(self, frames: int, seconds: float) -> None:
        """Learn from one run."""
        size = 1 << round(math.log2(frames))
        seconds *= size / frames
        known = self._seconds.get(size, seconds)
        self._seconds[size] = known + _NEWEST * (seconds - known)
        # A frame that comes now waits for the run that is under way, so long runs cost everybody their delay.
        quick = {size: s for size, s in self._seconds.items() if s <= self._max_run_s} or {
            1: self._seconds.get(1, seconds)
        }
        fastest = max(size / s for size, s in quick.items())
        good = min(size for size, s in quick.items() if size / s >= _ENOUGH * fastest)
        untried = good == max(self._seconds) and 2 * quick[good] <= self._max_run_s
        self._best = min(2 * good if untried else good, self._max_batch)
        self._runs += 1

    def seconds(self, frames: int) -> float:
        """Expected duration of one run; 0 while nothing is known."""
        if not self._seconds or frames < 1:
            return 0.0
        nearest = min(self._seconds, key=lambda size: abs(math.log2(size / frames)))
        return self._seconds[nearest] * frames / nearest if frames > nearest else self._seconds[nearest]

    def wait(self, queued: int) -> float:
        """Expected seconds until as many frames as are queued have been answered, one run after the other."""
        whole, rest = divmod(queued, self._best)
        return whole * self.seconds(self._best) + self.seconds(rest)

    def learn(self, run: Callable[[int], object], budget_s: float) -> None:
        """Try growing sizes until they gain nothing, so that the first frames meet a warm graph and a known cost.

        Args:
            run: runs so many frames.
            budget_s: no new size is begun after this time.
        """
        start, size, fastest, without_gain = time.monotonic(), 1, 0.0, 0
        run(1)  # the first run of a graph allocates
        while size <= self._max_batch and without_gain < _PATIENCE and time.monotonic() - start < budget_s:
            seconds = min(_timed(run, size) for _ in range(_TRIES))
            self.observe(size, seconds)
            without_gain = 0 if size / seconds > fastest / _ENOUGH else without_gain + 1
            fastest = max(fastest, size / seconds)
            size *= 2


def best_runs(run: Callable[[], object], frames: int, most: int, budget_s: float) -> int:
    """How many runs of one graph at the same time this machine does well: the fewest with nearly the best throughput.

    One run with all cores inside its operators leaves gaps (between operators, in those that are not parallel) which a
    second run fills; small graphs, whose operators are too short to be shared, gain with every core.

    Args:
        run: one run.
        frames: of one run.
        most: runs at the same time, at most.
        budget_s: for all measurements together.
    """
    sizes = [1 << power for power in range(most.bit_length()) if 1 << power <= most]
    found: dict[int, float] = {}
    for runs in sizes if len(sizes) > 1 else []:
        found[runs] = _throughput(run, frames, runs, budget_s / len(sizes))
        if found[runs] < max(found.values()) * _ENOUGH_RUNS:
            break
    return min((runs for runs, rate in found.items() if rate >= _ENOUGH_RUNS * max(found.values())), default=1)


def _throughput(run: Callable[[], object], frames: int, runs: int, seconds: float) -> float:
    start = time.monotonic()

    def one(_: int) -> int:
        done = 0
        while time.monotonic() - start < seconds or not done:
            run()
            done += frames
        return done

    with ThreadPoolExecutor(runs) as pool:
        total = sum(pool.map(one, range(runs)))
    return total / (time.monotonic() - start)


def _timed(run: Callable[[int], object], frames: int) -> float:
    start = time.monotonic()
    run(frames)
    return time.monotonic() - start
