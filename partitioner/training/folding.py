"""Batch normalisations, folded into the convolutions before them.

The function stays the same, up to rounding. What only answers, and does not learn them, takes half of the time so: on a
processor, a batch normalisation costs as much as the convolution that it follows.
"""

from __future__ import annotations

import copy

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode with its normalisations folded in; as it is where torch.fx cannot trace it."""
    made = copy.deepcopy(module).eval()
    try:
        made = _fold(fx.symbolic_trace(made))
    # Tracing runs a stranger's Python on symbols; anything may come of it.
    except Exception:  # noqa: BLE001
        made = copy.deepcopy(module).eval()
    return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _fold(graph: fx.GraphModule) -> fx.GraphModule:
    calls = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    for node in list(graph.graph.nodes):
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        convolution, norm = (graph.get_submodule(str(one.target)) for one in (source, node))
        if not isinstance(convolution, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d) or norm.running_var is None:
            continue
        if calls.count(source.target) > 1:  # shared weights are not this place's alone
            continue
        graph.set_submodule(str(source.target), fuse_conv_bn_eval(convolution, norm))
        node.replace_all_uses_with(source)
        graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph.eval()
