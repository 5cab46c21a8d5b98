"""A device and a real server: predictions, order, bad input, and nothing left behind."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bundles import CLASSES, QUALITIES, make_bundle, pictures
from faulty import open_descriptors
from narrows.device import Device, DeviceOptions, Input
from narrows.runtime.answer import Form, Wanted
from narrows.runtime.bundle import Bundle
from narrows.runtime.errors import QualityError, SourceError, UsageError
from narrows.runtime.halves import Head, Tail
from narrows.server import ServeOptions, ServerThread

TOP = DeviceOptions(wanted=Wanted(Form.TOP, 3))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def address(bundle: Bundle) -> Iterator[str]:
    with ServerThread(ServeOptions(bundle.root.parent, port=0)) as server:
        yield server.address


def whole(bundle: Bundle, picture: np.ndarray, quality: int) -> np.ndarray:
    """Head and tail in one process."""
    cut = bundle.manifest.cuts[0]
    symbols = Head(bundle, cut, golden=False).run([picture], quality).symbols
    return Tail(bundle, cut, golden=False).run([symbols], [quality])[0]["logits"]


@pytest.mark.parametrize("quality", range(QUALITIES))
def test_a_split_frame_gets_what_head_and_tail_say_together(bundle: Bundle, address: str, quality: int) -> None:
    with Device(bundle, address) as device:
        for picture, outcome in zip(pictures(5), device.stream(pictures(5), quality=quality), strict=True):
            np.testing.assert_allclose(outcome.outputs["logits"], whole(bundle, picture, quality), rtol=1e-5)
            assert outcome.top[0].index == int(outcome.outputs["logits"].argmax())
            assert outcome.point.quality == quality
            assert outcome.provenance == "server"
            assert 0 < outcome.payload_bytes < outcome.wire_bytes


def test_outcomes_come_in_the_order_of_the_frames(bundle: Bundle, address: str) -> None:
    with Device(bundle, address) as device:
        outcomes = list(device.stream(pictures(200)))
    assert [outcome.id for outcome in outcomes] == list(range(200))
    assert {outcome.outcome for outcome in outcomes} == {"ok"}


def test_the_best_classes_alone_can_be_asked_for(bundle: Bundle, address: str) -> None:
    with Device(bundle, address) as full, Device(bundle, address, TOP) as short:
        a, b = full.infer(pictures(1)[0]), short.infer(pictures(1)[0])
    assert not b.outputs
    assert len(b.top) == 3
    assert [p.index for p in b.top] == [p.index for p in a.top[:3]]
    assert b.top[0].label == f"class {b.top[0].index}"
    assert b.top[0].score == pytest.approx(a.top[0].score, rel=1e-4)


def test_every_stage_is_timed(bundle: Bundle, address: str) -> None:
    with Device(bundle, address) as device:
        outcome = device.infer(pictures(1)[0])
    assert list(outcome.ms) == ["source", "head", "encode", "link", "queue", "decode", "tail", "total"]
    assert all(duration >= 0 for duration in outcome.ms.values())
    assert set(outcome.to_json()) == {
        *("id", "source", "outcome", "error", "top", "tails", "point", "provenance", "confidence"),
        *("attempts", "payload_bytes", "wire_bytes", "ms"),
    }


def test_pictures_of_other_sizes_are_fitted(bundle: Bundle, address: str) -> None:
    large = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    with Device(bundle, address) as device:
        assert device.infer(large).outcome == "ok"
        assert device.infer({"image": large}).outcome == "ok"
        assert device.infer((large,)).outcome == "ok"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (np.zeros((4, 4), np.uint8), "source"),
        (np.zeros((4, 4, 3), np.float32), "source"),
        ((), "source"),
        ({"other": np.zeros((4, 4, 3), np.uint8)}, "source"),
        (Input("a", (np.zeros((4, 4, 3), np.uint8),)), "shape"),
        (Input("a", error=SourceError("unreadable")), "source"),
    ],
)
def test_a_bad_frame_ends_in_its_error_and_the_rest_goes_on(bundle: Bundle, address: str, frame, code: str) -> None:
    good = pictures(1)[0]
    with Device(bundle, address) as device:
        outcomes = list(device.stream([good, frame, good]))
        assert device.infer(frame).outcome == code
    assert [outcome.outcome for outcome in outcomes] == ["ok", code, "ok"]


@pytest.mark.parametrize("stage", ["compute", "encode"])
def test_a_fault_that_nobody_foresaw_is_one_frames_end(
    bundle: Bundle, address: str, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Device(bundle, address) as device:
        engine = device._engine
        sound = getattr(engine, stage)

        def faulty(journey) -> None:
            if journey.index == 1:
                raise ZeroDivisionError("a bug")
            sound(journey)

        monkeypatch.setattr(engine, stage, faulty)
        outcomes = list(device.stream(pictures(4)))
        assert [outcome.outcome for outcome in outcomes] == ["ok", "internal", "ok", "ok"]
        assert "ZeroDivisionError: a bug" in str(outcomes[1].error)


def test_what_the_source_raises_reaches_the_caller_after_the_frames_before(bundle: Bundle, address: str) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield from pictures(3)
        raise OSError("the camera fell off")

    seen: list[str] = []
    with Device(bundle, address) as device, pytest.raises(OSError, match="fell off"):
        seen.extend(outcome.outcome for outcome in device.stream(broken()))
    assert seen == ["ok"] * 3


def test_the_source_is_read_no_further_than_the_window(bundle: Bundle, address: str) -> None:
    read = itertools.count()

    def endless() -> Iterator[np.ndarray]:
        for picture in itertools.cycle(pictures(3)):
            next(read)
            yield picture

    with Device(bundle, address, DeviceOptions(window=4)) as device:
        stream = device.stream(endless())
        next(stream)
        time.sleep(0.3)
        stream.close()
    assert next(read) <= 1 + 4


def test_a_stream_that_is_left_early_ends_its_threads(bundle: Bundle, address: str) -> None:
    before = {thread.name for thread in threading.enumerate()}
    with Device(bundle, address) as device:
        for outcome in device.stream(itertools.cycle(pictures(3))):
            if outcome.id == 10:
                break
        assert device.infer(pictures(1)[0]).outcome == "ok"
    left = {thread.name for thread in threading.enumerate()} - before
    assert not {name for name in left if name.startswith("narrows")}


def test_two_streams_share_a_device(bundle: Bundle, address: str) -> None:
    with Device(bundle, address) as device:
        one, two = device.stream(pictures(40)), device.stream(pictures(40, seed=2), quality=0)
        pairs = list(zip(one, two, strict=True))
    assert {(a.outcome, b.outcome) for a, b in pairs} == {("ok", "ok")}
    assert {(a.point.quality, b.point.quality) for a, b in pairs} == {(QUALITIES - 1, 0)}


def test_no_thread_and_no_descriptor_is_left(bundle: Bundle, address: str) -> None:
    def once() -> None:
        with Device(bundle, address) as device:
            assert len(list(device.stream(pictures(10)))) == 10

    once()
    threads, descriptors = threading.active_count(), open_descriptors()
    for _ in range(5):
        once()
    for _ in range(50):  # gRPC closes sockets in threads of its own, a moment later
        if open_descriptors() <= descriptors and threading.active_count() <= threads:
            break
        time.sleep(0.1)
    assert open_descriptors() <= descriptors
    assert threading.active_count() <= threads


def test_options_are_checked(bundle: Bundle, address: str) -> None:
    for wrong in ({"window": 0}, {"timeout_s": 0}, {"stall_s": -1.0}):
        with pytest.raises(UsageError):
            DeviceOptions(**wrong)
    with pytest.raises(QualityError):
        Device(bundle, address, DeviceOptions(quality=QUALITIES))
    with pytest.raises(QualityError, match="features"):
        Device(bundle, address, DeviceOptions(cut="nowhere"))
    with pytest.raises(UsageError, match="HOST:PORT"):
        Device(bundle, "nowhere")
    with pytest.raises(UsageError, match="not open"):
        Device(bundle, address).stream([])
    with Device(bundle, address) as device, pytest.raises(QualityError):
        device.stream([], quality=QUALITIES)


def test_a_path_is_enough_and_an_empty_stream_ends(bundle: Bundle, address: str, tmp_path: Path) -> None:
    np.save(tmp_path / "frames.npy", np.stack(pictures(3)))
    with Device(str(bundle.root), address) as device:
        assert list(device.stream([])) == []
        outcomes = list(device.stream(tmp_path / "frames.npy"))
        with pytest.raises(SourceError):
            device.stream(tmp_path / "nothing")
    assert [Path(outcome.source).name for outcome in outcomes] == [f"frames.npy[{i}]" for i in range(3)]
    assert len(outcomes[0].top) == 5
    assert outcomes[0].outputs["logits"].shape == (CLASSES,)
