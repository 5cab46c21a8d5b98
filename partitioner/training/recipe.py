"""The whole recipe: teacher and data in; bundle, curves, `metrics.json` and a plot out."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...runtime.bundle import Bundle
from ...runtime.errors import MissingDependencyError, ModelError, UsageError
from .batches import Augmentation
from .curves import Curves, RateCurve, RatePoint, plot_rate_accuracy, write_metrics
from .data import DataOptions, ImageData, read_data
from .design import Pair, Price
from .export import Exported, export
from .heads import BestClass, Task, classifier, exit_network, painter, segmentation_loss, segmenter, train_task
from .judge import prior_bytes
from .loop import Progress
from .masks import read_masks
from .measures import HeldOut, MeanIoU
from .options import TrainOptions
from .own import own_callable
from .race import race_heads
from .run import Trained, train
from .teacher import Teacher

logger = logging.getLogger(__name__)

BUNDLES = "bundles"
PLOT = "rate-accuracy.png"
_RECONSTRUCT, _CLASSIFY, _SEGMENT = "reconstruct", "classify:", "segment:"


@dataclass(frozen=True)
class Report:
    """What came of it."""

    bundle: Bundle
    teacher_accuracy: float | None
    prices: tuple[Price, ...]
    tails: Mapping[str, HeldOut]
    """How good the further tails are."""
    symbols: int
    differing: int
    """Of the symbols, between ONNX Runtime and torch."""
    head_ms: float
    teacher_head_ms: float
    """Of one picture in ONNX Runtime, the teacher's own layers up to the cut; both in one race, for their ratio."""
    seconds: float
    metrics: Path


def run_recipe(
    teacher: Teacher,
    data: str | Path | ImageData,
    options: TrainOptions,
    *,
    output: Path,
    at: str | None = None,
    pair: str | Pair | None = None,
    tails: Sequence[str] = (),
    name: str | None = None,
    data_options: DataOptions | None = None,
    progress: Progress,
) -> Report:
    """Train, export, measure, and write down what was found.

    Args:
        teacher: what is to be imitated.
        data: what `read_data` takes, or what it gave.
        options: how to train.
        output: the run's folder: `checkpoint.pt`, `curves/`, `bundles/NAME`, `metrics.json`, `rate-accuracy.png`.
        at: the module whose output the decoder restores; proposed where None.
        pair: `package.module:callable` that returns an encoder and a decoder, or both; designed where None.
        tails: `NAME=reconstruct`, `NAME=classify:DATA`, `NAME=segment:FILE.npz` (`masks.py`), or
            `NAME=package.module:callable`, which is called with the student (`Trained`) and returns a `Task`.
        name: the bundle's; the folder's where None.
        data_options: how data are read.
        progress: told of every step.

    Raises:
        NarrowsError: as `train`, `train_task` and `export` do.
    """
    began = time.monotonic()
    asked = [_parsed(tail) for tail in tails]
    if not isinstance(data, ImageData):
        data = read_data(data, teacher.preprocess, data_options, progress)
    own = _own_pair(pair) if isinstance(pair, str) else pair
    recorder = Curves(output)
    trained = train(teacher, data, options, output=output, at=at, pair=own, recorder=recorder, progress=progress)
    tasks = {}
    for task_name, what in asked:
        task = _task(task_name, what, trained, data, data_options, progress)
        train_task(trained, task, epochs=sum(options.epochs), recorder=recorder, progress=progress)
        tasks[task_name] = task
    early = _exit(trained, data, recorder, progress) if options.exit else None
    recorder.close()
    name = name or output.resolve().name
    exported = export(
        trained, data, output=output / BUNDLES / name, name=name, early=early, tasks=tasks, progress=progress
    )
    return _report(trained, data, exported, output, time.monotonic() - began)


def _exit(trained: Trained, data: ImageData, recorder: Curves, progress: Progress) -> nn.Module:
    options = trained.options
    module = exit_network(trained, len(data.classes))
    task = Task(
        "exit", module, data.train, data.validation, nn.functional.cross_entropy, augmentation=options.augmentation
    )
    return train_task(trained, task, epochs=max(options.epochs), recorder=recorder, progress=progress)


def _parsed(tail: str) -> tuple[str, str]:
    name, equals, what = tail.partition("=")
    if not equals or not name or not what:
        raise UsageError(
            "--tail is NAME=reconstruct, NAME=classify:DATA, NAME=segment:FILE.npz or NAME=package.module:callable, "
            f"not {tail!r}"
        )
    return name, what


def _task(
    name: str, what: str, trained: Trained, data: ImageData, options: DataOptions | None, progress: Progress
) -> Task:
    if what == _RECONSTRUCT:
        loss = nn.functional.mse_loss
        return Task(
            name,
            painter(trained),
            data.train,
            data.validation,
            loss,
            target="pictures",
            augmentation=trained.options.augmentation,
        )
    if what.startswith(_CLASSIFY):
        other = read_data(what.removeprefix(_CLASSIFY), trained.teacher.preprocess, options, progress)
        module = classifier(trained, len(other.classes))
        return Task(
            name,
            module,
            other.train,
            other.validation,
            nn.functional.cross_entropy,
            augmentation=trained.options.augmentation,
            labels=other.classes,
        )
    if what.startswith(_SEGMENT):
        return _segmentation(name, what.removeprefix(_SEGMENT), trained, options)
    made = own_callable(what)(trained)
    if not isinstance(made, Task):
        raise UsageError(f"{what} is to return a Task, and returned {type(made).__name__}")
    return made


def _segmentation(name: str, file: str, trained: Trained, options: DataOptions | None) -> Task:
    masks = read_masks(file, trained.teacher.preprocess, options)
    colours = trained.options.augmentation
    return Task(
        name,
        segmenter(trained, len(masks.classes)),
        masks.train,
        masks.validation,
        segmentation_loss,
        # A mask would have to move with its picture.
        augmentation=Augmentation(brightness=colours.brightness, contrast=colours.contrast),
        labels=masks.classes,
        finish=BestClass(),
        measure=partial(MeanIoU, len(masks.classes)),
    )


def _own_pair(spec: str) -> Pair:
    made = own_callable(spec)()
    parts = (made.encoder, made.decoder) if isinstance(made, Pair) else made
    if not isinstance(parts, tuple) or len(parts) != 2 or not all(isinstance(p, nn.Module) for p in parts):
        raise ModelError(f"{spec} is to return an encoder and a decoder, two torch modules, and did not")
    return Pair(*parts)


def _report(trained: Trained, data: ImageData, exported: Exported, output: Path, seconds: float) -> Report:
    manifest = exported.bundle.manifest
    head_ms, front_ms = race_heads(exported.bundle, trained.halves.front.cpu(), trained.teacher.example)
    qualities = manifest.cuts[0].qualities
    metrics: dict[str, Any] = {
        "teacher": trained.teacher.name,
        "teacher_accuracy": manifest.accuracy,
        "method": trained.options.method,
        "cut": trained.halves.at,
        "taps": list(trained.halves.tail.taps),
        "classes": list(data.classes),
        "pictures": {"train": len(data.train), "validation": len(data.validation), "skipped": list(data.skipped)},
        "prices": [asdict(price) for price in trained.prices],
        "qualities": [asdict(quality) for quality in qualities],
        "prior_bytes": prior_bytes(trained.teacher, trained.student, data.validation),
        "tails": {tail: asdict(held) for tail, held in exported.tails.items()},
        "symbols": {"compared": exported.symbols, "differing": exported.differing},
        "ms": {"head": head_ms, "teacher's head": front_ms},
        "options": asdict(trained.options),
        "seconds": seconds,
        "torch": torch.__version__,
        "bundle": manifest.name,
        "digest": exported.bundle.digest,
    }
    path = write_metrics(output, metrics)
    _plot(trained, manifest.accuracy, qualities, output)
    return Report(
        bundle=exported.bundle,
        teacher_accuracy=manifest.accuracy,
        prices=trained.prices,
        tails=exported.tails,
        symbols=exported.symbols,
        differing=exported.differing,
        head_ms=head_ms,
        teacher_head_ms=front_ms,
        seconds=seconds,
        metrics=path,
    )


def _plot(trained: Trained, teacher: float | None, qualities: Sequence[Any], output: Path) -> None:
    points = tuple(RatePoint(q.payload_bytes, q.accuracy) for q in qualities if q.accuracy is not None)
    if not points:
        return
    try:
        title = f"{trained.teacher.name}, cut at {trained.halves.at}"
        plot_rate_accuracy(output / PLOT, [RateCurve(trained.options.method, points)], title=title, teacher=teacher)
    except MissingDependencyError as error:
        # The numbers are in metrics.json; a training is not lost for its picture.
        logger.warning("no plot: %s", error)
