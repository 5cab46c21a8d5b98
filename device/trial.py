"""One execution provider tried on a bundle, in a process of its own: `python -m narrows.device.trial JOB REPORT`."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

from ..runtime.bundle import Bundle
from ..runtime.errors import NarrowsError
from ..runtime.halves import Head, load_arrays
from ..runtime.manifest import Cut, Half
from ..runtime.session import SessionOptions
from .providers import Trial
from .pull import try_here

_WARM_UP, _LEAST, _MOST, _BUDGET_S = 3, 5, 50, 2.0


def attempt(bundle: Bundle, cut: Cut, options: SessionOptions) -> Trial:
    """Prove every graph of the device's half with these providers, and time the head of one cut."""
    provider = options.providers[0]
    try:
        try_here(bundle, options)
        head = Head(bundle, cut, options, golden=False)
    except NarrowsError as error:
        return Trial(provider, trouble=str(error))
    if provider not in head.providers:
        # ONNX Runtime leaves a provider out, with no more than a warning, whose libraries are missing.
        return Trial(provider, trouble="this ONNX Runtime has it and cannot load it; are its libraries installed?")
    golden = load_arrays(bundle, cut.golden_head)
    inputs = [golden[f"input/{i}"] for i in range(len(head.inputs))]
    for _ in range(_WARM_UP):
        head.run(inputs)
    took: list[float] = []
    until = time.perf_counter() + _BUDGET_S
    while len(took) < _LEAST or (len(took) < _MOST and time.perf_counter() < until):
        began = time.perf_counter()
        head.run(inputs)
        took.append((time.perf_counter() - began) * 1000)
    return Trial(provider, statistics.median(took), who_ran(bundle, cut, options))


def who_ran(bundle: Bundle, cut: Cut, options: SessionOptions) -> dict[str, int]:
    """How many nodes of a head each provider really ran, by ONNX Runtime's own profile of one run."""
    golden = load_arrays(bundle, cut.golden_head)
    with tempfile.TemporaryDirectory() as folder:
        head = Head(bundle, cut, replace(options, trace=Path(folder)), golden=False)
        head.run([golden[f"input/{i}"] for i in range(len(head.inputs))])
        events = json.loads(Path(head.end_profile()).read_text())
    ran = {event["name"]: event["args"]["provider"] for event in events if event.get("args", {}).get("provider")}
    return dict(Counter(ran.values()).most_common())


def main(job: str, report: str) -> None:
    """Do what the parent asks for, and write what came of it."""
    asked = json.loads(job)
    bundle = Bundle.open(asked["bundle"], Half.DEVICE)
    options = SessionOptions(tuple(asked["providers"]), threads=asked["threads"], quiet=True)
    trial = attempt(bundle, bundle.manifest.cut(asked["cut"])[1], options)
    Path(report).write_text(json.dumps(asdict(trial)))


if __name__ == "__main__":
    main(*sys.argv[1:])
