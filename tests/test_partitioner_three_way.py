"""Head and final part on the device, body on the server: the parts recompose, and what stays stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import CHANNELS, SIDE, GraphBuilder, random_models, residual
from hypothesis import HealthCheck, given, settings
from narrows.partitioner import Quantiser, cut_model
from narrows.partitioner.cuts import separate
from narrows.partitioner.data import made_up_frames
from narrows.partitioner.graph import view
from narrows.partitioner.model import Model, normalise
from narrows.partitioner.prove import Feeder, check_exact
from narrows.partitioner.runner import Runner
from narrows.partitioner.search import frontiers
from narrows.partitioner.split import split
from narrows.runtime.errors import CutError, ShapeError
from narrows.runtime.halves import Final, Head, Tail
from narrows.runtime.manifest import Half


def frames(count: int = 16) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (count, CHANNELS, SIDE, SIDE)).astype(np.float32)


def skip_net() -> onnx.ModelProto:
    """As a U-Net: what the first layer made is needed again by the last."""
    b = GraphBuilder()
    early = b.op("Relu", b.conv("x"), name="early")
    deep = b.op("Relu", b.conv(early), name="deep")
    deep = b.op("Relu", b.conv(deep), name="deeper")
    joined = b.op("Add", b.conv(deep, name="late"), early, name="joined")
    return b.model([b.op("Tanh", b.op("Mul", joined, "x"), name="y")])


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(proto=random_models(7))
def test_every_three_way_cut_of_a_random_graph_recomposes(proto: onnx.ModelProto) -> None:
    graph = view(Model("random", normalise(proto, "random")))
    feeder, data = Feeder(graph.inputs, True), made_up_frames(proto, True, 2)
    whole = Runner(proto, level="disabled")
    cuts = list(frontiers(graph, 2))[:12]
    for at in cuts:
        for until in cuts:
            try:
                separation = separate(graph, at, until)
            except CutError:
                continue
            assert separation.head | separation.tail | separation.final == set(graph.data)
            parts = split(graph, separation, {}).protos()
            assert list(parts) == ["head", "tail", "final"]
            assert check_exact(whole, [Runner(part, level="disabled") for part in parts.values()], feeder, data)


@pytest.mark.parametrize("quantiser", [None, Quantiser(levels=(16, 256))])
def test_a_three_way_bundle_answers_on_the_device(tmp_path: Path, quantiser: Quantiser | None) -> None:
    onnx.save(skip_net(), tmp_path / "net.onnx")
    made = cut_model(
        tmp_path / "net.onnx", "early", until="deeper", output=tmp_path / "b", calibrate=frames(), quantiser=quantiser
    )
    (cut,) = made.manifest.cuts
    assert cut.three_way
    assert [tensor.name for tensor in cut.back] == ["deeper"]
    assert cut.kept == ("early",)
    assert cut.final_outputs == ("y",)
    assert made.manifest.files["final.onnx"].halves == (Half.DEVICE,)
    top = len(cut.qualities) - 1
    x = frames(1)[0]
    features = Head(made, cut).run([x], top)
    answer = Tail(made, cut).run([features.symbols], [top])[0]
    assert "y" not in answer
    outputs = Final(made, cut).run(features, answer, top)
    expected = ort.InferenceSession(tmp_path / "net.onnx").run(None, {"x": x[None]})[0][0]
    np.testing.assert_allclose(outputs["y"], expected, atol=1e-6 if quantiser is None else 0.05)


def test_an_answer_that_is_none_is_refused(tmp_path: Path) -> None:
    onnx.save(skip_net(), tmp_path / "net.onnx")
    made = cut_model(tmp_path / "net.onnx", "early", until="deeper", output=tmp_path / "b", quantiser=None)
    (cut,) = made.manifest.cuts
    features = Head(made, cut).run([frames(1)[0]])
    with pytest.raises(ShapeError, match="lacks"):
        Final(made, cut).run(features, {})
    with pytest.raises(ShapeError, match="takes"):
        Final(made, cut).run(features, {"deeper": np.zeros((1, 2), np.float32)})


@pytest.mark.parametrize(
    ("at", "until", "words"),
    [("r1", "r0", "nothing is left between"), ("c0", "c1", "leaks"), ("c0", "probabilities", "nothing is left after")],
)
def test_three_way_cuts_that_cannot_be(at: str, until: str, words: str) -> None:
    graph = view(Model("test", normalise(residual(), "test")))
    with pytest.raises(CutError, match=words):
        separate(graph, [at], [until])
