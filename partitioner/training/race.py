"""Graphs against each other in ONNX Runtime: what is faster is found by running it, turn by turn, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from ...runtime.bundle import Bundle
from ...runtime.session import SessionOptions, open_session
from .graphs import INPUT, plain_proto

Feed = Mapping[str, NDArray[Any]]

_ROUNDS = 31
_WARM_UP = 3


def race(entrants: Mapping[str, tuple[onnx.ModelProto, Feed]], rounds: int = _ROUNDS) -> dict[str, float]:
    """Milliseconds that each graph takes: the median over rounds in which each has its turn, one thread.

    Only ratios mean anything on a machine that does other work as well.

    Args:
        entrants: by name, each graph and what it is fed.
        rounds: turns that each takes.
    """
    options = SessionOptions(threads=1, quiet=True)
    sessions = {name: open_session(proto.SerializeToString(), options) for name, (proto, _) in entrants.items()}
    taken: dict[str, list[float]] = {name: [] for name in entrants}
    for turn in range(_WARM_UP + rounds):
        for name, session in sessions.items():
            began = time.perf_counter()
            session.run(None, dict(entrants[name][1]))
            if turn >= _WARM_UP:
                taken[name].append((time.perf_counter() - began) * 1e3)
    return {name: statistics.median(times) for name, times in taken.items()}


def entrant(module: nn.Module, example: torch.Tensor) -> tuple[onnx.ModelProto, Feed]:
    """A torch module that takes pictures; `example` is `float32 [2, 3, H, W]`, of which one is fed."""
    return plain_proto(module, example), {INPUT: example[:1].contiguous().numpy()}


def race_heads(bundle: Bundle, front: nn.Module, example: torch.Tensor) -> tuple[float, float]:
    """A bundle's head, normalisation and quantiser included, against the teacher's own layers up to the cut, in ms."""
    manifest = bundle.manifest
    cut, picture = manifest.cuts[0], manifest.inputs[0]
    feed: dict[str, NDArray[Any]] = {picture.name: np.zeros((1, *(dim or 1 for dim in picture.shape)), np.uint8)}
    if cut.quality_input is not None:
        feed[cut.quality_input] = np.zeros(1, np.int32)
    taken = race({"head": (onnx.load(bundle.file(cut.head)), feed), "front": entrant(front, example)})
    return taken["head"], taken["front"]
