"""What a cut costs, and which cuts are the best: bytes on the link against work before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .cuts import Flow
from .graph import Graph
from .search import frontiers
from .shapes import TensorInfo, numpy_name

_ONE_SIDED = frozenset({"Relu", "Clip", "Sigmoid", "HardSigmoid", "Softmax", "Softplus"})


@dataclass(frozen=True, slots=True)
class CutTensor:
    """One tensor of a cut, for one frame."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    """Sizes, and names for open dimensions."""
    elements: int
    raw_bytes: int
    """Uncoded, in the model's own element type."""
    one_sided: bool = False
    """Made by an activation without negative values, so that no symbols are spent on those."""


@dataclass(frozen=True, slots=True)
class CutPoint:
    """A place to cut, with its price. Figures are for one frame."""

    tensors: tuple[CutTensor, ...]
    head_params: int
    tail_params: int
    """Elements of the weights on each side; one that both use counts on both."""
    head_flops: int
    tail_flops: int
    depth: int
    """Nodes on the longest way from an input to the cut."""
    pareto: bool = False
    """No other cut has both fewer bytes and less work before it."""

    @property
    def name(self) -> str:
        """The tensors' names, joined by "+"."""
        return "+".join(tensor.name for tensor in self.tensors)

    @property
    def elements(self) -> int:
        """Of all tensors together."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def raw_bytes(self) -> int:
        """Of all tensors together, uncoded."""
        return sum(tensor.raw_bytes for tensor in self.tensors)

    @property
    def symbol_bytes(self) -> int:
        """What crosses at 8 bits, uncoded: one byte for each float, integers as they are."""
        return sum(t.elements if "float" in t.dtype else t.raw_bytes for t in self.tensors)


def list_points(graph: Graph, max_tensors: int = 1) -> list[CutPoint]:
    """Every cut with its price, best first.

    First those that no other cut beats in both bytes and work before it; among equals, those first whose bytes (as a
    share of the input's elements) and work (as a share of the whole) have the smallest sum.
    """
    pricer = Pricer(graph)
    points = [pricer.price(names) for names in frontiers(graph, max_tensors)]
    total_flops = sum(graph.flops[node] for node in graph.data) or 1
    input_elements = sum(graph.elements(name) for name in graph.inputs) or 1

    def score(point: CutPoint) -> float:
        return point.symbol_bytes / input_elements + point.head_flops / total_flops

    best = _pareto(points)
    points = [replace(point, pareto=i in best) for i, point in enumerate(points)]
    return sorted(points, key=lambda point: (not point.pareto, score(point), _cost(point), point.depth, point.name))


def _pareto(points: Sequence[CutPoint]) -> set[int]:
    best: set[int] = set()
    fewest = math.inf
    for i in sorted(range(len(points)), key=lambda i: _cost(points[i])):
        if points[i].symbol_bytes < fewest:
            fewest = points[i].symbol_bytes
            best.add(i)
    return best


def _cost(point: CutPoint) -> tuple[int, int, int, int]:
    """Work before the cut, then bytes; among equals integers come first, for they need no quantiser, then ReLUs."""
    signed = sum(not tensor.one_sided for tensor in point.tensors)
    return point.head_flops, point.symbol_bytes, point.raw_bytes, signed


class Pricer:
    """Parameters and work on both sides of a cut, each in time that does not grow with the graph's depth."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.flow = Flow(graph)
        self.count = len(self.flow.nodes)
        self.flops = np.cumsum([0, *(graph.flops[node] for node in graph.data)], dtype=object)
        self.weight_bits: dict[str, int] = {}
        for i, node in enumerate(graph.data):
            for weight in graph.needs[node][0]:
                self.weight_bits[weight] = self.weight_bits.get(weight, 0) | 1 << i
        first = np.zeros(self.count + 1, dtype=object)
        last = np.zeros(self.count + 1, dtype=object)
        for weight, bits in self.weight_bits.items():
            first[(bits & -bits).bit_length() - 1] += graph.weights[weight]
            last[bits.bit_length() - 1] += graph.weights[weight]
        self.first = np.concatenate([[0], np.cumsum(first)])
        self.last = np.concatenate([[0], np.cumsum(last)])
        self.depths = self._depths()

    def _depths(self) -> list[int]:
        depths: list[int] = []
        for reads in self.flow.reads:
            depths.append(1 + max((depths[self.flow.maker[t]] for t in reads if t in self.flow.maker), default=0))
        return depths

    def price(self, names: tuple[str, ...]) -> CutPoint:
        """What a cut costs."""
        flow, graph = self.flow, self.graph
        tail = flow.tail_of(names)
        head = ~tail & ((1 << self.count) - 1)
        start = (tail & -tail).bit_length() - 1  # all before it is in the head: sums up to there are ready
        extra = head >> start
        head_flops = int(self.flops[start])
        head_params = int(self.first[start])
        tail_params = int(self.last[-1] - self.last[start])
        touched: set[str] = set()
        while extra:
            low = extra & -extra
            i = start + low.bit_length() - 1
            extra ^= low
            head_flops += graph.flops[flow.nodes[i]]
            touched |= graph.needs[flow.nodes[i]][0]
        for weight in touched:
            bits = self.weight_bits[weight]
            if not bits & ((1 << start) - 1):
                head_params += graph.weights[weight]
            if not bits & tail:
                tail_params -= graph.weights[weight]
        return CutPoint(
            tensors=tuple(self._tensor(name) for name in names),
            head_params=head_params,
            tail_params=tail_params,
            head_flops=head_flops,
            tail_flops=int(self.flops[-1]) - head_flops,
            depth=max(self.depths[flow.maker[name]] if name in flow.maker else 0 for name in names),
        )

    def _tensor(self, name: str) -> CutTensor:
        maker = self.graph.producer.get(name)
        one_sided = maker is not None and self.graph.nodes[maker].op_type in _ONE_SIDED
        return replace(describe(name, self.graph.infos.get(name)), one_sided=one_sided)


def describe(name: str, info: TensorInfo | None) -> CutTensor:
    """A tensor as a cut shows it; unknown shapes have no elements."""
    if info is None or info.dims is None or not info.dtype:
        dtype = numpy_name(info.dtype) if info is not None and info.dtype else "unknown"
        return CutTensor(name, dtype, ("?",), 0, 0)
    elements = math.prod(dim.size for dim in info.dims)
    dtype = numpy_name(info.dtype)
    size = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
    shape = tuple(dim.symbol or dim.size for dim in info.dims)
    return CutTensor(name, dtype, shape, elements, elements * size)
