"""Estimates and policies: what they converge to, what they keep, and how fast they notice."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from narrows.device.estimates import Duration, LinkEstimate
from narrows.device.planner import Planner
from narrows.device.policies import Adaptive, Candidate, Neurosurgeon, Static, View
from narrows.runtime.errors import UsageError
from narrows.runtime.manifest import Cut, Quality
from narrows.runtime.point import LOCAL, Point

SMALL, LARGE = Point("split", "c", 0), Point("split", "c", 1)


def view(*candidates: Candidate, deadline_s: float | None = None, unheard_s: float = 0.0, frames: int = 0) -> View:
    return View(LARGE, lambda: candidates, deadline_s, unheard_s, frames)


def candidate(point: Point, latency_s: float, sent: float = 100.0, accuracy: float = 1.0, energy: float = 1.0):
    return Candidate(point, latency_s, latency_s, 0.0, 0.0, sent, accuracy, energy)


@given(st.floats(0.001, 0.2), st.floats(1e4, 1e8), st.integers(0, 2**32))
def test_a_link_is_learnt_from_frames_of_two_sizes(delay_s: float, rate_bps: float, seed: int) -> None:
    draw, link = random.Random(seed), LinkEstimate()
    for n in range(200):
        size = (500, 5_000)[n % 2]
        link.observe(size, (delay_s + 8 * size / rate_bps) * draw.uniform(0.97, 1.03))
    for size in (500, 5_000):
        assert link.expected_s(size) == pytest.approx(delay_s + 8 * size / rate_bps, rel=0.15, abs=0.003)


@pytest.mark.parametrize("change", [0.1, 10.0])
def test_a_tenfold_change_of_rate_is_known_within_ten_frames(change: float) -> None:
    link, size, delay_s, rate_bps = LinkEstimate(), 4_000, 0.02, 2e6
    for _ in range(100):
        link.observe(size, delay_s + 8 * size / rate_bps)
    rate_bps *= change
    for _ in range(10):
        link.observe(size, delay_s + 8 * size / rate_bps)
    assert link.expected_s(size) == pytest.approx(delay_s + 8 * size / rate_bps, rel=0.2)


def test_silence_is_news_only_once_an_answer_was_due() -> None:
    link = LinkEstimate()
    for _ in range(50):
        link.observe(1000, 0.02)
    before = link.expected_s(1000)
    link.observe_at_least(1000, 0.01)
    assert link.expected_s(1000) == before
    link.observe_at_least(1000, 2.0)
    assert link.expected_s(1000) > 0.5


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 100)), max_size=100))
def test_estimates_stay_finite_and_positive(samples: list[tuple[int, float]]) -> None:
    link, duration = LinkEstimate(), Duration()
    for size, took_s in samples:
        link.observe(size, took_s)
        duration.observe(took_s)
        assert 0 <= link.delay_s < float("inf")
        assert 0 < link.byte_s < float("inf")
        assert duration.mean_s <= duration.upper_s


def test_a_cold_first_sample_counts_for_nothing_once_there_is_a_second() -> None:
    duration = Duration()
    for took_s in (0.8, 0.02, 0.02):
        duration.observe(took_s)
    assert duration.expected_s == pytest.approx(0.02)
    assert duration.upper_s < 0.1


def test_what_was_slow_once_is_forgotten_what_is_always_slow_is_not() -> None:
    once, always = Duration(0.02), Duration(0.4)
    for _ in range(20):
        once.observe(0.02)
        always.observe(0.4)
    once.observe(0.8)
    believed_s = once.expected_s
    for _ in range(100):
        once.miss()
        always.miss()
    assert believed_s > 0.1
    assert once.expected_s == pytest.approx(0.02)
    assert once.upper_s > 0.1  # what an answer is promised by forgets nothing
    assert always.expected_s == pytest.approx(0.4)


def chosen_modes(server_s: Callable[[int], float], frames: int = 200) -> list[str]:
    """Frames over a quick link, one at a time: offload's server takes `server_s(n)` for the n-th of them, the split's
    no time, and its head 0.1 s."""
    cut = Cut("c", "h", "t", (), (Quality(8, 2000.0, 0, 0, 1.0),), "q", (), (), (), "g", "g")
    offload = Point("offload", quality=90)
    planner = Planner(Adaptive("latency"), [cut], None, (offload, 2000.0))
    for _ in range(5):
        planner.head_took(cut.name, 0.1)
    modes: list[str] = []
    for _ in range(frames):
        point = planner.choose(Point("split", cut.name, 0), None, 0.0, 0.0).point
        if point.mode == "split":
            planner.head_took(cut.name, 0.1)
        planner.coder_took(point, 0.001, 2000)
        took_s = server_s(modes.count("offload")) if point == offload else 0.001
        planner.answered(point.cut, 2040, 0.02, took_s, in_time=True)
        modes.append(point.mode)
    return modes


@pytest.mark.parametrize("slow", [{0}, {0, 1}, {5}, {5, 6, 7, 8}])
def test_a_point_that_was_slow_for_a_while_is_taken_up_again(slow: set[int]) -> None:
    modes = chosen_modes(lambda n: 0.5 if n in slow else 0.01)
    assert modes[-100:] == ["offload"] * 100
    assert modes.count("split") <= 50


def test_a_point_that_is_slow_for_good_is_hardly_ever_tried() -> None:
    assert chosen_modes(lambda _: 0.5).count("offload") <= 4


def test_the_simple_policies_do_what_they_say() -> None:
    seen = view(candidate(LARGE, 0.3), candidate(SMALL, 0.2, energy=3.0), candidate(LOCAL, 0.25))
    assert Static().choose(seen).point == LARGE
    assert Neurosurgeon().choose(seen).point == SMALL
    assert Neurosurgeon("energy").choose(seen).point in {LARGE, LOCAL}


@pytest.mark.parametrize(
    ("objective", "best"), [("latency", SMALL), ("accuracy", LARGE), ("energy", LOCAL), ("bytes", LOCAL)]
)
def test_each_objective_has_its_point(objective: str, best: Point) -> None:
    seen = view(
        candidate(LARGE, 0.05, 900, accuracy=1.0),
        candidate(SMALL, 0.01, 100, accuracy=0.9),
        candidate(LOCAL, 0.5, 0, accuracy=0.95, energy=0.5),
    )
    assert Adaptive(objective).choose(seen).point == best


def test_floor_and_deadline_are_kept_where_they_can_be() -> None:
    seen = [
        candidate(LARGE, 0.20, 900, accuracy=0.99),
        candidate(SMALL, 0.02, 100, accuracy=0.80),
        candidate(LOCAL, 0.40, 0, accuracy=1.0),
    ]
    assert Adaptive("latency", floor=0.95).choose(view(*seen)).point == LARGE
    assert Adaptive("accuracy").choose(view(*seen, deadline_s=0.3)).point == LARGE
    assert Adaptive("accuracy").choose(view(*seen, deadline_s=0.1)).point == SMALL
    assert Adaptive("accuracy").choose(view(*seen, deadline_s=0.001)).point == SMALL


@given(st.lists(st.floats(0.95, 1.05), min_size=1, max_size=50))
def test_points_of_about_the_same_cost_do_not_take_turns(wobbles: list[float]) -> None:
    policy = Adaptive("latency", margin=0.12)
    chosen = {
        policy.choose(view(candidate(SMALL, 0.1 * wobble), candidate(LOCAL, 0.1))).point for wobble in wobbles[:1] * 2
    }
    for wobble in wobbles:
        chosen.add(policy.choose(view(candidate(SMALL, 0.1 * wobble), candidate(LOCAL, 0.1))).point)
    assert len(chosen) == 1


def test_while_nothing_is_sent_the_link_is_probed_now_and_then_at_the_least_bytes() -> None:
    policy = Adaptive("latency")
    slow = (candidate(LARGE, 9.0, 900), candidate(SMALL, 8.0, 100), candidate(LOCAL, 0.1))
    assert policy.choose(view(*slow)).probe is None
    assert policy.choose(view(*slow, unheard_s=1.5)).probe == SMALL
    assert policy.choose(view(*slow, frames=10)).probe == SMALL
    assert policy.choose(view(candidate(LOCAL, 0.1), frames=10)).probe is None


def test_wishes_are_checked() -> None:
    for wrong in ({"objective": "speed"}, {"floor": 1.5}, {"margin": -1.0}):
        with pytest.raises(UsageError):
            Adaptive(**wrong)
