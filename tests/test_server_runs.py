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
from narrows.server import BatchOptions, ServeOptions, ServerThread
from narrows.server.cost import best_runs


def test_runs_that_do_not_hinder_each_other_go_side_by_side() -> None:
    assert best_runs(lambda: time.sleep(0.01), 1, 4, 0.4) == 4


def test_runs_that_wait_for_each_other_go_alone() -> None:
    lock = threading.Lock()

    def run() -> None:
        with lock:
            time.sleep(0.01)

    assert best_runs(run, 1, 4, 0.4) == 1


def test_one_core_needs_no_measurement() -> None:
    assert best_runs(lambda: pytest.fail("run"), 1, 1, 1.0) == 1


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
