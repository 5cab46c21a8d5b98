"""What a device process is told, and what it says: a line of JSON each."""

from __future__ import annotations

import msgspec

from ..runtime.credentials import LinkSecurity
from ..runtime.point import Point
from ..runtime.session import SessionOptions


class Job(msgspec.Struct, frozen=True):
    """What a device process is to do."""

    bundle: str
    address: str
    source: str | None
    point: Point
    concurrency: int | None
    rate: float | None
    """Frames a second of this device."""
    seed: int
    window: int
    timeout_s: float
    session: SessionOptions
    security: LinkSecurity
    meter: bool
    """Read the meter, where this machine has one: of several devices on a machine, one does."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The graphs are proven and warm."""

    inputs: int
    """Different inputs that take turns."""


class Ended(msgspec.Struct, frozen=True, tag=True, gc=False):
    """A frame has ended. Seconds from the start of the load, on the device's clock."""

    due_s: float
    """When it came, or would have, had there been room."""
    begun_s: float
    done_s: float
    input: int
    code: str
    """ "ok", or the error's."""
    mode: str
    """Of the operating point that it took."""
    top: int | None
    """The best class."""
    payload_bytes: int
    wire_bytes: int
    ms: dict[str, float]
    """Durations, as `device.Outcome` has them."""

    @property
    def latency_ms(self) -> float:
        """From the moment at which the frame was due, not from when there was room for it."""
        return (self.done_s - self.due_s) * 1000


class Over(msgspec.Struct, frozen=True, tag=True):
    """Every frame that was taken has ended."""

    meter: str | None
    joules: float | None


class Failed(msgspec.Struct, frozen=True, tag=True):
    """No further frame can be answered."""

    code: str
    text: str


Said = Ready | Ended | Over | Failed
ENCODER = msgspec.json.Encoder()
DECODER: msgspec.json.Decoder[Said] = msgspec.json.Decoder(Said)
