"""Slice by slice is as good as all at once."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import random_models, residual
from hypothesis import HealthCheck, given, settings
from narrows.partitioner import runner
from narrows.partitioner.data import made_up_frames
from narrows.partitioner.prove import Feeder, identical
from narrows.partitioner.runner import Runner


@pytest.fixture
def tiny_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "SLICE_BYTES", 600)
    monkeypatch.setattr(runner, "WHOLE_BYTES", 0)


@pytest.mark.usefixtures("tiny_slices")
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(proto=random_models(8))
def test_slices_give_the_same_bits(proto: onnx.ModelProto) -> None:
    names = tuple(value.name for value in proto.graph.input)
    (feed, _), *_ = Feeder(names, True).groups(made_up_frames(proto, True, 2), 2)
    sliced = Runner(proto, level="disabled")(feed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "WHOLE_BYTES", 1 << 40)
        whole = Runner(proto, level="disabled")(feed)
    assert whole.keys() == sliced.keys()
    assert all(identical(array, sliced[name]) for name, array in whole.items())


@pytest.mark.usefixtures("tiny_slices")
def test_a_slice_holds_no_more_than_it_may() -> None:
    steps = Runner(residual(), level="disabled")._steps
    assert len(steps) == 4  # three kernels of 576 bytes and a matrix of 160, in order
    feed = {"x": np.zeros((2, 4, 6, 6), np.float32)}
    assert Runner(residual(), level="disabled")(feed)["probabilities"].shape == (2, 10)
