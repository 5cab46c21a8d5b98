"""Steps by what the tail hears: on a tail whose hearing is known."""

from __future__ import annotations

import numpy as np
import pytest
from narrows.partitioner.allocate import Allocation, allocate, measure
from narrows.runtime.errors import UsageError

GAINS = np.array([4.0, 1.0, 0.25, 0.0], np.float32)


def features(frames=24, seed=0):
    rng = np.random.default_rng(seed)
    return np.maximum(rng.normal(size=(frames, 4, 6, 6)), 0).astype(np.float32)


def tail(x):
    return x * GAINS[:, None, None]


@pytest.fixture(scope="module")
def curves():
    return measure(features(), features(8, 1), tail)


def test_steps_are_finer_where_the_tail_hears_more(curves):
    table = allocate(curves, aim=Allocation(bits_per_symbol=(0.5, 1.0, 2.0)))
    assert np.all(table.steps[:, 0] < table.steps[:, 1])
    assert np.all(table.steps[:, 1] < table.steps[:, 2])


def test_quality_rises_and_the_table_fits_the_quantiser(curves):
    table = allocate(curves)
    assert table.steps.dtype == table.zeros.dtype == np.float32
    assert table.steps.shape == table.zeros.shape == (len(table.levels), 4)
    assert list(table.levels) == sorted(table.levels)
    assert table.levels[-1] <= Allocation().max_levels
    assert np.all(table.zeros == np.round(table.zeros))
    assert np.all(np.diff(table.steps, axis=0) <= 0)


def test_rates_are_near_what_was_asked(curves):
    x = features(64, 2)
    table = allocate(curves, aim=Allocation(bits_per_symbol=(0.5, 1.0)))
    for q, wanted in enumerate((0.5, 1.0)):
        symbols = np.floor(x / table.steps[q][:, None, None] + table.zeros[q][:, None, None] + 0.5)
        shares = [np.unique(symbols[:, c], return_counts=True)[1] / symbols[:, c].size for c in range(4)]
        bits = np.mean([-(p * np.log2(p)).sum() for p in shares])
        assert bits == pytest.approx(wanted, rel=0.4)


def test_a_constant_channel_costs_nothing():
    x = features()
    x[:, 1] = 0
    table = allocate(measure(x, x[:8], tail))
    assert np.all(np.isfinite(table.steps))
    assert np.all(table.steps > 0)


def test_a_ladder_that_does_not_rise_is_refused():
    with pytest.raises(UsageError, match="rise"):
        Allocation(bits_per_symbol=(1.0, 0.5))
    with pytest.raises(UsageError, match="levels"):
        Allocation(max_levels=1)
