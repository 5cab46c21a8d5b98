"""What a link does over time: rate, delay, jitter and loss, constant or out of a trace."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..runtime.errors import UsageError

_RATE = re.compile(r"(\d+(?:\.\d+)?)(bit|kbit|mbit|gbit)")
_DELAY = re.compile(r"(rtt=)?(\d+(?:\.\d+)?)(us|ms|s)(?:~(\d+(?:\.\d+)?)(us|ms|s))?")
_LOSS = re.compile(r"(\d+(?:\.\d+)?)%")
_BITS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_FORM = (
    "10mbit,20ms,1% (rate, one-way delay, lost segments; 20ms~5ms for jitter, rtt=40ms for a round trip), or trace:FILE"
)


@dataclass(frozen=True, slots=True)
class LinkState:
    """How a link is at one moment, in each direction."""

    rate_bps: float = float("inf")
    """Bits a second; 0 while nothing passes."""
    delay_s: float = 0.0
    """One way."""
    jitter_s: float = 0.0
    """Added to the delay: uniform, 0 to this."""
    loss: float = 0.0
    """Share of segments that are lost, 0…1."""

    def __post_init__(self) -> None:
        if self.rate_bps < 0 or self.delay_s < 0 or self.jitter_s < 0 or not 0 <= self.loss < 1:
            raise UsageError(f"a link is rate ≥ 0, delay ≥ 0 and loss in 0…1, not {self}")


@dataclass(frozen=True, slots=True)
class Schedule:
    """States of a link, each from its moment on; the last one stays."""

    times_s: tuple[float, ...]
    """From the start, rising, the first 0."""
    states: tuple[LinkState, ...]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in itertools.pairwise(self.times_s))
        if len(self.times_s) != len(self.states) or not self.times_s or self.times_s[0] != 0 or not rising:
            raise UsageError("a schedule has one state for each of its moments, which begin at 0 and rise")

    def at(self, time_s: float) -> LinkState:
        """The state at a moment."""
        return self.states[max(0, bisect.bisect_right(self.times_s, time_s) - 1)]

    def sent_by(self, start_s: float, size_bytes: int) -> float:
        """When the last bit of `size_bytes` has left, if the first may leave at `start_s`; inf where it never does."""
        left_bits = size_bytes * 8.0
        index = max(0, bisect.bisect_right(self.times_s, start_s) - 1)
        now = start_s
        for i in range(index, len(self.states)):
            rate = self.states[i].rate_bps
            until = self.times_s[i + 1] if i + 1 < len(self.times_s) else float("inf")
            needed = left_bits / rate if rate > 0 else float("inf")
            if left_bits <= 0 or now + needed <= until:
                return now + (needed if left_bits > 0 else 0.0)
            left_bits -= rate * (until - now)
            now = until
        return float("inf")


def parse_link(text: str) -> Schedule:
    """A link out of `10mbit,20ms,1%`, or of a trace out of `trace:FILE`.

    Every part may be left out. Rates are bit, kbit, mbit or gbit a second; delays are one way, as in `tc netem`, or a
    round trip, as in `rtt=40ms`, of which each way has half.

    Raises:
        UsageError: with the form that is expected.
    """
    if text.startswith("trace:"):
        return read_trace(Path(text.removeprefix("trace:")))
    return Schedule((0.0,), (_state(text.split(",")),))


def read_trace(path: Path) -> Schedule:
    """A trace: a line for every change, `SECONDS RATE [DELAY] [LOSS%]`; `#` begins a comment.

    Raises:
        UsageError: the file cannot be read, or a line is not of this form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the trace {path} cannot be read ({error})") from None
    rows = [line.partition("#")[0].split() for line in lines]
    return trace((row[0], row[1:]) for row in rows if row)


def trace(rows: Iterable[tuple[str | float, Sequence[str]]]) -> Schedule:
    """A schedule out of moments and states, such as `(2.5, ["1mbit", "20ms"])`.

    Raises:
        UsageError: a row that is not of this form, or moments that do not begin at 0 and rise.
    """
    times, states = [], []
    for moment, parts in rows:
        try:
            times.append(float(moment))
        except ValueError:
            raise UsageError(f"a trace's line begins with seconds, not {moment!r}") from None
        states.append(_state(parts))
    return Schedule(tuple(times), tuple(states))


def _state(parts: Iterable[str]) -> LinkState:
    rate_bps, delay_s, jitter_s, loss = float("inf"), 0.0, 0.0, 0.0
    for part in (p.strip() for p in parts):
        if match := _RATE.fullmatch(part):
            rate_bps = float(match[1]) * _BITS[match[2]]
        elif match := _DELAY.fullmatch(part):
            delay_s = float(match[2]) * _SECONDS[match[3]] / (2 if match[1] else 1)
            jitter_s = float(match[4]) * _SECONDS[match[5]] if match[4] else 0.0
        elif match := _LOSS.fullmatch(part):
            loss = float(match[1]) / 100
        else:
            raise UsageError(f"{part!r} is no part of a link; expected {_FORM}")
    return LinkState(rate_bps, delay_s, jitter_s, loss)
