"""What is to be measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..device.schedule import parse_link
from ..runtime.credentials import LinkSecurity
from ..runtime.errors import UsageError
from ..runtime.point import Point
from ..runtime.session import SessionOptions


@dataclass(frozen=True, slots=True)
class Load:
    """How frames come: so many under way (closed loop), or so many a second whatever happens (open loop)."""

    concurrency: int | None = None
    """Frames under way at each device, at most; the next comes when there is room. How many it takes to keep the
    slowest stage busy, the device finds out (`device/window.py`), and has no more under way."""
    rate: float | None = None
    """Frames a second over all devices, at exponential intervals (a Poisson process)."""

    def __post_init__(self) -> None:
        if (self.concurrency is None) == (self.rate is None):
            raise UsageError("a load is either a concurrency or a rate")
        if self.concurrency is not None and self.concurrency < 1:
            raise UsageError(f"a concurrency of {self.concurrency} is none; give 1 or more")
        if self.rate is not None and not 0 < self.rate < 1e6:
            raise UsageError(f"a rate is above 0 and below a million frames a second, not {self.rate}")

    def __str__(self) -> str:
        return f"≤ {self.concurrency} under way" if self.rate is None else f"{self.rate:.4g}/s"


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a step is measured; `steady.py` has the rule."""

    window_s: float = 1.0
    """Between two looks at what came so far."""
    max_s: float = 30.0
    """A step that has not settled by then ends, and says so."""
    tolerance: float = 0.1
    """Share by which the parts of a settled step may differ from their mean."""

    def __post_init__(self) -> None:
        if not 0 < self.window_s <= self.max_s:
            raise UsageError(f"windows of {self.window_s} s do not fit into steps of {self.max_s} s at most")
        if not 0 < self.tolerance < 1:
            raise UsageError(f"a tolerance is a share between 0 and 1, not {self.tolerance}")


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """A load on a bundle."""

    bundle: Path
    server: str | None = None
    """ "host:port"; a server process on this machine where none is given."""
    source: str | None = None
    """Pictures or arrays as `narrows run --input` takes them; the bundle's golden frame where none is given."""
    link: str | None = None
    """An emulated link, such as "10mbit,20ms", between each device and the server."""
    points: tuple[Point, ...] = ()
    """Operating points, each under every load; the first cut's best quality where none is given. `cut` and `quality` of
    a split may be None for the first and the best."""
    loads: tuple[Load, ...] = (Load(concurrency=1),)
    devices: int = 1
    """Device processes."""
    window: int = 8
    """Frames under way at each device in an open loop, at most; what comes on top waits, and its waiting counts."""
    pace: Pace = field(default_factory=Pace)
    timeout_s: float = 10.0
    """A frame without an answer ends in an error then."""
    session: SessionOptions = field(default_factory=SessionOptions)
    """How the device's graphs are run."""
    security: LinkSecurity = field(default_factory=LinkSecurity)
    seed: int = 0
    """Of the arrivals."""

    def __post_init__(self) -> None:
        if not 1 <= self.devices <= 256:
            raise UsageError(f"between 1 and 256 device processes can be started, not {self.devices}")
        if self.timeout_s <= 0 or self.window < 1:
            raise UsageError("a timeout is positive, and a window is 1 or more")
        if self.link is not None:
            parse_link(self.link)


@dataclass(frozen=True, slots=True)
class MaxRate:
    """The search for the highest rate that keeps a promise."""

    p99_ms: float
    """99 of 100 frames are answered within this, counted from their arrival."""
    tolerance: float = 0.05
    """The search ends where the highest rate that keeps it and the lowest that does not are so close."""

    def __post_init__(self) -> None:
        if self.p99_ms <= 0 or not 0 < self.tolerance < 1:
            raise UsageError("a bound on p99 is positive, and a tolerance between 0 and 1")
