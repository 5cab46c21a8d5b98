"""Classes of devices, and how many of them one server carries."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from narrows.planner.choose import Constraints
from narrows.planner.fleet import Assigned, Kind, assign, capacity, cuts_of
from narrows.planner.link import Link
from narrows.planner.predict import Conditions
from narrows.planner.profile import Batch
from narrows.planner.queueing import BatchCurve, solve
from narrows.runtime.errors import UsageError
from narrows.runtime.point import LOCAL
from plan_profiles import cut, profile, quality, timing, usual

LINK = Link(5e6, 0.04)
EXACT = Constraints(max_accuracy_drop=0)


def slower(scale: float, name: str) -> object:
    one = usual(name)
    return replace(
        one,
        cuts=tuple(replace(c, head=timing(c.head.ms * scale)) for c in one.cuts if c.head),
        whole=replace(one.whole, run=timing(100 * scale)),
        encodings=(),
    )


def test_each_class_gets_its_own_cut_from_one_bundle() -> None:
    kinds = [
        Kind("pi", slower(5, "pi"), LINK),
        Kind("jetson", slower(1, "jetson"), LINK),
        Kind("pc", slower(0.1, "pc"), LINK),
    ]
    assigned = assign(kinds, None, EXACT)
    assert [one.plan.best.point.cut for one in assigned] == ["early", "late", None]
    assert cuts_of(assigned) == ("early", "late")


def test_capacity_keeps_the_bound_and_no_more() -> None:
    assigned = assign([Kind("pi", usual(), LINK, fps=5.0)], None, EXACT)
    best = assigned[0].plan.best
    found = capacity(assigned, None, bound_ms=1.3 * best.latency_ms)
    assert found.p99_ms["pi"] <= 1.3 * best.latency_ms
    assert found.by_kind["pi"] == found.devices > 1
    (queue,) = found.queues
    assert found.fps == pytest.approx(5 * found.devices)
    # By hand: the same queue, solved at that rate.
    batches = next(c.tail_batches for c in usual().cuts if c.name == best.point.cut)
    curve = BatchCurve.of(batches, overhead_s=best.stages.decode / 1000)
    assert queue.p99_ms == pytest.approx(1000 * solve(curve, found.fps).quantile_s(0.99))
    with pytest.raises(UsageError):
        solve(curve, curve.most_fps)
    assert found.fps < curve.most_fps


def test_a_tighter_bound_carries_fewer_and_a_slower_server_too() -> None:
    assigned = assign([Kind("pi", usual(), LINK, fps=5.0)], None, EXACT)
    latency = assigned[0].plan.best.latency_ms
    wide, tight = (capacity(assigned, None, factor * latency).devices for factor in (2.0, 1.2))
    assert tight < wide
    assert capacity(assigned, None, 2.0 * latency, Conditions(server_scale=1.5)).devices < wide


def test_a_mixed_fleet_shares_the_server() -> None:
    pi, jetson = (
        Kind("pi", slower(5, "pi"), LINK, fps=2.0, share=3),
        Kind("jetson", slower(1, "jetson"), LINK, fps=2.0),
    )
    assigned = assign([pi, jetson], None, EXACT)
    found = capacity(assigned, None, 1000)
    assert found.by_kind["pi"] == pytest.approx(3 * found.by_kind["jetson"])
    assert {queue.name for queue in found.queues} == {"early", "late"}
    assert sum(queue.utilisation for queue in found.queues) < 1
    assert capacity(assigned[:1], None, 1000).fps > next(q.fps for q in found.queues if q.name == "early")


def test_devices_that_need_no_server() -> None:
    assigned = assign([Kind("pc", slower(0.1, "pc"), LINK)])
    assert assigned[0].plan.best.point == LOCAL
    assert math.isinf(capacity(assigned, None, 50).devices)


def test_a_bound_that_nobody_can_keep() -> None:
    assigned = assign([Kind("pi", usual(), LINK)], None, EXACT)
    with pytest.raises(UsageError, match="with the server to itself"):
        capacity(assigned, None, 10)
    with pytest.raises(UsageError):
        capacity(assigned, None, 0)


def test_offloading_devices_queue_for_the_whole_model() -> None:
    kind = Kind("camera", profile(cut("c", 500, 50, quality(100_000))), Link(1e9, 0.001), fps=1.0)
    assigned: tuple[Assigned, ...] = assign([kind])
    assert assigned[0].plan.best.point.mode == "offload"
    found = capacity(assigned, None, 200)
    assert found.queues[0].name is None
    assert found.fps < 1000 / Batch(1, 10.0).ms
