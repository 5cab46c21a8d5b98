"""The loop: two stages, checkpoints that a kill at any moment leaves whole, and the same result after every restart.

What a step sees is a function of seed, stage, epoch and step (`Batches`, `seeded`), and the learning rate one of the
step alone. So a checkpoint is weights, the optimiser's moments and a position, and a run that goes on from one does to
the last bit what the uninterrupted run would have done on the same machine with as many threads.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ...runtime.errors import TrainingError
from . import checkpoint
from .batches import Batches, Views
from .data import ImageData
from .folding import folded
from .halves import Halves
from .judge import Score, coded_bytes, judge
from .losses import RateControl, answer_loss, feature_loss
from .options import TrainOptions
from .record import Recorder
from .steps import computing, draw_qualities, mean_of, one_cycle, optimiser_of, seeded, set_rate
from .student import TRUE_EVERY, Made, Student
from .teacher import Teacher

logger = logging.getLogger(__name__)

Tensor = torch.Tensor
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

CHECKPOINT = "checkpoint.pt"
STAGES = ("features", "fine-tune", "whole")
FEATURES, FINE_TUNE, WHOLE = range(3)
_CLIP_NORM = 5.0


@dataclass
class Position:
    """Where a training stands."""

    stage: int = 0
    epoch: int = 0
    step: int = 0
    """Inside the epoch."""
    since_best: int = 0
    """Epochs without a better validation loss."""
    best: float = math.inf
    told: int = 0
    """Optimiser steps since the run began, for the curves."""


@dataclass(frozen=True)
class Batch:
    """What a step is made of, all of it the same whenever its view comes round again."""

    before: Tensor
    """What `Student.before` makes of the pictures; the pictures, `uint8 [B, height, width, 3]`, where it keeps none."""
    labels: Tensor
    """`int64 [B]`"""
    answer: Tensor
    """The teacher's."""
    features: list[Tensor]
    """The teacher's at the cut, then at the taps."""

    @property
    def size_bytes(self) -> int:
        """Of memory."""
        return sum(one.numel() * one.element_size() for one in (self.before, self.answer, *self.features))


@dataclass
class Training:
    """One student's training. `run` may be called again after whatever ended it."""

    teacher: Teacher
    halves: Halves
    student: Student
    data: ImageData
    options: TrainOptions
    folder: Path
    recorder: Recorder
    progress: Progress
    identity: dict[str, Any] = field(default_factory=dict)
    """What a checkpoint has to agree with."""

    def __post_init__(self) -> None:
        self.control = RateControl(self.options.beta, self.options.target_bytes)
        self.position = Position()
        self.batches = Batches(
            self.data.train, self.options.batch, self.options.augmentation, self.options.seed, self.options.preparing
        )
        self._views = Views(self.batches, self.options.views, self._batch)
        self._teaching = folded(self.halves.front), self.halves.tail.folded()
        self._scales: list[float] = []
        self._optimiser: torch.optim.Optimizer | None = None
        self._mean: AveragedModel | None = None
        """Of the student's weights over the last steps: what is judged, and what a stage leaves."""

    def run(self) -> None:
        """Train to the end, from the beginning or from the checkpoint in the folder.

        Raises:
            TrainingError: the loss is no number any more, the disk is full, or the checkpoint is another run's.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        state = checkpoint.restore(self.folder / CHECKPOINT)
        size = sum(t.numel() * t.element_size() for t in self.student.state_dict().values())
        checkpoint.require_space(self.folder, 3 * size)
        first = self._pictures(self.batches.part.pictures[: self.options.batch])
        self._scales = self._variances(first)
        if state is None:
            self.student.start(first)
        else:
            self._resume(state)
        while self.position.stage < len(self.options.epochs):
            self._stage()

    # -- stages --------------------------------------------------------------------------------------------------------

    def _stage(self) -> None:
        stage = self.position.stage
        epochs = self.options.epochs[stage]
        self._begin(stage)
        steps = self.batches.steps
        while self.position.epoch < epochs and not self._stopped():
            epoch = self.position.epoch
            self._epoch(stage, epoch, steps, epochs)
            self._validate(stage, epoch)
            self.position.epoch, self.position.step = epoch + 1, 0
            self._save()
        if self._stopped():
            self._take_best()
        elif self._mean is not None:
            self.student.load_state_dict(self._judged.state_dict())
        self.position = Position(stage + 1, told=self.position.told)
        self.control.begin()
        self._optimiser = self._mean = None
        self._save()

    def _begin(self, stage: int) -> None:
        """Say what learns, and make the optimiser, unless a checkpoint brought one."""
        student = self.student
        learning: list[nn.Module] = [student.decoder]
        if self._coding_learns(stage):
            learning += [student.encoder, student.quantiser, *([student.prior] if student.prior is not None else [])]
        if stage != FEATURES:
            learning.append(student.tail)
        student.requires_grad_(False).eval()
        for module in learning:
            module.requires_grad_(True).train()
        if (kept := student.kept_layers) is not None:
            kept.learns = stage == WHOLE
            if kept.learns:
                self._views.forget()  # they hold what those layers made so far
            else:
                kept.requires_grad_(False)
        if self._optimiser is None:
            self._optimiser = optimiser_of(student, self.options)
            self._mean = mean_of(student) if self.options.averaged else None

    def _coding_learns(self, stage: int) -> bool:
        """Whether encoder, quantiser and prior do."""
        return stage != FINE_TUNE or not self.options.encoder_frozen

    @property
    def _judged(self) -> Student:
        """The student with the weights that a stage would leave if it ended now."""
        mean = self._mean.module if self._mean is not None else self.student
        assert isinstance(mean, Student)
        return mean

    def _epoch(self, stage: int, epoch: int, steps: int, epochs: int) -> None:
        assert self._optimiser is not None
        saved = time.monotonic()
        total = steps * epochs
        number = sum(self.options.epochs[:stage]) + epoch
        for batch in self._views.epoch(number, self.position.step):
            step = self.position.step
            set_rate(self._optimiser, self.options.rates[stage] * one_cycle(epoch * steps + step, total))
            loss, parts = self._loss(stage, batch, seeded(self.options.seed, stage, epoch, step))
            if not math.isfinite(parts["loss"]):
                self._refuse_nan(stage, epoch, step)
            self._optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.student.parameters(), _CLIP_NORM)
            self._optimiser.step()
            if self._mean is not None:
                self._mean.update_parameters(self.student)
            self.position.step += 1
            self.position.told += 1
            for name, value in parts.items():
                self.recorder.scalar(f"{STAGES[stage]}/train/{name}", value, self.position.told)
            self.progress(f"stage {stage + 1}: {STAGES[stage]}", epoch * steps + step + 1, total)
            if time.monotonic() - saved > self.options.checkpoint_s:
                self._save()
                saved = time.monotonic()

    @torch.no_grad()
    def _batch(self, pictures: Tensor, labels: Tensor) -> Batch:
        x = self._pictures(pictures)
        with computing(self.options):
            features = self._teaching[0](x)
            answer, *taps = self._teaching[1].tapped(features)
            before = self.student.before(x) if self.student.keeps else pictures
        return Batch(before, labels.to(x.device), answer, [features, *taps])

    def _loss(self, stage: int, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        x = batch.before if self.student.keeps else self._pictures(batch.before)
        quality = draw_qualities(len(x), self.options.qualities, generator).to(x.device)
        with computing(self.options):
            made = self.student.made(x, quality, generator)
        parts = self._parts(stage, made, batch)
        # Where the encoder is frozen the rate is what it is.
        if made.bits is not None and made.true_bits is not None and self._coding_learns(stage):
            parts["rate"] = self.control.loss(made.bits, quality)
            total = self.batches.steps * self.options.epochs[stage]
            done = (self.position.epoch * self.batches.steps + self.position.step) / total
            self.control.follow(made.true_bits, quality[::TRUE_EVERY], done, total)
        loss = torch.stack(list(parts.values())).sum()
        told = {name: float(value.detach()) for name, value in parts.items()} | {"loss": float(loss.detach())}
        if made.true_bits is not None:
            told["bytes"] = float(made.true_bits.mean() / 8)
        return loss, told

    def _parts(self, stage: int, made: Made, batch: Batch) -> dict[str, Tensor]:
        options = self.options
        distilled = answer_loss(made.answer, batch.answer, options.temperature)
        if stage == FEATURES:
            parts = {"features": feature_loss(made.features, batch.features, self._scales)}
            if options.answer_weight:
                parts["answer"] = options.answer_weight * distilled
            return parts
        parts = {"distilled": options.distil_weight * distilled}
        if made.answer.ndim == 2 and options.distil_weight < 1:
            parts["labels"] = (1 - options.distil_weight) * nn.functional.cross_entropy(made.answer, batch.labels)
        return parts

    def _pictures(self, pixels: Any) -> Tensor:
        return self.teacher.normalised(pixels).to(self.options.device)

    @torch.no_grad()
    def _variances(self, pictures: Tensor) -> list[float]:
        features = self.halves.front(pictures)
        taps = self.halves.tail.tapped(features)[1:]
        return [max(float(f.var()), 1e-6) for f in (features, *taps)]

    # -- validation ----------------------------------------------------------------------------------------------------

    def _validate(self, stage: int, epoch: int) -> None:
        scores = judge(self.teacher, self._judged.folded(), self.data.validation, self.control)
        if self.student.prior is not None:
            # Of the student that the prices steer; the mean of its weights is some steps behind.
            self.control.measured(coded_bytes(self.teacher, self.student.folded(), self.data.validation))
        for q, score in enumerate(scores):
            for name, value in asdict(score).items():
                self.recorder.scalar(f"{STAGES[stage]}/val/{name}/q{q}", value, self.position.told)
        loss = sum(score.loss for score in scores) / len(scores)
        logger.info("%s, epoch %d: %s", STAGES[stage], epoch + 1, _told(scores))
        if loss < self.position.best:
            self.position.best, self.position.since_best = loss, 0
            if self.options.patience is not None:
                checkpoint.save({"student": self._judged.state_dict()}, self.folder / f"best-{stage}.pt")
        else:
            self.position.since_best += 1

    def _stopped(self) -> bool:
        patience = self.options.patience
        return patience is not None and self.position.since_best >= patience

    def _take_best(self) -> None:
        state = checkpoint.restore(self.folder / f"best-{self.position.stage}.pt")
        if state is not None:
            self.student.load_state_dict(state["student"])

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        state = {
            "identity": self.identity,
            "position": asdict(self.position),
            "student": self.student.state_dict(),
            "control": self.control.state(),
            "optimiser": self._optimiser.state_dict() if self._optimiser is not None else None,
            "mean": self._mean.state_dict() if self._mean is not None else None,
        }
        checkpoint.save(state, self.folder / CHECKPOINT)

    def _resume(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            TrainingError: it is another run's.
        """
        theirs = state.get("identity", {})
        if differ := sorted(k for k in {*theirs, *self.identity} if theirs.get(k) != self.identity.get(k)):
            raise TrainingError(
                f"{self.folder} holds a run with another {', '.join(differ)}: give the same options to go on with it, "
                "or another folder to begin anew"
            )
        self.position = Position(**state["position"])
        self.student.load_state_dict(state["student"])
        self.control.restore(state["control"])
        if state["optimiser"] is not None:
            self._begin(self.position.stage)
            assert self._optimiser is not None
            self._optimiser.load_state_dict(state["optimiser"])
            if self._mean is not None:
                self._mean.load_state_dict(state["mean"])
        logger.warning("going on from stage %d, epoch %d", self.position.stage + 1, self.position.epoch + 1)

    def _refuse_nan(self, stage: int, epoch: int, step: int) -> None:
        raise TrainingError(
            f"the loss is no number any more (stage {stage + 1}, {STAGES[stage]}, epoch {epoch + 1}, step {step + 1}); "
            f"{self.folder / CHECKPOINT} is the last good state: go on from it with a smaller learning rate (--rates)"
        )


def _told(scores: Sequence[Score]) -> str:
    return "; ".join(f"q{q} {s.accuracy:.2%} {s.bytes:.0f} bytes" for q, s in enumerate(scores))
