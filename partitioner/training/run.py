"""A training from the teacher to the student: what the command line calls."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...runtime.errors import UsageError
from .data import ImageData
from .design import Pair, Price, design, prices
from .halves import Halves, split_teacher
from .inherit import inherited
from .loop import Progress, Training
from .options import TrainOptions
from .race import entrant, race
from .record import Recorder, Silent
from .student import Student
from .teacher import Teacher

logger = logging.getLogger(__name__)

_COMPONENT_PICTURES = 512
"""Whose principal components a pair that inherits begins with."""
_GDN_ALLOWANCE = 1.1
"""Of the time that an encoder with ReLUs takes."""


@dataclass(frozen=True)
class Trained:
    """A student, and what it was made from."""

    teacher: Teacher
    halves: Halves
    student: Student
    """In evaluation mode."""
    options: TrainOptions
    prices: tuple[Price, ...]
    folder: Path


def train(
    teacher: Teacher,
    data: ImageData,
    options: TrainOptions | None = None,
    *,
    output: str | Path,
    at: str | None = None,
    pair: Pair | None = None,
    recorder: Recorder | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a bottleneck into a teacher, or go on with a training that was interrupted.

    Args:
        teacher: what is to be imitated.
        data: pictures with the teacher's classes.
        options: how.
        output: the run's folder: checkpoints now, the bundle and the metrics later.
        at: the module whose output the decoder restores; proposed where None.
        pair: an encoder and a decoder of your own; designed from the shapes where None.
        recorder: takes the curves.
        progress: told of every step.

    Raises:
        UsageError: classes that do not match, a budget that nothing fits.
        TrainingError: the loss is no number any more, the disk is full, or `output` is another run's.
        ModelError: `at` is no module of the teacher's, or does not separate it.
    """
    options = options or TrainOptions()
    if options.threads:
        torch.set_num_threads(options.threads)
    halves = split_teacher(teacher, at, options.taps)
    _check_classes(teacher, data)
    torch.manual_seed(options.seed)
    own = pair is not None
    pair = pair or _pair(teacher, halves, data, options)
    table = tuple(prices(teacher, halves, pair))
    student = Student(pair, halves, options)
    for module in (teacher.module, halves.front, halves.tail, student):
        module.to(options.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    training = Training(
        teacher=teacher,
        halves=halves,
        student=student,
        data=data,
        options=options,
        folder=Path(output),
        recorder=recorder or Silent(),
        progress=progress or (lambda *_: None),
        identity=_identity(teacher, halves, data, options, own=own),
    )
    training.run()
    return Trained(teacher, halves, student.eval().requires_grad_(False), options, table, Path(output))


def choose_activation(teacher: Teacher, halves: Halves, options: TrainOptions) -> str:
    """What the encoder is activated by: the paper's divisive normalisation where it costs next to nothing here."""
    if options.activation != "auto":
        return options.activation
    designs = {name: design(teacher, halves, options, name) for name in ("gdn", "relu")}
    if not any(layer.gdn for layer in designs["gdn"].layers):
        return "relu"
    state = torch.get_rng_state()
    taken = race({name: entrant(made.make().encoder, teacher.example) for name, made in designs.items()})
    torch.set_rng_state(state)
    logger.info("encoder with GDN %.3f ms, with ReLU %.3f ms", taken["gdn"], taken["relu"])
    return "gdn" if taken["gdn"] <= _GDN_ALLOWANCE * taken["relu"] else "relu"


def _pair(teacher: Teacher, halves: Halves, data: ImageData, options: TrainOptions) -> Pair:
    if options.inherit:
        some = slice(None, None, max(1, len(data.train) // _COMPONENT_PICTURES))
        return inherited(teacher, halves, options, data.train.pictures[some])
    return design(teacher, halves, options, choose_activation(teacher, halves, options)).make()


def _check_classes(teacher: Teacher, data: ImageData) -> None:
    with torch.no_grad():
        answer = teacher.module(teacher.example)
    if answer.ndim == 2:
        data.check_classes(answer.shape[1])
    height, width = data.train.pictures.shape[1:3]
    if (height, width) != (teacher.preprocess.height, teacher.preprocess.width):
        raise UsageError(
            f"the pictures are {height}×{width}, and the teacher takes {teacher.preprocess.height}×"
            f"{teacher.preprocess.width}: read them with the teacher's preprocessing"
        )


def _identity(teacher: Teacher, halves: Halves, data: ImageData, options: TrainOptions, *, own: bool) -> dict[str, Any]:
    """What a checkpoint has to agree with; where a run ends, and how often it is saved, may change."""
    weights = hashlib.sha256()
    for tensor in teacher.module.state_dict().values():
        weights.update(tensor.cpu().contiguous().numpy().tobytes())
    said = asdict(options)
    for name in ("threads", "workers", "device", "checkpoint_s", "exit"):
        said.pop(name)
    return {
        "teacher": weights.hexdigest(),
        "cut": halves.at,
        "data": [data.name, len(data.train), len(data.validation), list(data.classes)],
        "pair": "own" if own else "designed",
    } | {name: repr(value) for name, value in said.items()}
