from typing import Any

import numpy as np
from numpy.typing import NDArray

def encode(
    numbers: tuple[int, ...], arrays: tuple[NDArray[Any], ...], symbols: NDArray[Any], capacity: int, /
) -> bytes | None: ...
def decode(
    numbers: tuple[int, ...], arrays: tuple[NDArray[Any], ...], payload: bytes | memoryview, symbols: NDArray[Any], /
) -> bool: ...
def tally(
    numbers: tuple[int, ...],
    arrays: tuple[NDArray[Any], ...],
    symbols: NDArray[Any],
    step: int,
    counts: NDArray[np.uint32],
    /,
) -> None: ...
