"""The operating point of a frame: what is done with it, or might be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["split", "exit", "local", "offload"]
ON_DEVICE: tuple[Mode, ...] = ("exit", "local")
"""Modes in which nothing is sent."""
PictureFormat = Literal["jpeg", "webp"]


@dataclass(frozen=True, slots=True)
class Point:
    """The operating point of one frame."""

    mode: Mode
    cut: str | None = None
    """Name of the cut; None where nothing was cut."""
    quality: int | None = None
    """Of the cut's ladder; of the compressed picture for `offload`."""
    format: PictureFormat = "jpeg"
    """Of the compressed picture, for `offload`."""

    def __str__(self) -> str:
        if self.mode == "split":
            return f"split at {self.cut}, quality {self.quality}"
        if self.mode == "offload":
            return f"offload as {self.format.upper() if self.format == 'jpeg' else 'WebP'} {self.quality}"
        return f"early exit at {self.cut}" if self.mode == "exit" else "local"


LOCAL = Point("local")
"""The whole model on the device."""
