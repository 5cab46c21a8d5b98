"""Is the device as fast as its slowest stage, and no slower to answer than its stages and one wait?

    python benchmarks/pipeline.py [--frames 300] [--json]

ResNet-20 on CIFAR pictures, a server process, a device in this process, an emulated link between them. In turn the head
(made to sleep), the link (its rate) and both are the slowest stage, and once more the head, over a link that is long
and jitters. The rate is that of the last two thirds of the frames, beside what the slowest stage could do alone; p99
stands beside the sum of the stages' medians and one slowest stage more. The link's own time is its delay there and
back, at its longest, and a frame's bytes at its rate.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import harness
import numpy as np
from narrows.device import Device, DeviceOptions, Outcome
from narrows.device.emulator import LinkEmulator
from narrows.device.schedule import parse_link
from narrows.runtime.answer import Form, Wanted
from narrows.runtime.bundle import Bundle
from narrows.runtime.halves import Head
from narrows.runtime.session import SessionOptions

SUBJECT = next(subject for subject in harness.SUBJECTS if subject.name == "resnet20-cifar10")
RATE_BPS, DELAY_S = 1e6, 0.005
CASES = {
    "head": (25.0, "1gbit,1ms"),
    "link": (0.0, "1mbit,5ms"),
    "head and link": (16.0, "1mbit,5ms"),
    "head, far link": (20.0, "50mbit,40ms~10ms"),
}
STAGES = ("head", "encode", "queue", "decode", "tail")


def slow_head(least_ms: float) -> Any:
    """Let every head take so long at least; what it was before."""
    quick = Head.run

    def run(self: Head, *arguments: Any) -> Any:
        began = time.monotonic()
        result = quick(self, *arguments)
        time.sleep(max(0.0, least_ms / 1000 - (time.monotonic() - began)))
        return result

    Head.run = run  # type: ignore[method-assign]
    return quick


def measure(bundle: Bundle, address: str, pictures: list[Any], head_ms: float, link: str, count: int) -> dict[str, Any]:
    options = DeviceOptions(wanted=Wanted(Form.TOP), window=16, session=SessionOptions(threads=1), timeout_s=30)
    ended: list[float] = []
    outcomes: list[Outcome] = []
    with LinkEmulator(address, parse_link(link)) as emulated, Device(bundle, emulated.address, options) as device:
        quick = slow_head(head_ms)
        try:
            for outcome in device.stream(islice(cycle(pictures), count)):
                ended.append(time.monotonic())
                outcomes.append(outcome)
        finally:
            Head.run = quick  # type: ignore[method-assign]
    steady = outcomes[count // 3 :]
    rate = (len(steady) - 1) / (ended[-1] - ended[count // 3])
    state = parse_link(link).states[0]
    wire = float(np.median([o.wire_bytes for o in steady]))
    serial_ms = wire * 8 / state.rate_bps * 1000
    stages = {name: float(np.median([o.ms[name] for o in steady])) for name in STAGES}
    slowest = max(serial_ms, *stages.values())
    total = sum(stages.values()) + serial_ms + 2 * (state.delay_s + state.jitter_s) * 1000
    p99 = float(np.percentile([o.ms["total"] for o in steady], 99))
    return {
        "slowest stage, ms": slowest,
        "frames/s": rate,
        "of the slowest alone": rate * slowest / 1000,
        "sum of stages, ms": total,
        "p50, ms": float(np.median([o.ms["total"] for o in steady])),
        "p99, ms": p99,
        "p99 of sum and slowest": p99 / (total + slowest),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle, pictures = harness.cut_with_inputs(SUBJECT, folder, 32)
        with harness.server(folder / "bundles") as address:
            rows = [
                {"slowest": what, **measure(bundle, address, pictures, head_ms, link, options.frames)}
                for what, (head_ms, link) in CASES.items()
            ]
    harness.report("Throughput and latency of the pipeline", rows, as_json=options.json)


if __name__ == "__main__":
    main()
