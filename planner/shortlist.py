"""Which cuts are worth being made and measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .profile import Estimate

_RATES_BPS = np.geomspace(2e5, 1e9, 24)
_DEVICE_SCALES = (1.0, 3.0, 10.0, 30.0)
_ALIKE = 0.05
"""Share of the whole model's time, and of the symbols, within which two cuts are the same to a planner."""
_CODED = 0.35
"""Coded bytes of a symbol at a middling quality. It only ranks cuts that are then measured."""
_PICTURE = 0.12
"""The same of a picture's value, as JPEG at quality 90."""
_HOPELESS = 2.0
"""Times as many bytes as a rival that is no later: more than two cuts' quantisers differ by at like accuracy."""


def shortlist(
    estimates: Sequence[Estimate], whole_ms: float, count: int, picture_values: int | None = None
) -> list[Estimate]:
    """The cuts that may be the fastest over some link on some device, best first.

    For links from 0.2 to 1,000 Mbit/s and devices as fast as the server to thirty times slower, cuts are ranked by
    head on the device + bytes on the link + tail on the server. A cut's merit is the best rank that it has anywhere,
    and then the mean of its ranks. Of cuts that cost nearly the same everywhere, the best alone is taken. Cuts
    of twice the bytes of another that is as early, or of the picture itself, are never taken.

    Args:
        estimates: the cuts.
        whole_ms: the whole model's time where the heads' were measured.
        count: how many are wanted, at most.
        picture_values: of the input, where it can be sent as a compressed picture.
    """
    estimates = _hopeful(estimates, whole_ms, picture_values) or estimates
    if not estimates:
        return []
    heads = np.array([one.head_ms for one in estimates])
    bits = 8 * _CODED * np.array([one.symbols for one in estimates], float)
    costs = [
        scale * heads + 1000 * bits / rate + np.maximum(0.0, whole_ms - heads)
        for scale in _DEVICE_SCALES
        for rate in _RATES_BPS
    ]
    ranks = np.argsort(np.argsort(np.array(costs), axis=1, kind="stable"), axis=1)
    order = np.lexsort((ranks.mean(axis=0), ranks.min(axis=0)))
    chosen: list[Estimate] = []
    for one in (estimates[i] for i in order):
        if len(chosen) < count and not any(_twins(one, other, whole_ms) for other in chosen):
            chosen.append(one)
    return chosen


def _hopeful(estimates: Sequence[Estimate], whole_ms: float, picture_values: int | None) -> list[Estimate]:
    rivals = [(one.head_ms, _CODED * one.symbols) for one in estimates]
    if picture_values is not None:
        rivals.append((0.0, _PICTURE * picture_values))
    return [
        one
        for one in estimates
        if not any(
            head_ms <= one.head_ms + _ALIKE * whole_ms and _HOPELESS * coded <= _CODED * one.symbols
            for head_ms, coded in rivals
        )
    ]


def _twins(one: Estimate, other: Estimate, whole_ms: float) -> bool:
    """Whether two cuts differ by nothing that would matter."""
    near = abs(one.head_ms - other.head_ms) <= _ALIKE * whole_ms
    return near and abs(one.symbols - other.symbols) <= _ALIKE * max(one.symbols, other.symbols)
