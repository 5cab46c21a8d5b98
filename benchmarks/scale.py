"""How long do large graphs take, and how much memory do large models?

    python benchmarks/scale.py [--skip-large] [--json]

Everything is a whole process: `python -m narrows cuts|cut` as a user starts it, interpreter and imports included; the
memory is the largest resident set that the kernel saw (`ru_maxrss`). The graph of 10,000 nodes is a chain of residual
blocks with squeeze-and-excitation branches; the 3 GB model is a stack of dense layers in external data. Both are made
by this script, with random weights.

Aims: cuts of 10,000 nodes listed in under 5 s and cut in under 10 s; 3 GB cut with a peak below 1.5 GB.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from harness import report
from onnx import TensorProto, helper, numpy_helper

NODES = 10_000
LARGE_BYTES = 3 * 10**9
_WIDTH = 8192


def deep_graph(path: Path) -> str:
    """A graph of `NODES` nodes; the name of a tensor in its middle."""
    nodes: list[onnx.NodeProto] = []
    rng = np.random.default_rng(0)
    weights = {"kernel": rng.normal(0, 0.1, (8, 8, 1, 1)).astype(np.float32), "half": np.array(0.5, np.float32)}
    names = []

    def add(kind: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [f"t{len(nodes)}"], name=f"n{len(nodes)}", **attributes))
        return nodes[-1].output[0]

    x = "x"
    while len(nodes) < NODES - 10:
        inner = add("Relu", add("Conv", x, "kernel"))
        gate = add("Sigmoid", add("Conv", add("GlobalAveragePool", inner), "kernel"))
        inner = add("Mul", add("Conv", inner, "kernel"), gate)
        x = add("Mul", add("Add", inner, x), "half")
        names.append(x)
    while len(nodes) < NODES:
        x = add("Relu", x)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "deep",
        [info("x", TensorProto.FLOAT, ["batch", 8, 8, 8])],
        [info(x, TensorProto.FLOAT, ["batch", 8, 8, 8])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return names[len(names) // 2]


def large_model(path: Path) -> str:
    """A model of `LARGE_BYTES` in external data, written layer by layer; the name of a tensor in its middle."""
    layer_bytes = 4 * _WIDTH * _WIDTH
    layers = -(-LARGE_BYTES // layer_bytes)
    rng = np.random.default_rng(0)
    # One block of random numbers, turned a little for each layer: drawing 800 million takes longer than cutting.
    block = rng.normal(0, 1 / np.sqrt(_WIDTH), (_WIDTH, _WIDTH)).astype(np.float32)
    nodes, tensors = [], []
    with path.with_name(path.name + ".data").open("wb") as data:
        for i in range(layers):
            tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[_WIDTH, _WIDTH])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", data.name), ("offset", data.tell()), ("length", layer_bytes)):
                tensor.external_data.add(key=key, value=Path(value).name if key == "location" else str(value))
            data.write(np.roll(block, i, axis=0).tobytes())
            tensors.append(tensor)
            x = f"r{i - 1}" if i else "x"
            nodes += [
                helper.make_node("MatMul", [x, f"w{i}"], [f"m{i}"]),
                helper.make_node("Relu", [f"m{i}"], [f"r{i}"]),
            ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "large",
        [info("x", TensorProto.FLOAT, ["batch", _WIDTH])],
        [info(f"r{layers - 1}", TensorProto.FLOAT, ["batch", _WIDTH])],
        tensors,
    )
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return f"r{layers // 2}"


def apart(make: Callable[[Path], str], path: Path) -> str:
    """Call `make` in a process of its own: a process starts with its parent's memory in its books."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(make, path).result()


def run(*arguments: str) -> tuple[float, float, int]:
    """Seconds, seconds of processor time and peak resident bytes of a `narrows` process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "narrows", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"narrows {' '.join(arguments)} ended with {process.returncode}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def row(what: str, measured: tuple[float, float, int], aim: str) -> dict[str, Any]:
    seconds, processor, peak = measured
    return {
        "what": what,
        "seconds": round(seconds, 2),
        "CPU seconds": round(processor, 2),
        "peak MB": round(peak / 1e6),
        "aim": aim,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skip-large", action="store_true", help="leave out the 3 GB model (needs 10 GB of disk)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [row("narrows --help", run("--help"), "")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = np.random.default_rng(1)
        tensor = apart(deep_graph, folder / "deep.onnx")
        np.save(folder / "deep.npy", rng.normal(0, 1, (8, 8, 8, 8)).astype(np.float32))
        rows.append(row("list the cuts of 10,000 nodes", run("cuts", str(folder / "deep.onnx")), "5 s"))
        made = ("--at", tensor, "--calibrate", str(folder / "deep.npy"), "-o", str(folder / "deep"))
        rows.append(row("cut 10,000 nodes", run("cut", str(folder / "deep.onnx"), *made), "10 s"))
        if not options.skip_large:
            tensor = apart(large_model, folder / "large.onnx")
            np.save(folder / "large.npy", rng.normal(0, 1, (8, _WIDTH)).astype(np.float32))
            rows.append(row("list the cuts of 3 GB", run("cuts", str(folder / "large.onnx")), ""))
            made = ("--at", tensor, "--calibrate", str(folder / "large.npy"), "-o", str(folder / "large"))
            rows.append(row("cut 3 GB", run("cut", str(folder / "large.onnx"), *made), "1,500 MB"))
    report("Scale", rows, as_json=options.json)


if __name__ == "__main__":
    main()
