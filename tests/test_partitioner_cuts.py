"""Where graphs can be cut: the search against brute force, prices, and what is said of tensors that are no cut."""

from __future__ import annotations

import itertools
from pathlib import Path

import onnx
import pytest
from graphs import GraphBuilder, random_models, residual
from hypothesis import HealthCheck, given, settings
from narrows.partitioner import list_cuts
from narrows.partitioner.cuts import Flow, separate
from narrows.partitioner.graph import Graph, view
from narrows.partitioner.model import Model, normalise
from narrows.partitioner.search import frontiers
from narrows.runtime.errors import CutError, ModelError, UnknownTensorError


def look(proto: onnx.ModelProto) -> Graph:
    return view(Model("test", normalise(proto, "test")))


def brute_force(graph: Graph, most: int) -> set[frozenset[str]]:
    """Every set of tensors that `separate` takes, tried one by one."""
    found = set()
    for count in range(1, most + 1):
        for names in itertools.combinations(graph.consumers, count):
            try:
                separate(graph, names)
            except CutError:
                continue
            found.add(frozenset(names))
    return found


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(proto=random_models())
def test_the_search_finds_what_brute_force_finds(proto: onnx.ModelProto) -> None:
    graph = look(proto)
    found = list(frontiers(graph, 3))
    assert len(found) == len(set(found))
    assert {frozenset(names) for names in found} == brute_force(graph, 3)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(proto=random_models())
def test_the_tail_of_a_cut_reads_its_tensors_and_no_others(proto: onnx.ModelProto) -> None:
    graph = look(proto)
    flow = Flow(graph)
    for names in frontiers(graph, 2):
        sides = separate(graph, names)
        assert not sides.head & sides.tail
        assert sides.head | sides.tail == set(graph.data)
        read = {t for node in sides.tail for t in graph.uses[node] if t in graph.consumers}
        made = {t for node in sides.tail for t in graph.nodes[node].output}
        assert read - made == set(names)
        assert flow.members(flow.tail_of(names)) == sides.tail


def test_a_residual_block_has_its_single_tensor_cuts() -> None:
    graph = look(residual())
    assert [names[0] for names in frontiers(graph, 1)] == ["c0", "r0", "add", "r1", "pooled", "flat", "logits"]
    assert ("r0", "c1") in set(frontiers(graph, 2))


def test_prices_of_a_cut(tmp_path: Path) -> None:
    onnx.save(residual(), tmp_path / "net.onnx")
    points = {cut.name: cut for cut in list_cuts(tmp_path / "net.onnx")}
    cut = points["add"]
    (tensor,) = cut.tensors
    assert (tensor.dtype, tensor.shape) == ("float32", ("batch", 4, 6, 6))
    assert (cut.elements, cut.raw_bytes, cut.symbol_bytes) == (144, 576, 144)
    assert cut.head_params == 3 * 4 * 4 * 9
    assert cut.tail_params == 40
    conv_flops = 2 * 4 * 9 * 144
    assert cut.head_flops == 3 * conv_flops + 144
    assert cut.depth == 6
    assert points["r0"].tensors[0].one_sided


def test_the_listing_puts_the_cuts_that_none_beats_first(tmp_path: Path) -> None:
    onnx.save(residual(), tmp_path / "net.onnx")
    points = list_cuts(tmp_path / "net.onnx")
    flags = [cut.pareto for cut in points]
    assert flags == sorted(flags, reverse=True)
    for worse in points:
        beaten = any(
            other.symbol_bytes <= worse.symbol_bytes
            and other.head_flops <= worse.head_flops
            and (other.symbol_bytes, other.head_flops) != (worse.symbol_bytes, worse.head_flops)
            for other in points
        )
        assert not (worse.pareto and beaten)


def test_an_unknown_tensor_gets_the_nearest_names() -> None:
    with pytest.raises(UnknownTensorError, match=r"no tensor 'logit'.*'?logits"):
        separate(look(residual()), ["logit"])


def test_what_leaks_is_named() -> None:
    with pytest.raises(CutError, match=r"'r0' leaks past it into n_add \(Add\)"):
        separate(look(residual()), ["c1"])


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["probabilities"], "nothing is left"),
        (["x"], "nothing is before"),
        (["w0"], "does not depend on the model's input"),
        (["r0", "add"], "'r0' is not needed after"),
    ],
)
def test_other_tensors_that_are_no_cut(names: list[str], text: str) -> None:
    with pytest.raises(CutError, match=text):
        separate(look(residual()), names)


def test_nothing_to_cut(tmp_path: Path) -> None:
    b = GraphBuilder()
    b.op("Relu", "x", name="y")
    onnx.save(b.model(["y"]), tmp_path / "net.onnx")
    with pytest.raises(ModelError, match="needs one on each side"):
        list_cuts(tmp_path / "net.onnx")


def test_a_long_graph_with_a_mask_is_searched_in_steps_that_grow_with_it() -> None:
    """Every cut needs the mask too, so no single tensor ever separates; the search must still not go quadratic."""
    b = GraphBuilder()
    x = "x"
    for _ in range(1500):
        x = b.op("Mul", b.op("Tanh", x), "mask")
    graph = look(b.model([x], ["x", "mask"]))
    found = list(frontiers(graph, 2))
    assert len(found) == 2999
    assert all("mask" in names for names in found)
