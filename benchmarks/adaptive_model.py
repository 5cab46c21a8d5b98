"""The controller over three links in virtual time: seconds instead of minutes, and the same every time.

    python benchmarks/adaptive_model.py [--seconds 20] [--seeds 5] [--json]

The planner, the estimates and the policies are the real ones, fed with the durations that a model of a device says:
fixed times of head, coder, whole model and server (those of MobileNetV2 on a board sixty times slower than this
machine, rounded), payloads that vary by 15 %, and the traces of `adaptive.py`, one frame at a time. For seeing quickly
what a change to a policy does; what counts is `adaptive.py`, with real processes.
"""

from __future__ import annotations

import argparse
import random
import types
from collections.abc import Callable
from typing import Any

import harness
import narrows.device.planner as planning
import numpy as np
from adaptive import DEADLINE_MS, FLOOR, PERIOD_S, traces
from narrows.device.estimates import Duration
from narrows.device.policies import Adaptive, Choice, Policy
from narrows.device.schedule import Schedule, trace
from narrows.runtime.manifest import Cut, Quality
from narrows.runtime.point import LOCAL, Point

HEAD_S, WHOLE_S, CODER_S, SERVER_S, DEADLINE_S = 0.17, 0.5, 0.004, 0.012, DEADLINE_MS / 1000
LADDER = (
    (4000, 0.75),
    (5500, 0.88),
    (6500, 0.95),
    (8000, 0.97),
    (9000, 0.98),
    (11600, 0.99),
    (14400, 1.0),
    (20200, 1.0),
)
OFFLOAD, OFFLOAD_BYTES, FIRST_GUESS_BYTES = Point("offload", quality=90), 27_000, 12_544.0
FRAMING_BYTES = 80
CUT = Cut("c", "h", "t", (), tuple(Quality(8, size, 0, 0, same) for size, same in LADDER), "q", (), (), (), "g", "g")
SIZES = {Point("split", "c", q): size for q, (size, _) in enumerate(LADDER)} | {OFFLOAD: OFFLOAD_BYTES}
ACCURATE = [p for p in SIZES if p == OFFLOAD or LADDER[p.quality or 0][1] >= FLOOR]


class Model:
    """One run; `latencies_s` grows by one a frame."""

    def __init__(self, schedule: Schedule, policy: Policy, seed: int) -> None:
        self._schedule = schedule
        self._draw = random.Random(seed)
        self._link_free_s = 0.0
        self._news: list[tuple[float, int, Callable[[], None]]] = []
        self._clock = types.SimpleNamespace(now=0.0)
        planning.time = types.SimpleNamespace(monotonic=lambda: self._clock.now)  # type: ignore[assignment]
        self.planner = planning.Planner(policy, [CUT], None, (OFFLOAD, FIRST_GUESS_BYTES))
        self.planner.local = Duration(WHOLE_S)
        self.planner.head_took("c", HEAD_S)
        self.latencies_s: list[float] = []

    def frame(self, now_s: float) -> float:
        """One frame from its input on; when the device is free for the next."""
        self._hear(now_s)
        choice = self.planner.choose(Point("split", "c", len(LADDER) - 1), DEADLINE_S, 0.0, 0.0)
        if choice.point == LOCAL:
            self.latencies_s.append(WHOLE_S)
            free_s = now_s + WHOLE_S
            if choice.probe is not None:
                self._answer(choice.probe, *self._send(choice.probe, free_s))
                free_s += HEAD_S
            return free_s
        sent_s, size, there_s = self._send(choice.point, now_s)
        rescued_s = now_s + DEADLINE_S  # the whole model is begun just early enough
        self.latencies_s.append(min(there_s, rescued_s) - now_s)
        if there_s <= rescued_s:
            self._answer(choice.point, sent_s, size, there_s)
        else:
            self._later(rescued_s, lambda: self.planner.unanswered(size, rescued_s - sent_s))
        return min(there_s, rescued_s)

    def _send(self, point: Point, now_s: float) -> tuple[float, int, float]:
        """When a frame leaves the device, how large it is, and when its answer is there."""
        if point.mode == "split":
            now_s += HEAD_S
            self.planner.head_took("c", HEAD_S)
        size = round(SIZES[point] * self._draw.uniform(0.85, 1.15))
        self.planner.coder_took(point, CODER_S, size)
        sent_s, size = now_s + CODER_S, size + FRAMING_BYTES
        left_s = self._schedule.sent_by(max(sent_s, self._link_free_s), size)
        self._link_free_s = min(left_s, 1e9)
        delay_s = self._schedule.at(left_s).delay_s if left_s < float("inf") else 0.0
        return sent_s, size, left_s + 2 * delay_s + self._draw.uniform(0, 0.004) + SERVER_S

    def _answer(self, point: Point, sent_s: float, size: int, there_s: float) -> None:
        link_s, in_time = there_s - sent_s - SERVER_S, there_s - sent_s < DEADLINE_S
        self._later(there_s, lambda: self.planner.answered(point.cut, size, link_s, SERVER_S, in_time=in_time))

    def _later(self, moment_s: float, what: Callable[[], None]) -> None:
        self._news.append((moment_s, len(self._news), what))

    def _hear(self, now_s: float) -> None:
        for moment_s, _, what in sorted(one for one in self._news if one[0] <= now_s):
            self._clock.now = moment_s
            what()
        self._news = [one for one in self._news if one[0] > now_s]
        self._clock.now = now_s


class Fixed:
    def __init__(self, point: Point) -> None:
        self._point = point

    def choose(self, _view: Any) -> Choice:
        return Choice(self._point)


def mean_ms(schedule: Schedule, policy: Policy, seconds: float, seed: int) -> float:
    model, free_s = Model(schedule, policy, seed), 0.0
    for n in range(int(seconds / PERIOD_S)):
        free_s = model.frame(max(n * PERIOD_S, free_s))
    return float(np.mean(model.latencies_s)) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="of each trace")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each, the noisy trace anew for each")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in traces(1):
        own, static = [], []
        for seed in range(options.seeds):
            lines = [line.split() for line in traces(options.seconds, seed + 7)[name].splitlines()]
            schedule = trace((line[0], line[1:]) for line in lines)
            own.append(mean_ms(schedule, Adaptive("latency", floor=FLOOR), options.seconds, seed))
            static.append([mean_ms(schedule, Fixed(p), options.seconds, seed) for p in (*ACCURATE, LOCAL)])
        ratios = [mine / min(others) for mine, others in zip(own, static, strict=True)]
        rows.append(
            {
                "trace": name,
                "controller, ms": float(np.mean(own)),
                "best static, ms": float(np.mean([min(others) for others in static])),
                "ratio, mean": float(np.mean(ratios)),
                "ratio, worst": max(ratios),
            }
        )
    harness.report("The controller in virtual time", rows, as_json=options.json)


if __name__ == "__main__":
    main()
