"""Graphs against each other in ONNX Runtime: what is faster is found by running it, turn by turn, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from ...runtime.session import SessionOptions, open_session
from .graphs import plain_proto

_ROUNDS = 31
_WARM_UP = 3


def race(
    graphs: Mapping[str, onnx.ModelProto], pictures: NDArray[np.float32], rounds: int = _ROUNDS
) -> dict[str, float]:
    """Milliseconds that each graph takes for one picture: the median over rounds in which each has its turn.

    Only ratios mean anything on a machine that does other work as well.

    Args:
        graphs: each with one input, which `pictures` fits.
        pictures: `float32 [1, 3, H, W]`.
        rounds: turns that each takes.
    """
    options = SessionOptions(threads=1, quiet=True)
    sessions = {name: open_session(proto.SerializeToString(), options) for name, proto in graphs.items()}
    taken: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(_WARM_UP + rounds):
        for name, session in sessions.items():
            feed = {session.get_inputs()[0].name: pictures}
            began = time.perf_counter()
            session.run(None, feed)
            if turn >= _WARM_UP:
                taken[name].append((time.perf_counter() - began) * 1e3)
    return {name: statistics.median(times) for name, times in taken.items()}


def race_modules(modules: Mapping[str, nn.Module], example: torch.Tensor) -> dict[str, float]:
    """The same for torch modules that take pictures; `example` is `float32 [2, 3, H, W]`."""
    protos = {name: plain_proto(module, example) for name, module in modules.items()}
    return race(protos, example[:1].contiguous().numpy())
