"""A device that is as slow as one likes, in a process of its own, and what the planner's benchmarks do with it.

The graphs and the coder of the process take so many times as long as their quickest runs here; it sleeps the rest. So
it is a steady slow board whatever else this machine does. Rounds in which other processes took much of the processors
are measured again, and for each picture the round is kept that others disturbed least: judged by the processors' time
(/proc), never by what was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from narrows.device import Device, DeviceOptions, open_source
from narrows.device import stages as device_stages
from narrows.device.emulator import LinkEmulator
from narrows.device.local import LocalModel
from narrows.device.offload import picture_frame
from narrows.device.policies import Choice, View
from narrows.device.schedule import parse_link
from narrows.planner.link import Link
from narrows.planner.profile import Profile, read, write
from narrows.profiling import serving as profiling_serving
from narrows.profiling import whole as profiling_whole
from narrows.profiling.bundle import open_bundle, profile_bundles
from narrows.profiling.options import ProfileOptions
from narrows.runtime.answer import Form, Wanted
from narrows.runtime.bundle import Bundle
from narrows.runtime.frame import FrameCodec
from narrows.runtime.halves import Head
from narrows.runtime.manifest import Half
from narrows.runtime.point import LOCAL, Point

WARM_UP = 2
PICTURES = 12
PING_RTT_MS = 10
DISTURBED = 0.15
"""Processors that others may take during a round, or a profile, before it is measured again."""
REPEATS = 3
"""Times that a picture's round, or a profile, is measured, at most."""


@dataclass(frozen=True)
class Model:
    """A bundle and pictures for it."""

    name: str
    bundle: Path
    images: Path


class Others:
    """Watches how many processors were taken by processes other than those named."""

    def __init__(self, own: Sequence[int]) -> None:
        self._own = own
        self._began, self._busy, self._mine = time.monotonic(), _busy_s(), self._own_s()

    def processors(self) -> float:
        """Since the beginning: processor seconds of others per second."""
        theirs_s = (_busy_s() - self._busy) - (self._own_s() - self._mine)
        return max(0.0, theirs_s / max(1e-3, time.monotonic() - self._began))

    def _own_s(self) -> float:
        waited = resource.getrusage(resource.RUSAGE_CHILDREN)
        return waited.ru_utime + waited.ru_stime + sum(_process_s(pid) for pid in self._own)


def _busy_s() -> float:
    """Processor seconds that all processes have had, and those that the host took."""
    user, nice, system, _idle, _wait, irq, soft, steal, *_ = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def _process_s(pid: int) -> float:
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


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
            encodings=tuple(Point(**point) for point in job["encodings"]),
            memory=False,
        )
        made = profile_bundles([open_bundle(job["bundle"], on_device=True)], options)
        sys.stdout.buffer.write(write(made) if job["task"] == "profile" else json.dumps(pace).encode())
        return
    print(json.dumps(measure(job)))


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Every point in turns on the same pictures, each picture's round again where others disturbed it."""
    pictures = [np.asarray(array) for array in np.load(job["pictures"])]
    points = [Point(**point) for point in job["points"]]
    policy = Told()
    bundle = Bundle.open(job["bundle"], Half.DEVICE)
    spare = Point("offload", quality=75)
    devices = {
        offload: Device(bundle, job["address"], DeviceOptions(policy=policy, offload=offload, wanted=Wanted(Form.TOP)))
        for offload in dict.fromkeys(point if point.mode == "offload" else spare for point in points)
    }

    def take(picture: Any) -> list[dict[str, float]]:
        taken = []
        for point in points:
            policy.point = point
            outcome = devices[point if point.mode == "offload" else spare].infer(picture)
            if outcome.error is not None:
                raise outcome.error
            taken.append(dict(outcome.ms))
        return taken

    kept: dict[int, tuple[float, list[dict[str, float]]]] = {}
    for device in devices.values():
        device.__enter__()
    try:
        for picture in pictures[:WARM_UP]:
            take(picture)
        for _ in range(job["repeats"]):
            for number in range(job["rounds"]):
                if number in kept and kept[number][0] <= DISTURBED:
                    continue
                others = Others([*job["own"], os.getpid()])
                taken = take(pictures[number % len(pictures)])
                if number not in kept or others.processors() < kept[number][0]:
                    kept[number] = others.processors(), taken
    finally:
        for device in devices.values():
            device.close()
    found = [{"point": asdict(point), "ms": [taken[i] for _, taken in kept.values()]} for i, point in enumerate(points)]
    return {"points": found, "others": max(share for share, _ in kept.values())}


# The bench.


def device_process(job: Mapping[str, Any]) -> bytes:
    command = [sys.executable, str(Path(__file__).resolve()), json.dumps(job)]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout


def profiled(model: Model, job: Mapping[str, Any], folder: Path) -> Profile:
    """The slowed device's profile against the server: the one that others disturbed least, of three at most."""
    best: tuple[float, Profile] | None = None
    for _ in range(job["repeats"]):
        path = folder / f"{model.name}-{job['factor']:g}.json"
        others = Others(job["own"])
        path.write_bytes(device_process({**job, "task": "profile"}))
        share = others.processors()
        if best is None or share < best[0]:
            best = share, read(path)
        if share <= DISTURBED:
            break
    assert best is not None
    share, profile = best
    if share > DISTURBED:
        profile = replace(profile, notes=(*profile.notes, f"others took {share:.1f} processors while it was profiled"))
    return profile


def emulator_lateness_ms() -> float:
    """What a round trip over an emulated link takes beyond its delay: the least disturbed of three tries."""
    return min(_lateness_ms() for _ in range(REPEATS))


def _lateness_ms() -> float:
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


def measured(
    job: Mapping[str, Any], link: str, points: Sequence[Point]
) -> tuple[dict[Point, list[dict[str, float]]], float]:
    """What every stage of every round took, in milliseconds, and the processors that others took in the worst round."""
    with LinkEmulator(job["address"], parse_link(link)) as emulated:
        own = {"task": "measure", "points": [asdict(point) for point in points], "address": emulated.address}
        said = json.loads(device_process({**job, **own}))
    return {Point(**one["point"]): one["ms"] for one in said["points"]}, said["others"]


def link_of(text: str) -> Link:
    state = parse_link(text).at(0.0)
    return Link(state.rate_bps, 2 * state.delay_s)


def median_ms(taken: Sequence[Mapping[str, float]], stage: str = "total") -> float:
    return statistics.median(one.get(stage, 0.0) for one in taken)


def save_pictures(model: Model, path: Path) -> None:
    """Of the model's pictures those at evenly spread ranks of their size as JPEG: so few stand for all of them."""
    bundle = Bundle.open(model.bundle, Half.DEVICE)
    found = [item.arrays[0] for item in open_source(model.images, bundle.manifest) if item.error is None]
    found.sort(key=lambda picture: picture_frame(0, picture, 75).payload_bytes)
    ranks = (np.arange(PICTURES) + 0.5) / PICTURES * len(found)
    np.save(path, np.stack([found[int(rank)] for rank in ranks]))


def add_options(parser: argparse.ArgumentParser) -> None:
    """What the benchmarks that use this have in common."""
    parser.add_argument("--rounds", type=int, default=PICTURES, help="frames of each point over each link")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of what other processes disturbed, at most")


def bench_job(
    model: Model, folder: Path, options: argparse.Namespace, encodings: Sequence[Point], frames: int
) -> dict[str, Any]:
    """What the device's process is told of a model, its pace included."""
    pictures = folder / f"{model.name}.npy"
    save_pictures(model, pictures)
    job: dict[str, Any] = {"bundle": str(model.bundle), "images": str(model.images), "frames": frames}
    job |= {
        "rounds": options.rounds,
        "repeats": options.repeats,
        "pictures": str(pictures),
        "factor": 1.0,
        "own": [os.getpid()],
    }
    job["encodings"] = [asdict(point) for point in encodings]
    job["pace"] = json.loads(device_process({**job, "frames": PICTURES, "task": "pace"}))
    return job


def with_lateness(profile: Profile, late_ms: float) -> Profile:
    """The profile with the emulator's own lateness counted to the transport."""
    assert profile.transport is not None
    transport = replace(profile.transport, fixed_ms=profile.transport.fixed_ms + max(0.0, late_ms))
    return replace(profile, transport=transport)


if __name__ == "__main__":
    as_device(json.loads(sys.argv[1]))
