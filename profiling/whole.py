"""The uncut model, and the input compressed for it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..device.local import LocalModel
from ..device.offload import picture_frame
from ..planner.profile import Batch, Encoding, Whole
from ..runtime.answer import Array
from ..runtime.bundle import Bundle
from ..runtime.images import MAX_PIXELS, decode_image, fit
from ..runtime.point import Point
from .fidelity import Fidelity, sizes_of
from .frames import Frame
from .options import ProfileOptions, Progress
from .stopwatch import Stopwatch

_ENCODING_S = 0.15
"""Spent on an encoding beyond the first round, at most."""


@dataclass(slots=True)
class WholeMeter:
    """Runs frames through the whole model."""

    bundle: Bundle
    options: ProfileOptions
    frames: Sequence[Frame]
    model: LocalModel = field(init=False)
    references: list[dict[str, Array]] = field(default_factory=list)
    """Of each frame."""
    watch: Stopwatch = field(default_factory=Stopwatch)
    _truth: Fidelity = field(default_factory=Fidelity)

    def __post_init__(self) -> None:
        self.model = LocalModel(self.bundle, self.options.session)

    def measure(self) -> None:
        """Every frame, until the figure has settled."""
        for frame in self.frames:
            outputs = self.run(frame)
            self.references.append(outputs)
            self._truth.compare(self.bundle.manifest, outputs, outputs, frame.label)
        for _ in range(self.options.steady.least_runs):
            if not self.watch.unsettled(self.options.steady):
                break
            for frame in self.frames:
                self.run(frame)

    def run(self, frame: Frame) -> dict[str, Array]:
        """Its outputs for one frame, timed."""
        with self.watch("whole"):
            return self.model.run(frame.arrays)

    def once_ms(self) -> float:
        """What one run of the first frame takes now: to see whether the machine keeps its speed."""
        watch = Stopwatch()
        with watch("whole"):
            self.model.run(self.frames[0].arrays)
        timing = watch.timing("whole")
        return timing.ms if timing is not None else 0.0

    def profile(self, *, energy_j: float | None) -> Whole:
        """What was found."""
        manifest = self.bundle.manifest
        run = self.watch.timing("whole")
        names = (f"{manifest.local}", f"{manifest.local}.data")
        return Whole(
            run=run,
            batches=() if run is None else (Batch(1, run.ms),),
            file_bytes=sum(manifest.files[name].size for name in names if name in manifest.files),
            energy_j=energy_j,
            accuracy=self._truth.accuracy,
        )

    def encodings(self, tell: Progress, *, own: bool) -> Iterator[Encoding]:
        """Every way to compress the pictures; none for a model that takes no picture.

        Args:
            tell: told of every one.
            own: the frames are the user's pictures, so that agreement on them means something.
        """
        manifest, points = self.bundle.manifest, self.options.encodings
        if manifest.preprocess is None or len(manifest.inputs) != 1:
            return
        for done, point in enumerate(points):
            yield self._encoding(point, own=own)
            tell("compressing pictures", done + 1, len(points))

    def _encoding(self, point: Point, *, own: bool) -> Encoding:
        manifest, preprocess = self.bundle.manifest, self.bundle.manifest.preprocess
        assert preprocess is not None
        assert point.quality is not None
        watch, sizes, fidelity = Stopwatch(), [], Fidelity()
        picture_frame(0, self.frames[0].arrays[0], point.quality, point.format)  # the first one loads the library
        for frame, reference in zip(self.frames, self.references, strict=True):
            with watch("encode"):
                coded = picture_frame(0, frame.arrays[0], point.quality, point.format)
            sizes.append(coded.payload_bytes)
            with watch("decode"):
                seen = fit(decode_image(coded.tensors[0].payload, MAX_PIXELS), preprocess)
            fidelity.compare(manifest, self.model.run((seen,)), reference, frame.label)
        until = time.perf_counter() + _ENCODING_S
        while watch.unsettled(self.options.steady) and time.perf_counter() < until:
            for frame in self.frames:
                with watch("encode"):
                    coded = picture_frame(0, frame.arrays[0], point.quality, point.format)
                with watch("decode"):
                    fit(decode_image(coded.tensors[0].payload, MAX_PIXELS), preprocess)
        return Encoding(
            format=point.format,
            quality=point.quality,
            payload=sizes_of(sizes),
            encode=watch.timing("encode"),
            decode=watch.timing("decode"),
            agreement=fidelity.agreement(manifest) if own else None,
            accuracy=fidelity.accuracy,
        )
