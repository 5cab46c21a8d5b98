"""The baselines of `rate_accuracy.py`: pictures sent to the whole model, and cuts that nothing was trained for."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zstandard
from narrows.partitioner import Quantiser, cut_model
from narrows.partitioner.training.data import Part
from narrows.runtime.bundle import Bundle
from narrows.runtime.frame import CodedTensor, Frame, Mode
from narrows.runtime.halves import Head, Tail
from narrows.runtime.link import wire_bytes
from narrows.runtime.manifest import Preprocess
from narrows.runtime.wire import frame_to_wire
from PIL import Image
from teachers import MEAN, STD, Pack, decoded

Answer = Callable[[np.ndarray], np.ndarray]
"""Pictures `uint8 [B, height, width, 3]` to scores `[B, classes]`: the whole model."""

QUALITIES = (10, 20, 30, 40, 50, 65, 80, 90)
NAIVE_LEVELS = (4, 8, 16, 32, 64, 128, 256)
_CALIBRATION = 96


@dataclass(frozen=True)
class Point:
    """What one setting of one method costs and gives."""

    method: str
    setting: str
    payload_bytes: float
    """Mean of a frame: the file, or the coded symbols."""
    wire_bytes: float
    """Mean of a frame as gRPC sends it: checksum, ids and framing counted."""
    accuracy: float
    seed: int = 0
    subject: str = ""


def on_the_wire(payload: bytes, mode: Mode) -> int:
    """Bytes of a frame with this payload in the TCP stream."""
    frame = Frame(id=1000, cut=0, quality=1, coder=1, checksum=0x89ABCDEF, tensors=(CodedTensor(payload),), mode=mode)
    return wire_bytes(frame_to_wire(frame).ByteSize())


def score(answer: Answer, pictures: Sequence[np.ndarray], labels: np.ndarray) -> float:
    """Share of right answers."""
    best = [answer(np.stack(pictures[i : i + 64])).argmax(1) for i in range(0, len(pictures), 64)]
    return float(np.mean(np.concatenate(best) == labels))


def _point(method: str, setting: str, files: Sequence[bytes], accuracy: float) -> Point:
    wire = float(np.mean([on_the_wire(file, Mode.OFFLOAD) for file in files]))
    return Point(method, setting, float(np.mean([len(file) for file in files])), wire, accuracy)


def original(pack: Pack, answer: Answer) -> Point:
    """The files as they came."""
    return _point("original JPEG", "", pack.files, score(answer, list(pack.part.pictures), pack.part.labels))


def reencoded(
    pack: Pack, answer: Answer, kind: str, sides: Sequence[int], done: Collection[tuple[str, str]] = ()
) -> Iterator[Point]:
    """JPEG or WebP over a ladder of qualities and sizes; the server brings them back to the model's size.

    Both encoders at their most thrifty: optimised Huffman tables and 4:2:0, and WebP's method 6.
    """
    height, width = pack.part.pictures.shape[1:3]
    more = {"optimize": True, "subsampling": "4:2:0"} if kind == "JPEG" else {"method": 6}
    for side in sides:
        left = [q for q in QUALITIES if (kind, f"{side}×{side} q{q}") not in done]
        if not left:
            continue
        small = [Image.fromarray(p).resize((side, side), Image.Resampling.LANCZOS) for p in pack.part.pictures]
        for quality in left:
            files = []
            for picture in small:
                stream = io.BytesIO()
                picture.save(stream, kind, quality=quality, **more)
                files.append(stream.getvalue())
            back = [_resized(decoded(file), height, width) for file in files]
            yield _point(kind, f"{side}×{side} q{quality}", files, score(answer, back, pack.part.labels))


def _resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def naive(
    pack: Pack, calibration: Part, model: Path, cuts: Sequence[str], done: Collection[tuple[str, str]] = ()
) -> Iterator[Point]:
    """The network cut as it is, one step for the tensor, at 8 to 2 bits, and zstandard behind it."""
    height, width = pack.part.pictures.shape[1:3]
    preprocess = Preprocess(height, width, scale=1 / 255, mean=MEAN, std=STD)
    squeeze = zstandard.ZstdCompressor(level=3)
    chosen = np.linspace(0, len(calibration) - 1, _CALIBRATION).astype(int)
    for at in cuts:
        if ("naive cut", f"{at}, 2 bits") in done and ("naive cut", f"{at}, 8 bits") in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            bundle = cut_model(
                model,
                at,
                output=Path(folder) / "bundle",
                calibrate=calibration.pictures[chosen],
                preprocess=preprocess,
                quantiser=Quantiser(NAIVE_LEVELS, per_channel=False),
            )
            yield from _naive_at(bundle, at, pack.part, squeeze)


def _naive_at(bundle: Bundle, at: str, part: Part, squeeze: zstandard.ZstdCompressor) -> Iterator[Point]:
    cut = bundle.manifest.cuts[0]
    head, tail = Head(bundle, cut), Tail(bundle, cut)
    for quality, levels in enumerate(NAIVE_LEVELS):
        right, sizes, wire = 0, [], []
        for picture, label in zip(part.pictures, part.labels, strict=True):
            symbols = head.run([picture], quality).symbols
            payload = squeeze.compress(symbols[0].tobytes())
            sizes.append(len(payload))
            wire.append(on_the_wire(payload, Mode.SPLIT))
            (answer,) = tail.run([symbols], [quality])[0].values()
            right += int(answer.argmax() == label)
        setting = f"{at}, {levels.bit_length() - 1} bits"
        yield Point("naive cut", setting, float(np.mean(sizes)), float(np.mean(wire)), right / len(part))


def at_accuracy(points: Sequence[Point], wanted: float, key: str = "payload_bytes") -> float | None:
    """The fewest bytes that reach an accuracy, on the staircase of best points, log-linear between them.

    A point that another beats in both bytes and accuracy is no part of the curve. None where no point reaches it.
    """
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (getattr(p, key), -p.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    for i, point in enumerate(best):
        if point.accuracy >= wanted:
            if i == 0:
                return float(getattr(point, key))
            below = best[i - 1]
            share = (wanted - below.accuracy) / (point.accuracy - below.accuracy)
            low, high = np.log(getattr(below, key)), np.log(getattr(point, key))
            return float(np.exp(low + share * (high - low)))
    return None
