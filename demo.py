"""The main job on an embedded default: `narrows demo`.

Trains a classifier of handwritten digits, cuts it at its best cut, trains a bottleneck into it besides, serves both
tails from a process of its own, streams the held-out digits through a device process at every quality, and sets what
came of it beside the ways without a cut.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .runtime.bundle import Bundle, cache_folder
from .runtime.link import wire_bytes
from .runtime.session import open_session
from .server_process import server_process

Progress = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps in all)."""

_CALIBRATION_FRAMES = 128
_JPEG_QUALITIES = (90, 50)
_CUT, _TRAINED = "digits", "digits-trained"
"""Names of the two bundles."""
_TARGET_BYTES = (15.0, 25.0, 50.0)
"""Payloads that the bottleneck is trained for."""
_STAGES = ("source", "head", "encode", "link", "queue", "decode", "tail", "total")


@dataclass(frozen=True, slots=True)
class Way:
    """One way to get the answer, over all held-out digits."""

    name: str
    accuracy: float
    """Share of right answers, 0…1."""
    wire_bytes: float
    """Mean bytes a frame sends."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Durations of one stage of a frame's way, one frame at a time at the best quality, in milliseconds."""

    name: str
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True, slots=True)
class Report:
    """What the demo found."""

    cut: str
    symbols: tuple[int, ...]
    """Shape of the tensor that crosses."""
    frames: int
    ways: tuple[Way, ...]
    stages: tuple[Stage, ...]
    bundle: Path


def run(*, fresh: bool, progress: Progress) -> Report:
    """Do it all; what was trained and cut before is used again.

    Args:
        fresh: train and cut again.
        progress: told of every step.

    Raises:
        MissingDependencyError: without torch, onnx or scikit-learn.
        ServerUnavailableError: the server process did not come up.
    """
    folder = cache_folder() / "demo"
    if fresh or not (folder / "bundles" / _TRAINED).exists():
        _prepare_aside(folder, progress)
    bundle, trained = (Bundle.open(folder / "bundles" / name) for name in (_CUT, _TRAINED))
    truth: dict[str, int] = json.loads((folder / "truth.json").read_text())
    ways = list(_without_a_cut(folder, bundle, truth))
    rungs = [(b, q) for b in (bundle, trained) for q in reversed(range(len(b.manifest.cuts[0].qualities)))]
    with server_process(folder / "bundles") as server:
        for done, (one, quality) in enumerate(rungs):
            answers = _stream(one.root, server.address, folder / "digits", "--quality", quality)
            right = np.mean([answer["top"][0]["index"] == truth[Path(answer["source"]).name] for answer in answers])
            sent = np.mean([answer["wire_bytes"] for answer in answers])
            progress("streaming", done + 1, len(rungs))
            ways.append(Way(_named(one, quality), float(right), float(sent)))
        progress("one at a time", 0, 1)
        alone = _stream(bundle.root, server.address, folder / "digits", "--window", 1)
        progress("one at a time", 1, 1)
    cut = bundle.manifest.cuts[0]
    return Report(
        cut=cut.name,
        symbols=tuple(d or 0 for d in cut.crossing[0].symbols.shape),
        frames=len(truth),
        ways=tuple(ways),
        stages=tuple(_stages(alone)),
        bundle=bundle.root,
    )


def _named(bundle: Bundle, quality: int) -> str:
    if bundle.manifest.name == _TRAINED:
        return f"trained bottleneck, quality {quality}"
    return f"split, quality {quality} ({bundle.manifest.cuts[0].qualities[quality].bits:.3g} bits)"


def _prepare_aside(folder: Path, progress: Progress) -> None:
    """Prepare beside the folder and swap, so that an interruption leaves what was there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".demo.") as aside:
        made = Path(aside) / "demo"
        _prepare(made, progress)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)


def _prepare(folder: Path, progress: Progress) -> None:
    """Train, export, cut, and write the held-out digits as pictures."""
    from PIL import Image

    from .partitioner import cut_model, digits, list_cuts

    folder.mkdir(parents=True, exist_ok=True)
    data = digits.load_digits()
    model = digits.train(data, progress=lambda done, total: progress("training", done, total))
    path = folder / "digits.onnx"
    digits.export(model, str(path))
    pictures = folder / "digits"
    pictures.mkdir(exist_ok=True)
    truth = {}
    for i, (picture, label) in enumerate(zip(data.test_x, data.test_y, strict=True)):
        truth[f"{i:03d}.png"] = int(label)
        Image.fromarray(picture).save(pictures / f"{i:03d}.png", optimize=True)
    (folder / "truth.json").write_text(json.dumps(truth))
    calibration = folder / "calibration"
    calibration.mkdir(exist_ok=True)
    for i, picture in enumerate(data.train_x[:_CALIBRATION_FRAMES]):
        Image.fromarray(picture).save(calibration / f"{i:03d}.png")
    cut_model(
        str(path),
        list_cuts(str(path))[0].name,
        calibrate=calibration,
        preprocess=f"size={digits.SIZE},mean={digits.MEAN},std={digits.STD}",
        output=folder / "bundles" / _CUT,
        progress=progress,
    )
    _train_bottleneck(model, folder, progress)


def _train_bottleneck(model: Any, folder: Path, progress: Progress) -> None:
    """Train an encoder and a decoder in place of the classifier's first layers: one pair for three rates."""
    from .partitioner import digits
    from .partitioner.training import Teacher, TrainOptions, export, read_data, train

    teacher = Teacher.load(model, preprocess=f"size={digits.SIZE},mean={digits.MEAN},std={digits.STD}")
    data = read_data("digits", teacher.preprocess)
    options = TrainOptions(
        method="ladder",
        target_bytes=_TARGET_BYTES,
        channels=6,
        epochs=(8, 24),
        batch=64,
        rates=(6e-3, 3e-3),
        activation="relu",
        decoder_blocks=1,
        threads=1,
    )
    with tempfile.TemporaryDirectory(dir=folder, prefix=".run.") as run:
        trained = train(teacher, data, options, output=run, progress=progress)
        export(trained, data, output=folder / "bundles" / _TRAINED, name=_TRAINED, progress=progress)


def _without_a_cut(folder: Path, bundle: Bundle, truth: dict[str, int]) -> Iterator[Way]:
    """The same network whole, fed with what would have to be sent to it."""
    from PIL import Image

    from .partitioner import digits

    session = open_session(folder / "digits.onnx")
    pictures = [np.asarray(Image.open(folder / "digits" / name)) for name in truth]
    labels = np.array(list(truth.values()))

    def accuracy(seen: list[np.ndarray[Any, Any]]) -> float:
        x = ((np.stack(seen).astype(np.float32) - digits.MEAN) / digits.STD).transpose(0, 3, 1, 2)
        return float(np.mean(session.run(None, {"image": x})[0].argmax(1) == labels))

    whole = accuracy(pictures)
    png = np.mean([wire_bytes((folder / "digits" / name).stat().st_size) for name in truth])
    yield Way("whole model, PNG sent", whole, float(png))
    for quality in _JPEG_QUALITIES:
        coded = [_jpeg(picture, quality) for picture in pictures]
        decoded = [np.asarray(Image.open(io.BytesIO(data))) for data in coded]
        yield Way(
            f"whole model, JPEG {quality} sent", accuracy(decoded), float(np.mean([wire_bytes(len(c)) for c in coded]))
        )
    elements = np.prod([d or 0 for d in bundle.manifest.cuts[0].crossing[0].symbols.shape])
    yield Way("split, features as float32", whole, float(wire_bytes(int(elements) * 4)))


def _jpeg(picture: np.ndarray[Any, Any], quality: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def _stream(bundle: Path, address: str, pictures: Path, *options: object) -> list[dict[str, Any]]:
    """What a device process says of every picture."""
    command = [sys.executable, "-m", "narrows", "run", bundle, "--server", address, "--input", pictures, "--json"]
    done = subprocess.run([*map(str, (*command, *options))], stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def _stages(outcomes: list[dict[str, Any]]) -> Iterator[Stage]:
    for name in _STAGES:
        values = [outcome["ms"][name] for outcome in outcomes if name in outcome["ms"]]
        if values:
            yield Stage(name, float(np.percentile(values, 50)), float(np.percentile(values, 95)))
