"""The tests' small bundle, with the whole model for the device besides."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import onnx
from bundles import CLASSES, SIZE, make_bundle
from narrows.runtime.bundle import Bundle, BundleWriter
from narrows.runtime.manifest import Half
from onnx import TensorProto, helper


def _whole(head: onnx.ModelProto, tail: onnx.ModelProto) -> onnx.ModelProto:
    """What comes before the quantiser, and what comes after the dequantiser."""
    front, back = list(head.graph.node)[:5], list(tail.graph.node)[-3:]
    assert front[-1].output == back[0].input == ["features"]
    weights = {w.name: w for model in (head, tail) for w in model.graph.initializer}
    used = {name for node in (*front, *back) for name in node.input}
    graph = helper.make_graph(
        [*front, *back],
        "whole",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [weight for name, weight in weights.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def make_local_bundle(target: Path, seed: int = 0) -> Bundle:
    """As `make_bundle`, with `local.onnx`."""
    plain = make_bundle(target.parent.parent / "plain" / target.name, seed=seed)
    with BundleWriter(target) as writer:
        for name, entry in plain.manifest.files.items():
            shutil.copy(plain.file(name), writer.add(name, *entry.halves))
        whole = _whole(onnx.load(plain.file("head.onnx")), onnx.load(plain.file("tail.onnx")))
        onnx.save(whole, writer.add("local.onnx", Half.DEVICE))
        return writer.finish(replace(plain.manifest, files={}, local="local.onnx"))
