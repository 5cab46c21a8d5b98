"""Which axis of a tensor holds its channels, found from what made it."""

from __future__ import annotations

import onnx

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
