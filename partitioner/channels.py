"""What the graph tells of a tensor's values: which axis holds its channels, and which values matter."""

from __future__ import annotations

import math
from collections.abc import Iterable

import onnx
from onnx import numpy_helper

from .graph import Graph

_SECOND = frozenset(
    [
        "Conv",
        "ConvTranspose",
        "ConvInteger",
        "QLinearConv",
        "BatchNormalization",
        "InstanceNormalization",
        "GroupNormalization",
        "LRN",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "LpPool",
        "PRelu",
        "SpaceToDepth",
        "DepthToSpace",
    ]
)
_LAST = frozenset(
    ["MatMul", "Gemm", "LayerNormalization", "RMSNormalization", "QLinearMatMul", "MatMulInteger", "Attention"]
)
_LAST_BY_NAME = frozenset({"SkipLayerNormalization", "EmbedLayerNormalization", "FusedMatMul"})
_OPAQUE = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_STEPS = 64


def channel_axis(graph: Graph, tensor: str) -> int | None:
    """The channel axis of a tensor, its batch axis counted, or None where nothing tells.

    Walks back from the producer through ops that keep axes in their place, turning with every `Transpose`.
    """
    info = graph.infos.get(tensor)
    if info is None or not info.dims:
        return None
    rank = len(info.dims)
    back = list(range(rank))
    """Where each axis of the tensor is in the tensor that the walk has reached."""
    name = tensor
    for _ in range(_STEPS):
        if name not in graph.producer:
            break
        node = graph.nodes[graph.producer[name]]
        if node.op_type in _SECOND:
            return back.index(1) if rank > 2 else None
        if node.op_type in _LAST or node.op_type in _LAST_BY_NAME:
            return back.index(rank - 1)
        if node.op_type == "Transpose":
            perm = _perm(node, rank)
            back = [perm[axis] for axis in back]
        found = _same_rank_input(graph, node, rank)
        if node.op_type in _OPAQUE or found is None:
            break
        name = found
    return 1 if rank >= 4 else rank - 1


def useful_range(graph: Graph, tensor: str, readers: Iterable[int]) -> tuple[float, float]:
    """The values of a tensor that its readers can tell apart: where all of them are a ReLU, nothing below 0 matters.

    Args:
        graph: the model.
        tensor: a tensor of a cut.
        readers: the tail's nodes.
    """
    if tensor in graph.outputs:
        return -math.inf, math.inf
    inside = set(readers)
    ranges = [_told_apart(graph, node, tensor) for node in graph.consumers[tensor] if node in inside]
    return min((low for low, _ in ranges), default=-math.inf), max((high for _, high in ranges), default=math.inf)


def _told_apart(graph: Graph, index: int, tensor: str) -> tuple[float, float]:
    node = graph.nodes[index]
    if node.domain in ("", "ai.onnx") and node.op_type == "Relu":
        return 0.0, math.inf
    if node.domain in ("", "ai.onnx") and node.op_type == "Clip" and node.input[0] == tensor:
        given = {a.name: a.f for a in node.attribute}
        bounds = [_scalar(graph, name) for name in (*node.input[1:], "", "")][:2]
        low, high = (b if b is not None else given.get(key) for b, key in zip(bounds, ("min", "max"), strict=True))
        return -math.inf if low is None else low, math.inf if high is None else high
    return -math.inf, math.inf


def _scalar(graph: Graph, name: str) -> float | None:
    """The value of a constant of one element; None where it is none."""
    if not name:
        return None
    for tensor in graph.model.proto.graph.initializer:
        if tensor.name == name:
            return float(numpy_helper.to_array(tensor).reshape(-1)[0]) if math.prod(tensor.dims) == 1 else None
    node = graph.nodes[graph.producer[name]] if name in graph.producer else None
    if node is not None and node.op_type == "Constant" and node.attribute[0].name == "value":
        array = numpy_helper.to_array(node.attribute[0].t)
        return float(array.reshape(-1)[0]) if array.size == 1 else None
    return None


def _perm(node: onnx.NodeProto, rank: int) -> list[int]:
    for attribute in node.attribute:
        if attribute.name == "perm":
            return list(attribute.ints)
    return list(reversed(range(rank)))


def _same_rank_input(graph: Graph, node: onnx.NodeProto, rank: int) -> str | None:
    for name in node.input:
        info = graph.infos.get(name)
        if name in graph.consumers and info is not None and info.dims is not None and len(info.dims) == rank:
            return name
    return None
