"""No coding at all: the tensor's own little-endian bytes. What every other coder is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..errors import CoderError
from .base import Symbols, SymbolSpec


@dataclass(frozen=True)
class BoundRaw:
    spec: SymbolSpec

    def encode(self, symbols: Symbols) -> bytes:
        return np.ascontiguousarray(symbols, self.spec.dtype.newbyteorder("<")).tobytes()

    def decode(self, payload: bytes | memoryview) -> Symbols:
        if len(payload) != self.spec.raw_bytes:
            raise CoderError(f"a raw payload of {self.spec.raw_bytes} bytes was expected, {len(payload)} came")
        stored = np.frombuffer(payload, self.spec.dtype.newbyteorder("<")).reshape(self.spec.shape)
        return stored.astype(self.spec.dtype, copy=False)

    def estimate_bytes(self, symbols: Symbols) -> int:
        return self.spec.raw_bytes


class Raw:
    name: ClassVar[str] = "raw"
    version: ClassVar[int] = 1
    number: ClassVar[int] = 0

    def bind(self, spec: SymbolSpec, table: bytes | memoryview | None = None) -> BoundRaw:
        return BoundRaw(spec)
