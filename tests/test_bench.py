"""The load generator: its rule, its arithmetic, and real device and server processes under it."""

from __future__ import annotations

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from bundles import make_bundle, pictures
from narrows.bench import BenchOptions, Load, MaxRate, Pace, run, steady, worker, write_csv
from narrows.bench import run as bench_run
from narrows.bench.lines import DECODER, ENCODER, Ended, Job, Ready
from narrows.bench.run import _search
from narrows.bench.worker import Arrivals
from narrows.cli import app
from narrows.device import Input, Point
from narrows.runtime.credentials import LinkSecurity
from narrows.runtime.errors import NarrowsError, QualityError, ServerUnavailableError, SourceError, UsageError
from narrows.runtime.session import SessionOptions
from narrows.server import BatchOptions, ServeOptions, ServerThread
from PIL import Image
from processes import narrows
from slow_bundles import slowed
from typer.testing import CliRunner
from whole_bundles import with_whole

ONE = SessionOptions(threads=1)
SHORT = Pace(window_s=0.3, max_s=1.5, tolerance=0.5)
RUN = sys.modules[bench_run.__module__]


def frame(due_s: float, took_s: float, code: str = "ok", **ms: float) -> Ended:
    return Ended(due_s, due_s, due_s + took_s, 0, code, "split", 0, 10, 40, {"total": took_s * 1000, **ms})


def nothing(*_: object) -> None:
    """No progress is shown."""


# The rule.


@pytest.mark.parametrize("open_loop", [True, False])
def test_a_steady_load_has_settled_once_there_are_enough_frames(open_loop: bool) -> None:
    frames = [frame(i / 100, 0.02) for i in range(1000)]
    assert not steady.settled(frames[:100], 1.0, 0.1, open_loop=open_loop), "25 frames to a window are too few"
    assert steady.settled(frames, 10.0, 0.1, open_loop=open_loop)


@pytest.mark.parametrize("elapsed_s", [4, 40, 400])
def test_a_growing_queue_never_settles_however_long_it_is_watched(elapsed_s: int) -> None:
    frames = [frame(i / 50, 0.02 + 0.05 * i / 50) for i in range(50 * elapsed_s)]
    assert not steady.settled(frames, elapsed_s, 0.1, open_loop=True)
    assert not steady.settled(frames, elapsed_s, 0.1, open_loop=False)


def test_the_warm_up_is_left_out() -> None:
    frames = [frame(i / 100, 1.0 if i < 200 else 0.02) for i in range(1000)]
    kept = steady.measured(frames, 10.0)
    assert min(one.done_s for one in kept) >= 2.5
    assert steady.stages(kept)["latency"].p50 == pytest.approx(20)


def test_a_percentile_takes_as_many_frames_as_its_name_says() -> None:
    assert steady.durations(np.arange(9.0)).p90 is None
    assert steady.durations(np.arange(99.0)).p99 is None
    made = steady.durations(np.arange(1000.0))
    assert (made.p50, made.p999) == (499.5, pytest.approx(998.001))


def test_what_no_stage_accounts_for_was_spent_waiting() -> None:
    made = steady.stages([frame(0, 0.1, head=20, encode=5, decode=2, link=30, queue=3, tail=10)] * 3)
    assert {name: took.p50 for name, took in made.items()} == pytest.approx(
        {"waiting": 30, "head": 20, "coding": 7, "link": 30, "queue": 3, "tail": 10, "latency": 100}
    )


def test_frames_are_due_when_they_are_due_whoever_is_slow() -> None:
    """The arrivals of an open loop do not wait for those who take them: no coordinated omission."""
    quick, slow = (Arrivals([Input("a"), Input("b")], rate=200, seed=3) for _ in range(2))
    list(itertools.islice(quick, 20))
    for _ in itertools.islice(slow, 20):
        time.sleep(0.01)
    assert slow.due_s == quick.due_s
    assert slow.begun_s[19] - slow.due_s[19] > 0.05


# The search.


class Steps:
    """Steps out of nothing: a p99 that rises with the rate, up to a capacity."""

    def __init__(self, keeps_up_to: float) -> None:
        self.limit, self.rates = keeps_up_to, list[float]()

    def step(self, _bench: object, _point: object, load: Load) -> object:
        rate = load.rate or 100.0
        self.rates.append(rate)
        latency = steady.durations(np.full(200, 10.0 if rate <= self.limit else 90.0))
        return type("Step", (), {"throughput": rate, "offered": rate, "errors": 0, "stages": {"latency": latency}})()


class Options:
    options = BenchOptions(Path("none"))


@pytest.mark.parametrize("limit", [3.0, 37.0, 99.9, 100.0, 170.0, 1e9])
def test_the_search_closes_in_on_the_highest_rate(limit: float) -> None:
    steps = Steps(limit)
    found = _search(steps, Options(), Point("split", "features", 0), MaxRate(p99_ms=50, tolerance=0.05))
    assert found.rate is not None
    assert found.rate <= limit
    if limit < 1e9:
        assert found.broken_at > limit
        assert found.broken_at - found.rate <= 0.05 * found.rate
    else:
        assert found.broken_at is None
        assert found.rate >= 1600
    assert len(steps.rates) < 16


def test_a_promise_that_nothing_keeps() -> None:
    found = _search(Steps(0.0), Options(), Point("split", "features", 0), MaxRate(p99_ms=50))
    assert found.rate is None


# Real processes.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "pictures"
    target.mkdir()
    for i, picture in enumerate(pictures(7)):
        Image.fromarray(picture).save(target / f"{i}.png")
    return target


def test_a_bench_of_every_point(tmp_path: Path, folder: Path) -> None:
    bundle = with_whole(make_bundle(tmp_path / "plain" / "tiny"), tmp_path / "b" / "tiny")
    points = (Point("split", None, 2), Point("local"), Point("offload", quality=80, format="webp"))
    options = BenchOptions(
        bundle.root,
        source=str(folder),
        link="20mbit,2ms",
        points=points,
        loads=(Load(concurrency=2),),
        pace=Pace(0.25, 1.0, 0.5),
        session=ONE,
    )
    result = run(options, progress=nothing)
    assert result.ended == ""
    assert result.inputs == 7
    assert [step.point.mode for step in result.steps] == ["split", "local", "offload"]
    for step in result.steps:
        assert step.outcomes.keys() == {"ok"}
        assert step.frames == step.outcomes["ok"] > 10
        assert step.agreement == (1.0 if step.point.mode == "local" else pytest.approx(1.0, abs=0.5))
        assert step.joules is None or step.joules > 0
    split, local, offload = result.steps
    assert set(split.stages) == {"waiting", "head", "coding", "link", "queue", "tail", "latency"}
    assert set(local.stages) == {"waiting", "local", "latency"}
    assert set(offload.stages) == {"waiting", "coding", "link", "queue", "tail", "latency"}
    assert split.stages["link"].p50 >= 4, "the emulated delay, there and back"
    assert split.wire_bytes > split.payload_bytes > 0
    write_csv(result.steps, tmp_path / "steps.csv")
    rows = list(csv.DictReader((tmp_path / "steps.csv").read_text().splitlines()))
    assert [float(row["throughput"]) for row in rows] == [step.throughput for step in result.steps]
    assert float(rows[0]["link_p50_ms"]) == split.stages["link"].p50


def test_an_open_loop_over_two_devices(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b" / "tiny")
    with ServerThread(ServeOptions(bundle.root, port=0, session=ONE)) as server:
        options = BenchOptions(
            bundle.root, server.address, loads=(Load(rate=80),), devices=2, pace=Pace(0.25, 1.5, 0.5), session=ONE
        )
        (step,) = run(options, progress=nothing).steps
    assert step.offered == 80
    assert step.devices == 2
    assert 20 < step.throughput < 200, "both halves of the rate came, as far as chance goes"
    assert step.agreement is None


def test_a_meter_is_read_while_the_load_is_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Starter:
        """Says go, and a little later that it is enough."""

        said = 0

        def readline(self) -> str:
            self.said += 1
            if self.said > 1:
                time.sleep(0.4)
            return "go\n" if self.said == 1 else ""

    class Meter:
        name = "five watts"

        def watts(self) -> float:
            return 5.0

    bundle = make_bundle(tmp_path / "b" / "tiny")
    monkeypatch.setattr(worker, "find_meter", Meter)
    monkeypatch.setattr(sys, "stdin", Starter())
    with ServerThread(ServeOptions(bundle.root, port=0, session=ONE)) as server:
        job = Job(
            bundle=str(bundle.root),
            address=server.address,
            source=None,
            point=Point("split"),
            concurrency=None,
            rate=50,
            seed=0,
            window=2,
            timeout_s=5,
            session=ONE,
            security=LinkSecurity(),
            meter=True,
        )
        worker.work(msgspec.json.decode(ENCODER.encode(job), type=Job))
    ready, *frames, over = map(DECODER.decode, capsys.readouterr().out.splitlines())
    assert ready == Ready(1)
    assert len(frames) > 5
    assert {frame.code for frame in frames} == {"ok"}
    assert over.meter == "five watts"
    assert 1 < over.joules < 50


def test_a_server_that_dies_ends_the_bench_with_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "b" / "tiny")
    started = []
    original = RUN.server_process

    @contextmanager
    def watched(bundles: Path):
        with original(bundles) as server:
            started.append(server)
            yield server

    def kill(name: str, done: int, _total: int) -> None:
        if name.endswith("5/s") and done > 3:
            os.kill(started[0].pid, signal.SIGKILL)

    monkeypatch.setattr(RUN, "server_process", watched)
    loads = (Load(concurrency=1), Load(rate=5), Load(rate=6))
    result = run(BenchOptions(bundle.root, loads=loads, pace=SHORT, timeout_s=2, session=ONE), progress=kill)
    assert result.ended == "the server process ended with -9 in mid-bench"
    assert [step.load for step in result.steps] == list(loads[:2])
    assert result.golden
    assert result.steps[1].trouble


def test_frames_that_are_turned_away_are_counted(tmp_path: Path) -> None:
    # Slow enough for a queue; much slower, and those that were turned away would come again after the window only.
    bundle = slowed(make_bundle(tmp_path / "tiny"), tmp_path / "slow", rounds=10_000)
    options = ServeOptions(
        bundle.root,
        port=0,
        session=SessionOptions(threads=1),
        batch=BatchOptions(max_batch=1, max_wait_s=0.01, learn_s=0.05),
    )
    with ServerThread(options) as server:
        bench = BenchOptions(bundle.root, server.address, loads=(Load(concurrency=8),), devices=3, pace=SHORT)
        (step,) = run(replace(bench, timeout_s=2), progress=nothing).steps
    assert step.outcomes["overloaded"] > 0
    assert step.errors == step.frames - step.outcomes["ok"]


def test_ctrl_c_gives_what_was_measured(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b" / "tiny")
    words = ("--rate", "50,60,70", "--max-s", 3, "--threads", 1, "--json", "--csv", tmp_path / "steps.csv")
    command = narrows("bench", bundle.root, *words)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "50/s" in process.stderr.readline()
        assert "60/s" in process.stderr.readline()
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        said = json.loads(process.communicate(timeout=60)[0])
    assert process.returncode == 130
    assert said["ended"] == "interrupted"
    whole, part = said["steps"]
    assert [whole["load"]["rate"], part["load"]["rate"]] == [50, 60]
    assert part["trouble"] == "interrupted"
    assert 0 < part["frames"] < 60 * 2.6
    assert len((tmp_path / "steps.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"points": (Point("split", "nowhere"),)}, QualityError),
        ({"points": (Point("split", None, 9),)}, QualityError),
        ({"points": (Point("local"),)}, UsageError),
        ({"points": (Point("offload", quality=90),)}, UsageError),
        ({"source": "/nowhere/at/all"}, SourceError),
        ({"server": "127.0.0.1:1", "timeout_s": 0.5}, ServerUnavailableError),
    ],
)
def test_what_cannot_be_measured_is_told(tmp_path: Path, change: dict[str, object], error: type[NarrowsError]) -> None:
    bundle = make_bundle(tmp_path / "b" / "tiny")
    with pytest.raises(error):
        run(replace(BenchOptions(bundle.root, pace=SHORT, session=ONE), **change), progress=nothing)


@pytest.mark.parametrize(
    "words",
    [
        ("--concurrency", "0"),
        ("--rate", "-3"),
        ("--rate", "many"),
        ("--find", "max-rate"),
        ("--p99-ms", "50"),
        ("--link", "fast"),
        ("--tolerance", "2"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, ["bench", str(tmp_path), *words])
    assert isinstance(done.exception, UsageError), done.output
