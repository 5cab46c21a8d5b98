"""A privacy meter: how much of a picture comes back out of what crosses the link.

For a cut and some of its qualities an attacker's network is trained on pictures with their symbols
(`inversion.py`), and tried on others; beside it stand the mean picture, and the JPEG that takes as many bytes.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..runtime import codec
from ..runtime.audit import SCHEMA, Audit, Examples, Leak
from ..runtime.bundle import Bundle
from ..runtime.errors import SourceError, UsageError
from ..runtime.frame import FrameCodec
from ..runtime.halves import Head
from ..runtime.manifest import Cut
from ..runtime.session import SessionOptions
from .calibrate import Progress
from .data import Calibration, read_frames
from .inversion import Steps, Training, as_planes, train_attacker
from .similarity import psnr, ssim

LEAST_PICTURES = 40
_HELD_OUT = 0.2
_MOST_HELD_OUT = 64
_JPEG_QUALITIES = range(1, 96)
_SMALLER = 0.7
"""By which a picture shrinks until its JPEG is small enough."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """What is audited, and how hard."""

    cut: str | None = None
    """The bundle's first where none is given."""
    qualities: tuple[int, ...] = ()
    """The smallest, the middle and the best where none is given."""
    pictures: int = 400
    """Read, at most; a fifth of them (64 at most) is held out."""
    size: int = 64
    """Longer side, in pixels, at which pictures are made and compared; never more than the head takes."""
    steps: int = 400
    """Of each network's training."""
    seed: int = 0
    """Of the networks, their training and the choice of what is held out."""
    minutes: float | None = None
    """Time for all training; networks are then trained for fewer steps where it is short."""
    examples: int = 6
    """Held-out pictures that are shown."""
    threads: int = 0
    """Of head and training; 0 for one a core."""

    def __post_init__(self) -> None:
        if self.pictures < LEAST_PICTURES:
            raise UsageError(f"an audit takes {LEAST_PICTURES} pictures at least, not {self.pictures}")
        if self.size < 16 or self.steps < 1 or self.examples < 0 or self.threads < 0:
            raise UsageError("an audit takes pictures of 16 pixels, one step of training, and no negative numbers")
        if self.minutes is not None and self.minutes <= 0:
            raise UsageError("the time for an audit is positive")


def audit(bundle: Bundle, data: Calibration, options: AuditOptions, progress: Progress) -> Audit:
    """Try to get pictures back.

    Args:
        bundle: its device half at least; its head takes pictures.
        data: pictures, as `narrows cut --calibrate` takes them.
        options: what, and how hard.
        progress: told of every stage.

    Raises:
        QualityError: no such cut or quality.
        SourceError: too few pictures.
        UsageError: the model takes no pictures.
    """
    index, cut, qualities = _what(bundle, options)
    if options.threads:
        torch.set_num_threads(options.threads)
    pictures = _pictures(bundle, data, options)
    trial = _Trial(pictures, options)
    head, coder = Head(bundle, cut, SessionOptions(threads=options.threads)), FrameCodec(bundle, index)
    budget, label = _Budget(options.minutes, len(qualities)), codec.labels()[0]
    for quality in qualities:
        symbols = []
        for done, picture in enumerate(pictures, 1):
            symbols.append(head.run([picture], quality).symbols)
            progress(f"quality {quality}: features", done, len(pictures))
        payload = float(np.mean([coder.pack(i, symbols[i], quality, label).payload_bytes for i in trial.held]))
        training = Training(options.steps, options.seed, budget.share_s())
        name = f"quality {quality} ({cut.qualities[quality].bits:.3g} bits)"
        planes = as_planes(symbols, cut.crossing)
        trial.attack(name, planes, payload, training, partial(progress, f"quality {quality}: attacker"))
        trial.jpeg(name, payload)
    return Audit(
        schema=SCHEMA,
        model=bundle.manifest.name,
        bundle=bundle.digest,
        cut=cut.name,
        trained_on=len(trial.learnt),
        tried_on=len(trial.held),
        size=trial.size,
        seed=options.seed,
        rows=tuple(trial.rows),
        examples=tuple(trial.examples),
        cut_short=any(row.steps is not None and row.steps < options.steps for row in trial.rows),
    )


def _what(bundle: Bundle, options: AuditOptions) -> tuple[int, Cut, tuple[int, ...]]:
    """The cut, its number, and the qualities that are tried.

    Raises:
        QualityError: no such cut or quality.
        UsageError: the model takes no pictures.
    """
    manifest = bundle.manifest
    if manifest.preprocess is None or len(manifest.inputs) != 1:
        raise UsageError(f"{manifest.name!r} does not take one picture; what its features give away is not audited")
    index, cut = manifest.cut(options.cut)
    last = len(cut.qualities) - 1
    qualities = options.qualities or tuple(sorted({0, last // 2, last}))
    for quality in qualities:
        cut.check_quality(quality)
    return index, cut, qualities


def _pictures(bundle: Bundle, data: Calibration, options: AuditOptions) -> list[Pixels]:
    """Pictures as the head gets them.

    Raises:
        SourceError: too few.
    """
    frames = read_frames(data, bundle.manifest.inputs, bundle.manifest.preprocess, options.pictures)
    if len(frames) < LEAST_PICTURES:
        raise SourceError(f"an audit takes {LEAST_PICTURES} pictures at least; {len(frames)} are there")
    return [frame[0] for frame in frames]


class _Budget:
    """Time, shared out evenly among what is still to be trained."""

    def __init__(self, minutes: float | None, parts: int) -> None:
        self._ends = None if minutes is None else time.monotonic() + 60 * minutes
        self._left = parts

    def share_s(self) -> float | None:
        """Seconds for the next one; None without a limit."""
        self._left -= 1
        if self._ends is None:
            return None
        return max(0.01, (self._ends - time.monotonic()) / (self._left + 1))


class _Trial:
    """The held-out pictures, and what came back of them."""

    def __init__(self, pictures: Sequence[Pixels], options: AuditOptions) -> None:
        self._options = options
        self.size = _size(pictures[0], options.size)
        """Height and width at which pictures are compared."""
        self.learnt, self.held = _parts(len(pictures), options.seed)
        self._whole = [pictures[i] for i in self.held]
        self._truth = torch.stack([_scaled(picture, self.size) for picture in pictures])
        self.rows: list[Leak] = []
        self.examples = [self._shown("the picture", self._truth[self.held])]
        mean = self._truth[self.learnt].mean(0, keepdim=True)
        self.baseline("the mean picture", mean.expand(len(self.held), -1, -1, -1))

    def baseline(self, what: str, made: Tensor, size_bytes: float | None = None) -> None:
        """Judge what needed no training."""
        self._judge(what, made, size_bytes, None)

    def attack(self, what: str, planes: Tensor, payload: float, training: Training, progress: Steps) -> None:
        """Train a network on some pictures, try it on the others."""
        attacker = train_attacker(planes[self.learnt], self._truth[self.learnt], training, progress)
        self._judge(what, attacker.reconstruct(planes[self.held]), payload, attacker.steps)

    def jpeg(self, beside: str, payload: float) -> None:
        """What as many bytes show of a picture, spent on the picture; the smallest JPEG where none is so small."""
        coded = [jpeg_within(picture, payload) for picture in self._whole]
        made = torch.stack([_scaled(decoded, self.size) for decoded, _ in coded])
        size_bytes = float(np.mean([size for _, size in coded]))
        self.baseline(f"{'a' if size_bytes <= payload else 'the smallest'} JPEG, beside {beside}", made, size_bytes)

    def _judge(self, what: str, made: Tensor, size_bytes: float | None, steps: int | None) -> None:
        truth = self._truth[self.held]
        leak = Leak(what, size_bytes, float(psnr(made, truth).mean()), float(ssim(made, truth).mean()), steps)
        self.rows.append(leak)
        self.examples.append(self._shown(what, made))

    def _shown(self, what: str, made: Tensor) -> Examples:
        return Examples(what, tuple(map(_data_url, made[: self._options.examples])))


def jpeg_within(picture: Pixels, most_bytes: float) -> tuple[Pixels, int]:
    """The best JPEG of a picture that takes no more than so many bytes, shrunk where quality alone does not do.

    Args:
        picture: `uint8 [H, W, 3]`.
        most_bytes: of the file. No JPEG takes less than some 300 bytes; the smallest there is then stands in.

    Returns:
        The picture as it comes out of the file, `uint8 [h, w, 3]`, and the file's bytes.
    """
    image = Image.fromarray(picture)
    while len(_jpeg(image, _JPEG_QUALITIES[0])) > most_bytes and min(image.size) > 8:
        image = image.resize((max(8, round(image.width * _SMALLER)), max(8, round(image.height * _SMALLER))))
    low, high = 0, len(_JPEG_QUALITIES)
    while high - low > 1:
        middle = (low + high) // 2
        fits = len(_jpeg(image, _JPEG_QUALITIES[middle])) <= most_bytes
        low, high = (middle, high) if fits else (low, middle)
    coded = _jpeg(image, _JPEG_QUALITIES[low])
    return np.asarray(Image.open(io.BytesIO(coded)).convert("RGB")), len(coded)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()


def _parts(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Which pictures are learnt from, and which are held out."""
    order = np.random.default_rng(seed).permutation(count).tolist()
    held = min(_MOST_HELD_OUT, round(_HELD_OUT * count))
    return sorted(order[held:]), order[:held]


def _size(picture: Pixels, longest: int) -> tuple[int, int]:
    """Height and width of a picture whose longer side is `longest`, or its own where that is less."""
    scale = min(1.0, longest / max(picture.shape[:2]))
    return max(1, round(picture.shape[0] * scale)), max(1, round(picture.shape[1] * scale))


def _scaled(picture: Pixels, size: tuple[int, int]) -> Tensor:
    """`float32 [3, H, W]`, 0…1."""
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    smooth = functional.interpolate(tensor, size, mode="bilinear", antialias=True, align_corners=False)
    return smooth[0].clamp(0, 1)


def _data_url(made: Tensor) -> str:
    pixels = (made * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
