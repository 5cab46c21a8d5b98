"""Is the planner right?

    python benchmarks/planner.py [--bundle TRAINED --teacher MODEL --images FOLDER] [--cuts 4] [--rounds 12] [--json]

Three models: MobileNetV2 from the material, an architecture with random weights (torchvision's ResNet-18; times and
bytes are real, answers are not), and, where --bundle names one, a trained bottleneck. The device is a steady slow board
(`slowed.py`), profiled against a running server. Then every candidate point (cuts × qualities, two pictures to offload,
local) is measured end to end over six emulated links, in turns and on the same pictures, and held against the
prediction. The plan is the point of least predicted latency. What the emulator itself is late by, on a small ping, is
measured first and counted to the transport.

The queue's model is held against frames that come at random to a running server, at shares of what it can answer.
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import harness
import numpy as np
import slowed
from narrows.partitioner import add_whole
from narrows.planner.predict import Prediction, predict
from narrows.planner.queueing import BatchCurve, solve
from narrows.profiling.bundle import profile_bundles
from narrows.profiling.frames import read_frames
from narrows.profiling.model import CuttingOptions, profile_model
from narrows.profiling.options import ProfileOptions
from narrows.profiling.serving import Client, coded_frames
from narrows.runtime.bundle import Bundle
from narrows.runtime.point import Point
from narrows.server_process import server_process
from slowed import PICTURES, Model

LINKS = ("1mbit,rtt=40ms", "2mbit,rtt=80ms", "5mbit,rtt=40ms", "10mbit,rtt=20ms", "30mbit,rtt=10ms", "100mbit,rtt=5ms")
SPEEDS = (4.0, 20.0)
OFFLOADS = (Point("offload", quality=50), Point("offload", quality=90))
STAGES = ("head", "local", "encode", "link", "queue", "decode", "tail", "total")
LOADS = (0.3, 0.5, 0.7, 0.85)
"""Of the frames a second that the server can answer."""


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
    late_ms = slowed.emulator_lateness_ms()
    print(f"the emulator is late by {late_ms:.2f} ms a round trip", file=sys.stderr)
    job = slowed.bench_job(model, folder, options, OFFLOADS, options.frames)
    with server_process(model.bundle) as served:
        job |= {"address": served.address, "own": [*job["own"], served.pid]}
        for factor in options.speeds:
            job["factor"] = factor
            profile = slowed.with_lateness(slowed.profiled(model, job, folder), late_ms)
            for note in profile.notes:
                print(f"{model.name} × {factor:g}: {note}", file=sys.stderr)
            for link in options.links:
                predictions = candidates(predict(profile, None, slowed.link_of(link)), options.qualities)
                taken, others = slowed.measured(job, link, [one.point for one in predictions])
                yield {
                    "model": model.name,
                    "slower": factor,
                    "link": link,
                    "others": others,
                    "points": [
                        {
                            "prediction": one,
                            "measured_ms": slowed.median_ms(taken[one.point]),
                            "stages": {stage: slowed.median_ms(taken[one.point], stage) for stage in STAGES},
                        }
                        for one in predictions
                    ],
                }


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
        "others": case["others"],
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
    parser.add_argument("--qualities", type=int, default=3, help="of each cut that are measured, at most")
    slowed.add_options(parser)
    parser.add_argument("--frames", type=int, default=2 * PICTURES, help="pictures of the profile")
    parser.add_argument("--queue-seconds", type=float, default=20, help="of each load on the server; 0 for none")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--details", type=Path, help="write every point's prediction and measurement there, as JSON")
    options = parser.parse_args()
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
    harness.report("Predicted and measured", rows, as_json=options.json, note=verdict(rows, cases))
    if queues:
        harness.report("A tail's queue under a Poisson load: time at the server", queues, as_json=options.json)


def plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else str(value)


if __name__ == "__main__":
    main()
