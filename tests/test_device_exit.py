"""The early exit: what answers when the server is late, and what keeps a frame from being sent."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import make_bundle, pictures
from exit_bundles import AGREEMENTS, make_exit_bundle
from faulty import Answers, FaultyServer, serving, wait_connected
from hypothesis import given
from hypothesis import strategies as st
from narrows.device import Adaptive, Always, Device, DeviceOptions, Point
from narrows.device.early import EarlyEstimate
from narrows.device.policies import Candidate
from narrows.runtime.bundle import Bundle
from narrows.runtime.early_exit import EarlyExit, confidence
from narrows.runtime.errors import BundleError, GoldenError, UsageError
from narrows.runtime.halves import Head
from narrows.runtime.manifest import Exit, ExitPoint, ExitQuality, parse

SOON = DeviceOptions(deadline_ms=400, timeout_s=3)
BEST = len(AGREEMENTS) - 1


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_exit_bundle(tmp_path_factory.mktemp("exit") / "bundles" / "tiny")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_exit_bundle(tmp_path_factory.mktemp("both") / "bundles" / "tiny", local=True)


@contextmanager
def silent() -> Iterator[tuple[str, FaultyServer]]:
    """A server that takes frames and never answers."""
    server = FaultyServer(lambda frame, _: iter(()))
    with serving(server) as address:
        yield address, server


def early_answer(bundle: Bundle, picture: np.ndarray, quality: int = BEST) -> np.ndarray:
    cut = bundle.manifest.cuts[0]
    return EarlyExit(bundle, cut).run(Head(bundle, cut).run([picture], quality), quality).outputs["logits"]


def test_the_exit_answers_what_the_server_does_not(bundle: Bundle) -> None:
    with silent() as (address, server), Device(bundle, address, SOON) as device:
        outcomes = list(device.stream(pictures(10)))
        tally, status = device.tally, device.status()
    for picture, outcome in zip(pictures(10), outcomes, strict=True):
        assert outcome.provenance == "exit"
        assert outcome.point == Point("exit", "features", BEST)
        np.testing.assert_array_equal(outcome.outputs["logits"], early_answer(bundle, picture))
        assert "exit" in outcome.ms
    assert server.frames  # they were sent first
    assert (tally.exit, tally.local, tally.server) == (10, 0, 0)
    assert 0 < tally.rescued == sum(outcome.attempts > 0 for outcome in outcomes)
    assert status.exit == 10


def test_a_frame_that_the_exit_is_sure_of_is_not_sent(bundle: Bundle) -> None:
    options = replace(SOON, exit_confidence=0.0)
    with silent() as (address, server), Device(bundle, address, options) as device:
        outcomes = list(device.stream(pictures(10)))
    assert {(o.provenance, o.attempts, o.wire_bytes) for o in outcomes} == {("exit", 0, 0)}
    assert server.frames == []
    for outcome in outcomes:
        assert outcome.confidence == pytest.approx(outcome.top[0].score)
        assert json.loads(json.dumps(outcome.to_json()))["provenance"] == "exit"


def test_the_threshold_parts_the_frames(bundle: Bundle) -> None:
    answers = Answers(bundle)
    server = FaultyServer(lambda frame, _: iter([answers.to(frame)]))
    frames = pictures(30)
    with serving(server) as address:
        with Device(bundle, address, DeviceOptions(exit_confidence=0.0)) as device:
            sure = [outcome.confidence for outcome in device.stream(frames)]
        middle = float(np.median(sure))
        with Device(bundle, address, DeviceOptions(exit_confidence=middle)) as device:
            outcomes = list(device.stream(frames))
    for before, outcome in zip(sure, outcomes, strict=True):
        assert outcome.confidence == pytest.approx(before)
        assert outcome.provenance == ("exit" if before >= middle else "server")
    assert len(server.frames) == sum(one < middle for one in sure) > 0


def test_an_unsure_exit_is_not_run_again_to_rescue_its_frame(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    quick = EarlyExit.run

    def run(self: EarlyExit, *arguments: object) -> object:
        runs.append(1)
        return quick(self, *arguments)

    monkeypatch.setattr(EarlyExit, "run", run)
    options = replace(SOON, exit_confidence=1.0)
    with silent() as (address, _), Device(bundle, address, options) as device:
        wait_connected(device)
        outcome = device.infer(pictures(1)[0])
    assert (outcome.provenance, outcome.attempts, len(runs)) == ("exit", 1, 1)


@pytest.mark.parametrize(
    ("fallback", "provenance"), [("best", "local"), ("local", "local"), ("exit", "exit"), ("none", None)]
)
def test_the_user_says_what_answers_instead(both: Bundle, fallback: str, provenance: str | None) -> None:
    options = replace(SOON, fallback=fallback, deadline_ms=500)
    with silent() as (address, _), Device(both, address, options) as device:
        for _ in range(5):  # on a busy machine the fallback may wake up too late for the whole model
            outcome = device.infer(pictures(1)[0])
            if outcome.provenance == provenance:
                break
    assert outcome.provenance == provenance
    assert outcome.outcome == ("ok" if provenance else "deadline")


def test_the_exit_stands_in_where_the_whole_model_is_too_slow(both: Bundle) -> None:
    with silent() as (address, _), Device(both, address, replace(SOON, deadline_ms=1500)) as device:
        assert device.planner.local is not None
        for _ in range(20):
            device.planner.local_took(1.0)  # more than half of the deadline
        wait_connected(device)
        outcome = device.infer(pictures(1)[0])
    assert outcome.provenance == "exit"
    assert outcome.attempts >= 1


def test_without_a_link_the_exit_goes_on_alone(bundle: Bundle) -> None:
    with Device(bundle, "127.0.0.1:1", replace(SOON, window=1)) as device:
        outcomes = list(device.stream(pictures(12)))
    assert {outcome.provenance for outcome in outcomes} == {"exit"}
    assert outcomes[-1].attempts == 0


def test_the_exit_is_an_operating_point(bundle: Bundle) -> None:
    point = Point("exit", "features", BEST)
    with silent() as (address, server):
        with Device(bundle, address, replace(SOON, policy=Always(point))) as device:
            assert device.infer(pictures(1)[0]).point == point
        with Device(bundle, address, replace(SOON, policy=Adaptive("bytes", floor=0.65))) as device:
            assert device.infer(pictures(1)[0]).provenance == "exit"
            assert not [frame for frame in server.frames if frame]
        with Device(bundle, address, replace(SOON, policy=Adaptive("bytes", floor=0.8))) as device:
            wait_connected(device)
            assert device.infer(pictures(1)[0]).attempts == 1  # the exit agrees too seldom


def test_an_offloaded_frame_is_rescued_by_the_exit(bundle: Bundle) -> None:
    options = replace(SOON, policy=Always(Point("offload", quality=90)), offload=90)
    with silent() as (address, _), Device(bundle, address, options) as device:
        wait_connected(device)
        outcome = device.infer(pictures(1)[0])
    assert (outcome.provenance, outcome.attempts) == ("exit", 1)
    np.testing.assert_array_equal(outcome.outputs["logits"], early_answer(bundle, pictures(1)[0]))


def test_a_spoilt_exit_is_found_when_it_is_loaded(tmp_path: Path) -> None:
    spoilt = make_exit_bundle(tmp_path / "b" / "tiny", spoilt=True)
    with pytest.raises(GoldenError, match="logits"):
        Device(spoilt, "127.0.0.1:1")
    Device(spoilt, "127.0.0.1:1", DeviceOptions(fallback="local"))  # where nobody needs it, nobody loads it


def test_a_plain_cut_has_no_exit(tmp_path: Path) -> None:
    plain = make_bundle(tmp_path / "tiny")
    with pytest.raises(BundleError, match="no early exit"):
        EarlyExit(plain, plain.manifest.cuts[0])
    with pytest.raises(UsageError, match="confidence"):
        DeviceOptions(exit_confidence=1.5)


def test_temperature_makes_it_less_sure(tmp_path: Path) -> None:
    warm = make_exit_bundle(tmp_path / "b" / "tiny", temperature=4.0)
    cut = warm.manifest.cuts[0]
    answer = EarlyExit(warm, cut).run(Head(warm, cut).run([pictures(1)[0]], BEST), BEST)
    assert answer.confidence == pytest.approx(confidence(answer.outputs["logits"], "logits", 4.0))
    assert answer.confidence < confidence(answer.outputs["logits"], "logits")


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=20), st.floats(0.1, 10))
def test_confidence_is_the_largest_probability(logits: list[float], temperature: float) -> None:
    array = np.array(logits, np.float32)
    z = [math.exp((float(v) - float(array.max())) / temperature) for v in array]
    assert confidence(array, "logits", temperature) == pytest.approx(max(z) / sum(z))
    probabilities = np.array([v / sum(z) for v in z])
    assert confidence(probabilities, "probabilities") == pytest.approx(max(z) / sum(z), rel=1e-5)


def test_a_graph_gone_wrong_is_never_sure() -> None:
    for bad in ([np.nan, 1.0], [np.inf, 1.0], []):
        assert confidence(np.array(bad, np.float32), "logits") == 0.0


@pytest.mark.parametrize(
    "damage",
    [
        {"outputs": ()},
        {"outputs": ("other",)},
        {"qualities": ()},
        {"graph": "missing.onnx"},
        {"qualities": tuple(ExitQuality(0.5, points=(ExitPoint(0.9, 0, 1), ExitPoint(0.5, 0, 1))) for _ in AGREEMENTS)},
        {"qualities": tuple(ExitQuality(0.5, temperature=0.0) for _ in AGREEMENTS)},
        {"qualities": tuple(ExitQuality(1.5) for _ in AGREEMENTS)},
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(bundle: Bundle, damage: dict[str, object]) -> None:
    import msgspec

    cut = bundle.manifest.cuts[0]
    assert cut.exit is not None
    spoilt = replace(bundle.manifest, cuts=(replace(cut, exit=replace(cut.exit, **damage)),))
    with pytest.raises(BundleError):
        parse(msgspec.json.encode(spoilt), "here")


def test_a_mixture_of_frames_lies_between_its_parts() -> None:
    early = Exit("e", ("logits",), "g", (ExitQuality(0.7, points=(ExitPoint(0.5, 0.4, 0.9),)),))
    estimate = EarlyEstimate(early, 0.6)
    assert estimate.sent_share == pytest.approx(0.6)
    assert early.qualities[0].agreement_above(0.6) == 0.9
    assert early.qualities[0].agreement_above(0.4) == 0.7
    sent = Candidate(Point("split", "c", 0), 0.1, 0.02, 0.01, 0.0, 1000.0, 0.95, 1.0)
    alone = Candidate(Point("exit", "c", 0), 0.01, 0.01, 0.0, 0.0, 0.0, 0.7, 0.1)
    mixed = estimate.before(sent, alone)
    assert alone.latency_s < mixed.latency_s < sent.latency_s
    assert mixed.wire_bytes == pytest.approx(600)
    assert 0.9 < mixed.accuracy < 0.95
    for _ in range(200):
        estimate.sent(True)
    assert estimate.before(sent, alone).latency_s == pytest.approx(sent.latency_s, rel=0.01)
