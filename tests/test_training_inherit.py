"""Pairs that begin and end with the teacher's own layers, views that come round again, and mixed precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from narrows.partitioner.training import Teacher, TrainOptions, split_teacher, train
from narrows.partitioner.training.batches import Augmentation
from narrows.partitioner.training.data import ImageData, Part
from narrows.partitioner.training.design import prices
from narrows.partitioner.training.inherit import Kept, inherited
from narrows.runtime.errors import CutError, UsageError
from narrows.runtime.manifest import Preprocess
from torch import nn


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


def teacher() -> Teacher:
    torch.manual_seed(0)
    layers = [
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()),
        Residual(8),
        nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()),
        Residual(16),
        Residual(16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 3),
    ]
    module = nn.Sequential(*layers).eval().requires_grad_(False)
    return Teacher("small", module, Preprocess(16, 16, scale=1 / 255))


def pictures(count: int = 24) -> ImageData:
    rng = np.random.default_rng(0)
    parts = [
        Part(rng.integers(0, 256, (n, 16, 16, 3), np.uint8), np.arange(n, dtype=np.int64) % 3) for n in (count, 12)
    ]
    return ImageData("noise", ("a", "b", "c"), *parts)


OPTIONS = TrainOptions(
    channels=4,
    decoder_width=8,
    decoder_blocks=1,
    head_params=1_100,
    head_macs=200_000,
    epochs=(2, 2),
    batch=8,
    taps=(),
    activation="relu",
)


def test_the_encoder_keeps_the_deepest_layers_that_the_budget_has_room_for() -> None:
    whole, data = teacher(), pictures()
    halves = split_teacher(whole, "3", ())
    for params, behind in ((1_100, "1"), (500, "0")):
        options = replace(OPTIONS, head_params=params)
        pair = inherited(whole, halves, options, data.train.pictures)
        kept = pair.encoder[0]
        assert isinstance(kept, Kept)
        x = torch.randn(2, 3, 16, 16)
        with torch.no_grad():
            torch.testing.assert_close(kept(x), split_teacher(whole, behind, ()).front(x), rtol=1e-4, atol=1e-5)
        assert next(p.params for p in prices(whole, halves, pair) if p.part == "encoder") <= params


def test_the_decoder_ends_with_the_layers_that_follow() -> None:
    whole, data = teacher(), pictures()
    pair = inherited(whole, split_teacher(whole, "3", ()), OPTIONS, data.train.pictures, behind="1")
    rest = pair.decoder[-1]
    x = torch.randn(2, 8, 8, 8)
    with torch.no_grad():
        assert torch.equal(rest(x), whole.module[2:4](x))
    rest.requires_grad_(True)
    assert not any(p.requires_grad for p in whole.module.parameters())  # a copy: the teacher stays frozen


@pytest.mark.parametrize(("channels", "stride", "params"), [(8, None, 5_000), (32, 4, 5_000), (6, 4, 900)])
def test_before_anything_is_learned_it_is_the_best_linear_bottleneck(
    channels: int, stride: int | None, params: int
) -> None:
    whole, data = teacher(), pictures(64)
    options = replace(OPTIONS, channels=channels, stride=stride, head_params=params)
    halves = split_teacher(whole, "3", ())
    pair = inherited(whole, halves, options, data.train.pictures, behind=None if params < 1_000 else "1")
    x = whole.normalised(data.train.pictures)
    with torch.no_grad():
        wanted, made = halves.front(x), pair.decoder.eval()(pair.encoder(x))
    if channels == 8 * (stride or 2) ** 2 // 4:  # as many components as there are: nothing is lost
        torch.testing.assert_close(made, wanted, rtol=0, atol=0.05)
    else:
        assert torch.mean((made - wanted) ** 2) < wanted.var()


def test_what_cannot_be_inherited_is_said_so() -> None:
    whole, data = teacher(), pictures()
    halves = split_teacher(whole, "3", ())
    with pytest.raises(UsageError, match="raise --head-params"):
        inherited(whole, halves, TrainOptions(channels=4, head_params=10), data.train.pictures)
    with pytest.raises(CutError, match="nothing lies between"):
        inherited(whole, halves, OPTIONS, data.train.pictures, behind="3")


def test_kept_layers_stay_as_they_are_in_both_stages(tmp_path: Path) -> None:
    whole, data = teacher(), pictures()
    pair = inherited(whole, split_teacher(whole, "3", ()), OPTIONS, data.train.pictures)
    before = {name: value.clone() for name, value in pair.encoder[0].state_dict().items()}
    narrow = [p.clone() for p in pair.encoder[1].parameters()]
    trained = train(whole, data, OPTIONS, output=tmp_path / "run", at="3", pair=pair)
    after = trained.student.encoder[0].state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(map(torch.equal, narrow, trained.student.encoder[1].parameters()))


def test_a_third_stage_lets_kept_layers_and_a_frozen_encoder_learn(tmp_path: Path) -> None:
    whole, data = teacher(), pictures()
    options = replace(OPTIONS, method="entropic", target_bytes=(8.0,), views=2, augmentation=Augmentation(flip=True))
    ended = []
    for epochs in ((1, 1), (1, 1, 2)):
        pair = inherited(whole, split_teacher(whole, "3", ()), options, data.train.pictures)
        staged = replace(options, epochs=epochs, rates=(2e-3, 1e-3, 1e-3)[: len(epochs)])
        trained = train(whole, data, staged, output=tmp_path / str(len(epochs)), at="3", pair=pair)
        ended.append(trained.student)
    kept, learned = (student.encoder[0].state_dict() for student in ended)
    weight = next(name for name in kept if name.endswith("weight"))
    assert not any("running" in name for name in kept)  # folded in, so no batch changes them
    assert not torch.equal(learned[weight], kept[weight])
    first, last = (student.quantiser.log_steps for student in ended)
    assert not torch.equal(first, last)
    assert not any(p.requires_grad for p in whole.module.parameters())


class Told:
    """Keeps the curves."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def scalar(self, name: str, value: float, step: int) -> None:
        self.values.setdefault(name, []).append(value)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("mixed", [False, True])
def test_views_come_round_again_and_the_teacher_answers_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mixed: bool
) -> None:
    whole = teacher()
    told = {}
    for views in (0, 2):
        asked = []
        hook = whole.module[0][0].register_forward_hook(lambda *_, asked=asked: asked.append(1))
        options = TrainOptions(
            channels=4,
            activation="relu",
            epochs=(3, 1),
            batch=8,
            taps=(),
            views=views,
            precision="bfloat16" if mixed else "float32",
            augmentation=Augmentation(flip=True),
        )
        recorder = Told()
        train(whole, pictures(), options, output=tmp_path / f"run{views}", at="3", recorder=recorder)
        hook.remove()
        told[views] = len(asked), recorder.values["features/train/loss"]
    assert told[2][0] < told[0][0]
    assert all(np.isfinite(told[views][1]).all() for views in (0, 2))
    assert told[2][1][-1] < told[2][1][0]
