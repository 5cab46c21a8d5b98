"""Meters over files and a command that look like a board's: no board is at hand."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from narrows.device.energy import Energy, Ina3221, MeterError, Pmic, Rapl, find_meter
from narrows.runtime.errors import UsageError

PMIC = """   3V7_WL_SW_A current(0)=0.10000000A
   3V3_SYS_A current(1)=0.20000000A
   3V7_WL_SW_V volt(8)=3.70000000V
   3V3_SYS_V volt(9)=3.30000000V
   EXT5V_V volt(24)=5.16000000V
"""


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


def test_a_jetsons_whole_board_rail_counts_alone(tmp_path: Path) -> None:
    folder = tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    write(folder, in1_label="VDD_IN", in1_input=5000, curr1_input=1200)
    write(folder, in2_label="VDD_CPU", in2_input=5000, curr2_input=400)
    meter = find_meter(tmp_path)
    assert isinstance(meter, Ina3221)
    assert meter.watts() == pytest.approx(6.0)
    (folder / "in1_label").write_text("VDD_GPU\n")
    assert Ina3221.find(tmp_path).watts() == pytest.approx(8.0)
    (folder / "curr1_input").unlink()
    with pytest.raises(MeterError):
        meter.watts()


def test_a_raspberrys_rails_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "vcgencmd"
    command.write_text(f"#!/bin/sh\ncat <<'END'\n{PMIC}END\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    meter = Pmic.find()
    assert meter is not None
    assert meter.watts() == pytest.approx(0.1 * 3.7 + 0.2 * 3.3)
    command.write_text("#!/bin/sh\necho error=1\n")  # an older board
    assert Pmic.find() is None
    command.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(MeterError):
        meter.watts()


def test_rapl_counts_on_over_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "sys/class/powercap/intel-rapl:0"
    write(folder, name="package-0", energy_uj=9_000_000, max_energy_range_uj=10_000_000)
    meter, began = Rapl.find(tmp_path), time.monotonic()
    assert meter is not None
    time.sleep(0.05)
    write(folder, energy_uj=1_000_000)  # two joules later
    watts = meter.watts()
    assert 0 < watts <= 2.0 / 0.05
    assert watts >= 2.0 / (time.monotonic() - began) * 0.5


def test_no_meter_is_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_meter(tmp_path) is None


def test_energy_is_power_over_time() -> None:
    class Steady:
        name = "two watts"

        def watts(self) -> float:
            return 2.0

    with Energy(Steady(), every_s=0.01) as energy:
        time.sleep(0.1)
    assert energy.seconds > 0.09
    assert energy.joules == pytest.approx(2 * energy.seconds)
    assert energy.mean_w == pytest.approx(2.0)
    with pytest.raises(UsageError):
        Energy(Steady(), every_s=0)
