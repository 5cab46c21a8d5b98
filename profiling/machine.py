"""What a profile is measured on: the machine's facts, and whether it kept its speed meanwhile."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..planner.profile import Machine
from ..runtime.cores import available_cores
from ..runtime.session import SessionOptions, runtime
from ..runtime.version import VERSION

_DRIFT = 0.1
"""Share by which one and the same run may slow down from the first third of its timings to the last."""
_HOT_C = 80.0
"""From about here on boards slow themselves down (Raspberry Pi 4 and 5: 80 °C, by their documentation)."""
_SLOW = 0.9
"""Of the highest frequency."""
_THROTTLED_NOW = 0b1111
"""`vcgencmd get_throttled`: under-voltage, capped, throttled, soft limit."""
_VCGENCMD_S = 5.0


def machine(name: str | None, options: SessionOptions) -> Machine:
    """This machine's facts."""
    processor = _processor()
    return Machine(
        name=name or platform.node() or processor,
        processor=processor,
        cores=available_cores(),
        threads=options.threads,
        providers=options.providers,
        onnxruntime=runtime().__version__,
        architecture=platform.machine(),
        narrows=VERSION,
    )


def _processor() -> str:
    for path, key in ((Path("/proc/device-tree/model"), ""), (Path("/proc/cpuinfo"), "model name")):
        try:
            text = path.read_text(errors="replace").replace("\0", "")
        except OSError:
            continue
        if not key:
            return text.strip()
        line = next((line for line in text.splitlines() if line.startswith(key)), None)
        if line is not None:
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@dataclass(slots=True)
class Watch:
    """Looks now and then at whether the machine slows down.

    `check` times one and the same run; temperature, frequency and the Raspberry Pi's own word are read beside it, where
    they can be.
    """

    run: Callable[[], float]
    """Something that takes a while, and returns how long it took, in milliseconds."""
    root: Path = Path("/")
    _times_ms: list[float] = field(default_factory=list)
    _hottest_c: float = 0.0
    _slowest: float = 1.0
    _flags: int = 0

    def check(self) -> None:
        """Look once."""
        self._times_ms.append(self.run())
        self._hottest_c = max(self._hottest_c, _temperature(self.root))
        self._slowest = min(self._slowest, _frequency(self.root))
        self._flags |= _throttled()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the figures must know."""
        found = []
        third = len(self._times_ms) // 3
        if third >= 2:
            first, last = np.median(self._times_ms[:third]), np.median(self._times_ms[-third:])
            if abs(last / first - 1) > _DRIFT:
                how = "slower" if last > first else "faster"
                found.append(
                    f"the machine became {abs(last / first - 1):.0%} {how} while it was measured: it throttles, or "
                    "others use it; profile again when it is cool and idle"
                )
        if self._flags & _THROTTLED_NOW:
            found.append("the board reports throttling or under-voltage (vcgencmd get_throttled)")
        if self._hottest_c >= _HOT_C:
            found.append(f"the processor reached {self._hottest_c:.0f} °C, where boards slow themselves down")
        if self._slowest < _SLOW:
            found.append(f"the processor ran at {self._slowest:.0%} of its highest frequency at times")
        return tuple(found)


def _temperature(root: Path) -> float:
    """The hottest zone, in °C; 0 where none can be read."""
    return max((_number(path) / 1000 for path in root.glob("sys/class/thermal/thermal_zone*/temp")), default=0.0)


def _frequency(root: Path) -> float:
    """The fastest core's frequency as a share of the highest; 1 where it cannot be read."""
    shares = []
    for path in root.glob("sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq"):
        highest = _number(path.with_name("cpuinfo_max_freq"))
        if highest > 0:
            shares.append(_number(path) / highest)
    return min(1.0, max(shares, default=1.0))


def _throttled() -> int:
    command = shutil.which("vcgencmd")
    if command is None:
        return 0
    try:
        done = subprocess.run(
            [command, "get_throttled"], capture_output=True, text=True, check=True, timeout=_VCGENCMD_S
        )
        return int(done.stdout.strip().partition("=")[2], 16)
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0


def _number(path: Path) -> float:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return 0.0
