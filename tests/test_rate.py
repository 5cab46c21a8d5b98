"""The laws of rate control."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from narrows.runtime.errors import FrameTooLargeError, UsageError
from narrows.runtime.rate import SizeModel, byte_budget, highest_fitting, step_down, within_cap

sizes = st.lists(st.floats(1, 1e7), min_size=1, max_size=9)


@given(sizes=sizes, budget=st.floats(0, 1e7))
def test_the_choice_fits_and_nothing_above_it_does(sizes, budget):
    chosen = highest_fitting(sizes, budget)
    assert chosen is None or sizes[chosen] <= budget
    assert all(size > budget for size in sizes[0 if chosen is None else chosen + 1 :])


def test_a_budget_is_what_the_link_carries_in_time():
    assert byte_budget(goodput_bps=8e6, time_s=0.01) == 10_000
    assert byte_budget(goodput_bps=8e6, time_s=0.01, overhead_bytes=400) == 9_600
    assert byte_budget(goodput_bps=8e6, time_s=0.01, overhead_bytes=40_000) == 0
    assert byte_budget(goodput_bps=0, time_s=1) == byte_budget(goodput_bps=1e6, time_s=-1) == 0


@given(sizes=sizes, data=st.data(), payload=st.integers(1, 10**7), cap=st.integers(1, 10**7))
def test_stepping_down_goes_down_and_ends(sizes, data, payload, cap):
    quality = data.draw(st.integers(0, len(sizes) - 1))
    lower = step_down(quality, payload, cap, sizes)
    assert lower is None or lower < quality


def test_over_the_cap_is_refused_with_both_figures():
    within_cap(100, 100)
    within_cap(10**9, None)
    with pytest.raises(FrameTooLargeError, match="101 bytes, the cap is 100"):
        within_cap(101, 100)


@given(calibrated=st.lists(st.floats(10, 1e6), min_size=1, max_size=6), factor=st.floats(0.1, 10), data=st.data())
def test_the_model_learns_how_large_frames_are(calibrated, factor, data):
    model = SizeModel(tuple(calibrated))
    for _ in range(60):
        quality = data.draw(st.integers(0, len(calibrated) - 1))
        model = model.after(quality, max(1, round(calibrated[quality] * factor)))
    for expected, size in zip(model.expected(), calibrated, strict=True):
        assert expected == pytest.approx(size * factor, rel=0.6)


@pytest.mark.parametrize(
    "wrong", [{"calibrated_bytes": ()}, {"calibrated_bytes": (0.0,)}, {"calibrated_bytes": (1.0,), "memory": 1.0}]
)
def test_a_model_that_cannot_be_is_refused(wrong):
    with pytest.raises(UsageError):
        SizeModel(**wrong)
