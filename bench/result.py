"""What a bench found, and how it becomes a row of a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..runtime.errors import UsageError
from ..runtime.point import Point
from .options import Load
from .steady import Durations


@dataclass(frozen=True, slots=True)
class Step:
    """One operating point under one load."""

    point: Point
    load: Load
    devices: int
    settled: bool
    """False where the step reached its cap of time first."""
    seconds: float
    """That the figures were measured over, the warm-up left out."""
    frames: int
    """That ended in this time."""
    outcomes: Mapping[str, int]
    """Frames by what they ended in: "ok", or an error's code, such as "overloaded" for one that was turned away."""
    throughput: float
    """Answers a second."""
    offered: float
    """Frames that came a second."""
    in_flight: float
    """Mean number of frames between arrival and answer (Little's law)."""
    stages: Mapping[str, Durations]
    """Durations by stage, of the answered frames; `latency` is the whole, counted from the intended arrival."""
    payload_bytes: float
    """Mean, of the answered frames."""
    wire_bytes: float
    agreement: float | None
    """Share of the answered frames whose best class is the whole model's; None where the bundle has no whole model, or
    the model is no classifier."""
    joules: float | None
    """A frame, on the device's meter, with what the machine draws anyway; None where there is no meter."""
    trouble: str = ""
    """Why the step ended before its time."""

    @property
    def errors(self) -> int:
        """Frames that were not answered."""
        return sum(n for code, n in self.outcomes.items() if code != "ok")


@dataclass(frozen=True, slots=True)
class Found:
    """The highest rate at which a point keeps a promise."""

    point: Point
    p99_ms: float
    """The promise."""
    rate: float | None
    """Frames a second; None where even the lowest that was tried broke it."""
    broken_at: float | None
    """The lowest rate that was tried and broke it."""


@dataclass(frozen=True, slots=True)
class BenchResult:
    """All that was measured."""

    bundle: str
    """The model's name."""
    digest: str
    server: str
    """Where it was, or "a process on this machine"."""
    link: str | None
    """What was emulated."""
    inputs: int
    """Different inputs that took turns."""
    golden: bool
    """The input was the bundle's golden frame, for none was given."""
    meter: str | None
    steps: tuple[Step, ...]
    found: tuple[Found, ...] = ()
    ended: str = ""
    """Why not everything that was asked for is here; empty where it is."""

    def to_json(self) -> dict[str, object]:
        """As values that JSON has."""
        return dict(asdict(self))


def write_csv(steps: Sequence[Step], path: Path) -> None:
    """A row a step.

    Raises:
        UsageError: the file cannot be written.
    """
    rows = [_row(step) for step in steps]
    heads = list(dict.fromkeys(key for row in rows for key in row))
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, heads)
            table.writeheader()
            table.writerows(rows)
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror})") from None


def _row(step: Step) -> dict[str, Any]:
    flat: dict[str, Any] = asdict(step)
    row: dict[str, Any] = {f"point_{key}": value for key, value in flat.pop("point").items()} | flat.pop("load")
    outcomes, stages = flat.pop("outcomes"), flat.pop("stages")
    row |= flat
    row |= {f"outcome_{code}": count for code, count in outcomes.items()}
    row |= {f"{stage}_{name}_ms": value for stage, took in stages.items() for name, value in took.items()}
    return row
