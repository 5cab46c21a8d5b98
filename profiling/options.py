"""How a profile is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..runtime.errors import UsageError
from ..runtime.link import LinkOptions
from ..runtime.point import Point
from ..runtime.session import SessionOptions
from .stopwatch import Steady

Progress = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps in all)."""

ENCODINGS = (
    *(Point("offload", quality=quality, format="jpeg") for quality in (30, 50, 75, 90, 95)),
    *(Point("offload", quality=quality, format="webp") for quality in (30, 50, 75, 90)),
)


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """How a profile is made."""

    images: Path | None = None
    """Pictures, or what else `narrows run --input` takes. In folders named after the classes (or their numbers) they
    are labelled. Without any, sizes and agreement are those that the bundle says of its calibration data."""
    frames: int = 16
    """Of these, at most so many, evenly spread."""
    name: str | None = None
    """Of this machine, in the profile."""
    on_device: bool = False
    """Measure what the device does, and nothing else: heads, coder, the whole model."""
    server: str | None = None
    """ "host:port" of a running server that serves the bundle, to measure tails and transport on."""
    timeout_s: float = 30.0
    """Without an answer of that server for so long, profiling ends."""
    max_batch: int = 16
    """Frames of one run of a tail, at most."""
    encodings: tuple[Point, ...] = ENCODINGS
    """Ways to compress a picture."""
    memory: bool = True
    """Measure the memory that graphs take, each in a process of its own."""
    session: SessionOptions = field(default_factory=SessionOptions)
    try_providers: bool = True
    """Run on the execution provider that is the quickest here, as the device does, and not on that of `session`."""
    link: LinkOptions = field(default_factory=LinkOptions)
    steady: Steady = field(default_factory=Steady)

    def __post_init__(self) -> None:
        if min(self.frames, self.max_batch) < 1:
            raise UsageError("frames and batches are 1 or more")
        if self.timeout_s <= 0:
            raise UsageError("a timeout is more than 0 s")
        if self.on_device and self.server is not None:
            raise UsageError("--on-device measures the device alone; leave it out to measure a server, too")


def quietly(_stage: str, _done: int, _total: int) -> None:
    """Progress that is told to nobody."""
