"""What is refused before anything else looks at a model, each with an error that names the node, file or tensor.

ONNX's own checker stops at the first fault with pages of text, loads external data, and lets cycles through; ONNX
Runtime says what is wrong only for the graph as a whole. Who gets a model from elsewhere needs to know what to fix.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from ..runtime.errors import ExternalDataError, GraphError, OperatorError, OpsetError
from .store import is_external, place, tensors

_STANDARD = frozenset({"", "ai.onnx", "ai.onnx.ml"})
_RUNTIME = frozenset({"com.microsoft", "com.ms.internal.nhwc", "ai.onnx.preview"})
"""Domains of ops that ONNX Runtime brings along; whether it knows one is seen when it loads the graph."""


def check(proto: onnx.ModelProto, where: str, folder: Path | None) -> None:
    """Look at a model that was just read.

    Args:
        proto: the model, its functions not yet inlined, its external data not loaded.
        where: the file, for the errors' text.
        folder: where external data has to be.

    Raises:
        OpsetError: it is newer than the ONNX that is installed, or says no opset.
        OperatorError: an op that its opset does not have, or a domain that nobody knows.
        GraphError: a cycle, nodes out of order, a name that is made twice or by nobody, inputs that are no tensors.
        ExternalDataError: a file that is missing, too short, or outside the model's folder.
    """
    versions = _check_versions(proto, where)
    own = {(function.domain, function.name) for function in proto.functions}
    _check_operators(proto.graph.node, versions, own, where)
    _check_values(proto.graph, where)
    _check_order(proto.graph, set(), where)
    if folder is not None:
        _check_files(proto.graph, where, folder)


def _check_versions(proto: onnx.ModelProto, where: str) -> dict[str, int]:
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    newest = onnx.defs.onnx_opset_version()
    opset = versions.get("", versions.get("ai.onnx"))
    if opset is None and any(node.domain in ("", "ai.onnx") for node in proto.graph.node):
        raise OpsetError(f"{where} says no opset for its standard ops; it is damaged, or was made by hand")
    if opset is not None and opset > newest:
        raise OpsetError(f"{where} has opset {opset}, and onnx {onnx.__version__} knows {newest}: pip install -U onnx")
    if proto.ir_version > onnx.IR_VERSION:
        raise OpsetError(
            f"{where} has IR version {proto.ir_version}, and onnx {onnx.__version__} knows {onnx.IR_VERSION}: "
            "pip install -U onnx"
        )
    return versions


def _check_operators(
    nodes: Iterable[onnx.NodeProto], versions: dict[str, int], own: set[tuple[str, str]], where: str
) -> None:
    for node in nodes:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if (node.domain, node.op_type) not in own:
            if domain in _STANDARD:
                _check_schema(node, domain, versions.get(domain, versions.get("ai.onnx", 1)), where)
            elif domain not in _RUNTIME:
                raise OperatorError(
                    f"{where}: {describe(node)} is of the domain {node.domain!r}, which ONNX Runtime does not have; "
                    "export the model without custom operators"
                )
        for graph in subgraphs(node):
            _check_operators(graph.node, versions, own, where)


def _check_schema(node: onnx.NodeProto, domain: str, version: int, where: str) -> None:
    try:
        schema = onnx.defs.get_schema(node.op_type, version, domain)
    except onnx.defs.SchemaError:
        raise OperatorError(
            f"{where}: {describe(node)}: opset {version} of {domain or 'ai.onnx'} has no such op"
        ) from None
    if schema.deprecated:
        raise OperatorError(f"{where}: {describe(node)} is no longer an op in opset {version}; export the model again")


def describe(node: onnx.NodeProto) -> str:
    """A node for people: its name, or what it makes where it has none."""
    return f"{node.name or 'the node of ' + repr(next(iter(node.output), ''))} ({node.op_type})"


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def _check_values(graph: onnx.GraphProto, where: str) -> None:
    for kind, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            which = value.type.WhichOneof("value")
            if which not in ("tensor_type", None) or (which is None and kind == "input"):
                raise GraphError(
                    f"{where}: the {kind} {value.name!r} is a {(which or 'value of no').removesuffix('_type')} type; "
                    "only models whose inputs and outputs are tensors can be split"
                )
    names = [value.name for value in graph.input]
    if len(names) != len(set(names)):
        raise GraphError(f"{where}: the input {_twice(names)!r} is there twice")
    outputs = [value.name for value in graph.output]
    if len(outputs) != len(set(outputs)):
        raise GraphError(f"{where}: the output {_twice(outputs)!r} is there twice")


def _check_order(graph: onnx.GraphProto, outer: set[str], where: str) -> None:
    """Every name is made once, and before it is read."""
    weights = [t.name for t in graph.initializer] + [t.values.name for t in graph.sparse_initializer]
    if len(weights) != len(set(weights)):
        raise GraphError(f"{where}: the initializer {_twice(weights)!r} is there twice")
    inputs = {value.name for value in graph.input}
    makers = {name: node for node in graph.node for name in node.output if name}
    known = outer | inputs | set(weights)
    made: set[str] = set()
    for node in graph.node:
        for name in filter(None, node.input):
            if name not in known and name not in made:
                _refuse(graph, node, name, makers, where)
        for inner in subgraphs(node):
            _check_order(inner, known | made, where)
        for name in filter(None, node.output):
            if name in made or name in inputs or name in weights:
                raise GraphError(f"{where}: {describe(node)} makes {name!r}, which is there already")
            made.add(name)
    for value in graph.output:
        if value.name not in known and value.name not in made:
            raise GraphError(f"{where}: the output {value.name!r} is made by no node")


def _refuse(
    graph: onnx.GraphProto, node: onnx.NodeProto, name: str, makers: dict[str, onnx.NodeProto], where: str
) -> None:
    """Say why a name is not there yet: made by nobody, by a node that waits for this one, or by one further down."""
    if name not in makers:
        raise GraphError(f"{where}: {describe(node)} reads {name!r}, which no node makes")
    seen, stack = set(), [name]
    while stack:
        current = stack.pop()
        if current in seen or current not in makers:
            continue
        seen.add(current)
        if makers[current] is node or list(makers[current].output) == list(node.output):
            raise GraphError(f"{where}: the graph has a cycle: {describe(node)} needs {name!r}, which needs it in turn")
        stack.extend(makers[current].input)
    raise GraphError(
        f"{where}: {describe(node)} reads {name!r} before {describe(makers[name])} makes it; "
        "ONNX wants nodes in topological order"
    )


def _check_files(graph: onnx.GraphProto, where: str, folder: Path) -> None:
    sizes: dict[str, int] = {}
    for tensor in tensors(graph):
        if not is_external(tensor):
            continue
        location, offset, length = place(tensor)
        if location not in sizes:
            sizes[location] = _file_size(tensor, location, folder, where)
        if offset + (length or 0) > sizes[location] or min(offset, length or 0) < 0:
            raise ExternalDataError(
                f"{where}: {tensor.name!r} ends at byte {offset + (length or 0)} of {location!r}, which has "
                f"{sizes[location]}; it was not copied whole"
            )


def _file_size(tensor: TensorProto, location: str, folder: Path, where: str) -> int:
    """Size of a file of external data that lies where it may."""
    path = (folder / location).resolve()
    if Path(location).is_absolute() or not path.is_relative_to(folder.resolve()):
        raise ExternalDataError(
            f"{where}: {tensor.name!r} has its data in {location!r}, outside the model's folder: refused"
        )
    if not path.is_file():
        raise ExternalDataError(f"{where}: {tensor.name!r} has its data in {location!r}, which is not beside the model")
    return path.stat().st_size


def _twice(names: list[str]) -> str:
    return next(name for i, name in enumerate(names) if name in names[:i])
