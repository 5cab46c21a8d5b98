"""One cut, measured through its own graphs and the real coder."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from ..planner.profile import Batch, CutProfile, QualityProfile, Sizes
from ..runtime.answer import Array
from ..runtime.bundle import Bundle
from ..runtime.codec import Symbols, labels
from ..runtime.frame import FrameCodec
from ..runtime.halves import Features, Final, Head, Tail
from ..runtime.manifest import Half
from .fidelity import Fidelity, sizes_of
from .frames import Frame
from .options import ProfileOptions
from .stopwatch import Stopwatch, repeat

_GAIN = 0.9
_PATIENCE = 2
_BATCH_S = 0.08
"""Spent on one batch size, at most."""
_KEEP_BYTES = 32 << 20


@dataclass(slots=True)
class CutMeter:
    """Runs frames through a cut and keeps count."""

    bundle: Bundle
    index: int
    options: ProfileOptions
    frames: Sequence[Frame]
    head: Head = field(init=False)
    tail: Tail | None = field(init=False)
    final: Final | None = field(init=False)
    codec: FrameCodec = field(init=False)
    watch: Stopwatch = field(default_factory=Stopwatch)
    _kept: dict[tuple[int, int], Sequence[Symbols]] = field(default_factory=dict)
    """Symbols by frame and quality, so that the coder can be timed again without the head."""
    _room: int = _KEEP_BYTES
    _sizes: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    _fidelity: dict[int, Fidelity] = field(default_factory=lambda: defaultdict(Fidelity))

    def __post_init__(self) -> None:
        cut, session = self.bundle.manifest.cuts[self.index], self.options.session
        self.head = Head(self.bundle, cut, session)
        with_tail = Half.SERVER in self.bundle.halves and not self.options.on_device
        self.tail = Tail(self.bundle, cut, session) if with_tail else None
        self.final = Final(self.bundle, cut, session) if cut.three_way else None
        self.codec = FrameCodec(self.bundle, self.index)

    def measure(self, references: Sequence[Mapping[str, Array]]) -> list[str]:
        """Run every frame at every quality, then those whose figures have not settled, again.

        Args:
            references: the whole model's outputs for each frame; none where they are not to be compared.

        Returns:
            Figures that have not settled.
        """
        self._run(self.frames[0], 0, Stopwatch())  # the first run of a graph allocates
        for i, frame in enumerate(self.frames):
            for quality in self._qualities:
                payload_bytes, outputs = self._run(frame, quality, self.watch, keep=i)
                self._sizes[quality].append(payload_bytes)
                if outputs is not None and references:
                    self._fidelity[quality].compare(self.bundle.manifest, outputs, references[i], frame.label)
        until = time.perf_counter() + self.options.steady.most_s
        while (loose := self._loose()) and time.perf_counter() < until:
            graphs = bool({"head", "tail", "final"}.intersection(self._unsettled()))
            for i, frame in enumerate(self.frames):
                for quality in loose:
                    if graphs or (i, quality) not in self._kept:
                        self._run(frame, quality, self.watch)
                    else:
                        self._code(self._kept[i, quality], quality, self.watch)
        self._kept.clear()
        return [" at quality ".join(map(str, key)) if isinstance(key, tuple) else str(key) for key in self._unsettled()]

    def profile(self, *, own_sizes: bool, energy_j: float | None) -> CutProfile:
        """What was found.

        Args:
            own_sizes: sizes and fidelity are those of the frames, and not the bundle's.
            energy_j: of one run of the head.
        """
        cut, watch = self.head.cut, self.watch
        entries = self.bundle.manifest.files
        elements = sum(math.prod(d or 1 for d in tensor.symbols.shape) for tensor in cut.crossing)
        on_device = [cut.head, f"{cut.head}.data", *((cut.final, f"{cut.final}.data") if cut.final else ())]
        return CutProfile(
            name=cut.name,
            elements=elements,
            qualities=tuple(self._quality(number, own_sizes=own_sizes) for number in self._qualities),
            head=watch.timing("head"),
            tail=watch.timing("tail"),
            final=watch.timing("final"),
            tail_batches=tuple(self._batches()),
            head_bytes=sum(entries[name].size for name in on_device if name in entries),
            tail_bytes=sum(entries[name].size for name in (cut.tail, f"{cut.tail}.data") if name in entries),
            energy_j=energy_j,
            held_out_accuracy=self._held_out,
        )

    @property
    def _held_out(self) -> float | None:
        """The uncut model's accuracy, where the bundle has its and its qualities' on held-out pictures."""
        said = all(quality.accuracy is not None for quality in self.head.cut.qualities)
        return self.bundle.manifest.accuracy if said else None

    @property
    def _qualities(self) -> range:
        return range(len(self.head.cut.qualities))

    def run_head(self, frame: Frame, quality: int) -> Features:
        """The head alone."""
        arrays = dict(zip((spec.name for spec in self.bundle.manifest.inputs), frame.arrays, strict=True))
        return self.head.run([arrays[spec.name] for spec in self.head.inputs], quality)

    def _run(
        self, frame: Frame, quality: int, watch: Stopwatch, *, keep: int | None = None
    ) -> tuple[int, Mapping[str, Array] | None]:
        """One frame all the way: its payload's bytes and, where there is a tail, the model's outputs.

        Args:
            frame: the frame.
            quality: at which.
            watch: takes the times.
            keep: the frame's number, to keep its symbols for `_code`.
        """
        with watch("head"):
            features = self.run_head(frame, quality)
        if keep is not None and self._room > 0:
            self._kept[keep, quality] = features.symbols
            self._room -= sum(array.nbytes for array in features.symbols)
        payload_bytes, symbols = self._code(features.symbols, quality, watch)
        if self.tail is None or symbols is None:
            return payload_bytes, None
        with watch("tail"):
            answer = self.tail.run([symbols], [quality])[0]
        if self.final is None:
            return payload_bytes, {**features.outputs, **answer}
        with watch("final"):
            return payload_bytes, self.final.run(features, answer, quality)

    def _code(self, symbols: Sequence[Symbols], quality: int, watch: Stopwatch) -> tuple[int, Sequence[Symbols] | None]:
        """A frame's symbols through the coder; back, too, where there is a tail."""
        with watch(("encode", quality)):
            coded = self.codec.pack(0, symbols, quality, labels()[0])
        if self.tail is None:
            return coded.payload_bytes, None
        with watch(("decode", quality)):
            return coded.payload_bytes, self.codec.unpack(coded)

    def _unsettled(self) -> list[Hashable]:
        return self.watch.unsettled(self.options.steady)

    def _loose(self) -> list[int]:
        """Qualities to run again: those that are unsettled, or any one for a graph that is."""
        keys = self._unsettled()
        chosen = sorted({key[1] for key in keys if isinstance(key, tuple)})
        return chosen or ([self._qualities[-1]] if keys else [])

    def _quality(self, number: int, *, own_sizes: bool) -> QualityProfile:
        said, found = self.head.cut.qualities[number], self._fidelity[number]
        compared = own_sizes and found.frames > 0
        mean = said.payload_bytes
        return QualityProfile(
            bits=said.bits,
            payload=sizes_of(self._sizes[number]) if own_sizes else Sizes(mean, mean, mean),
            encode=self.watch.timing(("encode", number)),
            decode=self.watch.timing(("decode", number)),
            max_deviation=found.max_deviation if compared else said.max_deviation,
            mean_deviation=found.mean_deviation if compared else said.mean_deviation,
            agreement=found.agreement(self.bundle.manifest) if compared else said.agreement,
            # Hundreds of pictures were held out; some sixteen were given.
            accuracy=found.accuracy if compared and self._held_out is None else said.accuracy,
        )

    def _batches(self) -> Iterator[Batch]:
        """The tail with growing batches, until larger ones have gained nothing twice."""
        first = self.watch.timing("tail")
        if self.tail is None or first is None:
            return
        yield Batch(1, first.ms)
        if not self.tail.batched:
            return
        tail, quality = self.tail, self._qualities[-1]
        symbols = self.run_head(self.frames[0], quality).symbols
        fastest, idle, size = 1 / first.ms, 0, 2
        while size <= self.options.max_batch and idle < _PATIENCE:
            took = repeat(partial(tail.run, [symbols] * size, [quality] * size), self.options.steady, _BATCH_S)
            yield Batch(size, took.ms)
            idle = 0 if size / took.ms > fastest / _GAIN else idle + 1
            fastest = max(fastest, size / took.ms)
            size *= 2
