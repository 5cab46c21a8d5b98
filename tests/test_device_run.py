"""What `narrows run` does beneath the printing, and what a live view can ask for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from bundles import pictures
from local_bundle import make_local_bundle
from narrows.device import Adaptive, Device, DeviceOptions, run_source
from narrows.server import ServeOptions, ServerThread


def test_a_run_keeps_the_outputs_of_every_frame(tmp_path: Path) -> None:
    bundle = make_local_bundle(tmp_path / "bundles" / "tiny")
    np.save(tmp_path / "frames.npy", np.stack(pictures(12)))
    options = DeviceOptions(policy=Adaptive("accuracy", floor=0.5), deadline_ms=2000)
    with ServerThread(ServeOptions(bundle.root.parent, port=0)) as server:
        outcomes = list(
            run_source(bundle, server.address, tmp_path / "frames.npy", options, save_outputs=tmp_path / "out")
        )
    assert {outcome.outcome for outcome in outcomes} == {"ok"}
    for outcome, path in zip(outcomes, sorted((tmp_path / "out").iterdir()), strict=True):
        with np.load(path) as arrays:
            np.testing.assert_array_equal(arrays["logits"], outcome.outputs["logits"])


def test_a_device_says_how_it_is_doing(tmp_path: Path) -> None:
    bundle = make_local_bundle(tmp_path / "bundles" / "tiny")
    with ServerThread(ServeOptions(bundle.root.parent, port=0)) as server, Device(bundle, server.address) as device:
        before = device.status()
        outcomes = list(device.stream(pictures(10)))
        after = device.status()
    assert (before.goodput_bps, before.last_point) == (None, None)
    assert after.connected
    assert after.down_s == 0
    assert after.server + after.local == 10
    assert after.goodput_bps is not None
    assert after.last_point == outcomes[-1].point
