"""What the fuzzers run: bytes in; a refusal, or symbols that can be coded again, out. Anything else is a finding."""

from __future__ import annotations

from functools import cache

import numpy as np
from codec_cases import crooked_table
from narrows.runtime.codec import SymbolSpec, _twin, by_label
from narrows.runtime.codec.context import BoundContext, Context, engine
from narrows.runtime.codec.model import Geometry, default_table, pack
from narrows.runtime.errors import BundleError, CoderError

CASES: tuple[tuple[tuple[int, ...], int | None, str, int | None], ...] = (
    ((5, 6, 7), 16, "uint8", 0),
    ((3, 5, 5), 2, "uint8", 0),
    ((2, 4, 9), 4, "uint16", 1),
    ((7, 3, 4), 200, "uint8", 0),
    ((4, 5, 3), 3000, "uint16", 0),
    ((6, 20, 20), 8, "uint8", 0),
    ((11,), 65_536, "uint16", None),
    ((3, 8), None, "float32", 0),
)
"""Shape, levels, dtype and channel axis; the first byte of a fuzzer's input chooses one."""


@cache
def _bound(case: int, tabled: bool) -> BoundContext:
    shape, levels, dtype, axis = CASES[case]
    spec = SymbolSpec(shape, np.dtype(dtype), levels, axis)
    if levels is None:
        return Context().bind(spec)  # type: ignore[return-value]
    return BoundContext(spec, crooked_table(spec) if tabled else default_table(Geometry.of(spec)), engine())


def decode_one(data: bytes) -> bool:
    """Decode `data[1:]` for the tensor that `data[0]` chooses. Whether it was accepted."""
    if not data:
        return False
    bound = _bound(data[0] % len(CASES), data[0] >= 128)
    try:
        symbols = bound.decode(data[1:])
    except CoderError:
        return False
    spec = bound.spec
    assert symbols.shape == spec.shape
    assert symbols.dtype == spec.dtype
    if spec.levels is not None:
        assert int(symbols.max()) < spec.levels
        assert np.array_equal(bound.decode(bound.encode(symbols)), symbols)
    return True


def twins_agree(data: bytes) -> None:
    """The kernel and its twin refuse the same payloads, and read the same symbols out of the others."""
    if not data or CASES[data[0] % len(CASES)][1] is None:
        return
    bound = _bound(data[0] % len(CASES), data[0] >= 128)
    twin = BoundContext(bound.spec, bound.table, _twin)
    outcomes = []
    for one in (bound, twin):
        try:
            outcomes.append(one.decode(data[1:]).tobytes())
        except CoderError:
            outcomes.append(None)
    assert outcomes[0] == outcomes[1]


def bind_one(data: bytes) -> bool:
    """Take `data` as a table, and code with it where it is accepted."""
    spec = SymbolSpec((5, 4, 6), np.dtype(np.uint8), 16, 0)
    try:
        bound = by_label("context/1").bind(spec, data)
    except BundleError:
        return False
    symbols = (np.arange(spec.elements) * 7 % 16).astype(np.uint8).reshape(spec.shape)
    assert np.array_equal(bound.decode(bound.encode(symbols)), symbols)
    return True


def run_one(data: bytes) -> bool:
    """The first byte chooses the target: 0 to 15 a table, above them a payload. Whether it was accepted."""
    return bind_one(data[1:]) if data[:1] < b"\x10" else decode_one(data[1:])


def seeds() -> dict[str, bytes]:
    """Valid inputs to start from: name -> bytes."""
    made = {}
    for case, (shape, levels, dtype, _) in enumerate(CASES):
        top = 256 if levels is None else levels
        values = np.abs(np.arange(int(np.prod(shape))) * 37 % 101 - 50) ** 2 % top
        symbols = np.minimum(values, values[::-1]).reshape(shape).astype(dtype)
        for tabled in (False, True):
            payload = _bound(case, tabled).encode(symbols)
            made[f"case{case}-{'tabled' if tabled else 'plain'}"] = bytes([0x20, case + 128 * tabled]) + payload
    spec = SymbolSpec((5, 4, 6), np.dtype(np.uint8), 16, 0)
    made["table"] = b"\x00" + pack(Geometry.of(spec), crooked_table(spec))
    return made
