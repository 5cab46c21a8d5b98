"""What a frame costs, as formulas: one model of latency and energy for the device's policies and for the planner.

Durations in seconds, sizes in bytes, powers in watts.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import UsageError
from .link import wire_bytes

FRAME_BYTES = 40
"""Of a frame's message beside its payload, at most, for the usual cut of one tensor."""


@dataclass(frozen=True, slots=True)
class PowerModel:
    """What a device draws, where it has no meter: a model, and said to be one.

    The defaults are of the order of what is published for a Raspberry Pi 4 under load; measure your own board.
    """

    compute_w: float = 5.0
    """While a graph or the coder runs."""
    wait_w: float = 2.5
    """While an answer is waited for."""
    radio_w: float = 1.0
    """In addition, while bytes leave."""

    def __post_init__(self) -> None:
        if min(self.compute_w, self.wait_w, self.radio_w) < 0:
            raise UsageError("powers are not negative")

    def energy_j(self, compute_s: float, wait_s: float = 0.0, send_s: float = 0.0) -> float:
        """Joules of one frame on the device.

        Args:
            compute_s: in which graphs and coder run.
            wait_s: from the last byte handed over to the answer, sending included.
            send_s: in which bytes leave.
        """
        return self.compute_w * compute_s + self.wait_w * wait_s + self.radio_w * send_s


def frame_wire_bytes(payload_bytes: float) -> int:
    """Bytes in the TCP stream of a frame whose coded symbols take `payload_bytes`."""
    return wire_bytes(round(payload_bytes) + FRAME_BYTES)


def transfer_s(size_bytes: float, delay_s: float, byte_s: float) -> float:
    """How long a frame is on the link, there and back: what does not depend on its size, and what does.

    Args:
        size_bytes: in the TCP stream.
        delay_s: round trip and the ends' own handling of a frame.
        byte_s: seconds that one byte takes, 8 / (bits a second).
    """
    return delay_s + size_bytes * byte_s
