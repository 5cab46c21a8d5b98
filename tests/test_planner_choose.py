"""The best point, the front, and what is said where nothing fits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from narrows.planner.choose import COSTS, Constraints, best_of, front, plan
from narrows.planner.link import Link
from narrows.planner.predict import Conditions, predict
from narrows.runtime.errors import NothingPlannedError, UsageError
from narrows.runtime.point import LOCAL, Point
from plan_profiles import cut, profile, quality, usual


def test_the_narrow_cut_wins_on_the_narrow_link() -> None:
    assert plan(usual(), None, Link(1e6, 0.02), Constraints(max_accuracy_drop=0.5)).best.point == Point(
        "split", "late", 1
    )
    assert plan(usual(), None, Link(50e6, 0.01), Constraints(max_accuracy_drop=0.5)).best.point.mode == "offload"


def test_it_says_do_not_split_when_that_is_right() -> None:
    alone = plan(usual(), None, Link(0.02e6, 0.5))
    assert alone.best.point == LOCAL
    assert not alone.split
    assert alone.feasible


def test_a_slower_device_gives_more_to_the_server() -> None:
    link, bound = Link(2e6, 0.02), Constraints(max_accuracy_drop=0)
    heads = [
        plan(usual(), None, link, bound, conditions=Conditions(device_scale=scale)).best.stages.device / scale
        for scale in (0.1, 1, 10)
    ]
    assert heads == sorted(heads, reverse=True)
    assert heads[0] > heads[-1]


@pytest.mark.parametrize("objective", COSTS)
def test_objectives(objective: str) -> None:
    made = plan(usual(), None, Link(5e6, 0.04), objective=objective)  # type: ignore[arg-type]
    cost = COSTS[objective]  # type: ignore[index]
    assert cost(made.best) == min(map(cost, made.predictions))


def test_bounds_are_kept() -> None:
    link = Link(5e6, 0.04)
    bounds = Constraints(deadline_ms=95, max_accuracy_drop=1, min_fps=20, max_bytes=5_000, max_memory_bytes=25e6)
    made = plan(usual(), None, link, bounds)
    assert made.feasible
    assert made.best.point == Point("split", "late", 1)
    assert made.best.latency_ms <= 95


def test_the_nearest_miss_is_shown() -> None:
    link = Link(5e6, 0.04)
    made = plan(usual(), None, link, Constraints(deadline_ms=20, max_accuracy_drop=1))
    assert not made.feasible
    assert set(made.misses) == {"latency"}
    within = [one for one in made.predictions if (one.accuracy_drop or 0) <= 1]
    assert made.best.latency_ms == min(one.latency_ms for one in within)
    assert made.misses["latency"] == pytest.approx(made.best.latency_ms / 20)


def test_accuracy_that_nobody_knows_keeps_no_bound() -> None:
    blind = profile(cut("c", 1, 1, quality(100, None)))
    assert plan(blind, None, Link(1e6)).best.point == Point("split", "c", 0)
    assert plan(blind, None, Link(1e6), Constraints(max_accuracy_drop=1)).best.point.mode != "split"


def test_nothing_at_all() -> None:
    without = profile(cut("c", 1, 1, quality(100)), local_ms=None)
    with pytest.raises(NothingPlannedError, match="nothing passes the link"):
        plan(without, None, Link(0.0))
    with pytest.raises(NothingPlannedError):
        plan(replace(without, cuts=()), None, Link(1e6))


@pytest.mark.parametrize(
    "bounds",
    [
        {"deadline_ms": 0.0},
        {"deadline_ms": float("nan")},
        {"max_bytes": -1.0},
        {"max_accuracy_drop": -0.1},
        {"max_accuracy_drop": 101},
    ],
)
def test_bounds_that_cannot_be(bounds: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Constraints(**bounds)


def test_an_objective_that_is_none() -> None:
    with pytest.raises(UsageError, match="objective"):
        best_of(predict(usual(), None, Link(1e6)), objective="beauty")  # type: ignore[arg-type]


@given(bps=st.floats(1e4, 1e9), rtt_s=st.floats(0, 0.5), scale=st.floats(0.05, 50))
def test_the_front_is_what_nothing_beats(bps: float, rtt_s: float, scale: float) -> None:
    predictions = predict(usual(), None, Link(bps, rtt_s), Conditions(device_scale=scale))
    kept = front(predictions)

    def costs(one):
        return one.latency_ms, one.wire_bytes, one.energy_j, one.accuracy_drop

    for one in predictions:
        beaten = any(
            all(a <= b for a, b in zip(costs(k), costs(one), strict=True)) and costs(k) != costs(one) for k in kept
        )
        assert beaten != (one in kept)
    assert [one.latency_ms for one in kept] == sorted(one.latency_ms for one in kept)
    for objective in ("latency", "bytes", "energy"):
        assert min(map(COSTS[objective], kept)) == min(map(COSTS[objective], predictions))
