"""How often something is timed, and what is made of it.

The rule: a figure has settled when half of the 95 % confidence interval of its median is within a share of the median
(`Steady.share`), or within `Steady.least_ms`. The interval comes from the order statistics, so that no distribution is
assumed (Conover, "Practical Nonparametric Statistics", section 3.2): ranks n/2 ± 0.98 √n. What has not settled after
`Steady.most_s` is given as it is, and noted.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ..planner.profile import Timing
from ..runtime.errors import UsageError

_Z = 1.96
_DIGITS = 4
"""Of a millisecond: a tenth of a microsecond."""


@dataclass(frozen=True, slots=True)
class Steady:
    """When a figure has settled."""

    share: float = 0.05
    """Of the median, that half of its interval may be."""
    least_ms: float = 0.05
    """An interval narrower than this is narrow enough, whatever the median."""
    least_runs: int = 12
    most_s: float = 0.5
    """Spent on one cut beyond its first round, at most."""

    def __post_init__(self) -> None:
        if not 0 < self.share < 1 or self.least_ms < 0 or self.least_runs < 3 or self.most_s < 0:
            raise UsageError(f"a share in 0…1, three runs at least and no negative times, not {self}")

    def holds(self, timing: Timing) -> bool:
        """Whether a figure has settled."""
        half_ms = (timing.high_ms - timing.low_ms) / 2
        return timing.runs >= self.least_runs and half_ms <= max(self.share * timing.ms, self.least_ms)


class Stopwatch:
    """Samples by key."""

    def __init__(self) -> None:
        self._samples: dict[Hashable, list[float]] = defaultdict(list)

    @contextmanager
    def __call__(self, key: Hashable) -> Iterator[None]:
        """Time a block."""
        began = time.perf_counter()
        yield
        self._samples[key].append((time.perf_counter() - began) * 1000)

    def add(self, key: Hashable, duration_ms: float) -> None:
        """Take a sample in that was timed elsewhere."""
        self._samples[key].append(duration_ms)

    def timing(self, key: Hashable) -> Timing | None:
        """What was seen of a key; None for nothing."""
        return timing_of(self._samples[key]) if self._samples.get(key) else None

    def unsettled(self, steady: Steady, keys: Iterable[Hashable] | None = None) -> list[Hashable]:
        """Keys whose figures have not settled."""
        chosen = self._samples if keys is None else keys
        return [key for key in chosen if (timing := self.timing(key)) is not None and not steady.holds(timing)]


def timing_of(samples_ms: Iterable[float]) -> Timing:
    """Median, its interval and the 95th percentile of some durations in milliseconds."""
    ordered = np.sort(np.fromiter(samples_ms, float))
    count = len(ordered)
    reach = _Z * math.sqrt(count) / 2
    low, high = max(0, math.floor(count / 2 - reach)), min(count - 1, math.ceil(count / 2 + reach))
    p95 = np.percentile(ordered, 95)
    median_ms, low_ms, high_ms, p95_ms = (
        round(float(figure), _DIGITS) for figure in (np.median(ordered), ordered[low], ordered[high], p95)
    )
    return Timing(median_ms, low_ms, high_ms, p95_ms, count)


def repeat(run: Callable[[], object], steady: Steady, most_s: float | None = None) -> Timing:
    """Time something until its figure settles or the time is over; once before that, untimed, to warm up."""
    run()
    samples: list[float] = []
    until = time.perf_counter() + (steady.most_s if most_s is None else most_s)
    while True:
        began = time.perf_counter()
        run()
        samples.append((time.perf_counter() - began) * 1000)
        enough = len(samples) >= steady.least_runs and steady.holds(timing_of(samples))
        if enough or (time.perf_counter() > until and len(samples) >= 3):
            return timing_of(samples)
