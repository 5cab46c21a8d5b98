"""The memory that a graph takes: `python -m narrows.profiling.memory GRAPH THREADS`, in a process of its own.

Prints bytes: the highest resident size while the graph is loaded and run, above what the process had before.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from ..runtime.session import SessionOptions, open_session, runtime

_STATUS = Path("/proc/self/status")
_RUNS = 3
_TIME_S = 120.0


def peak_memory_bytes(graph: Path, options: SessionOptions) -> int | None:
    """Memory of loading and running a graph on one frame; None where the system does not tell, or it does not run."""
    if not _STATUS.exists():
        return None
    command = [sys.executable, "-m", __name__, str(graph), str(options.threads), *options.providers]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIME_S, check=True)
        return int(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _main(path: str, threads: str, *providers: str) -> None:
    options = SessionOptions(providers=providers, threads=int(threads))
    runtime()
    before = _status("VmRSS")
    session = open_session(Path(path), options)
    feed = {
        i.name: np.zeros([d if isinstance(d, int) else 1 for d in i.shape], _dtype(i.type))
        for i in session.get_inputs()
    }
    for _ in range(_RUNS):
        session.run(None, feed)
    print(max(0, _status("VmHWM") - before))


def _status(key: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) << 10


def _dtype(onnx_type: str) -> np.dtype[np.generic]:
    """NumPy's type of `tensor(float)` and its like."""
    name = onnx_type.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name))


if __name__ == "__main__":
    _main(*sys.argv[1:])
