"""Predictions: sums of measured parts, affine in the link's figures."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from narrows.planner.link import Link
from narrows.planner.predict import Conditions, Prediction, predict
from narrows.planner.profile import Power, Transport
from narrows.runtime.cost import PowerModel, frame_wire_bytes
from narrows.runtime.errors import ProfileError, UsageError
from narrows.runtime.point import LOCAL, Point
from plan_profiles import cut, profile, quality, usual


def by_point(predictions: tuple[Prediction, ...]) -> dict[Point, Prediction]:
    return {one.point: one for one in predictions}


def test_every_point_is_there_and_local_is_last() -> None:
    predictions = predict(usual(), None, Link(5e6, 0.04))
    assert [one.point for one in predictions] == [
        *(Point("split", name, q) for name in ("early", "late") for q in (0, 1)),
        Point("offload", quality=50),
        Point("offload", quality=90),
        LOCAL,
    ]


def test_a_split_is_the_sum_of_its_parts() -> None:
    one = by_point(predict(usual(), None, Link(5e6, 0.04)))[Point("split", "late", 1)]
    send_ms = frame_wire_bytes(2_000) * 8 / 5e6 * 1000
    back_ms = 60 * 8 / 5e6 * 1000
    assert one.stages.send == pytest.approx(send_ms)
    assert one.stages.trip == pytest.approx(40 + back_ms)
    assert one.latency_ms == pytest.approx(40 + 0.5 + 1.0 + send_ms + 40 + back_ms + 0.25 + 6)
    assert one.latency_ms == pytest.approx(one.stages.total)
    assert one.stages.link == pytest.approx(1.0 + send_ms + 40 + back_ms)
    assert one.high_ms > one.latency_ms
    assert one.accuracy_drop == pytest.approx(0.0)


def test_throughput_is_that_of_the_slowest_stage() -> None:
    slow_link, fast_link = Link(0.1e6, 0.04), Link(1e9, 0.04)
    point = Point("split", "late", 1)
    assert by_point(predict(usual(), None, slow_link))[point].throughput_fps == pytest.approx(
        0.1e6 / 8 / frame_wire_bytes(2_000)
    )
    assert by_point(predict(usual(), None, fast_link))[point].throughput_fps == pytest.approx(1000 / 40)
    # The server's is that of its batches, and not of a frame alone: 1.6 × 6 ms for four.
    busy = by_point(predict(usual(), None, fast_link, Conditions(device_scale=0.01, server_load=0.5)))[point]
    assert busy.throughput_fps == pytest.approx(4000 / (1.6 * 6) * 0.5)


def test_offload_runs_the_whole_model_on_the_server() -> None:
    one = by_point(predict(usual(), None, Link(8e6, 0.0)))[Point("offload", quality=50)]
    assert (one.stages.encode, one.stages.decode, one.stages.tail) == (2, 1, 10)
    assert one.accuracy_drop == pytest.approx(5.0)


def test_scales_and_load() -> None:
    point, link = Point("split", "early", 0), Link(10e6, 0.02)
    usual_one = by_point(predict(usual(), None, link))[point]
    slow = by_point(predict(usual(), None, link, Conditions(device_scale=3, server_scale=2)))[point]
    assert slow.stages.head == pytest.approx(3 * usual_one.stages.head)
    assert slow.stages.tail == pytest.approx(2 * usual_one.stages.tail)
    loaded = by_point(predict(usual(), None, link, Conditions(server_load=0.8)))[point]
    assert usual_one.stages.queue == 0
    assert loaded.stages.queue > 1
    assert loaded.latency_ms == pytest.approx(usual_one.latency_ms + loaded.stages.queue)


def test_energy_is_the_power_models_or_the_meters() -> None:
    link = Link(5e6, 0.04)
    guessed = by_point(predict(usual(), None, link))
    assert guessed[LOCAL].energy_j == pytest.approx(PowerModel().compute_w * 0.1)
    assert not guessed[LOCAL].energy_measured
    metered = by_point(predict(replace(usual(), power=Power(8.0, 2.0, "INA3221")), None, link))
    assert metered[LOCAL].energy_j == pytest.approx(0.8)
    assert metered[LOCAL].energy_measured


def test_nothing_remote_over_a_dead_link() -> None:
    assert [one.point for one in predict(usual(), None, Link(0.0))] == [LOCAL]
    assert [one.point for one in predict(usual(), None, Link(1e6, down_bps=0.0))] == [LOCAL]


def test_accuracy_counts_where_it_is_known() -> None:
    labelled = profile(cut("c", 1, 1, quality(100, 0.9, accuracy=0.8)))
    labelled = replace(labelled, whole=replace(labelled.whole, accuracy=0.81))
    one = predict(labelled, None, Link(1e6))[0]
    assert one.accuracy_drop == pytest.approx(1.0)
    unlabelled = predict(profile(cut("c", 1, 1, quality(100, 0.9))), None, Link(1e6))[0]
    assert unlabelled.accuracy_drop == pytest.approx(10.0)
    assert (one.drop_by, unlabelled.drop_by) == ("accuracy", "agreement")


def test_a_trained_bottleneck_is_held_against_its_own_teacher() -> None:
    trained = replace(cut("c", 1, 1, quality(100, 0.9, accuracy=0.927)), held_out_accuracy=0.94)
    few = profile(trained, cut("plain", 1, 1, quality(100, 0.9, accuracy=0.75)))
    few = replace(few, whole=replace(few.whole, accuracy=0.8))  # of sixteen pictures
    one, plain, *_ = predict(few, None, Link(5e6, 0.04))
    assert one.accuracy_drop == pytest.approx(1.3)
    assert one.drop_by == "held-out accuracy"
    assert plain.accuracy_drop == pytest.approx(5.0)
    assert plain.drop_by == "accuracy"


def test_device_and_server_are_put_together() -> None:
    board = replace(usual(), served_by="", server_whole=None, transport=None, reply_bytes=0.0, frames=8)
    board = replace(board, cuts=tuple(replace(c, tail=None, tail_batches=()) for c in board.cuts))
    server = replace(usual("rack"), cuts=tuple(replace(c, head=None) for c in usual().cuts))
    own = by_point(predict(usual(), None, Link(5e6, 0.04)))
    both = by_point(predict(board, server, Link(5e6, 0.04)))
    assert {point: one.latency_ms for point, one in both.items()} == {p: one.latency_ms for p, one in own.items()}
    assert not [one for one in predict(board, None, Link(5e6)) if one.point.mode == "split"]


def test_profiles_of_two_models_are_refused() -> None:
    with pytest.raises(ProfileError, match="board is of the model net"):
        predict(usual(), profile(digest="1" * 64, name="rack"), Link(1e6))


def test_lost_segments_cost_time_outs_and_round_trips() -> None:
    link = Link(10e6, 0.05, loss=0.01)
    assert link.stall_s(100) == pytest.approx(0.01 * 0.2)
    assert Link(10e6, 0.05).stall_s(100_000) == 0
    assert link.stall_s(1448 * 10) == pytest.approx(0.01 * 0.2 + (1 - 0.99**9) * 0.05)


@pytest.mark.parametrize(
    "figures",
    [
        {"bps": -1.0},
        {"bps": math.nan},
        {"bps": 1.0, "rtt_s": -1.0},
        {"bps": 1.0, "loss": 1.0},
        {"bps": 1.0, "rtt_s": math.inf},
    ],
)
def test_links_that_cannot_be(figures: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Link(**figures)


@given(
    slow=st.floats(1e4, 1e9),
    faster=st.floats(1, 100),
    rtt_s=st.floats(0, 1),
    nearer=st.floats(0, 1),
    scale=st.floats(0.1, 50),
)
def test_a_better_link_never_makes_anything_slower(
    slow: float, faster: float, rtt_s: float, nearer: float, scale: float
) -> None:
    conditions = Conditions(device_scale=scale)
    worse = predict(usual(), None, Link(slow, rtt_s), conditions)
    better = predict(usual(), None, Link(slow * faster, rtt_s * nearer), conditions)
    for before, after in zip(worse, better, strict=True):
        assert after.latency_ms <= before.latency_ms * (1 + 1e-9)
        assert after.throughput_fps >= before.throughput_fps * (1 - 1e-9)
        assert after.wire_bytes == before.wire_bytes
        assert all(getattr(after.stages, f.name) >= 0 for f in fields(after.stages))


def test_what_a_byte_takes_beyond_the_link() -> None:
    one = replace(usual(), transport=Transport(1.0, byte_us=2.0))
    stages = by_point(predict(one, None, Link(5e6, 0.04)))[Point("split", "late", 1)].stages
    assert stages.transport == pytest.approx(1.0 + 0.002 * frame_wire_bytes(2_000))
