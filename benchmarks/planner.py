"""Is the planner right, and is what it plans worth it?

    python benchmarks/planner.py [--bundle TRAINED --teacher MODEL --images FOLDER] [--cuts 4] [--rounds 9] [--json]

Three models: MobileNetV2 from the material, an architecture with random weights (torchvision's ResNet-18; times and
bytes are real, answers are not), and, where --bundle names one, a trained bottleneck. The device is a process whose
graphs and coder take so many times as long as their quickest runs here (it sleeps the rest): a steady slow board. It is
profiled against a running server. Then every candidate point (cuts × qualities, two pictures to offload, local) is
measured end to end over six emulated links, in turns and on the same pictures, and held against the prediction. The
plan is the point of least predicted latency. What the emulator itself is late by, on a ping of a hundred bytes, is
measured first and counted to the transport.

The queue's model is held against frames that come at random to a running server, at shares of what it can answer.
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import harness
import numpy as np
from narrows.device import Device, DeviceOptions, open_source
from narrows.device import stages as device_stages
from narrows.device.emulator import LinkEmulator
from narrows.device.local import LocalModel
from narrows.device.offload import picture_frame
from narrows.device.policies import Choice, View
from narrows.device.schedule import parse_link
from narrows.partitioner import add_whole
from narrows.planner.choose import Constraints, best_of
from narrows.planner.link import Link
from narrows.planner.predict import Prediction, predict
from narrows.planner.profile import Profile, read, write
from narrows.planner.queueing import BatchCurve, solve
from narrows.profiling import serving as profiling_serving
from narrows.profiling import whole as profiling_whole
from narrows.profiling.bundle import open_bundle, profile_bundles
from narrows.profiling.frames import read_frames
from narrows.profiling.model import CuttingOptions, profile_model
from narrows.profiling.options import ProfileOptions
from narrows.profiling.serving import Client, coded_frames
from narrows.runtime.answer import Form, Wanted
from narrows.runtime.bundle import Bundle
from narrows.runtime.frame import FrameCodec
from narrows.runtime.halves import Head
from narrows.runtime.manifest import Half
from narrows.runtime.point import LOCAL, Point
from narrows.server_process import server_process

LINKS = ("1mbit,rtt=40ms", "2mbit,rtt=80ms", "5mbit,rtt=40ms", "10mbit,rtt=20ms", "30mbit,rtt=10ms", "100mbit,rtt=5ms")
SPEEDS = (4.0, 20.0)
OFFLOADS = (Point("offload", quality=50), Point("offload", quality=90))
DROP = 0.6
"""Points of accuracy that the planned point may cost in the second table."""
WARM_UP = 2
PICTURES = 12
PING_RTT_MS = 10
LOADS = (0.3, 0.5, 0.7, 0.85)
"""Of the frames a second that the server can answer."""


@dataclass(frozen=True)
class Model:
    """A bundle and pictures for it."""

    name: str
    bundle: Path
    images: Path


# The device's process.


def paced(factor: float, pace: dict[str, float], *, learn: bool) -> None:
    """Let all that the device computes take `factor` times what the pace says it takes here.

    Args:
        factor: of the device to its pace.
        pace: seconds by kind of work.
        learn: write the quickest runs down in `pace`, and delay nothing.
    """

    def instead(run: Any, kind: Any) -> Any:
        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = run(*arguments, **options)
            took, name = time.perf_counter() - began, kind(*arguments)
            if learn:
                pace[name] = min(took, pace.get(name, took))
            else:
                time.sleep(max(0.0, factor * pace[name] - took))
            return result

        return timed

    Head.run = instead(Head.run, lambda head, *_: f"head {head.cut.name}")  # type: ignore[method-assign]
    LocalModel.run = instead(LocalModel.run, lambda *_: "whole")  # type: ignore[method-assign]
    FrameCodec.pack = instead(FrameCodec.pack, lambda codec, _i, _s, q, *_: f"code {codec.cut.name} {q}")  # type: ignore[method-assign]
    for module in (device_stages, profiling_whole, profiling_serving):
        picture = module.picture_frame
        module.picture_frame = instead(picture, lambda _i, _p, quality, *_: f"picture {quality}")  # type: ignore[attr-defined]


class Told:
    """Takes the point that it is told."""

    def __init__(self) -> None:
        self.point = LOCAL

    def choose(self, _view: View) -> Choice:
        return Choice(self.point)


def as_device(job: Mapping[str, Any]) -> None:
    """Learn the pace, profile, or measure points; JSON on stdout."""
    pace = dict(job.get("pace", {}))
    paced(job["factor"], pace, learn=job["task"] == "pace")
    if job["task"] != "measure":
        options = ProfileOptions(
            images=Path(job["images"]),
            frames=job["frames"],
            on_device=job["task"] == "pace",
            server=job.get("address"),
            encodings=OFFLOADS,
            memory=False,
        )
        made = profile_bundles([open_bundle(job["bundle"], on_device=True)], options)
        sys.stdout.buffer.write(write(made) if job["task"] == "profile" else json.dumps(pace).encode())
        return
    pictures = [np.asarray(array) for array in np.load(job["pictures"])]
    points = [Point(**point) for point in job["points"]]
    policy = Told()
    bundle = Bundle.open(job["bundle"], Half.DEVICE)
    devices = {
        offload: Device(bundle, job["address"], DeviceOptions(policy=policy, offload=offload, wanted=Wanted(Form.TOP)))
        for offload in dict.fromkeys(point if point.mode == "offload" else OFFLOADS[0] for point in points)
    }
    taken: dict[Point, list[dict[str, float]]] = {point: [] for point in points}
    for device in devices.values():
        device.__enter__()
    try:
        for number in range(WARM_UP + job["rounds"]):
            for point in points:
                policy.point = point
                device = devices[point if point.mode == "offload" else OFFLOADS[0]]
                outcome = device.infer(pictures[number % len(pictures)])
                if outcome.error is not None:
                    raise outcome.error
                if number >= WARM_UP:
                    taken[point].append(dict(outcome.ms))
    finally:
        for device in devices.values():
            device.close()
    print(json.dumps([{"point": asdict(point), "ms": ms} for point, ms in taken.items()]))


# The bench.


def device_process(job: Mapping[str, Any]) -> bytes:
    command = [sys.executable, str(Path(__file__).resolve()), "--as-device", json.dumps(job)]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout


def profiled(model: Model, job: Mapping[str, Any], folder: Path) -> Profile:
    path = folder / f"{model.name}-{job['factor']:g}.json"
    path.write_bytes(device_process({**job, "task": "profile"}))
    return read(path)


def emulator_lateness_ms() -> float:
    """What a round trip over an emulated link takes beyond its delay."""
    times = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=echo, args=(listener,), daemon=True).start()
        target = f"127.0.0.1:{listener.getsockname()[1]}"
        with LinkEmulator(target, parse_link(f"100mbit,rtt={PING_RTT_MS}ms")) as link:
            host, _, port = link.address.rpartition(":")
            with socket.create_connection((host, int(port))) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for _ in range(40):
                    began = time.perf_counter()
                    connection.sendall(b"." * 100)
                    left = 100
                    while left:
                        left -= len(connection.recv(left))
                    times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times) - PING_RTT_MS


def echo(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        while data := connection.recv(4096):
            connection.sendall(data)


def measured(job: Mapping[str, Any], link: str, points: Sequence[Point]) -> dict[Point, list[dict[str, float]]]:
    with LinkEmulator(job["address"], parse_link(link)) as emulated:
        own = {"task": "measure", "points": [asdict(point) for point in points], "address": emulated.address}
        said = json.loads(device_process({**job, **own}))
    return {Point(**one["point"]): one["ms"] for one in said}


def link_of(text: str) -> Link:
    state = parse_link(text).at(0.0)
    return Link(state.rate_bps, 2 * state.delay_s)


def candidates(predictions: Sequence[Prediction], per_cut: int) -> list[Prediction]:
    """All but some of the qualities, evenly spread, where a cut has many."""
    kept = []
    for one in predictions:
        if one.point.mode == "split":
            ladder = sorted(p.point.quality or 0 for p in predictions if p.point.cut == one.point.cut)
            if one.point.quality not in {ladder[round(i)] for i in np.linspace(0, len(ladder) - 1, per_cut)}:
                continue
        kept.append(one)
    return kept


def study(model: Model, options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each link and speed: prediction and measurement of every candidate."""
    pictures = folder / f"{model.name}.npy"
    save_pictures(model, pictures)
    late_ms = emulator_lateness_ms()
    print(f"the emulator is late by {late_ms:.2f} ms a round trip", file=sys.stderr)
    job = {"bundle": str(model.bundle), "images": str(model.images), "frames": options.frames, "rounds": options.rounds}
    job |= {"pictures": str(pictures), "factor": 1.0}
    job["pace"] = json.loads(device_process({**job, "task": "pace"}))
    with server_process(model.bundle) as served:
        job["address"] = served.address
        for factor in options.speeds:
            job["factor"] = factor
            profile = profiled(model, job, folder)
            assert profile.transport is not None
            transport = replace(profile.transport, fixed_ms=profile.transport.fixed_ms + max(0.0, late_ms))
            profile = replace(profile, transport=transport)
            for note in profile.notes:
                print(f"{model.name} × {factor:g}: {note}", file=sys.stderr)
            for link in options.links:
                predictions = candidates(predict(profile, None, link_of(link)), options.qualities)
                points = [one.point for one in predictions]
                taken = measured(job, link, points)
                yield {
                    "model": model.name,
                    "slower": factor,
                    "link": link,
                    "frames": profile.frames,
                    "points": [
                        {
                            "prediction": one,
                            "measured_ms": statistics.median(ms["total"] for ms in taken[one.point]),
                            "stages": {
                                stage: statistics.median(ms.get(stage, 0.0) for ms in taken[one.point])
                                for stage in ("head", "local", "encode", "link", "queue", "decode", "tail", "total")
                            },
                        }
                        for one in predictions
                    ],
                }


def save_pictures(model: Model, path: Path) -> None:
    """Of the model's pictures those at evenly spread ranks of their size as JPEG: so few stand for all of them."""
    bundle = Bundle.open(model.bundle, Half.DEVICE)
    found = [item.arrays[0] for item in open_source(model.images, bundle.manifest) if item.error is None]
    found.sort(key=lambda picture: picture_frame(0, picture, 75).payload_bytes)
    ranks = (np.arange(PICTURES) + 0.5) / PICTURES * len(found)
    np.save(path, np.stack([found[int(rank)] for rank in ranks]))


def row(case: Mapping[str, Any]) -> dict[str, Any]:
    """How good the word of the planner was over one link."""
    points = case["points"]
    errors = [abs(one["prediction"].latency_ms / one["measured_ms"] - 1) for one in points]
    planned = min(points, key=lambda one: one["prediction"].latency_ms)
    best = min(points, key=lambda one: one["measured_ms"])
    return {
        "model": case["model"],
        "slower": case["slower"],
        "link": case["link"],
        "points": len(points),
        "median error": statistics.median(errors),
        "p90 error": float(np.percentile(errors, 90)),
        "planned": str(planned["prediction"].point),
        "predicted ms": planned["prediction"].latency_ms,
        "measured ms": planned["measured_ms"],
        "best ms": best["measured_ms"],
        "of best": planned["measured_ms"] / best["measured_ms"],
    }


def gain(case: Mapping[str, Any]) -> dict[str, Any]:
    """The planned point within the accuracy bound, against the better of `local` and `offload` within it."""
    measured_ms = {one["prediction"].point: one["measured_ms"] for one in case["points"]}
    predictions = [one["prediction"] for one in case["points"]]
    chosen = best_of(predictions, Constraints(max_accuracy_drop=DROP)).best
    others = [p.point for p in predictions if p.point.mode != "split" and (p.accuracy_drop or 0.0) <= DROP]
    other = min(others, key=lambda point: measured_ms[point])
    return {
        "model": case["model"],
        "slower": case["slower"],
        "link": case["link"],
        "planned": str(chosen.point),
        "drop, points": chosen.accuracy_drop,
        "planned ms": measured_ms[chosen.point],
        "better of local and offload": str(other),
        "its ms": measured_ms[other],
        "ratio": measured_ms[chosen.point] / measured_ms[other],
    }


def queueing(model: Model, seconds: float) -> Iterator[dict[str, Any]]:
    """Frames that come at random to one tail, and what the planner's queue says of them.

    The server's graphs have one thread, so that the frames' sender and gRPC have a core of their own.
    """
    bundle = Bundle.open(model.bundle)
    cut = max(bundle.manifest.cuts, key=lambda one: bundle.manifest.files[one.tail].size)
    quality, draw = len(cut.qualities) - 1, random.Random(5)
    with server_process(model.bundle, "--threads", 1) as served:
        options = ProfileOptions(images=model.images, frames=8, server=served.address, encodings=(), memory=False)
        profile = profile_bundles([bundle], options)
        known = profile.cut(cut.name)
        assert known is not None
        decode = known.qualities[quality].decode
        curve = BatchCurve.of(known.tail_batches, overhead_s=decode.ms / 1000 if decode else 0.0)
        frames, _ = read_frames(bundle, model.images, 8)
        coded = coded_frames(bundle, cut.name, quality, frames)
        with Client(bundle, served.address, options) as client:
            client.ask(coded)
            for load in LOADS:
                said = solve(curve, load * curve.most_fps)
                took = poisson(client, coded, load * curve.most_fps, seconds, draw)
                yield {
                    "model": model.name,
                    "load": load,
                    "frames/s": load * curve.most_fps,
                    "mean ms, predicted": 1000 * said.mean_s,
                    "measured": float(np.mean(took)),
                    "p99 ms, predicted": 1000 * said.quantile_s(0.99),
                    "measured p99": float(np.percentile(took, 99)),
                    "batch, predicted": said.mean_batch,
                }


def poisson(client: Client, coded: Sequence[Any], rate: float, seconds: float, draw: random.Random) -> list[float]:
    """The server's time, in milliseconds, of every frame of a Poisson process."""
    arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
    count, due = int(rate * seconds), time.perf_counter()
    for number in range(count):
        due += draw.expovariate(rate)
        time.sleep(max(0.0, due - time.perf_counter()))
        client.send(coded[number % len(coded)], arrived.put)
    answers = [arrived.get() for _ in range(count)]
    return [answer.server_ms for answer in answers if not isinstance(answer, Exception)]


def models(options: argparse.Namespace, folder: Path) -> Iterator[Model]:
    subject = next(s for s in harness.SUBJECTS if s.name == "mobilenet-v2")
    subject.write_pictures(folder / "photographs", 4 * PICTURES)
    random_weights = None if options.architecture.endswith(".onnx") else "random"
    for name, source, weights in (
        ("mobilenet-v2", str(subject.path), None),
        ("architecture", options.architecture, random_weights),
    ):
        if name not in options.models:
            continue
        began = time.monotonic()
        cutting = CuttingOptions("imagenet", weights, options.cuts, bundle=folder / "bundles" / name)
        profile_model(source, ProfileOptions(images=folder / "photographs", memory=False), cutting)
        print(f"{name}: profiled and cut in {time.monotonic() - began:.0f} s", file=sys.stderr)
        yield Model(name, folder / "bundles" / name, folder / "photographs")
    if options.bundle is not None:
        path = options.bundle
        if options.teacher is not None:
            path = folder / "bundles" / "bottleneck"
            add_whole(Bundle.open(options.bundle), options.teacher, path, weights=options.weights)
        yield Model("bottleneck", path, options.images)


def verdict(rows: Sequence[Mapping[str, Any]], cases: Sequence[Mapping[str, Any]]) -> str:
    errors = [abs(p["prediction"].latency_ms / p["measured_ms"] - 1) for case in cases for p in case["points"]]
    right = np.mean([row["of best"] <= 1.05 for row in rows])
    return (
        f"{len(errors)} points: median error {np.median(errors):.1%}, p90 {np.percentile(errors, 90):.1%}; "
        f"the planned point within 1.05 × the best measured one in {right:.1%} of {len(rows)} cases"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="a trained bottleneck")
    parser.add_argument("--images", type=Path, help="its pictures, in folders named after the classes")
    parser.add_argument("--teacher", help="its whole model, as `narrows cut` takes it, where the bundle has none")
    parser.add_argument("--weights", help="of a torch teacher")
    parser.add_argument("--models", nargs="*", default=["mobilenet-v2", "architecture"])
    parser.add_argument(
        "--architecture", default="torchvision:resnet18", help="with random weights; or an ONNX file of one"
    )
    parser.add_argument("--links", nargs="+", default=LINKS)
    parser.add_argument("--speeds", nargs="+", type=float, default=SPEEDS, help="times that the device is slower")
    parser.add_argument("--cuts", type=int, default=4)
    parser.add_argument("--qualities", type=int, default=4, help="of each cut that are measured, at most")
    parser.add_argument("--rounds", type=int, default=PICTURES, help="frames of each point over each link")
    parser.add_argument("--frames", type=int, default=4 * PICTURES, help="pictures of the profile")
    parser.add_argument("--queue-seconds", type=float, default=20, help="of each load on the server; 0 for none")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--details", type=Path, help="write every point's prediction and measurement there, as JSON")
    parser.add_argument("--as-device", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_device:
        as_device(json.loads(options.as_device))
        return
    if (options.bundle is None) != (options.images is None):
        parser.error("--bundle and --images go together")
    cases, rows, made = [], [], list[Model]()
    with tempfile.TemporaryDirectory() as name:
        for model in models(options, Path(name)):
            made.append(model)
            for case in study(model, options, Path(name)):
                cases.append(case)
                rows.append(row(case))
                print(rows[-1], file=sys.stderr, flush=True)  # minutes pass
        queues = [row for model in made if options.queue_seconds for row in queueing(model, options.queue_seconds)]
    if options.details is not None:
        options.details.write_text(json.dumps(cases, default=plain, indent=1))
    slowest = max(options.speeds)
    gains = [gain(case) for case in cases if case["slower"] == slowest and link_of(case["link"]).bps <= 10e6]
    harness.report("Predicted and measured", rows, as_json=options.json, note=verdict(rows, cases))
    if gains:
        harness.report(f"Planned (at most {DROP} points of accuracy) and not split", gains, as_json=options.json)
    if queues:
        harness.report("A tail's queue under a Poisson load: time at the server", queues, as_json=options.json)


def plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else str(value)


if __name__ == "__main__":
    main()
