"""What does the device runtime take, beside the same head in a bare ONNX Runtime loop?

    python benchmarks/footprint.py [--json]

Each figure is from a process of its own: the time of `import narrows` and of `import narrows.device`, beside that of
NumPy and of ONNX Runtime; the peak resident memory of a device that streams MobileNetV2's head to a server, beside that
of a loop that only loads the head and runs it as often. The install is what `pip install narrows` brings, as its files
lie here, distribution by distribution.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import harness
import numpy as np
from narrows.device import open_source

SUBJECT = next(subject for subject in harness.SUBJECTS if subject.name == "mobilenet-v2")
FRAMES, ROUNDS = 100, 5

BARE = """
import sys
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
pictures = np.load(sys.argv[2])
names = [value.name for value in session.get_inputs()]
for n in range(int(sys.argv[3])):
    feeds = {name: np.array([7], np.int32) for name in names[1:]}
    session.run(None, {names[0]: pictures[n % len(pictures)][None], **feeds})
"""
DEVICE = """
import itertools, sys
import numpy as np
from narrows import Device, DeviceOptions
from narrows.runtime.answer import Form, Wanted
from narrows.runtime.session import SessionOptions
pictures = np.load(sys.argv[2])
options = DeviceOptions(wanted=Wanted(Form.TOP), session=SessionOptions(threads=1))
with Device(sys.argv[1], sys.argv[4], options) as device:
    frames = itertools.islice(itertools.cycle(pictures), int(sys.argv[3]))
    assert all(outcome.error is None for outcome in device.stream(frames))
"""
# Not getrusage: its peak is carried over from the process that started this one.
PEAK = """
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) / 1024)
"""
IMPORT = "import time; t = time.perf_counter(); import {}; print((time.perf_counter() - t) * 1000)"


def ask(code: str, *arguments: object) -> float:
    """The number that a fresh interpreter prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def least(code: str, *arguments: object) -> float:
    """The least of several: what is above it is this machine's other business."""
    return min(ask(code, *arguments) for _ in range(ROUNDS))


def distributions(root: str) -> dict[str, float]:
    """Every distribution that a plain install of `root` needs here, with its megabytes; the same under any name that
    provides ONNX Runtime."""
    sizes: dict[str, float] = {}
    waiting = [root]
    while waiting:
        name = waiting.pop()
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if found.name.lower() in sizes:
            continue
        files = (Path(str(file.locate())) for file in found.files or ())
        sizes[found.name.lower()] = sum(path.stat().st_size for path in files if path.is_file()) / 1e6
        waiting += [re.split(r"[^\w.-]", one, maxsplit=1)[0] for one in found.requires or () if "extra ==" not in one]
    return sizes


def declared() -> list[str]:
    """The device's own requirements, from pyproject.toml: this checkout need not be installed."""
    import tomllib

    with (harness.ROOT / "pyproject.toml").open("rb") as stream:
        needs = tomllib.load(stream)["project"]["dependencies"]
    return [re.split(r"[^\w.-]", one, maxsplit=1)[0] for one in needs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def row(what: str, value: float, unit: str, beside: str = "") -> None:
        rows.append({"what": what, "value": value, "unit": unit, "beside": beside})

    for module in ("narrows", "narrows.device", "numpy", "onnxruntime", "grpc"):
        row(f"import {module}", least(IMPORT.format(module)), "ms")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = SUBJECT.cut(folder)
        SUBJECT.write_pictures(folder / "pictures", 16)
        frames = np.stack([item.arrays[0] for item in open_source(folder / "pictures", bundle.manifest)])
        np.save(folder / "frames.npy", frames)
        with harness.server(folder / "bundles") as address:
            cut = bundle.manifest.cuts[0]
            bare = least(BARE + PEAK, bundle.file(cut.head), folder / "frames.npy", FRAMES)
            device = least(DEVICE + PEAK, bundle.root, folder / "frames.npy", FRAMES, address)
    row("peak resident, bare ONNX Runtime loop", bare, "MB")
    row("peak resident, device", device, "MB", f"{device - bare:+.1f} MB")
    sizes: dict[str, float] = {}
    for need in declared():
        sizes |= distributions(need)
    row("install: distributions", float(len(sizes)), "")
    row(
        "install: files",
        sum(sizes.values()),
        "MB",
        ", ".join(f"{name} {size:.0f}" for name, size in sorted(sizes.items(), key=lambda pair: -pair[1])[:5]),
    )
    harness.report("What the device runtime takes", rows, as_json=options.json)


if __name__ == "__main__":
    main()
