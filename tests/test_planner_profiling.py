"""Bundles measured on this machine, with and without a server, and on a board without torch and ONNX."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from bundles import CLASSES, QUALITIES, make_bundle, pictures
from narrows.device import open_source
from narrows.planner.link import Link
from narrows.planner.predict import predict
from narrows.planner.profile import Profile, parse, read, write
from narrows.profiling.bundle import open_bundle, profile_bundles
from narrows.profiling.machine import Watch
from narrows.profiling.options import ProfileOptions
from narrows.profiling.serving import straight_line
from narrows.profiling.stopwatch import Steady, Stopwatch, repeat, timing_of
from narrows.runtime.bundle import Bundle, BundleWriter
from narrows.runtime.codec import labels
from narrows.runtime.errors import BundleMismatchError, LinkError, SourceError, UsageError
from narrows.runtime.frame import FrameCodec
from narrows.runtime.halves import Head
from narrows.runtime.manifest import Half
from narrows.runtime.point import Point
from narrows.server.app import ServerThread
from narrows.server.options import ServeOptions
from PIL import Image
from whole_bundles import with_whole

QUICK = ProfileOptions(
    frames=6,
    memory=False,
    encodings=(Point("offload", quality=75), Point("offload", quality=75, format="webp")),
    steady=Steady(share=0.5, least_runs=3, most_s=0.1),
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles")
    return with_whole(make_bundle(folder / "cut"), folder / "serve" / "tiny")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in folders named after their classes."""
    folder = tmp_path_factory.mktemp("images")
    for number, picture in enumerate(pictures(8)):
        place = folder / f"class {number % CLASSES}"
        place.mkdir(exist_ok=True)
        Image.fromarray(picture).save(place / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def whole(bundle: Bundle, images: Path) -> Profile:
    return profile_bundles([bundle], replace(QUICK, images=images))


def test_everything_is_measured(whole: Profile, bundle: Bundle) -> None:
    assert parse(write(whole), "here") == whole
    (cut,) = whole.cuts
    assert cut.head is not None
    assert cut.tail is not None
    assert cut.head.low_ms <= cut.head.ms <= cut.head.high_ms
    assert [batch.frames for batch in cut.tail_batches][:2] == [1, 2]
    assert len(cut.qualities) == QUALITIES
    sizes = [quality.payload for quality in cut.qualities]
    assert [size.mean for size in sizes] == sorted(size.mean for size in sizes)
    assert all(0 < size.p50 <= size.p99 for size in sizes)
    agreement = [quality.agreement for quality in cut.qualities]
    assert agreement[-1] == 1.0
    deviations = [quality.max_deviation or 0.0 for quality in cut.qualities]
    assert deviations[0] > deviations[-1] > 0
    assert all(quality.accuracy is not None for quality in cut.qualities)
    assert cut.head_bytes == bundle.file("head.onnx").stat().st_size
    assert whole.frames == 6
    assert whole.whole.run is not None
    assert whole.whole.accuracy is not None
    assert [(one.format, one.quality) for one in whole.encodings] == [("jpeg", 75), ("webp", 75)]
    assert whole.transport is not None
    assert whole.transport.fixed_ms > 0
    assert whole.reply_bytes > 20
    assert {one.point.mode for one in predict(whole, None, Link(5e6, 0.04))} == {"split", "offload", "local"}


def test_sizes_are_those_of_the_real_coder(whole: Profile, bundle: Bundle, images: Path) -> None:
    head, codec = Head(bundle, bundle.manifest.cuts[0]), FrameCodec(bundle, 0)
    coded = [
        codec.pack(0, head.run(item.arrays, 1).symbols, 1, labels()[0]).payload_bytes
        for item in open_source(images, bundle.manifest)
    ]
    found = whole.cuts[0].qualities[1].payload
    assert min(coded) <= found.p50 <= found.p99 <= max(coded)


def test_the_devices_half_alone(bundle: Bundle, tmp_path: Path) -> None:
    archive = tmp_path / "half.zip"
    bundle.write_archive(archive, Half.DEVICE)
    half = open_bundle(archive)
    made = profile_bundles([half], QUICK)
    assert made.cuts[0].head is not None
    assert made.cuts[0].tail is None
    assert made.frames == 0
    assert made.cuts[0].qualities[0].agreement == bundle.manifest.cuts[0].qualities[0].agreement
    assert any("calibration data" in note for note in made.notes)


@pytest.mark.parametrize(
    ("half", "ways"), [(Half.DEVICE, {"split", "local"}), (Half.SERVER, {"split", "offload"})], ids=str
)
def test_who_lacks_the_whole_model_cannot_run_it(half: Half, ways: set[str], bundle: Bundle, tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "one") as writer:
        for name, entry in bundle.manifest.files.items():
            halves = (half,) if name == bundle.manifest.local else entry.halves
            shutil.copy(bundle.file(name), writer.add(name, *halves))
        one = writer.finish(bundle.manifest)
    assert {p.point.mode for p in predict(profile_bundles([one], QUICK), None, Link(5e6, 0.04))} == ways


def test_a_running_server_is_measured(bundle: Bundle, whole: Profile, images: Path) -> None:
    with ServerThread(ServeOptions(bundle.root, port=0)) as server:
        options = replace(QUICK, images=images, server=server.address)
        made = profile_bundles([open_bundle(bundle.root, on_device=True)], options)
    assert made.served_by == server.address
    assert made.cuts[0].tail is not None
    assert made.cuts[0].tail_batches[0].frames == 1
    assert made.server_whole is not None
    assert made.server_whole.run is not None
    assert made.transport is not None
    assert server.address in made.transport.how
    ways = [one.point for one in predict(made, None, Link(5e6, 0.04))]
    assert ways == [one.point for one in predict(whole, None, Link(5e6, 0.04))]


def test_servers_that_cannot_be_measured(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(LinkError):
        profile_bundles([bundle], replace(QUICK, server="127.0.0.1:1", timeout_s=0.5))
    other = make_bundle(tmp_path / "serve" / "tiny", seed=7)
    with ServerThread(ServeOptions(other.root, port=0)) as server, pytest.raises(BundleMismatchError):
        profile_bundles([bundle], replace(QUICK, server=server.address))


def test_bad_input(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="of 2 models"):
        profile_bundles([bundle, make_bundle(tmp_path / "other", seed=3)], QUICK)
    with pytest.raises(SourceError):
        profile_bundles([bundle], replace(QUICK, images=tmp_path / "none"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    with pytest.raises(SourceError, match="can be read"):
        profile_bundles([bundle], replace(QUICK, images=tmp_path / "broken"))
    with pytest.raises(UsageError):
        ProfileOptions(on_device=True, server="a:1")


_BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "onnx_ir", "onnxscript", "networkx", "plotly", "grpc_health"}:
            raise ImportError(f"{name} is not on this board")

sys.meta_path.insert(0, Blocker())
from narrows.cli import main
main()
"""


def test_on_a_board_without_torch_and_onnx(bundle: Bundle, images: Path, tmp_path: Path) -> None:
    archive, out = tmp_path / "half.zip", tmp_path / "pi.json"
    bundle.write_archive(archive, Half.DEVICE)
    words = ["profile", str(archive), "--on-device", "--images", str(images), "--frames", "3", "-o", str(out)]
    done = subprocess.run([sys.executable, "-c", _BLOCKED, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = read(out)
    assert made.cuts[0].head is not None
    assert made.cuts[0].tail is None
    assert made.transport is None
    assert made.whole.run is not None
    assert (made.cuts[0].peak_memory_bytes or 0) > 0
    words = ["plan", str(out), "--link", "5mbit,rtt=40ms", "--json"]
    done = subprocess.run([sys.executable, "-c", _BLOCKED, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["plans"][0]["best"]["point"]["mode"] == "local"


def test_a_figure_settles_when_its_interval_is_narrow() -> None:
    steady = Steady(share=0.05, least_ms=0.0, least_runs=10)
    assert steady.holds(timing_of([10.0] * 10))
    assert not steady.holds(timing_of([10.0] * 9))
    assert not steady.holds(timing_of([5.0, 20.0] * 20))
    timing = timing_of(range(1, 101))
    assert (timing.ms, timing.low_ms, timing.high_ms, timing.runs) == (50.5, 41.0, 61.0, 100)
    watch = Stopwatch()
    for value in (1.0, 9.0) * 10:
        watch.add("wild", value)
    for _ in range(20):
        watch.add("calm", 5.0)
    assert watch.unsettled(steady) == ["wild"]
    assert repeat(lambda: None, Steady(least_runs=5)).runs >= 5


def test_throttling_is_noticed_and_said(tmp_path: Path) -> None:
    times = iter([10.0, 10.1, 10.0, 12.0, 13.0, 12.5, 15.0, 15.1, 15.2])
    watch = Watch(lambda: next(times), root=tmp_path)
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    clock = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq"
    for folder in (zone, clock):
        folder.mkdir(parents=True)
    (zone / "temp").write_text("86000\n")
    (clock / "scaling_cur_freq").write_text("600000\n")
    (clock / "cpuinfo_max_freq").write_text("1500000\n")
    for _ in range(9):
        watch.check()
    said = "\n".join(watch.notes)
    assert "51% slower" in said
    assert "86 °C" in said
    assert "40% of its highest frequency" in said
    calm = Watch(lambda: 10.0, root=tmp_path / "none")
    for _ in range(9):
        calm.check()
    assert calm.notes == ()


def test_a_line_through_link_times() -> None:
    sizes = [100, 1_000, 5_000, 20_000] * 5
    times = [1.0 + 0.001 * size for size in sizes]
    times[3] = 90.0  # one that waited for something else
    assert straight_line(sizes, times) == pytest.approx((1.0, 0.001), rel=1e-3)
    assert straight_line([100, 100], [1.0, 2.0]) == (1.5, 0.0)
    assert straight_line([10_000, 20_000, 30_000], [3.0, 2.0, 1.0])[1] == 0.0
    # Frames of nearly one size: what they differ by is noise, and no price of a byte.
    assert straight_line([500, 520, 540], [1.0, 9.0, 2.0]) == (2.0, 0.0)
