"""The picture itself as a frame, beside the split and the device's own answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundles import make_bundle, pictures
from narrows.device import Adaptive, Always, Device, DeviceOptions, Point
from narrows.runtime.bundle import Bundle
from narrows.runtime.errors import UsageError
from narrows.server import ServeOptions, ServerThread
from whole_bundles import with_whole

OFFLOAD = Point("offload", quality=90)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return with_whole(make_bundle(tmp_path / "plain" / "tiny"), tmp_path / "bundles" / "tiny")


def test_a_picture_is_sent_whole_and_answered(bundle: Bundle) -> None:
    options = DeviceOptions(policy=Always(OFFLOAD), offload=90, fallback="none")
    smooth = np.linspace(0, 255, 16 * 16 * 3).reshape(16, 16, 3).astype(np.uint8)
    with ServerThread(ServeOptions(bundle.root.parent, port=0)) as server:
        with Device(bundle, server.address, options) as device:
            outcomes = list(device.stream([smooth] * 5))
        with Device(bundle, server.address) as device:
            split = device.infer(smooth)
    for outcome in outcomes:
        assert outcome.error is None
        assert (outcome.point, outcome.provenance) == (OFFLOAD, "server")
        assert outcome.payload_bytes > 300  # a JPEG's header alone
        np.testing.assert_allclose(outcome.outputs["logits"], split.outputs["logits"], atol=0.5)
        assert "head" not in outcome.ms


def test_the_controller_sends_the_least_bytes_whatever_they_are(bundle: Bundle) -> None:
    options = DeviceOptions(policy=Adaptive("bytes"), offload=90, fallback="none")
    with (
        ServerThread(ServeOptions(bundle.root.parent, port=0)) as server,
        Device(bundle, server.address, options) as device,
    ):
        outcomes = list(device.stream(pictures(10)))
        modes = {candidate.point.mode for candidate in device.planner.candidates()}
    assert modes == {"split", "offload"}
    assert outcomes[-1].point.mode == "split"


def test_a_server_without_the_whole_model_says_so(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundles" / "tiny")
    options = DeviceOptions(policy=Always(OFFLOAD), offload=90)
    with (
        ServerThread(ServeOptions(bundle.root.parent, port=0)) as server,
        Device(bundle, server.address, options) as device,
    ):
        outcome = device.infer(pictures(1)[0])
    assert outcome.error is not None
    assert outcome.point == OFFLOAD


def test_qualities_are_checked(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="between 1 and 95"):
        Device(bundle, "127.0.0.1:1", DeviceOptions(offload=0))
