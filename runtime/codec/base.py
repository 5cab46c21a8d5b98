"""What every coder is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Symbols = NDArray[Any]
"""Unsigned integers that a quantiser made, or a tensor of any numeric dtype that crosses the link as it is."""


@dataclass(frozen=True, slots=True)
class SymbolSpec:
    """One tensor as a coder sees it: one frame, no batch axis."""

    shape: tuple[int, ...]
    """Elements along each axis."""
    dtype: np.dtype[Any]
    """`uint8` or `uint16` for symbols; any fixed-size numeric dtype for a tensor that crosses as it is."""
    levels: int | None = None
    """Size of the alphabet: every symbol is below it. None for a tensor that crosses as it is."""
    channel_axis: int | None = None
    """The axis of `shape` along which statistics differ most, where there is one."""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def raw_bytes(self) -> int:
        """Bytes of the tensor uncoded."""
        return self.elements * self.dtype.itemsize

    @property
    def max_payload_bytes(self) -> int:
        """No coder may write more than this, so a longer payload is refused before anything is allocated."""
        return self.raw_bytes + 16


class BoundCoder(Protocol):
    """A coder that is ready for one tensor. Safe to use from several threads at once."""

    @property
    def spec(self) -> SymbolSpec: ...

    def encode(self, symbols: Symbols) -> bytes:
        """Code one frame's tensor.

        Args:
            symbols: `spec.dtype` `spec.shape`, every value below `spec.levels`.

        Returns:
            At most `spec.max_payload_bytes` bytes; the same for the same symbols on every machine.
        """
        ...

    def decode(self, payload: bytes | memoryview) -> Symbols:
        """The exact symbols again, `spec.dtype` `spec.shape`.

        Raises:
            CoderError: the payload is not one that `encode` could have made for this tensor. Memory that is taken
                before this is known never exceeds a small multiple of `spec.raw_bytes`.
        """
        ...

    def estimate_bytes(self, symbols: Symbols) -> int:
        """About how many bytes `encode` would make, for a fraction of what coding costs. Never part of the format."""
        ...


class Coder(Protocol):
    """One way to code symbols."""

    name: ClassVar[str]
    version: ClassVar[int]
    number: ClassVar[int]
    """Stands for name and version in a frame. Never reused."""

    def bind(self, spec: SymbolSpec, table: bytes | memoryview | None = None) -> BoundCoder:
        """Prepare for one tensor at one quality.

        Args:
            spec: the tensor.
            table: this coder's table for it out of the bundle's `tables.bin`, where there is one.

        Raises:
            BundleError: the table is damaged or made for another tensor.
        """
        ...


def label_of(coder: Coder | type[Coder]) -> str:
    """What a coder is called in the handshake: "name/version"."""
    return f"{coder.name}/{coder.version}"
