"""Does the controller choose as well as one who knows the link?

    python benchmarks/adaptive.py [--seconds 20] [--seed 7] [--only staircase] [--json]

MobileNetV2 is cut at 32×28×28, and the bundle carries the whole model for the device besides. A server process, a
device process and an emulated link between them; the device's graphs take as long as on a board that needs 0.35 s for
the whole model, some sixty times as long as one thread here (the rest of the time they sleep). A camera gives a picture
every so often; each frame has a deadline, and the fallback is on for everyone. Over three traces that are made here (a
fade to nothing and back, a staircase, a noisy cellular walk), these choose the operating point: the controller,
Neurosurgeon's rule (which knows no accuracy floor), static points, `local`, `offload`, and an oracle that knows the
trace and has the controller's own figures for the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
from narrows.device import Device, DeviceOptions
from narrows.device.emulator import LinkEmulator
from narrows.device.local import LocalModel
from narrows.device.policies import Adaptive, Always, Choice, Neurosurgeon, Policy, Static, View
from narrows.device.schedule import Schedule, read_trace
from narrows.runtime.answer import Form, Wanted
from narrows.runtime.bundle import Bundle
from narrows.runtime.halves import Head
from narrows.runtime.manifest import Half
from narrows.runtime.point import LOCAL, Point
from narrows.runtime.session import SessionOptions

SUBJECT = next(subject for subject in harness.SUBJECTS if subject.name == "mobilenet-v2")
CUT = "577_quantized"
PERIOD_S, DEADLINE_MS, FLOOR = 0.45, 800, 0.9
WHOLE_S = 0.35
"""Of the whole model on the device; the head takes its share of that, as it does here."""
WARM_UP = 8
OFFLOAD = Point("offload", quality=90)


class Oracle:
    """Knows when the last byte will have left, and what the delay will be then."""

    def __init__(self, schedule: Schedule, began: float) -> None:
        self._schedule = schedule
        self.began = began

    def choose(self, view: View) -> Choice:
        now = time.monotonic() - self.began
        best, least = view.preferred, float("inf")
        for one in view.candidates():
            if one.accuracy < FLOOR:
                continue
            took = one.latency_s
            if one.point.mode != "local":
                left = self._schedule.sent_by(now + one.device_s, round(one.wire_bytes))
                delay = self._schedule.at(left).delay_s if left < float("inf") else 0.0
                took = left - now + 2 * delay + one.server_s
            if took < least:
                best, least = one.point, took
        return Choice(best)


def traces(seconds: float, seed: int = 7) -> dict[str, str]:
    """Each a text as `narrows run --link trace:FILE` takes it."""
    unit = seconds / 20
    fade = ["20mbit", "5mbit", "1mbit", "200kbit", "0bit", "0bit", "0bit", "200kbit", "1mbit", "5mbit", "20mbit"]
    stairs = ["16mbit", "8mbit", "4mbit", "2mbit", "1mbit", "500kbit", "1mbit", "4mbit", "16mbit"]
    draw, level, cellular = random.Random(seed), 0.0, []
    for step in range(int(seconds / 0.5)):
        # A first-order autoregressive walk of the rate's logarithm about 3 Mbit/s, a new value twice a second.
        level = 0.85 * level + draw.gauss(0, 0.55)
        rate, delay = 3e6 * np.exp(level), 0.025 * np.exp(draw.gauss(0, 0.2))
        cellular.append(f"{step * 0.5} {max(1, round(rate / 1000))}kbit {round(delay * 1000)}ms~4ms")
    return {
        "fade": "\n".join(f"{i * 1.8 * unit} {rate} 10ms" for i, rate in enumerate(fade)),
        "staircase": "\n".join(f"{i * 2.2 * unit} {rate} 15ms" for i, rate in enumerate(stairs)),
        "cellular": "\n".join(cellular),
    }


# The device's process.


def policy_of(name: str, schedule: Schedule, began: float) -> Policy:
    if name == "oracle":
        return Oracle(schedule, began)
    if name in ("local", "offload"):
        return Always(LOCAL if name == "local" else OFFLOAD)
    if name == "neurosurgeon":
        return Neurosurgeon()
    return Adaptive("latency", floor=FLOOR) if name == "controller" else Static()


def slow_down(graph: type[Head] | type[LocalModel], took_s: float) -> None:
    """Let every run of a graph take so long: a steady slow board, and not this machine's noise made larger."""
    quick = graph.run

    def run(self: Any, *arguments: Any) -> Any:
        began = time.monotonic()
        result = quick(self, *arguments)
        time.sleep(max(0.0, took_s - (time.monotonic() - began)))
        return result

    graph.run = run  # type: ignore[assignment, method-assign]


def quickest_s(work: Callable[[], object]) -> float:
    """The shortest of many runs."""
    took = []
    for _ in range(50):
        began = time.monotonic()
        work()
        took.append(time.monotonic() - began)
    return min(took)


def slow_board(bundle: Bundle, picture: np.ndarray) -> dict[str, float]:
    """How long the graphs take on the device, in seconds."""
    one = SessionOptions(threads=1)
    head, local = Head(bundle, bundle.manifest.cuts[0], one), LocalModel(bundle, one)
    share = quickest_s(lambda: head.run([picture])) / quickest_s(lambda: local.run([picture]))
    return {"head_s": share * WHOLE_S, "local_s": WHOLE_S}


def as_device(job: dict[str, Any]) -> None:
    """One run: a line of JSON for every frame."""
    slow_down(Head, job["head_s"])
    slow_down(LocalModel, job["local_s"])
    policy = policy_of(job["policy"], read_trace(Path(job["trace"])), job["began"])
    options = DeviceOptions(
        policy=policy,
        deadline_ms=DEADLINE_MS,
        wanted=Wanted(Form.TOP),
        session=SessionOptions(threads=1),
        quality=job["quality"],
        offload=OFFLOAD.quality,
    )
    pictures = list(np.load(job["pictures"]))
    with Device(job["bundle"], job["address"], options) as device:
        device.warm_up(pictures[:WARM_UP])
        print("ready", flush=True)
        began = float(sys.stdin.readline())
        if isinstance(policy, Oracle):
            policy.began = began
        for n in range(int(job["seconds"] / PERIOD_S)):
            time.sleep(max(0.0, began + n * PERIOD_S - time.monotonic()))
            print(json.dumps(device.infer(pictures[n % len(pictures)]).to_json()), flush=True)


# The bench.


def run(job: dict[str, Any], address: str) -> list[dict[str, Any]]:
    """What one policy made of one trace."""
    with LinkEmulator(address, read_trace(Path(job["trace"])), job["seed"]) as link:
        job = {**job, "address": link.address, "began": 0.0}
        command = [sys.executable, str(Path(__file__).resolve()), "--as-device", json.dumps(job)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdin is not None
        with process:
            assert process.stdout.readline() == "ready\n"
            link.restart()
            process.stdin.write(f"{time.monotonic()}\n")
            process.stdin.flush()
            return [json.loads(line) for line in process.stdout]


def row(trace: str, name: str, said: list[dict[str, Any]]) -> dict[str, Any]:
    total = np.array([line["ms"]["total"] for line in said])
    modes = [line["point"]["mode"] for line in said]
    return {
        "trace": trace,
        "policy": name,
        "frames": len(said),
        "ended": sum(line["outcome"] == "ok" for line in said) / len(said),
        "in time": float(np.mean(total <= DEADLINE_MS)),
        "mean ms": float(total.mean()),
        "p95 ms": float(np.percentile(total, 95)),
        "split": modes.count("split") / len(modes),
        "wire bytes": float(np.mean([line["wire_bytes"] for line in said])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="of each trace")
    parser.add_argument("--seed", type=int, default=7, help="of the noisy trace, and of the emulated link's jitter")
    parser.add_argument("--only", choices=list(traces(1)), action="append", help="this trace alone")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--as-device", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_device:
        as_device(json.loads(options.as_device))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["NARROWS_CACHE"] = name
        bundle = prepare(folder)
        best = len(bundle.manifest.cuts[0].qualities) - 1
        job = {
            "bundle": str(bundle.root),
            "pictures": str(folder / "pictures.npy"),
            "quality": best,
            "seed": options.seed,
            **slow_board(bundle, np.load(folder / "pictures.npy")[0]),
        }
        rows, made = [], traces(options.seconds, options.seed)
        made = {name: text for name, text in made.items() if name in (options.only or made)}
        with harness.server(folder / "bundles") as address:
            for trace, text in made.items():
                (folder / f"{trace}.txt").write_text(text)
                ways = dict.fromkeys(("controller", "oracle", "neurosurgeon", "local", "offload"), best)
                ways |= {f"static q{q}": q for q in accurate(bundle)}
                for way, quality in ways.items():
                    one = {**job, "policy": way, "quality": quality, "seconds": options.seconds}
                    rows.append(row(trace, way, run({**one, "trace": str(folder / f"{trace}.txt")}, address)))
                    print(rows[-1], file=sys.stderr, flush=True)  # minutes pass
    harness.report("Operating points over three links", rows, as_json=options.json, note=verdict(rows))


def prepare(folder: Path) -> Bundle:
    from narrows.partitioner import Quantiser, cut_model

    SUBJECT.write_pictures(folder / "calibration", 48)
    bundle = cut_model(
        str(SUBJECT.path),
        CUT,
        calibrate=folder / "calibration",
        preprocess=SUBJECT.preprocess,
        output=folder / "bundles" / SUBJECT.name,
        quantiser=Quantiser(),
        whole=tuple(Half),
    )
    from narrows.device import open_source

    SUBJECT.write_pictures(folder / "pictures", 32)
    np.save(folder / "pictures.npy", np.stack([i.arrays[0] for i in open_source(folder / "pictures", bundle.manifest)]))
    return bundle


def accurate(bundle: Bundle) -> list[int]:
    """The least and the greatest quality above the floor."""
    good = [q for q, quality in enumerate(bundle.manifest.cuts[0].qualities) if (quality.agreement or 0) >= FLOOR]
    return sorted({good[0], good[-1]})


def verdict(rows: list[dict[str, Any]]) -> str:
    words = []
    for trace in dict.fromkeys(r["trace"] for r in rows):
        means = {r["policy"]: r["mean ms"] for r in rows if r["trace"] == trace}
        static = min(v for k, v in means.items() if k in ("local", "offload") or k.startswith("static"))
        own = means["controller"]
        words.append(f"{trace}: {own / means['oracle']:.2f}× the oracle, {own / static:.2f}× the best static")
    return "; ".join(words)


if __name__ == "__main__":
    main()
