"""A running device gets a new version of its bundle, between two frames."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bundles import make_bundle, pictures
from narrows.device import Device, DeviceOptions
from narrows.device.pull import pull
from narrows.device.update import Updater
from narrows.runtime.bundle import Bundle
from narrows.runtime.errors import UsageError
from narrows.runtime.halves import Head, Tail
from narrows.server import ServeOptions, ServerThread


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NARROWS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def versions(tmp_path: Path) -> tuple[Bundle, Bundle]:
    return make_bundle(tmp_path / "one" / "tiny", seed=1), make_bundle(tmp_path / "two" / "tiny", seed=2)


def whole(bundle: Bundle, picture: np.ndarray) -> np.ndarray:
    cut = bundle.manifest.cuts[0]
    symbols = Head(bundle, cut, golden=False).run([picture], 2).symbols
    return Tail(bundle, cut, golden=False).run([symbols], [2])[0]["logits"]


def test_a_stream_goes_on_over_a_swap(versions: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    """The server comes back with another version: the device pulls it and answers with it, in the same stream."""
    old, new = versions
    target, picture = tmp_path / "device" / "tiny", pictures(1)[0]
    enough = threading.Event()

    def camera() -> Iterator[np.ndarray]:
        while not enough.is_set():
            time.sleep(0.005)
            yield picture

    with ServerThread(ServeOptions(old.root.parent, port=0)) as server:
        address = server.address
        pull(address, "tiny", target)
        device = Device(target, address, DeviceOptions(timeout_s=5, stall_s=1)).__enter__()
        updater = Updater(device, address, target, every_s=30).__enter__()
        stream = device.stream(camera())
        outcomes = list(itertools.islice(stream, 20))
    with ServerThread(ServeOptions(new.root.parent, port=int(address.rpartition(":")[2]))):
        for outcome in stream:
            outcomes.append(outcome)
            if updater.swaps and all(one.error is None for one in outcomes[-5:]):
                enough.set()
        updater.__exit__()
        device.close()
    assert updater.swaps == 1
    assert device.bundle.digest == new.digest
    assert [outcome.id for outcome in outcomes] == list(range(len(outcomes)))
    assert set(Counter(outcome.outcome for outcome in outcomes)) <= {"ok", "bundle-mismatch"}
    np.testing.assert_allclose(outcomes[0].outputs["logits"], whole(old, picture), rtol=1e-5)
    np.testing.assert_allclose(outcomes[-1].outputs["logits"], whole(new, picture), rtol=1e-5)


def test_a_bundle_of_another_kind_is_not_swapped_in(versions: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    old, _ = versions
    other = make_bundle(tmp_path / "other" / "large", name="large")
    with ServerThread(ServeOptions(old.root.parent, port=0)) as server, Device(old, server.address) as device:
        with pytest.raises(UsageError, match="other name"):
            device.swap(other)
        assert device.infer(pictures(1)[0]).outcome == "ok"


def test_nothing_new_changes_nothing(versions: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    old, _ = versions
    target = tmp_path / "device" / "tiny"
    with ServerThread(ServeOptions(old.root.parent, port=0)) as server:
        pull(server.address, "tiny", target)
        with Device(target, server.address) as device, Updater(device, server.address, target, every_s=0.05) as updater:
            time.sleep(0.5)
            assert device.infer(pictures(1)[0]).outcome == "ok"
            assert updater.swaps == 0
        with pytest.raises(UsageError):
            Updater(device, server.address, target, every_s=0)
