"""Caps on a frame's bytes: quality goes down, then the device answers itself, and only then is there an error."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import QUALITIES, make_bundle, pictures
from local_bundle import make_local_bundle
from narrows.device import Adaptive, Device, DeviceOptions
from narrows.device.planner import Planner
from narrows.device.policies import Static
from narrows.runtime.errors import UsageError
from narrows.runtime.frame import Limits
from narrows.runtime.point import Point
from narrows.server import ServeOptions, ServerThread

BEST = QUALITIES - 1


def noise(count):
    """Pictures that no coder makes small."""
    return list(np.random.default_rng(0).integers(0, 256, (count, *pictures(1)[0].shape), dtype=np.uint8))


def payloads(outcomes):
    """Bytes of the frames that a server answered."""
    return [outcome.payload_bytes for outcome in outcomes if outcome.provenance == "server"]


@pytest.fixture
def uncapped(tmp_path: Path):
    """A bundle with the whole model for the device, its server, and the payloads at the best quality."""
    bundle = make_local_bundle(tmp_path / "bundles" / "tiny")
    with ServerThread(ServeOptions(bundle.root.parent, port=0)) as server:
        with Device(bundle, server.address) as device:
            outcomes = list(device.stream(noise(6)))
        assert {outcome.point.quality for outcome in outcomes} == {BEST}
        yield bundle, server.address, payloads(outcomes)


def test_over_the_operators_cap_quality_goes_down(uncapped) -> None:
    bundle, address, sizes = uncapped
    cap = min(sizes) * 3 // 4
    with Device(bundle, address, DeviceOptions(max_payload_bytes=cap)) as device:
        outcomes = list(device.stream(noise(6)))
    assert {(outcome.outcome, outcome.provenance) for outcome in outcomes} == {("ok", "server")}
    assert max(payloads(outcomes)) <= cap
    assert all(outcome.point.quality < BEST for outcome in outcomes)


def test_over_any_quality_the_device_answers_itself(uncapped) -> None:
    bundle, address, _ = uncapped
    with Device(bundle, address, DeviceOptions(max_payload_bytes=3)) as device:
        outcomes = list(device.stream(noise(4)))
    assert {(outcome.outcome, outcome.provenance) for outcome in outcomes} == {("ok", "local")}


def test_without_a_fallback_the_frame_says_what_is_wrong(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundles" / "tiny")
    options = DeviceOptions(max_payload_bytes=3)
    with (
        ServerThread(ServeOptions(bundle.root.parent, port=0)) as server,
        Device(bundle, server.address, options) as device,
    ):
        (outcome,) = device.stream(noise(1))
    assert outcome.outcome == "frame-too-large"
    assert "the cap is 3" in str(outcome.error)


def test_the_cap_that_the_server_tells_is_kept(uncapped) -> None:
    bundle, _, sizes = uncapped
    cap = min(sizes) * 3 // 4
    options = ServeOptions(bundle.root.parent, port=0, limits=Limits(max_frame_bytes=cap))
    with ServerThread(options) as server, Device(bundle, server.address) as device:
        # What is coded before the server has told its cap is answered here.
        assert {outcome.outcome for outcome in device.stream(noise(2))} == {"ok"}
        while not device.status().connected:
            time.sleep(0.01)
        outcomes = list(device.stream(noise(6)))
    assert max(payloads(outcomes)) <= cap
    assert {(outcome.outcome, outcome.provenance) for outcome in outcomes} == {("ok", "server")}


def ladder(folder: Path):
    """A cut whose qualities differ in bytes and in what they are good for."""
    cut = make_bundle(folder / "bundles" / "tiny").manifest.cuts[0]
    rising = [replace(q, payload_bytes=100.0 * 2**i, agreement=0.9 + i / 100) for i, q in enumerate(cut.qualities)]
    return replace(cut, qualities=tuple(rising))


def test_what_one_quality_shows_is_expected_of_all(tmp_path: Path) -> None:
    cut = ladder(tmp_path)
    planner = Planner(Static(), [cut])
    before = planner.payload_bytes(cut.name)
    for _ in range(20):
        planner.coder_took(Point("split", cut.name, 0), 0.001, int(3 * before[0]))
    after = planner.payload_bytes(cut.name)
    assert after[BEST] == pytest.approx(3 * before[BEST], rel=0.1)
    cap = int(after[BEST]) - 1
    assert planner.choose(Point("split", cut.name, BEST), None, 0.0, 0.0, cap).point.quality == BEST - 1


def test_a_deadline_and_a_link_make_a_byte_budget(tmp_path: Path) -> None:
    """The highest quality that the link carries in time: lower where the same link is slower."""
    cut = ladder(tmp_path)
    chosen = []
    for bytes_per_s in (1e6, 1.2e3):
        planner = Planner(Adaptive("accuracy"), [cut])
        planner.link.delay_s, planner.link.byte_s = 0.001, 1 / bytes_per_s
        chosen.append(planner.choose(Point("split", cut.name, 0), 0.2, 0.0, 0.0).point.quality)
    assert chosen[0] > chosen[1]


def test_a_cap_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="cap of 0 bytes"):
        DeviceOptions(max_payload_bytes=0)
