"""What the device draws, where there is a meter."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..device.energy import Energy, Meter

_SECONDS = 2.0


def energy_of(meter: Meter, run: Callable[[], object]) -> tuple[float, float]:
    """Joules of one run, and the mean power in watts meanwhile, over two seconds of runs."""
    runs, until = 0, time.perf_counter() + _SECONDS
    with Energy(meter) as energy:
        while time.perf_counter() < until:
            run()
            runs += 1
    return energy.joules / max(1, runs), energy.mean_w


def idle_w(meter: Meter) -> float:
    """Watts while nothing is done, over two seconds."""
    with Energy(meter) as energy:
        time.sleep(_SECONDS)
    return energy.mean_w
