"""Rate control: which quality a frame can afford.

Quality is an input of the head, so it is chosen before a frame's symbols exist. `SizeModel` supposes that a frame is as
much larger or smaller than its bundle's calibration as the last frames were, whatever their quality; `byte_budget`
says what a link carries before a deadline; `highest_fitting` puts both together. After coding, `within_cap` is what a
frame must pass: a learned codec's payload can be doubled by an adversarial input, so an operator sets a cap.

    sizes = SizeModel(bundle_bytes)                     # mean payload per quality, from calibration
    quality = highest_fitting(sizes.expected(), byte_budget(goodput_bps=2e6, time_s=0.02))
    ...
    sizes = sizes.after(quality, len(payload))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .errors import FrameTooLargeError, UsageError


def byte_budget(*, goodput_bps: float, time_s: float, overhead_bytes: int = 0) -> int:
    """Payload bytes that `goodput_bps` bits per second carry in `time_s` seconds, beside `overhead_bytes`."""
    if goodput_bps <= 0 or time_s <= 0:
        return 0
    return max(0, math.floor(min(goodput_bps * time_s / 8, float(1 << 62))) - overhead_bytes)


def highest_fitting(sizes_bytes: Sequence[float], budget_bytes: float) -> int | None:
    """The highest quality whose size is within the budget; None where not even quality 0 is.

    Args:
        sizes_bytes: expected payload per quality, quality 0 first. Not necessarily ascending.
    """
    return max((q for q, size in enumerate(sizes_bytes) if size <= budget_bytes), default=None)


def step_down(quality: int, payload_bytes: int, cap_bytes: int, sizes_bytes: Sequence[float]) -> int | None:
    """The quality to try next for a frame whose payload is over the cap; None where only the fallback is left.

    Sizes are scaled by what this very frame showed at `quality`.
    """
    scale = payload_bytes / max(1.0, sizes_bytes[quality])
    return highest_fitting([size * scale for size in sizes_bytes[:quality]], cap_bytes)


def within_cap(payload_bytes: int, cap_bytes: int | None) -> None:
    """Nothing, where a payload is within the operator's cap.

    Raises:
        FrameTooLargeError: it is not.
    """
    if cap_bytes is not None and payload_bytes > cap_bytes:
        raise FrameTooLargeError(
            f"the payload has {payload_bytes} bytes, the cap is {cap_bytes}; lower the quality or raise the cap"
        )


@dataclass(frozen=True, slots=True)
class SizeModel:
    """Expected payload per quality: the calibration's, times how the last frames compared to it."""

    calibrated_bytes: tuple[float, ...]
    """Mean payload at each quality over the calibration frames."""
    log_scale: float = 0.0
    """Logarithm of how much larger than calibrated the last frames were."""
    memory: float = 0.8
    """Share of the past in the next estimate, in [0, 1)."""

    def __post_init__(self) -> None:
        if not self.calibrated_bytes or min(self.calibrated_bytes) <= 0:
            raise UsageError("a size model needs a positive size for every quality")
        if not 0 <= self.memory < 1:
            raise UsageError(f"memory is in [0, 1), not {self.memory}")

    def expected(self) -> list[float]:
        """Bytes per quality that the next frame will probably take."""
        return [size * math.exp(self.log_scale) for size in self.calibrated_bytes]

    def after(self, quality: int, payload_bytes: int) -> SizeModel:
        """The model once a frame at `quality` has turned out to take `payload_bytes`."""
        seen = math.log(max(1, payload_bytes) / self.calibrated_bytes[quality])
        return replace(self, log_scale=self.memory * self.log_scale + (1 - self.memory) * seen)
