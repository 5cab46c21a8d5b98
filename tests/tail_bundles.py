"""The tests' small bundle with two further tails, as one that was trained for several tasks has them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from bundles import CHANNELS, QUALITIES, SIZE, make_bundle
from narrows.runtime.bundle import Bundle, BundleWriter
from narrows.runtime.halves import load_arrays
from narrows.runtime.manifest import FurtherTail, Half, OutputSpec, TensorSpec
from onnx import TensorProto, helper

SIDE = SIZE // 2


def _mean(axes: list[int], shape: list[object], output: str) -> onnx.ModelProto:
    """A tail that says no more than means of the symbols: of the channels, or of the picture."""
    info = helper.make_tensor_value_info
    symbols = info("features.symbols", TensorProto.UINT8, ["batch", CHANNELS, SIDE, SIDE])
    nodes = [
        helper.make_node("Cast", ["features.symbols"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["means"], axes=axes, keepdims=0),
        # The quality has to be an input that is used, as it is of a tail that dequantises.
        helper.make_node("Cast", ["quality"], ["q"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["q", "axes"], ["column"]),
        helper.make_node("Add", ["means", "column"], [output]),
    ]
    column = list(range(1, len(shape)))
    axes_weight = onnx.numpy_helper.from_array(np.array(column, np.int64), "axes")
    inputs = [symbols, info("quality", TensorProto.INT32, ["batch"])]
    graph = helper.make_graph(nodes, output, inputs, [info(output, TensorProto.FLOAT, shape)], [axes_weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def make_tail_bundle(target: Path, name: str = "tasks", *, golden_error: float = 0.0) -> Bundle:
    """`classify` is the cut's own tail; `segment` gives a mask, `count` a classifier's eight scores with labels."""
    plain = make_bundle(target.with_name(f".{target.name}-plain"), name)
    cut = plain.manifest.cuts[0]
    symbols = load_arrays(plain, cut.golden_tail)
    graphs = {
        "segment": _mean([1], ["batch", SIDE, SIDE], "mask"),
        "count": _mean([2, 3], ["batch", CHANNELS], "logits"),
    }
    further = {
        "segment": FurtherTail(
            "tails/segment.onnx",
            (OutputSpec(TensorSpec("mask", "float32", (SIDE, SIDE))),),
            "golden/segment.npz",
        ),
        "count": FurtherTail(
            "tails/count.onnx",
            (OutputSpec(TensorSpec("logits", "float32", (CHANNELS,)), "logits"),),
            "golden/count.npz",
            labels=tuple(f"count {i}" for i in range(CHANNELS)),
        ),
    }
    with BundleWriter(target) as writer:
        for file, entry in plain.members():
            shutil.copy(plain.file(file), writer.add(file, *entry.halves))
        for tail, spec in further.items():
            onnx.save(graphs[tail], writer.add(spec.graph, Half.SERVER))
            session = ort.InferenceSession(graphs[tail].SerializeToString(), providers=["CPUExecutionProvider"])
            golden = {}
            for quality in range(QUALITIES):
                feed = {"features.symbols": symbols[f"symbols/{quality}/0"][None]}
                (answer,) = session.run(None, {**feed, "quality": np.array([quality], np.int32)})
                golden[f"output/{quality}/0"] = answer[0] * (1 + golden_error)
            np.savez(writer.add(spec.golden, Half.SERVER), **golden)
        cuts = (replace(cut, tail_name="classify", further_tails=further),)
        return writer.finish(replace(plain.manifest, cuts=cuts))
