"""What the batcher runs: a frame into arrays, several frames through a graph at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from ..runtime.codec import Symbols
from ..runtime.frame import Frame, FrameCodec
from ..runtime.halves import Tail

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Prepared:
    """One frame, decoded."""

    arrays: tuple[Symbols, ...]
    """Without batch axes."""
    quality: int

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Frames of equal shapes can share a run."""
        return tuple(array.shape for array in self.arrays)


class Engine(Protocol):
    """One graph and the way frames come to it. Safe to use from several threads at once."""

    @property
    def providers(self) -> Sequence[str]:
        """The execution providers that run it, best first."""
        ...

    def prepare(self, frame: Frame) -> Prepared:
        """Decode a frame that nobody has believed yet.

        Raises:
            FrameError: it is not one that the bundle allows.
        """
        ...

    def run(self, batch: Sequence[Prepared]) -> list[dict[str, Array]]:
        """Run frames of equal shapes together.

        Returns:
            For each frame, the outputs by name, without batch axes.

        Raises:
            ShapeError: the graph refuses them.
        """
        ...


@dataclass(frozen=True, slots=True)
class SplitEngine:
    """The tail of one cut."""

    codec: FrameCodec
    tail: Tail

    @property
    def providers(self) -> Sequence[str]:
        """Those of the tail."""
        return self.tail.providers

    def prepare(self, frame: Frame) -> Prepared:
        """Symbols out of the payloads, held against their checksum."""
        return Prepared(self.codec.unpack(frame), frame.quality)

    def run(self, batch: Sequence[Prepared]) -> list[dict[str, Array]]:
        """The tail over the batch; every frame keeps its own quality."""
        return self.tail.run([frame.arrays for frame in batch], [frame.quality for frame in batch])
