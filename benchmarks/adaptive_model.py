"""The controller over three links in virtual time: seconds instead of minutes, and the same every time.

    python benchmarks/adaptive_model.py [--seconds 20] [--seeds 5] [--json]

The planner, the estimates and the policies are the real ones, fed with the durations that a model of a device says:
fixed times of head, coder, whole model and server (those of MobileNetV2 on a board sixty times slower than this
machine, rounded), payloads that vary by 15 %, and the traces of `adaptive.py`, one frame at a time. Three moods of the
machines: `calm`; `cold`, where the server's first frame of each kind takes much longer than all that follow; and
`busy`, which is cold and now and then keeps a frame waiting besides. The oracle knows the trace and the true durations,
but neither of these troubles. For seeing quickly what a change to a policy does; what counts is `adaptive.py`, with
real processes.
"""

from __future__ import annotations

import argparse
import random
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import harness
import narrows.device.planner as planning
import numpy as np
from adaptive import DEADLINE_MS, FLOOR, PERIOD_S, WARM_UP, traces
from narrows.device.estimates import Duration
from narrows.device.policies import Adaptive, Choice, Policy
from narrows.device.schedule import Schedule, trace
from narrows.runtime.manifest import Cut, Quality
from narrows.runtime.point import LOCAL, Point

HEAD_S, WHOLE_S, CODER_S, SERVER_S = 0.168, 0.35, 0.001, 0.01
DEADLINE_S, STALL_S = DEADLINE_MS / 1000, 2.0
LADDER = (
    (4200, 0.79),
    (5700, 0.79),
    (6700, 0.79),
    (8100, 0.88),
    (9200, 0.92),
    (11800, 0.98),
    (14500, 1.0),
    (19800, 1.0),
)
OFFLOAD, OFFLOAD_BYTES, FIRST_GUESS_BYTES = Point("offload", quality=90), 15_800, 12_544.0
FRAMING_BYTES = 80
CUT = Cut("c", "h", "t", (), tuple(Quality(8, size, 0, 0, same) for size, same in LADDER), "q", (), (), (), "g", "g")
SIZES = {Point("split", "c", q): size for q, (size, _) in enumerate(LADDER)} | {OFFLOAD: OFFLOAD_BYTES}
ACCURATE = [p for p in SIZES if p == OFFLOAD or LADDER[p.quality or 0][1] >= FLOOR]


@dataclass(frozen=True)
class Mood:
    """What the machines do to a frame beside its work."""

    cold_s: float = 0.0
    """What the server takes for its first frame of a kind, beside the usual."""
    hiccups: float = 0.0
    """Share of frames that wait for a processor, at each end."""
    hiccup_s: float = 0.15
    """For how long, on the average."""


MOODS = {"calm": Mood(), "cold": Mood(cold_s=0.4), "busy": Mood(cold_s=0.4, hiccups=0.03)}


class Oracle:
    """Knows the trace and the true durations."""

    def __init__(self, schedule: Schedule, clock: Callable[[], float]) -> None:
        self._schedule = schedule
        self._clock = clock

    def choose(self, _view: Any) -> Choice:
        return Choice(min((*ACCURATE, LOCAL), key=self._latency_s))

    def _latency_s(self, point: Point) -> float:
        if point == LOCAL:
            return WHOLE_S
        device_s = CODER_S + (HEAD_S if point.mode == "split" else 0.0)
        now_s = self._clock()
        left_s = self._schedule.sent_by(now_s + device_s, SIZES[point] + FRAMING_BYTES)
        delay_s = self._schedule.at(left_s).delay_s if left_s < float("inf") else 0.0
        return min(left_s - now_s + 2 * delay_s + SERVER_S, DEADLINE_S)


class Model:
    """One run; `latencies_s` grows by one a frame."""

    def __init__(self, schedule: Schedule, policy: Policy | None, seed: int, mood: Mood) -> None:
        """The oracle's where no policy is given."""
        self._schedule = schedule
        self._draw = random.Random(seed)
        self._mood = mood
        self._warm: set[str] = set()
        self._link_free_s = 0.0
        self._sent: list[tuple[float, float]] = []
        self._down_since_s: float | None = None
        self._news: list[tuple[float, int, Callable[[], None]]] = []
        self._clock = types.SimpleNamespace(now=0.0)
        planning.time = types.SimpleNamespace(monotonic=lambda: self._clock.now)  # type: ignore[assignment]
        policy = policy or Oracle(schedule, lambda: self._clock.now)
        self.planner = planning.Planner(policy, [CUT], None, (OFFLOAD, FIRST_GUESS_BYTES))
        self.planner.local = Duration(WHOLE_S)
        for _ in range(WARM_UP):
            self.planner.head_took("c", HEAD_S)
            self.planner.coder_took(OFFLOAD, CODER_S, OFFLOAD_BYTES)
        self.latencies_s: list[float] = []

    def frame(self, now_s: float) -> float:
        """One frame from its input on; when the device is free for the next."""
        self._hear(now_s)
        self._hang_up_if_silent(now_s)
        down_s = 0.0 if self._down_since_s is None else now_s - self._down_since_s
        choice = self.planner.choose(Point("split", "c", len(LADDER) - 1), DEADLINE_S, down_s, 0.0)
        if choice.point == LOCAL:
            self.latencies_s.append(WHOLE_S)
            free_s = now_s + WHOLE_S
            if choice.probe is not None:
                self._answer(choice.probe, *self._send(choice.probe, free_s))
                free_s += HEAD_S
            return free_s
        sent_s, size, there_s, server_s = self._send(choice.point, now_s)
        rescued_s = now_s + DEADLINE_S  # the whole model is begun just early enough
        self.latencies_s.append(min(there_s, rescued_s) - now_s)
        if there_s <= rescued_s:
            self._answer(choice.point, sent_s, size, there_s, server_s)
        else:
            self._later(rescued_s, lambda: self.planner.unanswered(size, rescued_s - sent_s))
        return min(there_s, rescued_s)

    def _send(self, point: Point, now_s: float) -> tuple[float, int, float, float]:
        """When a frame leaves the device, how large it is, when its answer is there, and what the server took."""
        if point.mode == "split":
            now_s += HEAD_S
            self.planner.head_took("c", HEAD_S)
        size = round(SIZES[point] * self._draw.uniform(0.85, 1.15))
        self.planner.coder_took(point, CODER_S, size)
        sent_s, size = now_s + CODER_S, size + FRAMING_BYTES
        left_s = self._schedule.sent_by(max(sent_s, self._link_free_s), size)
        self._link_free_s = min(left_s, 1e9)
        delay_s = self._schedule.at(left_s).delay_s if left_s < float("inf") else 0.0
        server_s = SERVER_S + self._cold_s(point) + self._hiccup_s()
        there_s = left_s + 2 * delay_s + self._draw.uniform(0, 0.004) + self._hiccup_s() + server_s
        self._sent.append((sent_s, there_s))
        return sent_s, size, there_s, server_s

    def _cold_s(self, point: Point) -> float:
        if point.mode in self._warm:
            return 0.0
        self._warm.add(point.mode)
        return self._mood.cold_s

    def _hiccup_s(self) -> float:
        if self._draw.random() >= self._mood.hiccups:
            return 0.0
        return self._draw.expovariate(1 / self._mood.hiccup_s)

    def _answer(self, point: Point, sent_s: float, size: int, there_s: float, server_s: float) -> None:
        link_s, in_time = there_s - sent_s - server_s, there_s - sent_s < DEADLINE_S
        self._later(there_s, lambda: self.planner.answered(point.cut, size, link_s, server_s, in_time=in_time))

    def _later(self, moment_s: float, what: Callable[[], None]) -> None:
        self._news.append((moment_s, len(self._news), what))

    def _hang_up_if_silent(self, now_s: float) -> None:
        """What the uplink does with a server that owes something and says nothing; it is back once the link is."""
        if self._down_since_s is not None and self._schedule.at(now_s).rate_bps > 0:
            self._down_since_s = None
        owed = [sent_s for sent_s, there_s in self._sent if there_s > now_s]
        heard_s = max((there_s for _, there_s in self._sent if there_s <= now_s), default=0.0)
        if owed and now_s - max(heard_s, owed[0]) > STALL_S:
            self._sent, self._news = [], []
            self._link_free_s = self._down_since_s = now_s

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


def mean_ms(schedule: Schedule, policy: Policy | None, seconds: float, seed: int, mood: Mood) -> float:
    model, free_s = Model(schedule, policy, seed, mood), 0.0
    for n in range(int(seconds / PERIOD_S)):
        free_s = model.frame(max(n * PERIOD_S, free_s))
    return float(np.mean(model.latencies_s)) * 1000


def row(name: str, mood: str, seconds: float, seeds: int) -> dict[str, Any]:
    """One trace in one mood."""
    own, oracle, static = [], [], []
    for seed in range(seeds):
        lines = [line.split() for line in traces(seconds, seed + 7)[name].splitlines()]
        schedule = trace((line[0], line[1:]) for line in lines)

        def run(policy: Policy | None, schedule: Schedule = schedule, seed: int = seed) -> float:
            return mean_ms(schedule, policy, seconds, seed, MOODS[mood])

        own.append(run(Adaptive("latency", floor=FLOOR)))
        oracle.append(run(None))
        static.append(min(run(Fixed(point)) for point in (*ACCURATE, LOCAL)))
    ratios = [mine / other for mine, other in zip(own, static, strict=True)]
    return {
        "trace": name,
        "mood": mood,
        "controller, ms": float(np.mean(own)),
        "oracle, ms": float(np.mean(oracle)),
        "best static, ms": float(np.mean(static)),
        "× oracle": float(np.mean(own) / np.mean(oracle)),
        "× static": float(np.mean(ratios)),
        "× static, worst": max(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="of each trace")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each, the noisy trace anew for each")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    rows = [row(name, mood, options.seconds, options.seeds) for mood in MOODS for name in traces(1)]
    harness.report("The controller in virtual time", rows, as_json=options.json)


if __name__ == "__main__":
    main()
