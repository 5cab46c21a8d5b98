"""Further networks on a frozen student's symbols: more tails for the server, an early exit for the device.

A tail answers another question about the same payload. An early exit answers the student's own question on the device,
at less certainty (Teerapittayanon et al., BranchyNet, ICPR 2016), so that the sure frames need no link at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.optim.swa_utils import AveragedModel

from ...runtime.errors import TrainingError, UsageError
from . import checkpoint
from .batches import Augmentation, Batches, Views
from .data import Part
from .folding import folded
from .halves import Tail
from .layers import Residual, convolution
from .loop import Progress
from .losses import answer_loss
from .measures import IGNORED, Accuracy, MeanLoss, Measure, Psnr
from .options import TrainOptions
from .record import Recorder
from .run import Trained
from .steps import computing, draw_qualities, mean_of, one_cycle, seeded
from .student import Student
from .teacher import Teacher

Tensor = torch.Tensor
Loss = Callable[[Tensor, Tensor], Tensor]
"""Called with the answer and the target, both with a batch axis."""

_EXIT_WIDTH = 32
_TAIL_WIDTH = 96


@dataclass(frozen=True)
class Task:
    """A question about the same symbols.

    Task("coarse", classifier(trained, 2), Part(pictures, labels), Part(held_out, their_labels), cross_entropy)
    """

    name: str
    module: nn.Module
    """The bottleneck `float32 [B, C, h, w]` to one answer `[B, …]`."""
    train: Part
    """Pictures, and in place of labels the targets `[N, …]`; not used where `target` is `pictures`."""
    validation: Part
    loss: Loss
    target: Literal["given", "pictures"] = "given"
    """`pictures`: the target is the picture itself, `float32 [B, 3, H, W]`, 0 to 1."""
    teacher: Teacher | None = None
    """Of this question, for pictures of the student's size: its logits are distilled beside the targets."""
    augmentation: Augmentation = Augmentation()  # noqa: RUF009 - frozen
    """For targets that stay true of a picture that was moved: classes, and pictures themselves."""
    labels: tuple[str, ...] = ()
    """Of the classes, where the answer is a classifier's logits or, with `finish`, something else about classes."""
    finish: nn.Module | None = None
    """Follows the network where it is deployed, and not while it learns."""
    measure: Callable[[], Measure] | None = None
    """What held-out answers are measured by; None: how many are right where there are labels, the noise of pictures,
    and else the loss."""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise UsageError(f"a tail's name is a word without slashes, not {self.name!r}")

    @property
    def deployed(self) -> nn.Module:
        """The network as the server runs it."""
        return self.module if self.finish is None else nn.Sequential(self.module, self.finish)

    @property
    def classifies(self) -> bool:
        """Whether the answer is a class for the whole picture."""
        return bool(self.labels) and self.finish is None

    def measured(self) -> Measure:
        """A new measure of held-out answers."""
        if self.measure is not None:
            return self.measure()
        if self.target == "pictures":
            return Psnr()
        return Accuracy() if self.classifies else MeanLoss(self.loss)

    def wanted(self, pictures: Tensor, targets: Tensor) -> Tensor:
        """The targets of a batch of pictures `uint8 [B, H, W, 3]`."""
        return pictures.permute(0, 3, 1, 2).float() / 255 if self.target == "pictures" else targets


class BestClass(nn.Module):
    """Logits `[B, classes, H, W]` to the best class of each pixel, `uint8 [B, H, W]`."""

    def forward(self, x: Tensor) -> Tensor:
        """Give 255 classes at most."""
        return x.argmax(1).to(torch.uint8)


class Transferred(nn.Module):
    """The student's own decoder and tail, to go on learning, with a last layer for other classes."""

    def __init__(self, student: Student, last: str, classes: int) -> None:
        super().__init__()
        tail = copy.deepcopy(student.tail)
        old = tail.body.get_submodule(last)
        assert isinstance(old, nn.Linear)
        tail.body.set_submodule(last, nn.Identity())
        self.begun = nn.Sequential(copy.deepcopy(student.decoder), tail).requires_grad_(True)
        self.new = nn.Linear(old.in_features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """The bottleneck `float32 [B, C, h, w]` to logits `[B, classes]`."""
        made: Tensor = self.new(self.begun(x))
        return made


def classifier(trained: Trained, classes: int, width: int | None = None) -> nn.Module:
    """A network for a classification task on the symbols of a student: logits `[B, classes]`.

    It begins as the student's own decoder and tail where those end in a linear layer, and else, or where a `width` is
    asked for, as a small network that knows nothing.
    """
    last = _last_linear(trained.student.tail)
    if last is not None and width is None:
        return Transferred(trained.student, last, classes)
    width = width or _TAIL_WIDTH
    channels = trained.options.channels
    blocks = [Residual(width), convolution(width, 2 * width, 3, 2), Residual(2 * width)]
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes)]
    return nn.Sequential(convolution(channels, width, 3), *blocks, *pooled)


def _last_linear(tail: Tail) -> str | None:
    """Name of the layer that makes the answer; None where that is no linear layer."""
    if not isinstance(tail.body, fx.GraphModule):
        return None
    made = tail.body.graph.output_node().args[0]
    answer = made[0] if isinstance(made, list | tuple) else made
    if not isinstance(answer, fx.Node) or answer.op != "call_module" or len(answer.users) != 1:
        return None
    name = str(answer.target)
    return name if isinstance(tail.body.get_submodule(name), nn.Linear) else None


def painter(trained: Trained, width: int = _TAIL_WIDTH) -> nn.Module:
    """A network that restores the picture from the symbols: `float32 [B, 3, H, W]`, 0 to 1."""
    p = trained.teacher.preprocess
    blocks = [convolution(trained.options.channels, width, 3), Residual(width)]
    up = [nn.Upsample(size=(p.height // 2, p.width // 2), mode="nearest"), convolution(width, width // 2, 3)]
    last = [nn.Upsample(size=(p.height, p.width), mode="nearest"), convolution(width // 2, width // 4, 3)]
    return nn.Sequential(*blocks, *up, *last, nn.Conv2d(width // 4, 3, 3, padding=1), nn.Sigmoid())


def segmenter(trained: Trained, classes: int, width: int = _TAIL_WIDTH) -> nn.Module:
    """A network that tells the class of every pixel: logits `[B, classes, H, W]`, from a quarter of the sides up."""
    p = trained.teacher.preprocess
    blocks = [convolution(trained.options.channels, width, 3), Residual(width), Residual(width)]
    up = [nn.Upsample(size=(-(-p.height // 4), -(-p.width // 4)), mode="nearest"), convolution(width, width // 2, 3)]
    last = [nn.Conv2d(width // 2, classes, 3, padding=1)]
    return nn.Sequential(*blocks, *up, *last, nn.Upsample(size=(p.height, p.width), mode="bilinear"))


def segmentation_loss(answer: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy of logits `[B, classes, H, W]` with masks `int64 [B, H, W]`, but for what is in no class."""
    if bool((masks == IGNORED).all()):
        return answer.sum() * 0.0
    return nn.functional.cross_entropy(answer, masks, ignore_index=IGNORED)


def exit_network(trained: Trained, classes: int) -> nn.Module:
    """A network that is small enough for the device: two separable steps and a pooled sum."""
    channels = trained.options.channels
    return nn.Sequential(
        convolution(channels, _EXIT_WIDTH, 3),
        convolution(_EXIT_WIDTH, 2 * _EXIT_WIDTH, 3, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * _EXIT_WIDTH, classes),
    )


def train_task(
    trained: Trained,
    task: Task,
    *,
    epochs: int,
    recorder: Recorder,
    progress: Progress,
) -> nn.Module:
    """Train a task's network on the frozen encoder's symbols, over all its qualities; or go on where it was left.

    Raises:
        TrainingError: the loss is no number any more, or the disk is full.
        UsageError: the network does not take the bottleneck.
    """
    options, folder = trained.options, trained.folder
    module = task.module.to(options.device)
    augmentation = task.augmentation
    if task.teacher is None and task.target == "given":
        augmentation = replace(augmentation, mix=0.0)  # nobody knows the target of two pictures
    batches = Batches(task.train, options.batch, augmentation, options.seed, options.preparing)
    optimiser, mean = _optimiser(module, options), mean_of(module)
    path = folder / f"task-{task.name}.pt"
    first = _restored(path, module, mean, optimiser)
    _try(trained, task, module)
    views = Views(batches, options.views, _Teaching(trained, task))
    total = batches.steps * epochs
    for epoch in range(first, epochs):
        module.train()
        for step, batch in enumerate(views.epoch(epoch)):
            at = epoch * batches.steps + step
            for group in optimiser.param_groups:
                group["lr"] = group["most"] * one_cycle(at, total)
            generator = seeded(options.seed, task.name, epoch, step)
            quality = draw_qualities(len(batch.features), options.qualities, generator).to(options.device)
            with computing(options):
                made = module(trained.student.quantiser(batch.features, quality))
            loss = _loss(task, options, made, batch)
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss of {task.name!r} is no number any more (epoch {epoch + 1}, step {step + 1}); {path} is "
                    "the last good state: go on from it with a smaller learning rate (--rates)"
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            mean.update_parameters(module)
            recorder.scalar(f"{task.name}/train/loss", float(loss.detach()), at + 1)
            progress(f"tail {task.name}", at + 1, total)
        states = {"module": module.state_dict(), "mean": mean.state_dict(), "optimiser": optimiser.state_dict()}
        checkpoint.save({"epoch": epoch + 1} | states, path)
    if options.averaged:
        module.load_state_dict(mean.module.state_dict())
    return module.eval().requires_grad_(False)


def _optimiser(module: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """AdamW; what comes from the student learns as it did in its own last stage."""
    groups: list[tuple[float, nn.Module]] = [(options.rates[0], module)]
    if isinstance(module, Transferred):
        groups = [(options.rates[0], module.new), (options.rates[1], module.begun)]
    return torch.optim.AdamW(
        [{"params": own.parameters(), "most": rate} for rate, own in groups],
        lr=options.rates[0],
        weight_decay=options.weight_decay,
    )


@dataclass(frozen=True)
class _Batch:
    """What a step is made of."""

    features: Tensor
    """The encoder's, before they are rounded."""
    targets: Tensor
    answer: Tensor | None
    """The task's teacher's."""

    @property
    def size_bytes(self) -> int:
        """Of memory."""
        own = (self.features, self.targets, *([] if self.answer is None else [self.answer]))
        return sum(one.numel() * one.element_size() for one in own)


class _Teaching:
    """What does not learn while a tail does: the encoder, and the task's teacher."""

    def __init__(self, trained: Trained, task: Task) -> None:
        self.trained, self.task = trained, task
        self.encoder = folded(trained.student.encoder)
        self.teacher = None if task.teacher is None else folded(task.teacher.module).to(trained.options.device)

    @torch.no_grad()
    def __call__(self, pictures: Tensor, targets: Tensor) -> _Batch:
        features = self.encoder(_normalised(self.trained, pictures))
        wanted, answer = self.task.wanted(pictures, targets).to(features.device), None
        if self.teacher is not None and self.task.teacher is not None:
            with computing(self.trained.options):
                answer = self.teacher(self.task.teacher.normalised(pictures).to(features.device))
        return _Batch(features, wanted, answer)


def _loss(task: Task, options: TrainOptions, made: Tensor, batch: _Batch) -> Tensor:
    loss = task.loss(made.float(), batch.targets)
    if batch.answer is None:
        return loss
    distilled = answer_loss(made, batch.answer, options.temperature)
    return options.distil_weight * distilled + (1 - options.distil_weight) * loss


@torch.no_grad()
def restored_symbols(trained: Trained, pictures: Tensor, quality: int = 0) -> Tensor:
    """What a tail sees of pictures `uint8 [B, H, W, 3]` at a quality."""
    x = _normalised(trained, pictures)
    restored: Tensor = trained.student.quantiser(
        trained.student.encoder(x), torch.full((len(x),), quality, device=x.device)
    )
    return restored


def _normalised(trained: Trained, pictures: Tensor) -> Tensor:
    return trained.teacher.normalised(pictures).to(next(trained.student.parameters()).device)


def _restored(path: Path, module: nn.Module, mean: AveragedModel, optimiser: torch.optim.Optimizer) -> int:
    state: dict[str, Any] | None = checkpoint.restore(path)
    if state is None:
        return 0
    try:
        module.load_state_dict(state["module"])
        mean.load_state_dict(state["mean"])
        optimiser.load_state_dict(state["optimiser"])
    except (RuntimeError, KeyError, ValueError):
        raise TrainingError(f"{path} holds another network; remove it to begin this tail again") from None
    return int(state["epoch"])


def _try(trained: Trained, task: Task, module: nn.Module) -> None:
    """Run the network once before an epoch is spent on it."""
    rows = torch.from_numpy(task.train.pictures[:2].copy())
    seen = restored_symbols(trained, rows)
    try:
        with torch.no_grad():
            module.eval()(seen)
    # A stranger's network raises what it likes.
    except Exception as error:  # noqa: BLE001
        shape = "×".join(map(str, seen.shape[1:]))
        raise UsageError(f"the tail {task.name!r} does not take the bottleneck, {shape} ({error})") from None
