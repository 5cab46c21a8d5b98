"""What a board draws, where it can be read: Jetson, Raspberry Pi 5, x86.

    meter = find_meter()
    if meter is not None:
        with Energy(meter) as energy: ...
        energy.joules, energy.mean_w

Where there is no meter there is no figure; `PowerModel` is what the policies reckon with, and says that it is a model.
"""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ..runtime.errors import NarrowsError, UsageError

log = logging.getLogger(__name__)

_ROOT = Path("/")
_PMIC_LINE = re.compile(r"^\s*(\S+)_([AV])\s+(?:current|volt)\(\d+\)=([0-9.]+)[AV]\s*$", re.MULTILINE)
_PMIC_S = 5.0


class MeterError(NarrowsError):
    """A meter that was there does not answer."""

    code = "meter"


class Meter(Protocol):
    """Something that can be asked for the power."""

    name: str
    """What is measured, for people."""

    def watts(self) -> float:
        """The power now, or since the last call where the hardware counts energy.

        Raises:
            MeterError: it cannot be read.
        """
        ...


class Ina3221:
    """The rails of a Jetson's INA3221 monitors (hwmon: `inN_input` in mV, `currN_input` in mA).

    Where a rail is called VDD_IN it is the whole board's and counts alone; otherwise the rails are added up.
    """

    def __init__(self, rails: Sequence[tuple[str, Path, Path]]) -> None:
        whole = [rail for rail in rails if rail[0] == "VDD_IN"]
        self._rails = whole or list(rails)
        self.name = "INA3221: " + ", ".join(label for label, _, _ in self._rails)

    @classmethod
    def find(cls, root: Path = _ROOT) -> Ina3221 | None:
        """The monitors of this board, if it has any."""
        rails = []
        for label in sorted((root / "sys/bus/i2c/drivers/ina3221").glob("*/hwmon/hwmon*/in*_label")):
            number = label.name.removeprefix("in").removesuffix("_label")
            volts, amperes = label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input")
            if volts.exists() and amperes.exists():
                rails.append((label.read_text().strip(), volts, amperes))
        return cls(rails) if rails else None

    def watts(self) -> float:
        """Now."""
        return sum(_number(volts) * _number(amperes) * 1e-6 for _, volts, amperes in self._rails)


class Pmic:
    """A Raspberry Pi 5's power management chip (`vcgencmd pmic_read_adc`): the sum of current × voltage of its rails.

    What the 5 V line feeds directly (USB, HATs) and the converters' losses are not in it.
    """

    name = "Raspberry Pi PMIC: rails behind the converters"

    def __init__(self, command: str) -> None:
        self._command = command

    @classmethod
    def find(cls) -> Pmic | None:
        """The chip of this board, if it answers."""
        command = shutil.which("vcgencmd")
        if command is None:
            return None
        meter = cls(command)
        try:
            meter.watts()
        except MeterError as error:
            log.debug("no power from %s: %s", command, error)
            return None
        return meter

    def watts(self) -> float:
        """Now."""
        try:
            done = subprocess.run(
                [self._command, "pmic_read_adc"], capture_output=True, text=True, check=True, timeout=_PMIC_S
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise MeterError(f"vcgencmd pmic_read_adc does not answer ({error}); it needs a Raspberry Pi 5") from None
        read = {(rail, unit): float(value) for rail, unit, value in _PMIC_LINE.findall(done.stdout)}
        pairs = [(read[rail, "A"], read[rail, "V"]) for rail, unit in read if unit == "A" and (rail, "V") in read]
        if not pairs:
            raise MeterError("vcgencmd pmic_read_adc names no rail with both a current and a voltage")
        return sum(amperes * volts for amperes, volts in pairs)


class Rapl:
    """The packages of an x86 processor (powercap: `energy_uj`, which wraps at `max_energy_range_uj`)."""

    def __init__(self, zones: Sequence[Path]) -> None:
        self._zones = zones
        self._most = [_number(zone / "max_energy_range_uj") for zone in zones]
        self._last = self._read()
        self._when = time.monotonic()
        self.name = "RAPL: " + ", ".join((zone / "name").read_text().strip() for zone in zones)

    @classmethod
    def find(cls, root: Path = _ROOT) -> Rapl | None:
        """The counters of this processor, if there are any and this user may read them."""
        zones = sorted((root / "sys/class/powercap").glob("intel-rapl:[0-9]"))
        try:
            return cls(zones) if zones else None
        except (MeterError, OSError) as error:
            log.debug("no RAPL: %s", error)
            return None

    def watts(self) -> float:
        """Since the last call."""
        now, energy = time.monotonic(), self._read()
        used = sum((new - old) % most for new, old, most in zip(energy, self._last, self._most, strict=True))
        elapsed_s, self._last, self._when = now - self._when, energy, now
        return used * 1e-6 / elapsed_s if elapsed_s > 0 else 0.0

    def _read(self) -> list[float]:
        return [_number(zone / "energy_uj") for zone in self._zones]


def find_meter(root: Path = _ROOT) -> Meter | None:
    """The meter of this machine, or None."""
    return Ina3221.find(root) or Pmic.find() or Rapl.find(root)


class Energy:
    """Adds up what a meter says, in a thread of its own, between its entering and its leaving."""

    def __init__(self, meter: Meter, every_s: float = 0.1) -> None:
        """Prepare.

        Args:
            meter: what to ask.
            every_s: between two questions.

        Raises:
            UsageError: an interval that is none.
        """
        if every_s <= 0:
            raise UsageError("the time between two readings must be positive")
        self._meter = meter
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="narrows-energy", daemon=True)
        self.joules = 0.0
        self.seconds = 0.0
        """The time over which `joules` were added up."""

    def __enter__(self) -> Energy:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def mean_w(self) -> float:
        """Mean power so far, in watts."""
        return self.joules / self.seconds if self.seconds else 0.0

    def _sample(self) -> None:
        try:
            last, before = time.monotonic(), self._meter.watts()
            over = False
            while not over:
                over = self._over.wait(self._every_s)
                now, power = time.monotonic(), self._meter.watts()
                self.joules += (now - last) * (before + power) / 2
                self.seconds += now - last
                last, before = now, power
        except MeterError as error:
            log.warning("%s has stopped answering: %s", self._meter.name, error)


def _number(path: Path) -> float:
    try:
        return float(path.read_text())
    except (OSError, ValueError) as error:
        raise MeterError(f"{path} cannot be read ({error})") from None
