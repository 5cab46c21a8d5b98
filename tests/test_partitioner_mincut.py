"""The minimum cut against every closed set of nodes, tried one by one."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import pytest
from graphs import GraphBuilder, random_models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from narrows.partitioner.cuts import Flow
from narrows.partitioner.graph import Graph, view
from narrows.partitioner.mincut import Prices, linear_prices, min_cut
from narrows.partitioner.model import Model, normalise


def look(proto: onnx.ModelProto) -> Graph:
    return view(Model("test", normalise(proto, "test")))


def closed_sets(flow: Flow) -> Iterator[int]:
    for bits in range(1 << len(flow.nodes)):
        if all(flow.before[i] & ~bits == 0 for i in range(len(flow.nodes)) if bits >> i & 1):
            yield bits


def cost_of(flow: Flow, device: int, prices: Prices) -> float:
    graph, everything = flow.graph, (1 << len(flow.nodes)) - 1
    server = everything & ~device
    work = sum((prices.device if device >> i & 1 else prices.server)[node] for i, node in enumerate(flow.nodes))
    answers = sum(prices.answer for t in graph.outputs if t in flow.maker and server >> flow.maker[t] & 1)
    return work + answers + sum(prices.transfer[t] for t in flow.read_by(server))


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(proto=random_models(6), data=st.data())
def test_no_closed_set_is_cheaper(proto: onnx.ModelProto, data: st.DataObject) -> None:
    graph = look(proto)
    flow = Flow(graph)
    if len(flow.nodes) > 12:
        return
    price = st.integers(0, 20)
    prices = Prices(
        device={node: data.draw(price) for node in graph.data},
        server={node: data.draw(price) for node in graph.data},
        transfer={t: data.draw(price) for t in flow.reader_bits},
        answer=data.draw(price),
    )
    share = min_cut(graph, prices)
    assert share.cost == pytest.approx(min(cost_of(flow, bits, prices) for bits in closed_sets(flow)))
    device = sum(1 << flow.position[node] for node in share.device)
    assert device in set(closed_sets(flow))
    assert cost_of(flow, device, prices) == pytest.approx(share.cost)


def pyramid() -> Graph:
    """A narrow trunk that widens into three branches: the cheap place is one tensor early, or three late."""
    b = GraphBuilder()
    x = b.op("Relu", b.conv("x"), name="trunk")
    branches = [b.op("GlobalAveragePool", b.conv(b.conv(x)), name=f"p{i}") for i in range(3)]
    return look(b.model([b.op("Concat", *branches, axis=1)]))


def test_a_fast_device_and_a_slow_link_cut_late_at_three_tensors() -> None:
    graph = pyramid()
    share = min_cut(graph, linear_prices(graph, device_flops_per_s=1e9, server_flops_per_s=1e10, link_bytes_per_s=1e3))
    assert share.separation is None
    held = linear_prices(graph, device_flops_per_s=1e9, server_flops_per_s=1e10, link_bytes_per_s=1e6)
    last = graph.data[-1]
    share = min_cut(graph, Prices({**held.device, last: 1.0}, held.server, held.transfer))
    assert share.tensors == ("p0", "p1", "p2")


def test_a_slow_device_and_a_fast_link_send_the_input() -> None:
    graph = pyramid()
    share = min_cut(graph, linear_prices(graph, device_flops_per_s=1e6, server_flops_per_s=1e10, link_bytes_per_s=1e9))
    assert share.tensors == ("x",)
    assert not share.device


def test_a_cut_between() -> None:
    graph = pyramid()
    prices = linear_prices(graph, device_flops_per_s=1e9, server_flops_per_s=1e10, link_bytes_per_s=1e6)
    trunk = graph.producer["trunk"]
    share = min_cut(graph, Prices(prices.device, {**prices.server, trunk: 1.0}, {**prices.transfer, "trunk": 0.0}))
    assert share.tensors == ("trunk",)
    assert share.separation is not None
