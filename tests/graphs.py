"""Small ONNX graphs for the partitioner's tests: hand-made ones, and random ones of real ops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

CHANNELS, SIDE = 4, 6


class GraphBuilder:
    """Collects nodes and weights; every tensor is `float32 [batch, CHANNELS, SIDE, SIDE]` unless said otherwise."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: object) -> str:
        name = name or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"n_{name}", **attributes))
        return name

    def weight(self, array: object, name: str | None = None) -> str:
        name = name or f"w{len(self.weights)}"
        self.weights[name] = np.asarray(array)
        return name

    def conv(self, x: str, channels: int = CHANNELS, name: str | None = None, **attributes: object) -> str:
        kernel = self.weight(self.rng.normal(0, 0.3, (channels, CHANNELS, 3, 3)).astype(np.float32))
        return self.op("Conv", x, kernel, name=name, pads=[1, 1, 1, 1], **attributes)

    def model(
        self,
        outputs: Sequence[str],
        inputs: Sequence[str] = ("x",),
        shape: Sequence[int | str] = ("batch", CHANNELS, SIDE, SIDE),
        opset: int = 17,
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "test",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name in inputs],
            [helper.make_empty_tensor_value_info(name) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def residual(opset: int = 17, shape: Sequence[int | str] = ("batch", CHANNELS, SIDE, SIDE)) -> onnx.ModelProto:
    """conv, relu, a residual block, pooled logits, softmax. Cuts: c0, r0, add, r1, pooled, flat, logits."""
    b = GraphBuilder()
    x = b.op("Relu", b.conv("x", name="c0"), name="r0")
    inner = b.conv(b.op("Relu", b.conv(x, name="c1"), name="rc1"), name="c2")
    x = b.op("Relu", b.op("Add", inner, x, name="add"), name="r1")
    x = b.op("Flatten", b.op("GlobalAveragePool", x, name="pooled"), name="flat")
    x = b.op("MatMul", x, b.weight(b.rng.normal(0, 1, (CHANNELS, 10)).astype(np.float32)), name="logits")
    return b.model([b.op("Softmax", x, axis=1, name="probabilities")], opset=opset, shape=shape)


@st.composite
def random_models(draw: st.DrawFn, max_nodes: int = 9) -> onnx.ModelProto:
    """Random graphs of one to three inputs and one to three outputs, with splits, shortcuts and shape arithmetic."""
    b = GraphBuilder(draw(st.integers(0, 1000)))
    inputs = [f"x{i}" for i in range(draw(st.integers(1, 2)))]
    tensors = list(inputs)
    for _ in range(draw(st.integers(2, max_nodes))):
        kind = draw(st.sampled_from(["Relu", "Conv", "Add", "Mul", "Split", "Reshape", "Tanh", "Shared", "Constant"]))
        a, c = draw(st.sampled_from(tensors)), draw(st.sampled_from(tensors))
        tensors += _add_random(b, kind, a, c)
    read = {name for node in b.nodes for name in node.input}
    made = [name for name in tensors if name not in inputs]
    outputs = [name for name in made if name not in read][:3] or made[-1:]
    extra = draw(st.sampled_from([*made, None]))
    if extra is not None and extra not in outputs:
        outputs.append(extra)
    return b.model(outputs, inputs)


def _add_random(b: GraphBuilder, kind: str, a: str, c: str) -> list[str]:
    if kind == "Conv":
        return [b.conv(a)]
    if kind in ("Add", "Mul"):
        return [b.op(kind, a, b.op("Tanh", c))]
    if kind == "Split":
        name = f"s{len(b.nodes)}"
        halves = [f"{name}a", f"{name}b"]
        b.nodes.append(helper.make_node("Split", [a], halves, axis=1, name=name))
        return [b.op("Concat", half, half, axis=1) for half in halves]
    if kind == "Reshape":
        # As exporters write it: flatten, and go back to the shape of a tensor that was there before.
        flat = b.op("Flatten", b.op("Tanh", a), axis=1)
        return [b.op("Reshape", flat, b.op("Shape", c))]
    row = b.rng.normal(0, 1, (1, CHANNELS, 1, 1)).astype(np.float32)
    if kind == "Shared":
        b.weights.setdefault("shared", row)
        return [b.op("Mul", a, "shared")]
    other = [b.op("Exp", b.op("Constant", value=numpy_helper.from_array(row)))] if kind == "Constant" else []
    return [b.op("Add" if other else kind, a, *other)]
