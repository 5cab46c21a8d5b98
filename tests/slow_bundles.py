"""The bundles of `bundles.py` with a tail that takes its time and answers the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from narrows.runtime.bundle import Bundle, BundleWriter
from onnx import TensorProto, helper, numpy_helper


def slowed(bundle: Bundle, target: Path, rounds: int = 300_000) -> Bundle:
    """A copy whose tail multiplies its answer by one, `rounds` times: some tenths of a second, on any machine."""
    tail = onnx.load(bundle.file("tail.onnx"))
    graph = tail.graph
    for node in graph.node:
        node.output[:] = ["fast" if name == "logits" else name for name in node.output]
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["again"]), helper.make_node("Mul", ["before", "one"], ["after"])],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("before", TensorProto.FLOAT, None)],
        [info("again", TensorProto.BOOL, []), info("after", TensorProto.FLOAT, None)],
    )
    graph.node.append(helper.make_node("Loop", ["rounds", "", "fast"], ["logits"], body=body))
    graph.initializer.extend(
        [numpy_helper.from_array(np.array(rounds), "rounds"), numpy_helper.from_array(np.float32(1).reshape(()), "one")]
    )
    with BundleWriter(target) as writer:
        for name, entry in bundle.manifest.files.items():
            path = writer.add(name, *entry.halves)
            if name == "tail.onnx":
                onnx.save(tail, path)
            else:
                shutil.copy(bundle.file(name), path)
        return writer.finish(bundle.manifest)
