"""How many runs at a time, and how many threads in each: chosen from the cores that there are."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from bundles import make_bundle, pictures
from narrows.device import Device
from narrows.runtime import cores
from narrows.runtime.errors import UsageError
from narrows.server import BatchOptions, ServeOptions, ServerThread, cost


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({1: 100.0, 2: 195.0, 4: 380.0}, 4),  # each run has a core of its own
        ({1: 100.0, 2: 99.0, 4: 99.0}, 1),  # they wait for each other
        ({1: 100.0, 2: 140.0, 4: 120.0}, 2),
        ({1: 100.0, 2: 109.0, 4: 110.0}, 1),  # hardly more: the fewest answer soonest
    ],
)
def test_the_fewest_runs_with_nearly_the_best_throughput(
    monkeypatch: pytest.MonkeyPatch, rates: dict[int, float], expected: int
) -> None:
    monkeypatch.setattr(cost, "_throughput", lambda _run, _frames, runs, _seconds: rates[runs])
    assert cost.best_runs(lambda: None, 1, 4, 1.0) == expected


def test_a_measurement_counts_every_run() -> None:
    lock, done = threading.Lock(), []

    def run() -> None:
        with lock:
            done.append(1)
        time.sleep(0.001)

    assert cost.best_runs(run, 1, 4, 0.1) in (1, 2, 4)
    assert len(done) >= 3


def test_one_core_needs_no_measurement() -> None:
    assert cost.best_runs(lambda: pytest.fail("run"), 1, 1, 1.0) == 1


@pytest.mark.parametrize(
    ("text", "expected"), [("max 100000", None), ("150000 100000", 1.5), ("garbage", None), ("100 0", None)]
)
def test_a_containers_quota_is_heeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: float | None
) -> None:
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(cores, "_V2", tmp_path / "cpu.max")
    assert cores._quota() == expected
    allowed = len(os.sched_getaffinity(0))
    assert cores.available_cores() == (min(allowed, 2) if expected else allowed)


@pytest.mark.parametrize("runs", [0, 3])
def test_a_server_with_several_runs_answers_each_frame_once(tmp_path: Path, runs: int) -> None:
    bundle = make_bundle(tmp_path / "tiny")
    options = ServeOptions(bundle.root, port=0, batch=BatchOptions(runs=runs, learn_s=0.1))
    with ServerThread(options) as server, Device(bundle, server.address) as device:
        outcomes = list(device.stream(pictures(100)))
    assert [outcome.id for outcome in outcomes if outcome.error is None] == list(range(100))


def test_fewer_than_no_runs_are_refused() -> None:
    with pytest.raises(UsageError):
        BatchOptions(runs=-1)
