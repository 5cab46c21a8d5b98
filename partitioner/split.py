"""Two graphs out of one: the head and the tail of a cut, each with the weights and the arithmetic that it needs.

Weights that both sides use go to both. Free nodes (see `graph`) are repeated where they are needed; where one of them
asks for the shape of a tensor that the side does not have, the shape is said from what the side does have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..runtime.errors import CutError
from .cuts import Separation
from .graph import Graph, reads
from .quantise import QuantiserTable, dequantiser_nodes, quantiser_nodes
from .shapes import BATCH, Dim, TensorInfo

QUALITY = "quality"
PREFIX = "narrows/"
"""Of every name that this room adds to a graph."""


@dataclass(frozen=True)
class Crossing:
    """One tensor of a cut on its way out of the head and into the tail."""

    tensor: str
    info: TensorInfo
    symbols: str
    """Name of the head's output and of the tail's input."""
    table: QuantiserTable | None = None
    """None for a tensor that crosses as it is."""

    @property
    def symbols_dtype(self) -> int:
        """ONNX element type of what crosses."""
        if self.table is None:
            return self.info.dtype
        return TensorProto.UINT8 if max(self.table.levels) <= 256 else TensorProto.UINT16


@dataclass(frozen=True)
class Parts:
    """The graphs of a cut, and how they fit together."""

    head: onnx.ModelProto
    tail: onnx.ModelProto
    """What the server runs: the rest of the model, or the body of a three-way cut."""
    final: onnx.ModelProto | None
    """What the device runs last, in a three-way cut."""
    crossing: tuple[Crossing, ...]
    back: tuple[Crossing, ...]
    kept: tuple[str, ...]
    quality_input: str | None
    head_inputs: tuple[str, ...]
    head_outputs: tuple[str, ...]
    tail_outputs: tuple[str, ...]
    """The symbols of `back`, then model outputs."""
    final_outputs: tuple[str, ...]

    def protos(self) -> dict[str, onnx.ModelProto]:
        """The graphs by name, in the order in which they run."""
        found = {"head": self.head, "tail": self.tail}
        return found | ({"final": self.final} if self.final is not None else {})


def cross(graph: Graph, names: Sequence[str], tables: Mapping[str, QuantiserTable]) -> tuple[Crossing, ...]:
    """How tensors cross: as symbols where there is a table for one, as they are elsewhere."""
    crossings = []
    for name in names:
        table = tables.get(name)
        # A tensor that is an input or an output of the model already needs another name as an output of the head.
        plain = table is None and name not in graph.inputs and name not in graph.outputs
        crossings.append(Crossing(name, graph.infos[name], name if plain else f"{name}.symbols", table))
    return tuple(crossings)


def split(graph: Graph, separation: Separation, tables: Mapping[str, QuantiserTable]) -> Parts:
    """Make the graphs of a cut.

    Args:
        graph: the model.
        separation: the nodes of its parts.
        tables: quantiser tables of the tensors that cross, there and back; those without one cross as they are.

    Raises:
        CutError: a side needs a shape that it cannot know.
    """
    crossing = cross(graph, separation.tensors, tables)
    back = cross(graph, separation.back, tables)
    quality = _free_name(graph, QUALITY) if tables else None
    build = _PartBuilder(graph, quality)
    made = {name for node in separation.head for name in graph.nodes[node].output}
    head_outputs = tuple(name for name in graph.outputs if name in made or name in graph.inputs)
    body = {name for node in separation.tail for name in graph.nodes[node].output}
    # What does not depend on the input at all is answered by whoever answers last.
    late = [name for name in graph.outputs if name not in head_outputs]
    answers = tuple(name for name in late if name in body or not separation.final)
    final_outputs = tuple(name for name in late if name not in answers)
    # A kept tensor that the model takes or gives anyway needs no second output of the head.
    kept = tuple(name for name in separation.kept if name not in graph.inputs and name not in head_outputs)
    head = build.part(
        "head", separation.head, arriving=(), leaving=crossing, given=graph.inputs, outputs=(*head_outputs, *kept)
    )
    final = None
    if separation.final:
        final = build.part(
            "final", separation.final, arriving=back, leaving=(), given=separation.kept, outputs=final_outputs
        )
    return Parts(
        head=head,
        tail=build.part("tail", separation.tail, arriving=crossing, leaving=back, given=(), outputs=answers),
        final=final,
        crossing=crossing,
        back=back,
        kept=kept,
        quality_input=quality,
        head_inputs=tuple(name for name in graph.inputs if name in {value.name for value in head.graph.input}),
        head_outputs=head_outputs,
        tail_outputs=(*(c.symbols for c in back), *answers),
        final_outputs=final_outputs,
    )


@dataclass(frozen=True)
class _PartBuilder:
    """Makes the graph of one part: what arrives is restored, what leaves is quantised."""

    graph: Graph
    quality: str | None

    def part(
        self,
        name: str,
        nodes: Iterable[int],
        *,
        arriving: Sequence[Crossing],
        leaving: Sequence[Crossing],
        given: Sequence[str],
        outputs: Sequence[str],
    ) -> onnx.ModelProto:
        side = _Side(self.graph, nodes, {c.tensor: c.symbols for c in arriving} | {t: t for t in given})
        side.want([*(c.tensor for c in leaving), *outputs])
        model = side.model(name)
        front = onnx.GraphProto()
        for c in arriving:
            model.graph.input.append(value_info(c.symbols, c.symbols_dtype, c.info.dims))
            _restore(front, c, self.quality)
            # Said, because inference loses the batch in the dequantiser, and ONNX Runtime then takes time that grows
            # with the square of what follows (5,000 nodes: 14 s instead of 0.7).
            model.graph.value_info.append(value_info(c.tensor, c.info.dtype, c.info.dims))
        prepend(model.graph, front)
        self._add_given(model, given, {c.tensor for c in leaving} | set(outputs))
        for c in leaving:
            _emit(model.graph, c, self.quality)
            model.graph.output.append(value_info(c.symbols, c.symbols_dtype, c.info.dims))
        if self.quality is not None:  # even where a part has nothing quantised: all parts are fed alike
            length = BATCH if self.graph.batched else 1
            model.graph.input.append(helper.make_tensor_value_info(self.quality, TensorProto.INT32, [length]))
        _add_outputs(model, self.graph, outputs)
        return model

    def _add_given(self, model: onnx.ModelProto, given: Sequence[str], also: set[str]) -> None:
        """Inputs for what the device has: those that the part uses, or hands on."""
        used = {name for node in model.graph.node for name in reads(node)} | also
        declared = {value.name: value for value in self.graph.model.proto.graph.input}
        for name in given:
            if name in used:
                info = self.graph.infos[name]
                model.graph.input.append(declared.get(name) or value_info(name, info.dtype, info.dims))


def _emit(graph: onnx.GraphProto, c: Crossing, quality: str | None) -> None:
    if c.table is not None and quality is not None:
        quantiser_nodes(graph, c.tensor, c.symbols, info=c.info, table=c.table, quality=quality)
    elif c.symbols != c.tensor:
        graph.node.append(helper.make_node("Identity", [c.tensor], [c.symbols]))


def _restore(graph: onnx.GraphProto, c: Crossing, quality: str | None) -> None:
    if c.table is not None and quality is not None:
        dequantiser_nodes(graph, c.symbols, c.tensor, info=c.info, table=c.table, quality=quality)
    elif c.symbols != c.tensor:
        graph.node.append(helper.make_node("Identity", [c.symbols], [c.tensor]))


class _Side:
    """Collects what one side consists of."""

    def __init__(self, graph: Graph, nodes: Iterable[int], sources: Mapping[str, str]) -> None:
        self.graph = graph
        self.nodes = set(nodes)
        self.sources = sources
        """Tensors that come from outside, and the names under which their shape can be asked for."""
        self.made = {name for node in self.nodes for name in graph.nodes[node].output} | set(sources)
        self.weights: dict[str, None] = {}
        self.shapes = onnx.GraphProto()
        self.replaced: set[int] = set()
        for node in sorted(self.nodes):
            self.want(graph.uses[node])

    def want(self, names: Iterable[str]) -> None:
        """Bring in the free nodes and the weights behind the names."""
        stack = list(names)
        while stack:
            name = stack.pop()
            if name in self.made:
                continue
            if name in self.graph.weights:
                self.weights[name] = None
                continue
            node = self.graph.producer[name]
            if node not in self.graph.free:
                raise CutError(f"this side of the cut needs {name!r}, which is made on the other")
            self.made.update(filter(None, self.graph.nodes[node].output))
            if self._asks_elsewhere(node):
                self._say_shape(node)
            else:
                self.nodes.add(node)
                stack.extend(self.graph.uses[node])

    def _asks_elsewhere(self, node: int) -> bool:
        """Whether the node asks for the shape of a data tensor that this side does not have."""
        if self.graph.nodes[node].op_type not in ("Shape", "Size"):
            return False
        name = self.graph.uses[node][0]
        behind = self.graph.producer.get(name)
        return name not in self.made and name not in self.graph.weights and behind not in self.graph.free

    def _say_shape(self, index: int) -> None:
        """Replace a `Shape` or `Size` of a tensor that is not here by arithmetic on the tensors that are."""
        node = self.graph.nodes[index]
        dims = self.graph.infos[node.input[0]].dims or ()
        attributes = {a.name: a.i for a in node.attribute}
        dims = dims[attributes.get("start", 0) : attributes.get("end", len(dims))]
        target = node.output[0]
        parts = [self._say_dim(dim, f"{PREFIX}{target}/{i}", node.input[0]) for i, dim in enumerate(dims)]
        add = self.shapes.node.append
        if node.op_type == "Shape":
            if not parts:
                parts = [_constant(self.shapes, f"{PREFIX}{target}/none", np.zeros(0, np.int64))]
            add(helper.make_node("Concat", parts, [target], axis=0))
            return
        product = _constant(self.shapes, f"{PREFIX}{target}/one", np.ones(1, np.int64))
        for i, part in enumerate(parts):
            add(helper.make_node("Mul", [product, part], [f"{PREFIX}{target}/product{i}"]))
            product = f"{PREFIX}{target}/product{i}"
        scalar = _constant(self.shapes, f"{PREFIX}{target}/scalar", np.zeros(0, np.int64))
        add(helper.make_node("Reshape", [product, scalar], [target]))

    def _say_dim(self, dim: Dim, name: str, wanted: str) -> str:
        """A tensor `int64 [1]` with the size of a dimension."""
        if dim.fixed:
            return _constant(self.shapes, name, np.array([dim.size], np.int64))
        for tensor, source in self.sources.items():
            info = self.graph.infos.get(tensor)
            for axis, own in enumerate(info.dims or () if info else ()):
                if own.symbol == dim.symbol:
                    return self._scale(source, axis, own, dim, name)
        raise CutError(f"this side of the cut needs the shape of {wanted!r}, and nothing here has its {dim.symbol!r}")

    def _scale(self, source: str, axis: int, own: Dim, dim: Dim, name: str) -> str:
        add = self.shapes.node.append
        index = _constant(self.shapes, f"{name}/axis", np.array([axis], np.int64))
        add(helper.make_node("Shape", [source], [f"{name}/shape"]))
        add(helper.make_node("Gather", [f"{name}/shape", index], [f"{name}/own"], axis=0))
        if own.size == dim.size or dim.symbol != BATCH:
            return f"{name}/own"
        up = _constant(self.shapes, f"{name}/up", np.array([dim.size], np.int64))
        down = _constant(self.shapes, f"{name}/down", np.array([own.size], np.int64))
        add(helper.make_node("Mul", [f"{name}/own", up], [f"{name}/scaled"]))
        add(helper.make_node("Div", [f"{name}/scaled", down], [name]))
        return name

    def model(self, name: str) -> onnx.ModelProto:
        """The side's graph, still without inputs and outputs."""
        source = self.graph.model.proto
        model = onnx.ModelProto(ir_version=source.ir_version, producer_name="narrows")
        model.opset_import.extend(source.opset_import)
        model.graph.name = name
        model.graph.node.extend(self.shapes.node)
        model.graph.node.extend(self.graph.nodes[node] for node in sorted(self.nodes))
        model.graph.initializer.extend(t for t in source.graph.initializer if t.name in self.weights)
        model.graph.initializer.extend(self.shapes.initializer)
        model.graph.sparse_initializer.extend(
            t for t in source.graph.sparse_initializer if t.values.name in self.weights
        )
        return model


def part_of(graph: Graph, nodes: Iterable[int], arriving: Sequence[str], leaving: Sequence[str]) -> onnx.ModelProto:
    """Some of a graph's nodes and all that they need, as a graph still without inputs and outputs."""
    side = _Side(graph, nodes, {name: name for name in arriving})
    side.want(leaving)
    return side.model("part")


def _constant(graph: onnx.GraphProto, name: str, array: NDArray[np.int64]) -> str:
    graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def prepend(graph: onnx.GraphProto, front: onnx.GraphProto) -> None:
    """Put the nodes and weights of `front` before those of `graph`."""
    nodes = [*front.node, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(front.initializer)


def value_info(name: str, dtype: int, dims: Sequence[Dim] | None) -> onnx.ValueInfoProto:
    """An input or an output of a graph; open dimensions keep their names."""
    if dims is None:
        return helper.make_tensor_value_info(name, dtype, None)
    shape = [dim.size if dim.fixed else dim.symbol if _named(dim) else None for dim in dims]
    return helper.make_tensor_value_info(name, dtype, shape)


def _named(dim: Dim) -> bool:
    """Whether the dimension is the named one itself, and not a multiple of it."""
    return dim.symbol.isidentifier() and (dim.symbol != BATCH or dim.size == 1)


def _add_outputs(model: onnx.ModelProto, graph: Graph, names: Sequence[str]) -> None:
    declared = {value.name: value for value in graph.model.proto.graph.output}
    for name in names:
        info = graph.infos.get(name)
        if info is not None and info.dtype and info.dims is not None:
            model.graph.output.append(value_info(name, info.dtype, info.dims))
        else:
            model.graph.output.append(declared[name])


def _free_name(graph: Graph, name: str) -> str:
    while name in graph.infos or name in graph.producer or name in graph.inputs:
        name = f"{name}_"
    return name
