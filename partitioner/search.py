"""Every small set of tensors that is a cut.

The search walks through closed sets of nodes in topological order. Each node, as soon as all it reads is in the head,
is taken into the head or left out; what is left out dooms all that comes after it, so a branch of the search ends when
more tensors than allowed are read by doomed nodes, or when more disjoint paths than allowed lead to one. In a chain
with shortcuts that is a constant number of steps for each node.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from .cuts import Flow, missing_symbols
from .graph import Graph
from .shapes import why_not

logger = logging.getLogger(__name__)

MAX_TENSORS = 3
"""To a cut, where nobody says otherwise."""
MAX_CUTS = 50_000
MAX_STEPS = 400_000
"""Of the search. Two towers of a thousand nodes each have a million cuts between them; nobody reads those."""


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
        if tail != self.everything & ~head or missing_symbols(flow.graph, flow, names, tail):
            return None
        return names
