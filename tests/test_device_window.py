"""The window and the intake: the slowest stage stays busy, nobody waits long, and what is dropped is counted."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bundles import make_bundle, pictures
from faulty import Answers, FaultyServer, Say, serving
from hypothesis import given
from hypothesis import strategies as st
from narrows.device import Device, DeviceOptions
from narrows.device.live import Intake
from narrows.device.window import Window
from narrows.runtime.errors import UsageError


class Line:
    """Frames through stages that take one at a time, and then over a path that takes many; reckoned and not waited
    for."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self._free: dict[str, float] = {}
        self._arrived = self.now = 0.0
        self._under_way: deque[tuple[float, float, float]] = deque()
        self._draw = random.Random(0)

    def run(
        self, stages_ms: dict[str, float], frames: int, path_ms: float = 0.0, jitter_ms: float = 0.0
    ) -> list[float]:
        """Each frame's total; `link` is the last stage."""
        totals = []
        while len(totals) < frames:
            while len(self._under_way) < self.window.limit:
                began = self.now + 1000 * self.window.acquire()
                at = link_began = began
                for stage, took in stages_ms.items():
                    link_began = at if stage == "link" else link_began
                    at = self._free[stage] = max(at, self._free.get(stage, 0.0)) + took
                at = self._arrived = max(self._arrived, at + path_ms + self._draw.uniform(0, jitter_ms))
                self._under_way.append((at, began, at - link_began))
            self.now, began, link_ms = self._under_way.popleft()
            totals.append(self.now - began)
            self.window.observe({**stages_ms, "link": link_ms, "total": self.now - began})
            self.window.release()
        return totals


durations = st.floats(1, 50)


@given(head=durations, encode=durations, link=durations)
def test_a_line_runs_at_its_slowest_stage_and_nobody_waits_for_more_than_one(
    head: float, encode: float, link: float
) -> None:
    window, stages = Window(16), {"head": head, "encode": encode, "link": link}
    line = Line(window)
    totals = line.run(stages, 2400)
    slowest, alone = max(stages.values()), sum(stages.values())
    late = sorted(totals[400:])
    assert late[int(0.99 * len(late))] <= alone + 1.11 * slowest
    assert late[len(late) // 2] <= alone + 0.75 * slowest  # what has to wait waits outside
    assert window.limit >= alone / slowest - 0.11  # fewer could not keep the slowest stage busy
    began, frames = line.now, 200
    line.run(stages, frames)
    assert frames / (line.now - began) >= 0.93 / slowest


@given(path=st.floats(5, 120), jitter=st.floats(0, 0.3))
def test_a_long_link_is_filled_whatever_its_jitter(path: float, jitter: float) -> None:
    window, stages = Window(32), {"head": 10.0, "encode": 1.0, "link": 1.0}
    line, limits, totals = Line(window), [], []
    for _ in range(60):
        totals += line.run(stages, 20, path, jitter * path)
        limits.append(window.limit)
    needed = (12 + path * (1 + jitter / 2)) / 10
    assert np.mean(limits[30:]) >= 0.6 * needed  # frames that come in order wait for each other as well
    assert np.mean(limits[30:]) <= needed + 2.5
    assert np.median(totals[600:]) <= 12 + path * (1 + jitter) + 20


def test_a_link_that_changes_is_learnt_anew() -> None:
    window, stages = Window(16), {"head": 10.0, "link": 1.0}
    line = Line(window)
    for path, slow, least, most in ((60, 1, 5, 9), (120, 1, 10, 15), (60, 1, 5, 9), (60, 100, 2, 3), (60, 1, 5, 9)):
        line.run({**stages, "link": slow}, 200, path, 0.2 * path)
        assert least <= window.limit <= most, (path, slow)


def test_a_window_that_nothing_fills_does_not_grow() -> None:
    window = Window(16)
    for _ in range(100):
        window.acquire()
        window.observe({"head": 10.0, "total": 10.0})
        window.release()
    assert window.limit == 2


def test_room_is_waited_for_until_the_window_opens() -> None:
    window, through = Window(1, first=1), []
    window.acquire()
    waiting = threading.Thread(target=lambda: (window.acquire(), through.append(1)))
    waiting.start()
    time.sleep(0.05)
    assert not through
    window.open()
    waiting.join(5)
    assert through


@pytest.mark.parametrize("drop", ["latest", "oldest"])
@given(room=st.integers(1, 5), count=st.integers(0, 30))
def test_every_frame_is_given_or_counted(drop, room: int, count: int) -> None:
    dropped = []
    intake = Intake(iter(range(count)), drop, lambda: dropped.append(1), room)
    intake._thread.join()
    given_on = list(intake)
    assert len(given_on) + len(dropped) == count
    assert given_on == sorted(given_on)
    if count:
        kept = min(count, 1 if drop == "latest" else room)
        assert given_on == (list(range(count))[-kept:] if drop == "latest" else list(range(kept)))


def test_what_the_source_raises_comes_after_what_it_gave() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    intake = Intake(broken(), "oldest", lambda: None)
    assert next(intake) == 1
    with pytest.raises(OSError, match="gone"):
        next(intake)


def test_a_camera_that_is_too_fast_loses_frames_that_are_counted(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "tiny")
    answers = Answers(bundle)

    def behave(frame, _) -> Say:
        time.sleep(0.03)
        yield answers.to(frame)

    def camera() -> Iterator[np.ndarray]:
        for picture in pictures(100):
            time.sleep(0.003)
            yield picture

    with serving(FaultyServer(behave)) as address:
        with Device(bundle, address, DeviceOptions(drop="latest")) as device:
            outcomes = list(device.stream(camera()))
            assert device.tally.dropped > 0
            assert len(outcomes) + device.tally.dropped == 100
        with pytest.raises(UsageError, match="drop policy"):
            DeviceOptions(drop="some")
    assert {outcome.outcome for outcome in outcomes} == {"ok"}
