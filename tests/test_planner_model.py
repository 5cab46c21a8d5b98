"""An uncut model: node times of one run, a shortlist, the cuts measured, and one bundle with all of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import make_bundle
from graphs import CHANNELS, SIDE, GraphBuilder, residual
from material import model_path
from narrows.device import Device
from narrows.partitioner import add_whole, cut_model, load, merge_bundles, survey
from narrows.partitioner.batch import with_batch
from narrows.partitioner.graph import view
from narrows.partitioner.node_times import time_nodes
from narrows.partitioner.points import list_points
from narrows.planner.choose import Constraints, plan
from narrows.planner.link import Link
from narrows.planner.profile import Estimate, parse, write
from narrows.planner.shortlist import shortlist
from narrows.profiling.bundle import open_bundle, profile_bundles
from narrows.profiling.model import CuttingOptions, profile_model
from narrows.profiling.options import ProfileOptions
from narrows.profiling.stopwatch import Steady
from narrows.runtime.bundle import Bundle
from narrows.runtime.errors import ModelError, UsageError
from narrows.server.app import ServerThread
from narrows.server.options import ServeOptions

QUICK = ProfileOptions(frames=4, memory=False, encodings=(), steady=Steady(share=0.5, least_runs=3, most_s=0.1))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(residual(), path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npy"
    np.save(path, np.random.default_rng(0).normal(size=(12, CHANNELS, SIDE, SIDE)).astype(np.float32))
    return path


def test_every_node_has_its_time_and_heads_grow_with_depth() -> None:
    from narrows.partitioner.model import Model

    b = GraphBuilder()
    x = "x"
    for _ in range(6):
        x = b.op("Relu", b.conv(x))
    proto = b.model([x], shape=("batch", CHANNELS, 64, 64))
    graph = view(with_batch(Model("chain", proto)) or Model("chain", proto))
    times = time_nodes(graph, {"x": np.zeros((1, CHANNELS, 64, 64), np.float32)})
    assert len(times.ms) == len(graph.data)
    assert times.total_ms > 0
    points = sorted(list_points(graph), key=lambda point: point.depth)
    heads = times.heads_ms(points)
    assert heads == sorted(heads)
    assert 0 < heads[-1] <= times.total_ms
    # Every Conv has a kernel of its own, whatever the optimiser made of the ReLUs behind them.
    assert heads[-1] > 2 * heads[0]


def test_a_survey_of_a_model_with_a_fixed_batch(saved: Path) -> None:
    found = survey(load(saved))
    assert len(found.points) == len(found.heads_ms) > 4
    assert list(found.heads_ms) == sorted(found.heads_ms)
    assert max(found.heads_ms) <= found.whole_ms * 1.001
    one = saved.with_name("one.onnx")
    onnx.save(residual(shape=(1, CHANNELS, SIDE, SIDE)), one)
    assert survey(load(one)).whole_ms > 0


def test_the_shortlist_has_the_best_of_every_link_and_no_twins() -> None:
    estimates = [
        Estimate("early", 1.0, 400_000, 100_000),
        Estimate("twin", 1.01, 400_000, 100_000),
        Estimate("middle", 5.0, 40_000, 10_000),
        Estimate("fat", 6.0, 4_000_000, 1_000_000),
        Estimate("late", 9.0, 4_000, 1_000),
    ]
    assert {one.name for one in shortlist(estimates, 10.0, 3)} == {"early", "middle", "late"}
    assert len(shortlist(estimates, 10.0, 10)) == 3
    assert shortlist([], 10.0, 3) == []
    # What takes more bytes than the picture itself can never win over sending that.
    assert "early" not in {one.name for one in shortlist(estimates, 10.0, 10, picture_values=100_000)}


def test_a_model_is_profiled_and_its_cuts_kept_as_one_bundle(saved: Path, data: Path, tmp_path: Path) -> None:
    options = ProfileOptions(images=data, frames=4, memory=False, steady=QUICK.steady)
    made = profile_model(str(saved), options, CuttingOptions(cuts=3, frames=8, bundle=tmp_path / "kept"))
    assert parse(write(made), "here") == made
    assert 1 <= len(made.cuts) <= 3
    assert {cut.name for cut in made.cuts} <= {one.name for one in made.estimates}
    assert made.whole.run is not None
    assert made.encodings == ()  # raw tensors are no pictures
    assert plan(made, None, Link(5e6, 0.04), Constraints(deadline_ms=1e4)).feasible

    bundle = Bundle.open(tmp_path / "kept")
    assert [cut.name for cut in bundle.manifest.cuts] == [cut.name for cut in made.cuts]
    again = profile_bundles([bundle], QUICK)
    assert again.digest == made.digest
    with ServerThread(ServeOptions(bundle.root, port=0)) as server:
        frame = np.load(data)[0]
        answers = []
        for cut in bundle.manifest.cuts:
            from narrows.device import DeviceOptions

            with Device(bundle, server.address, DeviceOptions(cut=cut.name)) as device:
                answers.append(device.infer(frame))
    assert all(answer.error is None for answer in answers)
    whole = answers[0].outputs["probabilities"]
    assert all(np.allclose(answer.outputs["probabilities"], whole, atol=0.05) for answer in answers)


def test_bundles_of_one_model_have_one_digest(saved: Path, data: Path, tmp_path: Path) -> None:
    one = cut_model(str(saved), "r0", output=tmp_path / "one", calibrate=data)
    two = cut_model(str(saved), "r1", output=tmp_path / "two", calibrate=data)
    assert one.manifest.model == two.manifest.model is not None
    made = profile_bundles([one, two], QUICK)
    assert [cut.name for cut in made.cuts] == ["r0", "r1"]
    merged = merge_bundles([one, two], tmp_path / "both")
    assert open_bundle(merged.root).manifest.model == one.manifest.model
    for bundle, cut in ((one, merged.manifest.cuts[0]), (two, merged.manifest.cuts[1])):
        tensor = bundle.manifest.cuts[0].crossing[0]
        if tensor.tables:
            label = tensor.tables[0].coder  # type: ignore[union-attr]
            assert merged.table(cut.crossing[0], 0, label) == bundle.table(tensor, 0, label)
    with pytest.raises(UsageError, match="in two"):
        merge_bundles([one, one], tmp_path / "twice")
    with pytest.raises(UsageError, match="only bundles of one model"):
        merge_bundles([one, make_bundle(tmp_path / "tiny")], tmp_path / "mixed")


def test_one_server_is_measured_with_several_bundles(saved: Path, data: Path, tmp_path: Path) -> None:
    bundles = [cut_model(str(saved), cut, output=tmp_path / "served" / cut, calibrate=data) for cut in ("r0", "r1")]
    with ServerThread(ServeOptions(tmp_path / "served", port=0)) as server:
        halves = [open_bundle(bundle.root, on_device=True) for bundle in bundles]
        made = profile_bundles(halves, replace(QUICK, server=server.address))
    assert made.served_by == server.address
    assert [cut.name for cut in made.cuts] == ["r0", "r1"]
    assert all(cut.tail is not None and cut.tail_batches for cut in made.cuts)
    assert made.transport is not None


def test_a_whole_model_is_added_to_a_bundle(saved: Path, data: Path, tmp_path: Path) -> None:
    without = cut_model(str(saved), "r0", output=tmp_path / "without", calibrate=data)
    proto = residual()
    proto.graph.node[-1].output[0] = proto.graph.output[0].name = "answer"
    onnx.save(proto, tmp_path / "teacher.onnx")
    both = add_whole(without, str(tmp_path / "teacher.onnx"), tmp_path / "with")
    made = profile_bundles([both], replace(QUICK, images=data))
    assert made.whole.run is not None
    assert made.cuts[0].qualities[-1].agreement == 1.0
    assert (made.cuts[0].qualities[-1].max_deviation or 0.0) < 0.05
    with pytest.raises(ModelError, match="answers with"):
        b = GraphBuilder()
        onnx.save(b.model([b.op("Relu", "x")]), tmp_path / "other.onnx")
        add_whole(without, str(tmp_path / "other.onnx"), tmp_path / "never")


def test_what_cannot_be_profiled(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        profile_model(str(tmp_path / "none.onnx"), QUICK)
    with pytest.raises(UsageError, match="for a bundle"):
        profile_model(str(saved), ProfileOptions(on_device=True))
    said: list[str] = []
    with pytest.raises(UsageError, match="give --images"):  # before anything is timed
        profile_model(str(saved), replace(QUICK, images=None), progress=lambda *told: said.append(str(told)))
    assert len(said) == 1
    with pytest.raises(UsageError):
        CuttingOptions(cuts=0)


def test_a_real_network_is_timed_in_one_run() -> None:
    found = survey(load(model_path("mobilenet_v2_torchvision_dequant_fp32.onnx")))
    assert len(found.points) > 40
    assert list(found.heads_ms) == sorted(found.heads_ms)
    # The first cut is behind the first layer, the last one before the last.
    assert found.heads_ms[0] < 0.3 * found.whole_ms < 0.9 * found.whole_ms < found.heads_ms[-1]
