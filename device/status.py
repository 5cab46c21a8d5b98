"""How a device is doing, for whoever shows it."""

from __future__ import annotations

from dataclasses import dataclass

from ..runtime.point import Point
from .breaker import State


@dataclass(frozen=True, slots=True)
class Status:
    """A device at one moment. Counts are since it was made; those of the link since its bundle was opened."""

    connected: bool
    down_s: float
    """For how long there has been no connection; 0 while there is one."""
    breaker: State
    goodput_bps: float | None
    """Bits a second that the link is taken to carry; None before the first reply."""
    delay_ms: float | None
    """There and back, without what the bytes take."""
    last_point: Point | None
    """What was done with the last frame."""
    server: int
    """Frames that a server answered."""
    exit: int
    """Frames that the early exit answered, by choice or as a fallback."""
    local: int
    """Frames that the whole model on the device answered, likewise."""
    rescued: int
    """Of both, the frames that had been sent to a server first."""
    errors: int
    dropped: int
    """Inputs that the drop policy let go."""
    late: int
    """Replies to frames that had ended by then."""
    resent: int
    connections: int
