"""A model's graph as the partitioner sees it: what computes on data, and what can be made again on either side.

Two kinds of node. *Data* nodes depend on the values of the model's inputs: they stand on one side of a cut. *Free*
nodes depend on weights, constants and shapes alone (a `Shape → Gather → Concat` that feeds a `Reshape`, a mask made by
`ConstantOfShape`): the side that needs their result makes it again, and nothing of theirs crosses the link.

Only data nodes that lead to an output count; a node with subgraphs is one node that uses what its subgraphs capture.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import onnx

from ..runtime.errors import NothingToCutError
from .check import describe, subgraphs
from .model import Model
from .shapes import OPAQUE, TensorInfo, batched, infer

_RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli"})
_RANDOM_MORE = frozenset({"Multinomial", "Dropout"})
_SHAPED_BY = {
    **dict.fromkeys(("Reshape", "Expand", "Tile", "TopK", "OneHot", "Split", "Unsqueeze", "Squeeze", "Trilu"), (1,)),
    **dict.fromkeys(("Pad", "CenterCropPad", "Upsample", "AffineGrid"), (1, 3)),
    **dict.fromkeys(("NonZero", "ConstantOfShape", "Unique"), (0,)),
    **dict.fromkeys(("Slice", "Resize"), (1, 2, 3, 4)),
    **dict.fromkeys(("Range", "Compress"), (0, 1, 2)),
}
"""Ops whose output's shape is said by the values of inputs, and which those are."""
_SHAPE_OPS = frozenset({"Shape", "Size"})
_MOVES = frozenset(
    (
        *("Cast", "CastLike", "Identity", "Dropout", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
        *("Concat", "Expand", "Flatten", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
        *("Clip", "LeakyRelu", "Relu"),
    )
)
"""Ops that move, convert or clip numbers; they count as no work."""


@dataclass(frozen=True)
class Graph:
    """The view. Nodes are known by their index in `model.proto.graph.node`, tensors by their name."""

    model: Model
    nodes: list[onnx.NodeProto]
    infos: dict[str, TensorInfo]
    uses: list[tuple[str, ...]]
    """Per node: the tensors it reads, captures of its subgraphs included, each once."""
    producer: dict[str, int]
    free: frozenset[int]
    """Nodes that either side can repeat."""
    data: list[int]
    """Data nodes that lead to an output, in topological order."""
    consumers: dict[str, list[int]]
    """Per data tensor: the data nodes that read it, each once; without shape arithmetic."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: dict[str, int] = field(repr=False)
    """Initializers and their numbers of elements."""

    @property
    def batched(self) -> bool:
        """Whether the model takes a batch of any length."""
        return batched(self.model.proto)

    @cached_property
    def has_shape_roots(self) -> bool:
        """Whether any free node reads a shape that is not fixed."""
        return any(self.root_symbols(node) for node in self.free)

    def root_symbols(self, node: int) -> frozenset[str]:
        """The open dimensions that a free `Shape` or `Size` reads."""
        if self.nodes[node].op_type not in _SHAPE_OPS or not self.uses[node]:
            return frozenset()
        info = self.infos.get(self.uses[node][0])
        return frozenset(dim.symbol for dim in (info.dims if info and info.dims else ()) if dim.symbol)

    @cached_property
    def needs(self) -> list[tuple[frozenset[str], frozenset[str]]]:
        """Per node: the weights it reads through free nodes, and the open dimensions (of `Shape` roots)."""
        below: dict[str, tuple[frozenset[str], frozenset[str]]] = {}
        result = []
        for index, node in enumerate(self.nodes):
            weights: set[str] = set()
            symbols: set[str] = set()
            if not (index in self.free and node.op_type in _SHAPE_OPS):
                for name in self.uses[index]:
                    if name in self.weights:
                        weights.add(name)
                    elif name in below:
                        weights |= below[name][0]
                        symbols |= below[name][1]
            if index in self.free:
                symbols |= self.root_symbols(index)
                below |= dict.fromkeys(node.output, (frozenset(weights), frozenset(symbols)))
            result.append((frozenset(weights), frozenset(symbols)))
        return result

    @cached_property
    def flops(self) -> list[int]:
        """Per node: floating-point operations for one frame, a multiply-accumulate counted as two."""
        return [_flops(node, self.infos) if i not in self.free else 0 for i, node in enumerate(self.nodes)]

    def elements(self, tensor: str) -> int:
        """Elements of a tensor for one frame; 0 where the shape is unknown."""
        info = self.infos.get(tensor)
        return 0 if info is None or info.sizes is None else math.prod(info.sizes)

    def is_data(self, tensor: str) -> bool:
        """Whether the tensor's values depend on those of the inputs, and somebody wants them."""
        return tensor in self.consumers

    def describe(self, node: int) -> str:
        """A node for people: its name, or what it makes where it has none."""
        return describe(self.nodes[node])


def view(model: Model) -> Graph:
    """Look at a model."""
    proto = model.proto.graph
    nodes = list(proto.node)
    weights = {tensor.name: math.prod(tensor.dims) for tensor in proto.initializer}
    weights |= {sparse.values.name: math.prod(sparse.dims) for sparse in proto.sparse_initializer}
    inputs = tuple(value.name for value in proto.input)
    outputs = tuple(value.name for value in proto.output)
    uses = [tuple(dict.fromkeys(reads(node))) for node in nodes]
    producer = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    infos = infer(model.proto, model.folder)
    free = _free_nodes(nodes, uses, weights, infos)
    live = _live_nodes(outputs, uses, producer, free)
    data = [i for i in range(len(nodes)) if i in live and i not in free]
    return Graph(
        model=model,
        nodes=nodes,
        infos=infos,
        uses=uses,
        producer=producer,
        free=frozenset(free),
        data=data,
        consumers=_consumers(data, nodes, uses, inputs, outputs),
        inputs=inputs,
        outputs=outputs,
        weights=weights,
    )


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, captures of its subgraphs included."""
    yield from filter(None, node.input)
    for graph in subgraphs(node):
        yield from captures(graph)


def captures(graph: onnx.GraphProto) -> Iterator[str]:
    """What a subgraph reads from the graphs around it."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own |= {tensor.values.name for tensor in graph.sparse_initializer}
    own |= {name for node in graph.node for name in node.output}
    wanted = [name for node in graph.node for name in reads(node)] + [value.name for value in graph.output]
    yield from (name for name in wanted if name not in own)


def _free_nodes(
    nodes: list[onnx.NodeProto], uses: list[tuple[str, ...]], weights: Iterable[str], infos: dict[str, TensorInfo]
) -> set[int]:
    """The nodes that either side can repeat. Shapes that hang on the values of data are made opaque on the way."""
    known = set(weights)
    free = set()
    doubtful: set[str] = set()
    for index, node in enumerate(nodes):
        shaping = _SHAPED_BY.get(node.op_type, ())
        if doubtful.intersection(uses[index]) or any(name and name not in known for name in _at(node, shaping)):
            doubtful.update(node.output)
            # A trial run saw one shape; other data may give another.
            infos |= {name: infos[name].opaque() for name in node.output if name in infos and infos[name].observed}
        if _is_random(node):
            continue
        if all(name in known for name in uses[index]) or (
            node.op_type in _SHAPE_OPS and node.domain in ("", "ai.onnx") and _can_be_said(uses[index], infos)
        ):
            free.add(index)
            known.update(node.output)
    return free


def _at(node: onnx.NodeProto, positions: Iterable[int]) -> list[str]:
    return [node.input[i] for i in positions if i < len(node.input)]


def _is_random(node: onnx.NodeProto) -> bool:
    return node.op_type in _RANDOM or node.op_type in _RANDOM_MORE


def _can_be_said(names: tuple[str, ...], infos: dict[str, TensorInfo]) -> bool:
    """Whether a tensor's shape follows from the open dimensions of the inputs."""
    info = infos.get(names[0]) if names else None
    return info is not None and info.dims is not None and all(dim.symbol != OPAQUE for dim in info.dims)


def _live_nodes(
    outputs: tuple[str, ...], uses: list[tuple[str, ...]], producer: dict[str, int], free: set[int]
) -> set[int]:
    """Nodes whose values reach an output; a node that only lends its shape does not count."""
    live: set[int] = set()
    stack = [producer[name] for name in outputs if name in producer]
    while stack:
        node = stack.pop()
        if node not in live and node not in free:
            live.add(node)
            stack.extend(producer[name] for name in uses[node] if name in producer)
    return live


def _consumers(
    data: list[int],
    nodes: list[onnx.NodeProto],
    uses: list[tuple[str, ...]],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
) -> dict[str, list[int]]:
    made = {name for i in data for name in nodes[i].output if name} | set(inputs)
    found: dict[str, list[int]] = defaultdict(list)
    for i in data:
        for name in uses[i]:
            if name in made:
                found[name].append(i)
    return dict(found) | {name: [] for name in outputs if name in made and name not in found}


def _flops(node: onnx.NodeProto, infos: dict[str, TensorInfo]) -> int:
    def sizes(name: str) -> tuple[int, ...] | None:
        info = infos.get(name)
        return info.sizes if info else None

    if node.op_type in _MOVES:
        return 0
    made = [math.prod(sizes(name) or (0,)) for name in node.output if name]
    total = made[0] if made else 0
    reads = [sizes(name) for name in node.input]
    kind = node.op_type
    if kind in ("Conv", "ConvInteger", "QLinearConv", "ConvTranspose"):
        kernel = reads[3 if kind == "QLinearConv" else 1] if len(reads) > 1 else None
        if kernel and reads[0]:
            inner = math.prod(kernel[1:])
            return 2 * inner * (math.prod(reads[0]) if kind == "ConvTranspose" else total)
    if kind in ("MatMul", "MatMulInteger", "QLinearMatMul", "Gemm", "FusedMatMul") and reads[0]:
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return 2 * total * reads[0][0 if transposed else -1]
    return total


def require_data(graph: Graph) -> None:
    """Refuse a graph in which there is nothing to cut.

    Raises:
        NothingToCutError: fewer than two nodes depend on the inputs.
    """
    if len(graph.data) < 2:
        raise NothingToCutError(
            f"{graph.model.name} has {len(graph.data)} node(s) that depend on its inputs; a cut needs one on each side"
        )


def open_symbols(infos: Iterable[TensorInfo]) -> set[str]:
    """The open dimensions that some of the tensors carry, so that a shape can be said from them."""
    return {dim.symbol for info in infos for dim in info.dims or () if dim.symbol and dim.symbol != OPAQUE}
