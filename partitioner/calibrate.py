"""Quantiser tables from data: two passes over the frames, so that no features are ever kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import UsageError
from .channels import channel_axis, useful_range
from .plan import Plan
from .quantise import Histograms, Quantiser, QuantiserTable, RangeStatistics, choose_axis, solve
from .shapes import is_float
from .split import split

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""
Collectors = Mapping[str, RangeStatistics] | Mapping[str, Histograms]


def calibrate(plan: Plan, config: Quantiser | None, progress: Progress) -> dict[str, QuantiserTable]:
    """Tables for the float tensors that cross, there and back.

    Args:
        plan: the cut and the data.
        config: the ladder; None for no quantiser.
        progress: told of every group of frames.

    Raises:
        UsageError: there is something to quantise and no data.
    """
    floats = [name for name in plan.crossing if is_float(plan.graph.infos[name].dtype)]
    if config is None or not floats:
        return {}
    if not plan.calibrated:
        raise UsageError("the quantiser needs data: give --calibrate, or switch the quantiser off")
    axes = {name: _axis(plan, name, config) for name in floats}
    ranges = {name: RangeStatistics(axes[name]) for name in floats}
    features = _Features(plan)
    features.show(ranges, "calibrating: ranges", progress)
    useful = {name: useful_range(plan.graph, name, _readers(plan, name)) for name in floats}
    histograms = {name: Histograms(axes[name], *ranges[name].bounds(useful[name])) for name in floats}
    features.show(histograms, "calibrating: steps", progress)
    return {name: solve(histograms[name], config) for name in floats}


def _axis(plan: Plan, name: str, config: Quantiser) -> int | None:
    if not config.per_channel:
        return None
    axis = config.channel_axis if config.channel_axis is not None else channel_axis(plan.graph, name)
    return choose_axis(plan.graph.infos[name], axis, len(plan.frames))


def _readers(plan: Plan, name: str) -> frozenset[int]:
    return plan.separation.final if name in plan.separation.back else plan.separation.tail


class _Features:
    """The tensors of the cut, frame by frame, as the unquantised graphs make them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        parts = split(plan.graph, plan.separation, {})
        self.names = {c.tensor: c.symbols for c in (*parts.crossing, *parts.back)}
        protos = [parts.head, *([parts.tail] if parts.back else [])]
        self.runners = [plan.runner(proto) for proto in protos]

    def show(self, collectors: Collectors, stage: str, progress: Progress) -> None:
        """Let the collectors see their tensors of all frames."""
        done = 0
        for feed, count in self.plan.feeder.groups(self.plan.frames, self.plan.group):
            made: dict[str, NDArray[Any]] = dict(feed)
            for runner in self.runners:
                made |= runner(made)
            for name, collector in collectors.items():
                collector.add(np.asarray(made[self.names[name]]))
            done += count
            progress(stage, done, len(self.plan.frames))
