"""A cut: the tensors that separate a graph, and the nodes on each side of them.

A cut is known by its tensors. Its head is what they need and whatever does not need them; its tail is the rest. Of a
set of tensors that is a cut, the tail reads every one, and reads nothing else that the head made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..runtime.errors import CutError, UnknownTensorError
from .graph import Graph, open_symbols
from .model import nearest
from .shapes import why_not


@dataclass(frozen=True)
class Separation:
    """The data nodes of a cut's parts, and the tensors between them."""

    tensors: tuple[str, ...]
    """What the head sends."""
    head: frozenset[int]
    tail: frozenset[int]
    """What runs on the server: everything after the cut, or the body of a three-way cut."""
    back: tuple[str, ...] = ()
    """In a three-way cut: what the body sends back."""
    final: frozenset[int] = frozenset()
    """In a three-way cut: what the device does with that."""
    kept: tuple[str, ...] = ()
    """In a three-way cut: what the head made, or was given, that the final part needs; it never leaves the device."""


class Flow:
    """The data nodes as bits of integers: node `i` of the topological order is bit `i`."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes = graph.data
        self.position = {node: i for i, node in enumerate(graph.data)}
        self.reads = [[t for t in graph.uses[node] if t in graph.consumers] for node in graph.data]
        self.makes = [[t for t in graph.nodes[node].output if t in graph.consumers] for node in graph.data]
        self.readers = {t: [self.position[node] for node in nodes] for t, nodes in graph.consumers.items()}
        self.maker = {t: i for i, made in enumerate(self.makes) for t in made}
        self.reader_bits = {t: sum(1 << i for i in self.readers.get(t, ())) for t in (*graph.inputs, *self.maker)}
        self.readers |= {t: [] for t in self.reader_bits if t not in self.readers}

    @cached_property
    def before(self) -> list[int]:
        """Per node: the nodes it depends on, itself included."""
        result: list[int] = []
        for i, reads in enumerate(self.reads):
            bits = 1 << i
            for tensor in reads:
                if tensor in self.maker:
                    bits |= result[self.maker[tensor]]
            result.append(bits)
        return result

    @cached_property
    def after(self) -> list[int]:
        """Per node: the nodes that depend on it, itself included."""
        result = [0] * len(self.nodes)
        for i in reversed(range(len(self.nodes))):
            bits = 1 << i
            for tensor in self.makes[i]:
                for reader in self.readers[tensor]:
                    bits |= result[reader]
            result[i] = bits
        return result

    @cached_property
    def symbol_users(self) -> list[tuple[frozenset[str], int]]:
        """Sets of open dimensions that shape arithmetic asks for, and the nodes that need them."""
        users: dict[frozenset[str], int] = {}
        for i, node in enumerate(self.nodes):
            if symbols := self.graph.needs[node][1]:
                users[symbols] = users.get(symbols, 0) | 1 << i
        return list(users.items())

    def needed_by(self, tensors: Sequence[str]) -> int:
        """Nodes that have to run before the tensors are there."""
        bits = 0
        for tensor in tensors:
            if tensor in self.maker:
                bits |= self.before[self.maker[tensor]]
        return bits

    def reached_from(self, tensors: Sequence[str]) -> int:
        """Nodes that depend on one of the tensors."""
        bits = 0
        for tensor in tensors:
            for reader in self.readers[tensor]:
                bits |= self.after[reader]
        return bits

    def tail_of(self, tensors: Sequence[str]) -> int:
        """The tail of a cut at the tensors."""
        return self.reached_from(tensors) & ~self.needed_by(tensors)

    def read_by(self, side: int) -> list[str]:
        """Tensors that a set of nodes reads and does not make, in topological order."""
        made = self.maker
        return [t for t, bits in self.reader_bits.items() if bits & side and not (t in made and side >> made[t] & 1)]

    def members(self, bits: int) -> frozenset[int]:
        """Graph nodes of a set of bits."""
        return frozenset(node for i, node in enumerate(self.nodes) if bits >> i & 1)


def separate(graph: Graph, names: Sequence[str], until: Sequence[str] = ()) -> Separation:
    """The parts of a cut at the named tensors.

    Args:
        graph: the model.
        names: what the head sends.
        until: what comes back, for a three-way cut: head and final part on the device, the body between them on the
            server. Tensors of the head that the final part reads may be named or not: they stay where they are.

    Raises:
        UnknownTensorError: a name that the graph does not have.
        CutError: they do not separate it; the text names what leaks.
    """
    names, until = tuple(dict.fromkeys(names)), tuple(dict.fromkeys(until))
    for name in (*names, *until):
        _check_name(graph, name)
        if reason := why_not(graph.infos.get(name)):
            raise CutError(f"{name!r} {reason}; cut elsewhere")
    flow = Flow(graph)
    everything = (1 << len(flow.nodes)) - 1
    final = flow.tail_of(until)
    tail = flow.tail_of(names) & ~final
    head = everything & ~tail & ~final
    joined = ", ".join(repr(name) for name in names)
    if not tail:
        between = "between it and " + ", ".join(map(repr, until)) if until else "after it"
        raise CutError(f"{joined}: nothing is left {between} for the server; cut earlier")
    if not head:
        raise CutError(f"{joined}: nothing is before it for the head; cut later")
    if until and not final:
        raise CutError(f"{', '.join(map(repr, until))}: nothing is left after it for the device; end the body earlier")
    _check_leaks(flow, names, tail, head, "--at")
    _check_leaks(flow, until, final, tail, "--until")
    _check_dimensions(graph, flow, names, tail)
    crossing = flow.read_by(final)
    back = tuple(name for name in until if name in flow.maker and tail >> flow.maker[name] & 1)
    kept = tuple(name for name in crossing if name not in back)
    if until and not back:
        raise CutError(f"{', '.join(map(repr, until))}: the body makes none of these, so nothing would come back")
    if final:
        _check_dimensions(graph, flow, (*back, *kept), final)
    return Separation(names, flow.members(head), flow.members(tail), back, flow.members(final), kept)


def _check_leaks(flow: Flow, names: Sequence[str], side: int, before: int, option: str) -> None:
    """All that a side reads from the part before it must be among the names, and all the names among what it reads."""
    graph = flow.graph
    joined = ", ".join(map(repr, names))
    for tensor in flow.read_by(side):
        maker = flow.maker.get(tensor)
        outside = maker is None and option == "--until"  # an input that the final part reads is on the device anyway
        if tensor in names or outside or (maker is not None and not before >> maker & 1):
            continue
        reader = graph.describe(flow.nodes[next(i for i in flow.readers[tensor] if side >> i & 1)])
        together = f"{option} {'+'.join([*names, tensor])}"
        raise CutError(
            f"{joined} does not separate the graph: {tensor!r} leaks past it into {reader}; "
            f"cut at all of them ({together}), or elsewhere"
        )
    for name in names:
        if not flow.reader_bits[name] & side:
            raise CutError(f"{name!r} is not needed after the other tensors of this cut; leave it out")


def _check_name(graph: Graph, name: str) -> None:
    if graph.is_data(name):
        return
    if name in graph.producer or name in graph.weights:
        raise CutError(f"{name!r} does not depend on the model's input, or nothing depends on it: no place to cut")
    near = nearest(name, graph.consumers)
    raise UnknownTensorError(f"no tensor {name!r} in {graph.model.name}; the nearest names are {', '.join(near)}")


def _check_dimensions(graph: Graph, flow: Flow, names: Sequence[str], tail: int) -> None:
    if missing := missing_symbols(graph, flow, names, tail):
        raise CutError(
            f"{', '.join(map(repr, names))}: the tail needs the size of {', '.join(map(repr, sorted(missing)))}, and "
            "no tensor of the cut has such a dimension; fix the model's input shape or cut elsewhere"
        )


def missing_symbols(graph: Graph, flow: Flow, names: Sequence[str], tail: int) -> set[str]:
    """Open dimensions that shape arithmetic of the tail needs and the cut does not carry."""
    if not graph.has_shape_roots:
        return set()
    carried = open_symbols(graph.infos[name] for name in names if name in graph.infos)
    wanted: set[str] = set()
    for symbols, bits in flow.symbol_users:
        if bits & tail:
            wanted |= symbols
    return wanted - carried
