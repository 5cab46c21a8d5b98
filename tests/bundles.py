"""Small bundles out of plain ONNX ops, so that tests of the two ends need no partitioner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from narrows.runtime.bundle import Bundle, BundleWriter
from narrows.runtime.manifest import (
    SCHEMA,
    CrossingTensor,
    Cut,
    Half,
    Manifest,
    OutputSpec,
    Preprocess,
    Quality,
    TensorSpec,
)
from onnx import TensorProto, helper, numpy_helper

SIZE, CHANNELS, CLASSES = 16, 8, 10
LEVELS = (4, 16, 256)
QUALITIES = len(LEVELS)


def _graph(nodes, name, inputs, outputs, weights):
    graph = helper.make_graph(
        nodes, name, inputs, outputs, [numpy_helper.from_array(array, key) for key, array in weights.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def _head(rng):
    node = helper.make_node
    weights = {
        "kernel": rng.normal(0, 0.2, (CHANNELS, 3, 3, 3)).astype(np.float32),
        "scale": np.float32(1 / 255).reshape(()),
        "steps": (np.outer([1.0, 0.2, 0.012], np.ones(CHANNELS))).astype(np.float32),
        "tops": np.array(LEVELS, np.float32) - 1,
        "column": np.array([-1, CHANNELS, 1, 1], np.int64),
        "single": np.array([-1, 1, 1, 1], np.int64),
        "zero": np.float32(0).reshape(()),
    }
    nodes = [
        node("Cast", ["image"], ["bytes"], to=TensorProto.FLOAT),
        node("Mul", ["bytes", "scale"], ["scaled"]),
        node("Transpose", ["scaled"], ["nchw"], perm=[0, 3, 1, 2]),
        node("Conv", ["nchw", "kernel"], ["conv"], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", ["conv"], ["features"]),
        node("Gather", ["steps", "quality"], ["step_rows"]),
        node("Reshape", ["step_rows", "column"], ["step"]),
        node("Gather", ["tops", "quality"], ["top_rows"]),
        node("Reshape", ["top_rows", "single"], ["top"]),
        node("Div", ["features", "step"], ["steps_up"]),
        node("Round", ["steps_up"], ["rounded"]),
        node("Max", ["rounded", "zero"], ["floored"]),
        node("Min", ["floored", "top"], ["clipped"]),
        node("Cast", ["clipped"], ["features.symbols"], to=TensorProto.UINT8),
    ]
    info = helper.make_tensor_value_info
    inputs = [
        info("image", TensorProto.UINT8, ["batch", SIZE, SIZE, 3]),
        info("quality", TensorProto.INT32, ["batch"]),
    ]
    outputs = [info("features.symbols", TensorProto.UINT8, ["batch", CHANNELS, SIZE // 2, SIZE // 2])]
    return _graph(nodes, "head", inputs, outputs, weights), weights["steps"]


def _tail(rng, steps):
    node = helper.make_node
    weights = {
        "steps": steps,
        "column": np.array([-1, CHANNELS, 1, 1], np.int64),
        "dense": rng.normal(0, 1, (CHANNELS, CLASSES)).astype(np.float32),
    }
    nodes = [
        node("Cast", ["features.symbols"], ["integers"], to=TensorProto.FLOAT),
        node("Gather", ["steps", "quality"], ["step_rows"]),
        node("Reshape", ["step_rows", "column"], ["step"]),
        node("Mul", ["integers", "step"], ["features"]),
        node("GlobalAveragePool", ["features"], ["pooled"]),
        node("Flatten", ["pooled"], ["flat"]),
        node("MatMul", ["flat", "dense"], ["logits"]),
    ]
    info = helper.make_tensor_value_info
    inputs = [
        info("features.symbols", TensorProto.UINT8, ["batch", CHANNELS, SIZE // 2, SIZE // 2]),
        info("quality", TensorProto.INT32, ["batch"]),
    ]
    return _graph(nodes, "tail", inputs, [info("logits", TensorProto.FLOAT, ["batch", CLASSES])], weights)


def make_bundle(target: Path, name: str = "tiny", seed: int = 0) -> Bundle:
    """A classifier of 16×16 pictures with three qualities, cut at `features` (uint8 8×8×8)."""
    rng = np.random.default_rng(seed)
    with BundleWriter(target) as writer:
        head, steps = _head(rng)
        tail = _tail(rng, steps)
        onnx.save(head, writer.add("head.onnx", Half.DEVICE))
        onnx.save(tail, writer.add("tail.onnx", Half.SERVER))
        image = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        front = ort.InferenceSession(head.SerializeToString(), providers=["CPUExecutionProvider"])
        back = ort.InferenceSession(tail.SerializeToString(), providers=["CPUExecutionProvider"])
        golden_head, golden_tail = {"input/0": image}, {}
        for quality in range(QUALITIES):
            chosen = np.array([quality], np.int32)
            symbols = front.run(None, {"image": image[None], "quality": chosen})[0]
            logits = back.run(None, {"features.symbols": symbols, "quality": chosen})[0]
            golden_head[f"symbols/{quality}/0"] = golden_tail[f"symbols/{quality}/0"] = symbols[0]
            golden_tail[f"output/{quality}/0"] = logits[0]
        np.savez(writer.add("golden/head.npz", Half.DEVICE), **golden_head)
        np.savez(writer.add("golden/tail.npz", Half.SERVER), **golden_tail)
        crossing = CrossingTensor(
            "features",
            TensorSpec("features.symbols", "uint8", (CHANNELS, SIZE // 2, SIZE // 2)),
            levels=LEVELS,
            channel_axis=0,
        )
        cut = Cut(
            name="features",
            head="head.onnx",
            tail="tail.onnx",
            crossing=(crossing,),
            qualities=tuple(Quality(float(level.bit_length() - 1), 100.0, 1.0, 0.1, 0.9) for level in LEVELS),
            quality_input="quality",
            head_inputs=("image",),
            head_outputs=(),
            tail_outputs=("logits",),
            golden_head="golden/head.npz",
            golden_tail="golden/tail.npz",
        )
        return writer.finish(
            Manifest(
                schema=SCHEMA,
                name=name,
                made_by="tests",
                batched=True,
                inputs=(TensorSpec("image", "uint8", (SIZE, SIZE, 3)),),
                outputs=(OutputSpec(TensorSpec("logits", "float32", (CLASSES,)), "logits"),),
                cuts=(cut,),
                files={},
                preprocess=Preprocess(SIZE, SIZE, scale=1 / 255),
                labels=tuple(f"class {i}" for i in range(CLASSES)),
            )
        )


def pictures(count: int, seed: int = 1) -> list[np.ndarray]:
    """Random pictures of the size that the bundle takes."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8) for _ in range(count)]
