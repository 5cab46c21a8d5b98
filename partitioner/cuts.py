"""Where a graph can be cut: every small set of tensors that separates what comes before from what comes after.

A cut is known by its tensors. Its head is what they need and whatever does not need them; its tail is the rest. Of a
set of tensors that is a cut, the tail reads every one, and reads nothing else that the head made.

The search walks through closed sets of nodes in topological order. Each node, as soon as all it reads is in the head,
is taken into the head or left out; what is left out dooms all that comes after it, so a branch of the search ends when
more tensors than allowed are read by doomed nodes, or when more disjoint paths than allowed lead to one. In a chain
with shortcuts that is a constant number of steps for each node.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..runtime.errors import CutError, UnknownTensorError
from .graph import Graph, open_symbols
from .shapes import TensorInfo, numpy_name, why_not

logger = logging.getLogger(__name__)

MAX_TENSORS = 3
"""To a cut, where nobody says otherwise."""
MAX_CUTS = 50_000
MAX_STEPS = 400_000
"""Of the search. Two towers of a thousand nodes each have a million cuts between them; nobody reads those."""

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
    _check_leaks(flow, names, tail, [head], "--at")
    _check_leaks(flow, until, final, [tail], "--until")
    _check_dimensions(graph, flow, names, tail)
    crossing = flow.read_by(final)
    back = tuple(name for name in until if name in flow.maker and tail >> flow.maker[name] & 1)
    kept = tuple(name for name in crossing if name not in back)
    if until and not back:
        raise CutError(f"{', '.join(map(repr, until))}: the body makes none of these, so nothing would come back")
    if final:
        _check_dimensions(graph, flow, (*back, *kept), final)
    return Separation(names, flow.members(head), flow.members(tail), back, flow.members(final), kept)


def _check_leaks(flow: Flow, names: Sequence[str], side: int, before: Sequence[int], option: str) -> None:
    """All that a side reads from the part before it must be among the names, and all the names among what it reads."""
    graph = flow.graph
    sources = 0
    for bits in before:
        sources |= bits
    joined = ", ".join(map(repr, names))
    for tensor in flow.read_by(side):
        maker = flow.maker.get(tensor)
        outside = maker is None and option == "--until"  # an input that the final part reads is on the device anyway
        if tensor in names or outside or (maker is not None and not sources >> maker & 1):
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


def nearest(name: str, names: Sequence[str] | dict[str, list[int]]) -> list[str]:
    """The three names that look most like one that is not there."""
    import difflib

    return difflib.get_close_matches(name, list(names), n=3, cutoff=0.0)


def _check_dimensions(graph: Graph, flow: Flow, names: Sequence[str], tail: int) -> None:
    if missing := _missing_symbols(graph, flow, names, tail):
        raise CutError(
            f"{', '.join(map(repr, names))}: the tail needs the size of {', '.join(map(repr, sorted(missing)))}, and "
            "no tensor of the cut has such a dimension; fix the model's input shape or cut elsewhere"
        )


def _missing_symbols(graph: Graph, flow: Flow, names: Sequence[str], tail: int) -> set[str]:
    """Open dimensions that shape arithmetic of the tail needs and the cut does not carry."""
    if not graph.has_shape_roots:
        return set()
    carried = open_symbols(graph.infos[name] for name in names if name in graph.infos)
    wanted: set[str] = set()
    for symbols, bits in _symbol_users(graph, flow):
        if bits & tail:
            wanted |= symbols
    return wanted - carried


def _symbol_users(graph: Graph, flow: Flow) -> list[tuple[frozenset[str], int]]:
    """Sets of open dimensions, and the data nodes that need them."""
    cached: list[tuple[frozenset[str], int]] | None = flow.__dict__.get("_users")
    if cached is None:
        users: dict[frozenset[str], int] = {}
        for i, node in enumerate(flow.nodes):
            if symbols := graph.needs[node][1]:
                users[symbols] = users.get(symbols, 0) | 1 << i
        cached = flow.__dict__["_users"] = list(users.items())
    return cached


def frontiers(graph: Graph, max_tensors: int = 1) -> Iterator[tuple[str, ...]]:
    """Every cut of at most `max_tensors` tensors, as their names in topological order.

    Stops, and says so in the log, after `MAX_CUTS` cuts; a start in the graph where the search takes more than its
    share of `MAX_STEPS` is left early, so that the rest gets its turn.
    """
    flow = Flow(graph)
    yield from _Search(flow, max_tensors).run()


class _Search:
    """The walk through closed sets that the module's docstring describes."""

    def __init__(self, flow: Flow, max_tensors: int) -> None:
        self.flow = flow
        self.limit = max_tensors
        self.waiting = [sum(1 for t in reads if t in flow.maker) for reads in flow.reads]
        self.order = {t: i for i, t in enumerate([*flow.graph.inputs, *flow.maker])}
        self.everything = (1 << len(flow.nodes)) - 1
        self.share = max(2000, MAX_STEPS // max(1, len(flow.nodes)))
        self.thinned = 0

    def run(self) -> Iterator[tuple[str, ...]]:
        flow = self.flow
        found = 0
        head = 0
        live = {t for t in flow.graph.inputs if flow.readers.get(t)}
        ready = {i for i, count in enumerate(self.waiting) if not count}
        for start in range(len(flow.nodes)):
            # Everything before `start` is in the head, `start` is the first node that is not.
            for names in self._without(start, head, live, ready):
                yield names
                found += 1
                if found >= MAX_CUTS:
                    logger.warning("%s: only the first %d cuts are listed", flow.graph.model.name, found)
                    return
            head |= 1 << start
            self._take(start, head, live, ready, self.waiting)
        if self.thinned:
            logger.warning("%s: at %d nodes not every cut was listed", flow.graph.model.name, self.thinned)

    def _take(self, node: int, head: int, live: set[str], ready: set[int], waiting: list[int] | dict[int, int]) -> None:
        """Move a node into the head: update what is live, and what is ready."""
        flow = self.flow
        ready.discard(node)
        for tensor in flow.reads[node]:
            if not flow.reader_bits[tensor] & ~head:
                live.discard(tensor)
        for tensor in flow.makes[node]:
            if flow.readers[tensor]:
                live.add(tensor)
            for reader in flow.readers[tensor]:
                left = (waiting[reader] if isinstance(waiting, list) else waiting.get(reader, self.waiting[reader])) - 1
                waiting[reader] = left
                if not left:
                    ready.add(reader)

    def _without(self, start: int, head: int, live: set[str], ready: set[int]) -> Iterator[tuple[str, ...]]:
        """Cuts whose head is everything before `start` and some nodes after it."""
        flow = self.flow
        steps = 0
        stack = [(head, flow.after[start], frozenset(live), frozenset(ready - {start}), dict[int, int]())]
        while stack:
            head, doomed, alive, open_nodes, waiting = stack.pop()
            while True:
                steps += 1
                if steps > self.share:
                    self.thinned += 1
                    return
                if self._hopeless(alive, doomed, head):
                    break
                if not open_nodes:
                    if names := self._accept(head, alive):
                        yield names
                    break
                node = min(open_nodes)
                rest = open_nodes - {node}
                stack.append((head, doomed | flow.after[node], alive, rest, waiting))
                head |= 1 << node
                now_live, now_ready, waiting = set(alive), set(open_nodes), dict(waiting)
                self._take(node, head, now_live, now_ready, waiting)
                alive, open_nodes = frozenset(now_live), frozenset(now_ready)

    def _hopeless(self, alive: frozenset[str], doomed: int, head: int) -> bool:
        """Whether more tensors must cross than are allowed."""
        if len(alive) <= self.limit:
            return False
        flow = self.flow
        loose = [t for t in alive if not flow.reader_bits[t] & doomed]
        crossing = len(alive) - len(loose)
        if crossing > self.limit:
            return True
        # Disjoint ways from the rest to a doomed node: each has to be cut somewhere. Found greedily, so a lower bound.
        seen: set[int] = set()
        for tensor in loose:
            crossing += self._escapes(tensor, doomed, head, seen)
            if crossing > self.limit:
                return True
        return False

    def _escapes(self, tensor: str, doomed: int, head: int, seen: set[int]) -> bool:
        flow = self.flow
        stack = [reader for reader in flow.readers[tensor] if not head >> reader & 1]
        while stack:
            node = stack.pop()
            if doomed >> node & 1:
                return True
            if node in seen:
                continue
            seen.add(node)
            stack.extend(reader for made in flow.makes[node] for reader in flow.readers[made])
        return False

    def _accept(self, head: int, alive: frozenset[str]) -> tuple[str, ...] | None:
        """The cut's name, if the closed set is the head that its tensors stand for."""
        flow = self.flow
        if not head or not alive or len(alive) > self.limit:
            return None
        names = tuple(sorted(alive, key=self.order.__getitem__))
        tail = flow.tail_of(names)
        if any(why_not(flow.graph.infos.get(name)) for name in names):
            return None
        if tail != self.everything & ~head or _missing_symbols(flow.graph, flow, names, tail):
            return None
        return names


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
