"""What the device expects of its stages and of the link, from what it has seen. Durations only, in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from ..runtime.cost import transfer_s


class Duration:
    """A smoothed duration and its spread: mean and mean deviation with exponential weights (RFC 6298, section 2).

    The n-th sample weighs 1/n and at least 1/4, where the RFC has 1/8 for the mean: a frame is rarer than a segment.

    What is chosen by its duration is measured only while it is chosen, so that a bad sample could rule it out for good.
    `expected_s` therefore believes less than `mean_s`. The first sample, which is often a cold start, counts for
    nothing once there is a second. And every four frames that bring no sample take one sample's worth of trust away,
    and with it what the mean is above the best case: the shortest duration of three samples or more, and none at all
    before. So what was slow once is tried again after a few frames, what was slow often rarely, and what is always
    equally slow never.
    """

    _WEIGHT = 0.25
    _FRAMES_PER_SAMPLE = 4
    _MOST_SAMPLES = 16
    _FEW_SAMPLES = 2

    def __init__(self, first_s: float | None = None) -> None:
        self.known = first_s is not None
        self.mean_s = first_s or 0.0
        self.spread_s = self.mean_s / 2
        self._samples = int(self.known)
        self._least_s = first_s or float("inf")
        self._trusted = float(self.known)
        """Samples that the estimate rests on."""
        self._missed = 0
        """Frames since the last one."""

    def observe(self, duration_s: float) -> None:
        """Take a sample in."""
        left, self._missed = self._left(), 0
        self._samples, self.known = self._samples + 1, True
        self._least_s = min(self._least_s, duration_s)
        if not left:
            self.mean_s, self.spread_s = duration_s, duration_s / 2
            self._trusted = float(self._samples > 1)
            return
        self._trusted = min(self._MOST_SAMPLES, left + 1)
        weight = max(self._WEIGHT, 1 / self._trusted)
        error = duration_s - self.mean_s
        self.spread_s += weight * (abs(error) - self.spread_s)
        self.mean_s += weight * error

    def miss(self) -> None:
        """A frame brought no sample."""
        self._missed += 1

    @property
    def expected_s(self) -> float:
        """The mean as far as it is believed in, and the best case for the rest."""
        best_s = self._least_s if self._samples > self._FEW_SAMPLES else 0.0
        return best_s + self._believed() * (self.mean_s - best_s)

    @property
    def expected_spread_s(self) -> float:
        """Mean deviation of that."""
        return self._believed() * self.spread_s

    @property
    def upper_s(self) -> float:
        """What few samples exceed: mean and three mean deviations (four in the RFC, where a miss costs more)."""
        return self.mean_s + 3 * self.spread_s

    def _left(self) -> float:
        return max(0.0, self._trusted - self._missed / self._FRAMES_PER_SAMPLE)

    def _believed(self) -> float:
        return self._left() / self._trusted if self._trusted else 0.0


@dataclass(slots=True)
class LinkEstimate:
    """Delay and goodput out of nothing but how long frames of some size took.

    A Kalman filter over (delay_s, byte_s): a frame of *n* bytes takes delay_s + n × byte_s. Rates change by an order of
    magnitude while delays hardly do, so the filter lets `byte_s` wander by a fifth of itself from frame to frame and
    `delay_s` by a millisecond. A sample that the filter would call impossible (over three standard deviations away)
    means that the link has changed: the old rate is then forgotten at once.
    """

    # Between a local network and a far mobile one, and held loosely: a delay that is believed to be short would be made
    # up for by a rate that is too low, and that is wrong for frames of every other size.
    delay_s: float = 0.03
    byte_s: float = 8 / 10e6
    _dd: float = 0.05**2
    _db: float = 0.0
    _bb: float = (8 / 1e6) ** 2
    samples: int = 0

    _DELAY_STEP_S = 0.001
    _RATE_STEP = 0.2
    _NOISE = 0.1
    _LEAST_NOISE_S = 0.001

    def expected_s(self, size_bytes: float) -> float:
        """How long a frame of this size will take, there and back, without the server's own time."""
        return transfer_s(size_bytes, self.delay_s, self.byte_s)

    @property
    def goodput_bps(self) -> float:
        """Bits a second that the link carries."""
        return 8 / self.byte_s

    def observe(self, size_bytes: int, duration_s: float) -> None:
        """Take a frame's time on the link in."""
        n = float(size_bytes)
        self._dd += self._DELAY_STEP_S**2
        self._bb += (self._RATE_STEP * self.byte_s) ** 2
        error = duration_s - self.expected_s(n)
        noise = max(self._LEAST_NOISE_S, self._NOISE * duration_s) ** 2
        if error**2 > 9 * (self._variance(n) + noise):
            self._bb += (error / n) ** 2
        variance = self._variance(n) + noise
        gain_d, gain_b = (self._dd + n * self._db) / variance, (self._db + n * self._bb) / variance
        # No frame is there sooner than the delay allows.
        self.delay_s = min(duration_s, max(0.0, self.delay_s + gain_d * error))
        self.byte_s = max(1e-11, self.byte_s + gain_b * error)
        row_d, row_b = self._dd + n * self._db, self._db + n * self._bb
        self._dd, self._db, self._bb = self._dd - gain_d * row_d, self._db - gain_d * row_b, self._bb - gain_b * row_b
        self.samples += 1

    def observe_at_least(self, size_bytes: int, duration_s: float) -> None:
        """Take in that a frame has been without an answer for so long: news only if one was expected by now."""
        if duration_s > self.expected_s(size_bytes):
            self.observe(size_bytes, duration_s)

    def _variance(self, n: float) -> float:
        return self._dd + 2 * n * self._db + n * n * self._bb
