"""The tests' small bundle with an early exit at its cut, made by hand; and the whole model on request."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from bundles import CHANNELS, CLASSES, QUALITIES, SIZE, make_bundle
from local_bundle import make_local_bundle
from narrows.runtime.bundle import Bundle, BundleWriter
from narrows.runtime.manifest import Exit, ExitPoint, ExitQuality, Half
from onnx import TensorProto, helper, numpy_helper

AGREEMENTS = (0.5, 0.6, 0.7)
POINTS = (ExitPoint(0.5, 0.8, 0.75), ExitPoint(0.9, 0.3, 0.95, 0.9))


def exit_graph(tail: onnx.ModelProto) -> onnx.ModelProto:
    """The tail again, its logits twice as large: the same classes, and surer of them."""
    weights = [numpy_helper.to_array(w).copy() for w in tail.graph.initializer]
    weights = [2 * w if i.name == "dense" else w for i, w in zip(tail.graph.initializer, weights, strict=True)]
    names = [w.name for w in tail.graph.initializer]
    graph = helper.make_graph(
        list(tail.graph.node),
        "exit",
        [
            helper.make_tensor_value_info(
                "features.symbols", TensorProto.UINT8, ["batch", CHANNELS, SIZE // 2, SIZE // 2]
            ),
            helper.make_tensor_value_info("quality", TensorProto.INT32, ["batch"]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(w.astype(w.dtype), n) for n, w in zip(names, weights, strict=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def make_exit_bundle(target: Path, *, local: bool = False, spoilt: bool = False, temperature: float = 1.0) -> Bundle:
    """As `make_bundle` or `make_local_bundle`, with `exit.onnx`; `spoilt` with golden vectors of another graph."""
    make = make_local_bundle if local else make_bundle
    plain = make(target.parent.parent / "without" / target.name)
    cut = plain.manifest.cuts[0]
    with BundleWriter(target) as writer:
        for name, entry in plain.manifest.files.items():
            shutil.copy(plain.file(name), writer.add(name, *entry.halves))
        graph = exit_graph(onnx.load(plain.file(cut.tail)))
        onnx.save(graph, writer.add("exit.onnx", Half.DEVICE))
        session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        golden = {}
        with np.load(plain.file(cut.golden_head)) as head:
            for q in range(QUALITIES):
                symbols = head[f"symbols/{q}/0"]
                feed = {"features.symbols": symbols[None], "quality": np.array([q], np.int32)}
                golden[f"input/{q}/0"] = symbols
                golden[f"output/{q}/0"] = session.run(None, feed)[0][0] * (1 + spoilt)
        np.savez(writer.add("golden/exit.npz", Half.DEVICE), **golden)
        early = Exit(
            graph="exit.onnx",
            outputs=("logits",),
            golden="golden/exit.npz",
            qualities=tuple(ExitQuality(a, temperature, None, POINTS) for a in AGREEMENTS),
        )
        return writer.finish(replace(plain.manifest, files={}, cuts=(replace(cut, exit=early),)))
