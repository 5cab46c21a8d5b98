"""The cheapest way to share a graph between device and server, as a minimum cut.

After DADS (Hu, Bao, Wang and Liu, "Dynamic Adaptive DNN Surgery for Inference Acceleration on the Edge", INFOCOM 2019):
every node costs its time on the one side or on the other, every tensor that crosses costs its transfer once however
many nodes read it, and the share with the least sum is the minimum cut between a source (the device) and a sink (the
server). One auxiliary vertex for each tensor makes it count once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import networkx as nx

from .cuts import Flow, Separation
from .graph import Graph
from .points import describe
from .shapes import why_not

_DEVICE, _SERVER = "device", "server"


@dataclass(frozen=True)
class Prices:
    """What things cost, in any one unit, such as seconds. Nodes are known by their index, as in `Graph.data`."""

    device: Mapping[int, float]
    """Of each data node, on the device."""
    server: Mapping[int, float]
    """Of each data node, on the server."""
    transfer: Mapping[str, float]
    """Of each data tensor and each model input, when it crosses."""
    answer: float = 0.0
    """Of each model output that the server makes."""


@dataclass(frozen=True)
class Share:
    """Who does what. Either side may have nothing to do: then nothing, or the inputs alone, cross."""

    cost: float
    tensors: tuple[str, ...]
    """What crosses, in topological order."""
    device: frozenset[int]
    server: frozenset[int]

    @property
    def separation(self) -> Separation | None:
        """The cut, or None where one side does it all."""
        return Separation(self.tensors, self.device, self.server) if self.device and self.server else None


def linear_prices(
    graph: Graph,
    *,
    device_flops_per_s: float,
    server_flops_per_s: float,
    link_bytes_per_s: float,
    round_trip_s: float = 0.0,
    bytes_per_float: float = 1.0,
) -> Prices:
    """Seconds, where all work runs at one rate on each side and every tensor crosses at the link's.

    Args:
        graph: the model.
        device_flops_per_s, server_flops_per_s: floating-point operations a second.
        link_bytes_per_s: goodput of the link.
        round_trip_s: added to what the server answers.
        bytes_per_float: what an element of a float tensor costs on the link: 1 for 8 bits, uncoded.
    """
    sizes = {name: _bytes(graph, name, bytes_per_float) for name in (*graph.inputs, *graph.consumers)}
    return Prices(
        device={node: graph.flops[node] / device_flops_per_s for node in graph.data},
        server={node: graph.flops[node] / server_flops_per_s for node in graph.data},
        transfer={name: size / link_bytes_per_s for name, size in sizes.items()},
        answer=round_trip_s,
    )


def _bytes(graph: Graph, name: str, bytes_per_float: float) -> float:
    tensor = describe(name, graph.infos.get(name))
    return tensor.elements * bytes_per_float if "float" in tensor.dtype else tensor.raw_bytes


def min_cut(graph: Graph, prices: Prices) -> Share:
    """The share of least cost over all closed sets of nodes, among those whose tensors can cross.

    Args:
        graph: the model.
        prices: any that the caller has measured or made up; not below 0.
    """
    flow = Flow(graph)
    network = _network(flow, prices)
    cost, (near, _) = nx.minimum_cut(network, _DEVICE, _SERVER)
    device = frozenset(node for node in graph.data if ("node", node) in near)
    server = frozenset(graph.data) - device
    tail = sum(1 << flow.position[node] for node in server)
    return Share(float(cost), tuple(flow.read_by(tail)), device, server)


def _network(flow: Flow, prices: Prices) -> nx.DiGraph:
    """A vertex that ends on the device's side runs there; an edge without capacity can never be cut."""
    graph, network = flow.graph, nx.DiGraph()
    outputs = set(graph.outputs)
    for node, made in zip(flow.nodes, flow.makes, strict=True):
        answers = prices.answer * len(outputs.intersection(made))
        network.add_edge(_DEVICE, ("node", node), capacity=prices.server[node] + answers)
        network.add_edge(("node", node), _SERVER, capacity=prices.device[node])
    for tensor, readers in flow.readers.items():
        if not readers:
            continue
        maker = ("node", flow.nodes[flow.maker[tensor]]) if tensor in flow.maker else _DEVICE
        price = math.inf if why_not(graph.infos.get(tensor)) else prices.transfer[tensor]
        network.add_edge(maker, ("tensor", tensor), **({} if math.isinf(price) else {"capacity": price}))
        for reader in readers:
            network.add_edge(("tensor", tensor), ("node", flow.nodes[reader]))
            if tensor in flow.maker:
                # What runs on the device never waits for the server: data goes one way.
                network.add_edge(("node", flow.nodes[reader]), maker)
    return network
