"""A teacher, taken apart with torch.fx at one module's output."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from ...runtime.errors import CutError, ModelError, UnknownTensorError, first_line
from ..model import nearest
from .folding import folded
from .teacher import Teacher, macs_of, params_of

Tensor = torch.Tensor

_PROPOSED_SHARE = 0.5
"""Of the teacher's work before the cut: what is proposed is the module nearest to it."""


@dataclass(frozen=True)
class Halves:
    """A teacher, taken apart."""

    at: str
    front: nn.Module
    """Picture to features; what the encoder and the decoder replace."""
    tail: Tail
    """Features to answer, frozen. To be copied where it is to learn."""
    features: tuple[int, int, int]
    """Channels, height and width of what crosses."""
    front_params: int
    front_macs: int
    tail_macs: int


class Tail(nn.Module):
    """What comes after the cut. `forward` gives the answer, `tapped` the outputs of modules on the way as well."""

    def __init__(self, body: nn.Module, taps: Sequence[str]) -> None:
        super().__init__()
        self.body = body
        self.taps = tuple(taps)

    def forward(self, features: Tensor) -> Tensor:
        """Features `[B, C, H, W]` to the answer."""
        return self.tapped(features)[0]

    def tapped(self, features: Tensor) -> list[Tensor]:
        """The answer, and then the taps in order."""
        made: list[Tensor] = self.body(features)
        return made

    def folded(self) -> Tail:
        """A copy that only answers (`folding.py`)."""
        return Tail(folded(self.body), self.taps)


def split_teacher(teacher: Teacher, at: str | None = None, taps: Sequence[str] | None = None) -> Halves:
    """Take a teacher apart.

    Args:
        teacher: whole.
        at: the module whose output crosses; proposed where None.
        taps: modules behind it whose outputs are wanted; proposed where None.

    Raises:
        UnknownTensorError: no module of that name; the nearest are named.
        CutError: the module's output alone does not separate the network, or is no picture of features.
    """
    seen = _look(teacher)
    if at is None:
        at = _propose(teacher, seen)
    for name in (at, *(taps or ())):
        _require(name, seen, teacher.name)
    shape = seen[at].shape
    if shape is None or len(shape) != 4:
        raise CutError(
            f"{at!r} puts out {shape or 'no single tensor'}; a bottleneck restores [batch, C, height, width]"
        )
    chosen = list(taps) if taps is not None else _spread_behind(teacher, at, seen)
    parts = _separate(teacher, at, chosen)
    if parts is None:
        raise CutError(
            f"{at!r} alone does not separate {teacher.name}: something else passes it by. Name a later module"
        )
    front, tail = parts
    example = teacher.example
    with torch.no_grad():
        features = front(example)
    return Halves(
        at=at,
        front=front,
        tail=Tail(tail, chosen),
        features=(features.shape[1], features.shape[2], features.shape[3]),
        front_params=params_of(front),
        front_macs=macs_of(front, example),
        tail_macs=macs_of(tail, features),
    )


@dataclass(frozen=True)
class Stem:
    """A teacher's first layers, for an encoder to begin with."""

    name: str
    """Of the last module that belongs to it."""
    module: nn.Module
    """To be copied where it is to learn."""
    shape: tuple[int, int, int]
    """Of what it puts out: channels, height, width."""
    params: int
    macs: int


def stem_at(teacher: Teacher, name: str) -> Stem:
    """The teacher's layers up to a module's output.

    Raises:
        UnknownTensorError: no module of that name.
        CutError: its output alone does not separate the network, or is no picture of features.
    """
    seen = _look(teacher)
    _require(name, seen, teacher.name)
    shape, parts = seen[name].shape, _separate(teacher, name)
    if shape is None or len(shape) != 4 or parts is None:
        raise CutError(f"{name!r} puts out no map of features that separates {teacher.name}; name another --stem")
    return Stem(name, parts[0], shape[1:], params_of(parts[0]), macs_of(parts[0], teacher.example))


def stems(teacher: Teacher, at: str) -> list[Stem]:
    """All stems that end before a cut, shortest first."""
    seen = _look(teacher)
    found: dict[tuple[int, int], Stem] = {}
    for name in sorted(seen, key=lambda n: (seen[n].order, n.count("."))):
        shape = seen[name].shape
        inside = seen[name].order >= seen[at].order or at.startswith(f"{name}.") or name.startswith(f"{at}.")
        if shape is None or len(shape) != 4 or inside or (parts := _separate(teacher, name)) is None:
            continue
        stem = Stem(name, parts[0], shape[1:], params_of(parts[0]), macs_of(parts[0], teacher.example))
        # An activation behind a convolution belongs to it: the later of two that cost the same.
        found[stem.params, stem.macs] = stem
    return list(found.values())


def between(first: Halves, last: str) -> nn.Module:
    """A teacher's layers from one cut to another, as a copy.

    Args:
        first: taken apart at the former, with the latter as its tail's only tap.
        last: name of the latter, for the message.

    Raises:
        CutError: the two are one place.
    """
    made: fx.GraphModule = copy.deepcopy(first.tail.body)  # type: ignore[assignment]
    answer = next(node for node in made.graph.nodes if node.op == "output")
    tap = answer.args[0][1]
    if not isinstance(tap, fx.Node) or tap.op == "placeholder":
        raise CutError(f"nothing lies between {first.at!r} and {last!r}")
    answer.args = (tap,)
    made.graph.eliminate_dead_code()
    made.delete_all_unused_submodules()
    made.recompile()
    return made


@dataclass(frozen=True)
class _Seen:
    """A module, as it ran."""

    shape: tuple[int, ...] | None
    """Of its output, batch included, where that is one tensor."""
    share: float
    """Of the network's work that was done when it ended."""
    order: int


def _look(teacher: Teacher) -> dict[str, _Seen]:
    """Run once, and see what each module puts out, and when."""
    done: list[tuple[str, tuple[int, ...] | None, int]] = []
    handles = []
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for name, module in teacher.module.named_modules():
            if name:

                def note(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
                    shape = tuple(output.shape) if isinstance(output, Tensor) else None
                    done.append((name, shape, counter.get_total_flops()))

                handles.append(module.register_forward_hook(note))
        try:
            teacher.module(teacher.example)
        # Whatever a stranger's network raises on a picture of this size is its refusal.
        except Exception as error:  # noqa: BLE001
            size = f"{teacher.preprocess.height}×{teacher.preprocess.width}"
            raise ModelError(f"{teacher.name} does not run on a picture of {size} ({first_line(error)})") from None
        finally:
            for handle in handles:
                handle.remove()
        total = max(1, counter.get_total_flops())
    return {name: _Seen(shape, flops / total, i) for i, (name, shape, flops) in enumerate(done)}


def _require(name: str, seen: dict[str, _Seen], where: str) -> None:
    if name not in seen:
        raise UnknownTensorError(f"{where} runs no module {name!r}; the nearest are {', '.join(nearest(name, seen))}")


def _propose(teacher: Teacher, seen: dict[str, _Seen]) -> str:
    """The module whose output separates the network nearest to the middle of its work; whole stages come first.

    Raises:
        CutError: no module's output does.
    """
    pictures = {n: s for n, s in seen.items() if s.shape and len(s.shape) == 4 and min(s.shape[2:]) > 1}
    depth = {n: n.count(".") for n in pictures}
    # A container at a coarser level may lie a little further from the middle.
    order = sorted(pictures, key=lambda n: (abs(pictures[n].share - _PROPOSED_SHARE) + 0.1 * depth[n], -len(n)))
    for name in order:
        if _separate(teacher, name) is not None:
            return name
    raise CutError(f"{teacher.name}: no module's output alone separates it; name one with --at")


def _spread_behind(teacher: Teacher, at: str, seen: dict[str, _Seen], count: int = 2) -> list[str]:
    """Modules behind the cut whose maps of features separate the rest, evenly spread over the work that is left."""
    start = seen[at].share
    later = [
        n for n, s in seen.items() if s.order > seen[at].order and s.shape and len(s.shape) == 4 and s.share > start
    ]
    later = [n for n in later if not at.startswith(f"{n}.") and min((seen[n].shape or (0,))[2:]) > 1]
    chosen: list[str] = []
    for i in range(count):
        goal = start + (1 - start) * (i + 1) / count
        order = sorted(later, key=lambda n: (round(abs(seen[n].share - goal), 2), n.count(".")))
        free = (n for n in order if not any(_nested(n, other) for other in chosen))
        found = next((n for n in free if _separate(teacher, n) is not None), None)
        chosen += [found] if found is not None else []
    return chosen


def _nested(one: str, other: str) -> bool:
    """Whether a module is the other, or inside it, or around it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


class _Tracer(fx.Tracer):
    """Traces down to the modules of torch, and to those named."""

    def __init__(self, leaves: Sequence[str]) -> None:
        super().__init__()
        self.leaves = frozenset(leaves)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self.leaves or super().is_leaf_module(m, module_qualified_name)


def _separate(teacher: Teacher, at: str, taps: Sequence[str] = ()) -> tuple[fx.GraphModule, fx.GraphModule] | None:
    """The graphs before and after a module's output, the latter with taps; None where it does not separate."""
    module = teacher.module
    if isinstance(module, fx.GraphModule):
        graph = module.graph
    else:
        try:
            graph = _Tracer([at, *taps]).trace(module)
        # Tracing runs a stranger's Python on symbols; anything may come of it.
        except Exception as error:  # noqa: BLE001
            raise ModelError(
                f"{teacher.name}: torch.fx cannot trace it ({first_line(error)}); give its ONNX export as the teacher"
            ) from None
    calls = {node.target: node for node in graph.nodes if node.op == "call_module"}
    if at not in calls or any(tap not in calls for tap in taps):
        return None
    return _cut_graph(module, graph, calls[at], [calls[tap] for tap in taps])


def _cut_graph(
    module: nn.Module, graph: fx.Graph, at: fx.Node, taps: Sequence[fx.Node]
) -> tuple[fx.GraphModule, fx.GraphModule] | None:
    behind = {at}
    free: set[fx.Node] = set()
    """Nodes that depend on no input: parameters, and what is computed of them."""
    for node in graph.nodes:
        if any(source in behind for source in node.all_input_nodes):
            behind.add(node)
        elif node.op != "placeholder" and all(source in free for source in node.all_input_nodes):
            free.add(node)
    answer = next(node for node in graph.nodes if node.op == "output")
    if answer not in behind or at.next is answer:
        return None
    passing = {s for node in behind - {at} for s in node.all_input_nodes if s not in behind and s not in free}
    if passing or any(tap not in behind for tap in taps):
        return None
    front, tail = fx.Graph(), fx.Graph()
    copies = {at: tail.placeholder("features")}
    for node in graph.nodes:
        if node in free or (node in behind and node is not at and node.op != "output"):
            copies[node] = tail.node_copy(node, lambda n: copies[n])
    result = answer.args[0]
    if not isinstance(result, fx.Node):
        return None
    tail.output([copies[result], *(copies[tap] for tap in taps)])
    twins: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if (node not in behind or node is at) and node.op != "output":
            twins[node] = front.node_copy(node, lambda n: twins[n])
    front.output(twins[at])
    return _alive(module, front), _alive(module, tail)


def _alive(module: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """The graph with the modules that it uses, without what nothing reads."""
    made = fx.GraphModule(module, graph)
    made.graph.eliminate_dead_code()
    made.delete_all_unused_submodules()
    made.recompile()
    return made.eval()


def nominal_stride(features: tuple[int, int, int], image: tuple[int, int]) -> int:
    """Pixels a side to one column of features `(C, height, width)`, to the next power of two."""
    return int(2 ** round(math.log2(max(1.0, image[0] / features[1]))))
