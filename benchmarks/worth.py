"""Is a trained bottleneck worth it? The planned point end to end, against the better of `local` and `offload`.

    python benchmarks/worth.py BUNDLE --teacher MODEL --images FOLDER [--speeds 12 30] [--links …] [--json | --markdown]

The device is a steady slow board (`slowed.py`). How slow a real board is beside this machine is a ratio that can be had
without one: ONNX Runtime is published to run YOLOX-Nano on a Raspberry Pi 5 in 47 ms (21.3 frames/s, float32); divide
by what it takes here (9.1 ms on the machine of the README's table: × 5). A Raspberry Pi 4 is two to three times slower
than that (× 12), a Pi 3 or Zero 2 W five to six times (× 30): these two are of the order of what is said of them.

Accuracy is that of all the pictures: the bundle's own word on those held out for the splits, and for offloaded pictures
what the whole model makes of each, compressed. Only points within --drop points of the whole model's count, for all
three ways. The planner chooses by prediction; what is shown was measured, every point in turns on the same twelve
pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import harness
import slowed
from narrows.partitioner import add_whole
from narrows.planner.choose import Constraints, best_of
from narrows.planner.predict import predict
from narrows.planner.profile import Profile
from narrows.profiling.options import ENCODINGS
from narrows.runtime.bundle import Bundle
from narrows.runtime.point import Point
from narrows.server_process import server_process
from slowed import PICTURES, Model

LINKS = tuple(f"{rate}mbit,rtt={rtt}ms" for rtt in (10, 40) for rate in (1, 2, 5, 10))
SPEEDS = (12.0, 30.0)
DROP = 0.6


def study(model: Model, options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    late_ms = slowed.emulator_lateness_ms()
    job = slowed.bench_job(model, folder, options, ENCODINGS, PICTURES)
    with server_process(model.bundle) as served:
        job |= {"address": served.address, "own": [*job["own"], served.pid]}
        # Sizes and accuracy are those of all the pictures; times are the slow device's.
        judged = slowed.profiled(model, {**job, "frames": options.frames, "repeats": 1}, folder)
        for factor in options.speeds:
            job["factor"] = factor
            device = slowed.with_lateness(slowed.profiled(model, job, folder), late_ms)
            for link in options.links:
                yield row(model, job, device, judged, link, options.drop)


def row(
    model: Model, job: Mapping[str, Any], device: Profile, judged: Profile, link: str, drop: float
) -> dict[str, Any]:
    allowed = [
        one
        for one in predict(device, judged, slowed.link_of(link))
        if one.accuracy_drop is not None and one.accuracy_drop <= drop
    ]
    planned = best_of(allowed, Constraints(max_accuracy_drop=drop)).best
    taken, others = slowed.measured(job, link, [one.point for one in allowed])
    ms = {point: slowed.median_ms(rounds) for point, rounds in taken.items()}

    def quickest(mode: str) -> Point | None:
        return min((one.point for one in allowed if one.point.mode == mode), key=ms.__getitem__, default=None)

    rivals = [point for point in (quickest("local"), quickest("offload")) if point is not None]
    rival = min(rivals, key=ms.__getitem__)
    return {
        "model": model.name,
        "slower": job["factor"],
        "link": link,
        "planned": str(planned.point),
        "bytes": round(planned.wire_bytes),
        "drop, points": planned.accuracy_drop,
        "predicted ms": planned.latency_ms,
        "measured ms": ms[planned.point],
        **{f"{mode} ms": shown(ms, quickest(mode)) for mode in ("split", "local", "offload")},
        "offload as": str(quickest("offload") or "–"),
        "ratio": ms[planned.point] / ms[rival],
        "others": others,
    }


def shown(ms: Mapping[Point, float], point: Point | None) -> float | str:
    return "–" if point is None else ms[point]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """For the README."""
    heads = ("device", "link", "planned", "bytes", "ms", "local, ms", "offload, ms", "to the better of both")
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join(["---"] * len(heads)) + " |"]
    for one in rows:
        offload = one["offload ms"]
        cells = (
            f"× {one['slower']:g}",
            one["link"].replace("mbit,rtt=", " Mbit/s, ").replace("ms", " ms"),
            one["planned"],
            f"{one['bytes']:,}",
            f"{one['measured ms']:.1f}",
            f"{one['local ms']:.1f}",
            offload if isinstance(offload, str) else f"{offload:.1f}",
            f"{one['ratio']:.2f} ×",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="a trained bottleneck")
    parser.add_argument("--images", type=Path, required=True, help="pictures in folders named after the classes")
    parser.add_argument("--teacher", help="its whole model, as `narrows cut` takes it, where the bundle has none")
    parser.add_argument("--weights", help="of a torch teacher")
    parser.add_argument("--links", nargs="+", default=LINKS)
    parser.add_argument("--speeds", nargs="+", type=float, default=SPEEDS, help="times that the device is slower")
    parser.add_argument("--drop", type=float, default=DROP, help="points of accuracy that may be lost")
    parser.add_argument("--frames", type=int, default=1000, help="pictures for accuracy and sizes, at most")
    slowed.add_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--markdown", action="store_true", help="print a table for the README")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path = options.bundle
        if options.teacher is not None:
            path = Path(name) / options.bundle.name
            add_whole(Bundle.open(options.bundle), options.teacher, path, weights=options.weights)
        rows = []
        for one in study(Model(options.bundle.name, path, options.images), options, Path(name)):
            rows.append(one)
            print(json.dumps(one), file=sys.stderr, flush=True)  # minutes pass
    if options.markdown:
        print(markdown(rows))
        return
    halved = sum(one["ratio"] <= 0.5 for one in rows)
    note = f"at most half of the better of local and offload in {halved} of {len(rows)} cases"
    title = f"The planned point (at most {options.drop} points of accuracy lost) and not split"
    harness.report(title, rows, as_json=options.json, note=note)


if __name__ == "__main__":
    main()
