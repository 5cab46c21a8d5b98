"""Always an answer: deadlines, the whole model as fallback, the breaker, and what is told of it."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from bundles import make_bundle, pictures
from faulty import Answers, FaultyServer, Say, refusal, serving, wait_connected
from hypothesis import given
from hypothesis import strategies as st
from local_bundle import make_local_bundle
from narrows.device import Adaptive, Device, DeviceOptions
from narrows.device.breaker import Breaker
from narrows.device.local import LocalModel
from narrows.protos import split_pb2 as pb
from narrows.runtime.answer import Form, Wanted
from narrows.runtime.bundle import Bundle
from narrows.runtime.errors import BundleError, OverloadedError, ShapeError

SOON = DeviceOptions(deadline_ms=300, timeout_s=3)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_local_bundle(tmp_path_factory.mktemp("local") / "bundles" / "tiny")


@pytest.fixture(scope="module")
def answers(bundle: Bundle) -> Answers:
    return Answers(bundle)


@contextmanager
def black_hole() -> Iterator[str]:
    """Takes connections, reads nothing, says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_black_hole_gets_every_frame_answered_on_the_device(bundle: Bundle) -> None:
    with black_hole() as address, Device(bundle, address, SOON) as device:
        outcomes = list(device.stream(pictures(20)))
        whole = LocalModel(bundle)
        for picture, outcome in zip(pictures(20), outcomes, strict=True):
            np.testing.assert_array_equal(outcome.outputs["logits"], whole.run([picture])["logits"])
        assert device.tally.local == 20
    assert {outcome.provenance for outcome in outcomes} == {"local"}
    assert {outcome.point.mode for outcome in outcomes} == {"local"}
    assert outcomes[0].top[0].label is not None


def test_a_silent_server_costs_no_more_than_the_deadline(bundle: Bundle) -> None:
    options = replace(SOON, window=1, stall_s=3)  # nobody hangs up meanwhile
    with serving(FaultyServer(lambda frame, _: iter(()))) as address, Device(bundle, address, options) as device:
        wait_connected(device)
        outcomes = list(device.stream(pictures(12)))
        # After three that came too late the breaker is open, and frames no longer wait for the deadline.
        assert sum(outcome.attempts for outcome in outcomes) < 12
        assert device.tally.rescued >= 3
    assert Counter(outcome.outcome for outcome in outcomes) == {"ok": 12}
    assert {outcome.provenance for outcome in outcomes} == {"local"}


def test_a_late_reply_is_counted_and_dropped(bundle: Bundle, answers: Answers) -> None:
    def behave(frame: pb.Frame, _: grpc.ServicerContext) -> Say:
        time.sleep(0.6)
        yield answers.to(frame)

    options = replace(SOON, stall_s=2)  # not so soon that the connection is given up
    with serving(FaultyServer(behave)) as address, Device(bundle, address, options) as device:
        wait_connected(device)
        outcome = device.infer(pictures(1)[0])
        assert (outcome.provenance, outcome.attempts) == ("local", 1)
        for _ in range(100):
            if device.counters.late == 1:
                break
            time.sleep(0.02)
        assert device.counters.late == 1
        assert device.tally.rescued == 1


def test_a_server_in_time_answers_although_a_fallback_is_there(bundle: Bundle, answers: Answers) -> None:
    options = DeviceOptions(deadline_ms=5000)
    server = FaultyServer(lambda frame, _: iter([answers.to(frame)]))
    with serving(server) as address, Device(bundle, address, options) as device:
        device.infer(pictures(1)[0])  # the connection is there from now on
        assert {outcome.provenance for outcome in device.stream(pictures(30))} == {"server"}


def test_a_slow_device_still_hears_that_the_server_is_back(
    bundle: Bundle, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own answer leaves no time for another one: the probes have a deadline of their own."""
    quick = LocalModel.run

    def run(self: LocalModel, inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        time.sleep(0.3)
        return quick(self, inputs)

    monkeypatch.setattr(LocalModel, "run", run)
    back = threading.Event()

    def behave(frame: pb.Frame, _: grpc.ServicerContext) -> Say:
        if back.is_set():
            time.sleep(0.08)
            yield answers.to(frame)

    options = DeviceOptions(policy=Adaptive("latency", probe_s=0.1), deadline_ms=350, timeout_s=5, stall_s=2)
    with serving(FaultyServer(behave)) as address, Device(bundle, address, options) as device:
        given_up = (not device.infer(pictures(1)[0]).attempts and device.counters.sent >= 3 for _ in range(50))
        assert any(given_up)
        back.set()
        assert "server" in (device.infer(pictures(1)[0]).provenance for _ in range(50))


def test_a_full_server_is_made_up_for(bundle: Bundle) -> None:
    full = FaultyServer(lambda frame, _: iter([refusal(frame, OverloadedError("full"))]))
    with serving(full) as address, Device(bundle, address) as device:
        assert [o.provenance for o in device.stream(pictures(5))] == ["local"] * 5
    with serving(full) as address, Device(bundle, address, DeviceOptions(fallback="none")) as device:
        assert [o.outcome for o in device.stream(pictures(2))] == ["overloaded"] * 2


def test_the_fallback_answers_in_the_form_that_was_asked_for(bundle: Bundle) -> None:
    options = replace(SOON, wanted=Wanted(Form.TOP, 2))
    with black_hole() as address, Device(bundle, address, options) as device:
        outcome = device.infer(pictures(1)[0])
    assert not outcome.outputs
    assert len(outcome.top) == 2


def test_without_a_fallback_the_deadline_ends_the_frame(bundle: Bundle) -> None:
    with black_hole() as address, Device(bundle, address, replace(SOON, fallback="none")) as device:
        outcomes = list(device.stream(pictures(10)))
    assert {outcome.outcome for outcome in outcomes} <= {"deadline", "unavailable"}


def test_a_bad_frame_is_not_made_up_for(bundle: Bundle) -> None:
    with black_hole() as address, Device(bundle, address, SOON) as device:
        outcomes = list(device.stream([np.zeros((3, 3), np.uint8), pictures(1)[0]]))
    assert [outcome.outcome for outcome in outcomes] == ["source", "ok"]


def test_the_whole_model_is_held_against_the_manifest(bundle: Bundle, tmp_path: Path) -> None:
    model = LocalModel(bundle)
    assert model.first_s > 0
    with pytest.raises(ShapeError):
        model.run([np.zeros((4, 4, 3), np.uint8)])
    with pytest.raises(BundleError, match="no whole model"):
        LocalModel(make_bundle(tmp_path / "plain"))


def test_the_breaker_opens_tries_and_closes() -> None:
    breaker = Breaker(failures=2, cool_s=1.0)
    for now in (0.0, 0.1):
        assert breaker.allows(now)
        breaker.failed(now)
    assert breaker.state == "open"
    assert not breaker.allows(0.5)
    assert breaker.allows(1.2)
    breaker.sent(1.2)
    assert breaker.state == "half-open"
    assert not breaker.allows(1.3)
    breaker.failed(1.4)
    assert breaker.state == "open"
    assert breaker.allows(2.5)
    breaker.sent(2.5)
    breaker.succeeded()
    assert breaker.allows(2.6)


@given(st.lists(st.tuples(st.sampled_from(["sent", "succeeded", "failed"]), st.floats(0, 1))))
def test_a_breaker_never_stays_shut_for_good(steps: list[tuple[str, float]]) -> None:
    breaker, now = Breaker(failures=3, cool_s=0.5), 0.0
    for what, gap in steps:
        now += gap
        breaker.succeeded() if what == "succeeded" else getattr(breaker, what)(now)
    assert breaker.allows(now + 1.0 + 1e-6)


def test_a_full_server_is_asked_again_when_it_says(bundle: Bundle, answers: Answers) -> None:
    seen: list[float] = []

    def behave(frame: pb.Frame, _: grpc.ServicerContext) -> Say:
        seen.append(time.monotonic())
        yield refusal(frame, OverloadedError("full", retry_ms=300)) if len(seen) == 1 else answers.to(frame)

    with serving(FaultyServer(behave)) as address, Device(bundle, address) as device:
        outcome = device.infer(pictures(1)[0])
    assert (outcome.provenance, outcome.attempts) == ("server", 2)
    assert seen[1] - seen[0] >= 0.3


def test_a_hint_beyond_the_deadline_is_answered_here(bundle: Bundle) -> None:
    full = FaultyServer(lambda frame, _: iter([refusal(frame, OverloadedError("full", retry_ms=60_000))]))
    with serving(full) as address, Device(bundle, address, replace(SOON, deadline_ms=2000)) as device:
        wait_connected(device)
        outcome = device.infer(pictures(1)[0])
    assert (outcome.provenance, outcome.attempts) == ("local", 1)
    assert outcome.ms["total"] < 2000
