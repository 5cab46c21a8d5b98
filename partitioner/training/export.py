"""From a student to a bundle: the same splitting, proof and tables as for any cut, with steps that were trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...runtime.bundle import Bundle, BundleWriter
from ...runtime.manifest import Cut, OutputSpec, Quality
from ..build import check_labels, manifest_of, write_cut
from ..plan import Plan, Uncut
from ..preprocess import with_pictures
from ..runner import Runner
from ..tables import payload_counter
from .data import ImageData, Part
from .further import FurtherGraphs
from .graphs import BOTTLENECK, student_model
from .heads import Task
from .loop import Progress
from .measures import HeldOut
from .run import Trained

logger = logging.getLogger(__name__)

Array = NDArray[Any]

OUTPUT = "logits"
_TABLE_FRAMES = 512
"""Training pictures that the coder's tables are learnt from, and the deviations measured on."""
_BATCH = 64


@dataclass(frozen=True)
class Exported:
    """A student's bundle, and how well the graphs agree with torch."""

    bundle: Bundle
    symbols: int
    """Compared, over the held-out pictures and all qualities."""
    differing: int
    """Of these: rounding at a step's edge, where two libraries sum in another order. The frame's checksum covers the
    symbols that the head made, so a difference here can desynchronise nothing."""
    tails: Mapping[str, HeldOut]
    """How good each further tail's graph is."""


def export(
    trained: Trained,
    data: ImageData,
    *,
    output: str | Path,
    name: str | None = None,
    early: nn.Module | None = None,
    tasks: Mapping[str, Task] | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write the bundle of a student.

    Args:
        trained: the student.
        data: what it was trained on; the tables come from the training part, accuracy and bytes from the other.
        output: the bundle's folder.
        name: what devices ask for; the folder's name where None.
        early: an early exit's network, trained.
        tasks: further tails, trained, by name.
        progress: told of every step.

    Raises:
        ModelError: torch or ONNX Runtime refuse the student; `ProofError`, its halves are not the whole.
        BundleError: something else is at `output`.
    """
    tell = progress or (lambda *_: None)
    student, teacher = trained.student.cpu().float(), trained.teacher
    teacher.module.cpu()
    tell("exporting", 0, 1)
    rest = nn.Sequential(student.decoder, student.tail)
    model = student_model(student.encoder, rest, teacher.example, "student", OUTPUT)
    model = with_pictures(model, teacher.preprocess)
    some = _some(data.train, _TABLE_FRAMES)
    uncut = Uncut(model, calibrate=some, preprocess=teacher.preprocess, limit=_TABLE_FRAMES)
    plan = uncut.plan([BOTTLENECK])
    tell("exporting", 1, 1)
    with BundleWriter(Path(output)) as writer:
        cut, outputs = write_cut(plan, {BOTTLENECK: student.quantiser.table()}, writer, tell)
        check_labels(data.classes, outputs)
        judge = _Judge(plan, cut, outputs, writer, trained)
        judged = judge.judge(data.validation, tell)
        further = FurtherGraphs(trained, cut, writer, data.validation)
        tails = {task.name: further.tail(task) for task in (tasks or {}).values()}
        cut = replace(
            cut,
            qualities=judged.qualities,
            further_tails={name: tail for name, (tail, _) in tails.items()},
            exit=further.exit(early, cut.tail_outputs[0]) if early is not None else None,
        )
        manifest = manifest_of(
            plan,
            cut,
            outputs,
            name=name or Path(output).name,
            preprocess=teacher.preprocess,
            labels=data.classes if judge.classifier else (),
            accuracy=judged.teacher if judge.classifier else None,
        )
        held_out = {name: held for name, (_, held) in tails.items()}
        return Exported(writer.finish(manifest), judged.symbols, judged.differing, held_out)


@dataclass(frozen=True)
class _Judged:
    qualities: tuple[Quality, ...]
    symbols: int
    differing: int
    teacher: float
    """Share of right answers of the teacher."""


@dataclass
class _Tally:
    """Sums of one quality while held-out pictures go by."""

    frames: int = 0
    payload_bytes: int = 0
    right: int = 0
    agreeing: int = 0
    max_deviation: float = 0.0
    deviation: float = 0.0

    def add(self, answer: Array, wanted: Array, labels: Array, payload_bytes: int) -> None:
        """Take in a batch: answers `[B, …]`, the teacher's, the classes `[B]`, and the bytes of all frames."""
        distance = np.abs(answer.astype(np.float64) - wanted)
        self.frames += len(answer)
        self.payload_bytes += payload_bytes
        self.max_deviation = max(self.max_deviation, float(distance.max()))
        self.deviation += float(distance.mean() * len(answer))
        self.right += int(np.count_nonzero(_best(answer) == labels))
        self.agreeing += int(np.count_nonzero(_best(answer) == _best(wanted)))

    def quality(self, written: Quality, *, classifier: bool) -> Quality:
        """The manifest's row: the same quality, measured on pictures that nothing was learned from."""
        return replace(
            written,
            payload_bytes=self.payload_bytes / self.frames,
            max_deviation=self.max_deviation,
            mean_deviation=self.deviation / self.frames,
            agreement=self.agreeing / self.frames if classifier else None,
            accuracy=self.right / self.frames if classifier else None,
        )


class _Judge:
    """Runs the deployed graphs on held-out pictures, with the coder between them."""

    def __init__(
        self, plan: Plan, cut: Cut, outputs: Sequence[OutputSpec], writer: BundleWriter, trained: Trained
    ) -> None:
        self.plan, self.cut, self.trained = plan, cut, trained
        self.head = Runner.of_file(writer.root / cut.head)
        self.tail = Runner.of_file(writer.root / cut.tail)
        self.classifier = any(o.kind != "tensor" for o in outputs)
        self.payload_bytes = payload_counter(cut.crossing, writer, batched=plan.graph.batched)

    def judge(self, part: Part, tell: Progress) -> _Judged:
        """Accuracy, payload and distance from the teacher at every quality, and the symbols beside torch's."""
        tallies = [_Tally() for _ in self.cut.qualities]
        symbols = differing = known = 0
        for start in range(0, len(part), _BATCH):
            rows = slice(start, min(start + _BATCH, len(part)))
            pictures = np.ascontiguousarray(part.pictures[rows])
            with torch.no_grad():
                wanted = self.trained.teacher.module(self.trained.teacher.normalised(pictures)).numpy()
            known += int(np.count_nonzero(_best(wanted) == part.labels[rows]))
            for q, tally in enumerate(tallies):
                made = self._run(pictures, q)
                crossed = made[self.cut.crossing[0].symbols.name]
                differing += int(np.count_nonzero(crossed != self._torch_symbols(pictures, q)))
                symbols += crossed.size
                answer = made[self.cut.tail_outputs[0]]
                tally.add(answer, wanted, part.labels[rows], self.payload_bytes(made, q))
            tell("measuring on held-out pictures", rows.stop, len(part))
        if differing:
            logger.warning("%d of %d symbols differ from torch's", differing, symbols)
        pairs = zip(self.cut.qualities, tallies, strict=True)
        measured = tuple(t.quality(q, classifier=self.classifier) for q, t in pairs)
        return _Judged(measured, symbols, differing, known / len(part))

    def _run(self, pictures: Array, quality: int) -> dict[str, Array]:
        feed: dict[str, Array] = {self.plan.inputs[0].name: pictures}
        if self.cut.quality_input is not None:
            feed[self.cut.quality_input] = np.full(len(pictures), quality, np.int32)
        made = {**feed, **self.head(feed)}
        return {**made, **self.tail(made)}

    def _torch_symbols(self, pictures: Array, quality: int) -> Array:
        x = self.trained.teacher.normalised(pictures)
        symbols: Array = self.trained.student.symbols(x, torch.full((len(x),), quality)).numpy()
        return symbols


def _best(answers: Array) -> Array:
    best: Array = answers.reshape(len(answers), -1).argmax(1)
    return best


def _some(part: Part, count: int) -> NDArray[np.uint8]:
    rows = np.unique(np.linspace(0, len(part) - 1, min(count, len(part))).round().astype(np.int64))
    return np.ascontiguousarray(part.pictures[rows])
