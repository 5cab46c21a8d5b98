"""The bulk-service queue against a simulation, and against what is known in closed form."""

from __future__ import annotations

import random

import pytest
from narrows.planner.profile import Batch
from narrows.planner.queueing import BatchCurve, solve
from narrows.runtime.errors import UsageError


def simulate(curve: BatchCurve, rate: float, count: int = 60_000, seed: int = 3) -> tuple[float, float, float, float]:
    """Mean wait, mean and 99th percentile of the time at the server, mean batch; frames come at random."""
    draw, now, arrivals = random.Random(seed), 0.0, []
    for _ in range(count):
        now += draw.expovariate(rate)
        arrivals.append(now)
    waits, sojourns, runs, free, first = [], [], 0, 0.0, 0
    while first < count:
        begin = max(free, arrivals[first])
        last = first + 1
        while last < count and last - first < curve.most_frames and arrivals[last] <= begin:
            last += 1
        free = begin + curve.seconds[last - first - 1]
        waits += [begin - arrivals[i] for i in range(first, last)]
        sojourns += [free - arrivals[i] for i in range(first, last)]
        runs, first = runs + 1, last
    sojourns.sort()
    return sum(waits) / count, sum(sojourns) / count, sojourns[int(0.99 * count)], count / runs


CURVES = {
    "alone": (0.01,),
    "pairs": (0.01, 0.015),
    "accelerator": tuple(0.01 + 0.001 * n for n in range(8)),
}


@pytest.mark.parametrize("load", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("seconds", CURVES.values(), ids=CURVES)
def test_it_says_what_a_simulation_shows(seconds: tuple[float, ...], load: float) -> None:
    curve = BatchCurve(seconds)
    rate = load * curve.most_fps
    said = solve(curve, rate)
    wait, mean, p99, batch = simulate(curve, rate)
    assert said.mean_wait_s == pytest.approx(wait, rel=0.06)
    assert said.mean_s == pytest.approx(mean, rel=0.03)
    assert said.quantile_s(0.99) == pytest.approx(p99, rel=0.08)
    assert said.mean_batch == pytest.approx(batch, rel=0.03)


def test_one_at_a_time_is_pollaczek_and_khinchines() -> None:
    for load in (0.2, 0.6, 0.9):
        assert solve(BatchCurve((0.01,)), load / 0.01).mean_wait_s == pytest.approx(
            load * 0.01 / (2 * (1 - load)), rel=1e-6
        )


def test_an_idle_server_takes_one_run() -> None:
    said = solve(BatchCurve((0.01, 0.012)), 0.0)
    assert (said.mean_wait_s, said.mean_s, said.quantile_s(0.99), said.utilisation) == (0.0, 0.01, 0.01, 0.0)


def test_rates_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="more than the"):
        solve(BatchCurve((0.01,)), 100.0)
    with pytest.raises(UsageError):
        solve(BatchCurve((0.01,)), float("nan"))
    with pytest.raises(UsageError):
        BatchCurve(())
    with pytest.raises(UsageError, match="no batch"):
        BatchCurve.of([])


def test_the_largest_batch_is_the_smallest_that_is_nearly_the_fastest() -> None:
    flat = [Batch(1, 5.0), Batch(2, 10.0), Batch(4, 20.0)]
    assert BatchCurve.of(flat).seconds == (0.005,)
    gaining = [Batch(1, 5.0), Batch(2, 6.0), Batch(4, 8.0), Batch(8, 15.8)]
    assert BatchCurve.of(gaining).seconds == pytest.approx((0.005, 0.006, 0.007, 0.008))
    assert BatchCurve.of(gaining, 2.0, overhead_s=0.001).seconds == pytest.approx((0.011, 0.014, 0.017, 0.020))
    assert BatchCurve.of([Batch(4, 8.0)]).most_frames == 4
