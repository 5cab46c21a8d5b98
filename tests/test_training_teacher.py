"""Teachers taken apart, and encoders designed from their shapes."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import students
import torch
from material import FOLDER, model_path
from narrows.partitioner.training import Teacher, TrainOptions, split_teacher
from narrows.partitioner.training.design import design, prices
from narrows.partitioner.training.halves import stems
from narrows.partitioner.training.race import entrant, race
from narrows.partitioner.training.run import choose_activation
from narrows.runtime.errors import CutError, ModelError, UnknownTensorError, UsageError
from narrows.runtime.manifest import Preprocess
from torch import nn


@pytest.mark.parametrize("at", ["stem", "early", "middle", "middle.1", "late.1"])
def test_front_and_tail_are_the_whole(at: str) -> None:
    teacher = students.teacher()
    halves = split_teacher(teacher, at)
    x = teacher.normalised(students.data().validation.pictures[:16])
    with torch.no_grad():
        assert torch.equal(halves.tail(halves.front(x)), teacher.module(x))
    assert halves.front_params + sum(p.numel() for p in halves.tail.parameters()) == teacher.params
    assert tuple(halves.front(x).shape[1:]) == halves.features


def test_taps_are_the_modules_outputs() -> None:
    teacher = students.teacher()
    seen = {}
    teacher.module.late.register_forward_hook(lambda _m, _i, output: seen.update(late=output))
    x = teacher.normalised(students.data().validation.pictures[:4])
    halves = split_teacher(teacher, "early", ["middle", "late"])
    with torch.no_grad():
        answer, middle, late = halves.tail.tapped(halves.front(x))
        assert torch.equal(answer, teacher.module(x))
    assert torch.equal(late, seen["late"])
    assert middle.shape[1] == 16


def test_a_proposed_cut_separates_and_its_taps_do_not_hold_one_another() -> None:
    halves = split_teacher(students.teacher())
    assert halves.at in ("early", "middle", "late.0", "late.1")
    for one, other in pairwise(halves.tail.taps):
        assert not one.startswith(f"{other}.")
        assert not other.startswith(f"{one}.")


def test_a_module_inside_a_skip_connection_does_not_separate() -> None:
    with pytest.raises(CutError, match=r"'early\.first' alone does not separate"):
        split_teacher(students.teacher(), "early.first")


def test_a_name_that_is_not_there_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownTensorError, match="'midle'; the nearest are middle"):
        split_teacher(students.teacher(), "midle")


def test_what_is_no_map_of_features_is_no_cut() -> None:
    with pytest.raises(CutError, match="a bottleneck restores"):
        split_teacher(students.teacher(), "head")


class Moody(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_a_network_that_cannot_be_traced_is_refused_with_a_way_out() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Moody(), nn.Conv2d(4, 4, 3))
    teacher = Teacher("moody", net.eval(), Preprocess(16, 16))
    with pytest.raises(ModelError, match="give its ONNX export"):
        split_teacher(teacher, "0")


def test_a_network_that_takes_no_picture_is_no_teacher() -> None:
    with pytest.raises(ModelError, match="takes one batch of RGB pictures"):
        Teacher.load((nn.Linear(4, 2), torch.zeros(2, 4)))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_an_onnx_classifier_becomes_a_teacher() -> None:
    pytest.importorskip("onnx2torch", reason="onnx2torch is not installed (the extra `onnx-teacher`)")
    path = model_path("cifar10_resnet20_jpegft.onnx")
    sys.path.append(str(FOLDER / "tools"))
    try:
        import torchvision_cpu  # noqa: F401 - lets torchvision's wheel load beside a CPU build of torch
    except ImportError:
        pytest.skip("no torchvision_cpu")
    teacher = Teacher.load(path)
    halves = split_teacher(teacher)
    with torch.no_grad():
        assert torch.allclose(halves.tail(halves.front(teacher.example)), teacher.module(teacher.example))


# -- design ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "gdn"])
@pytest.mark.parametrize("at", ["early", "late"])
def test_a_design_costs_what_it_says_and_keeps_to_its_budget(at: str, activation: str) -> None:
    teacher = students.teacher()
    halves = split_teacher(teacher, at)
    options = TrainOptions(channels=5, head_macs=150_000, head_params=4_000)
    made = design(teacher, halves, options, activation)
    table = {price.part: price for price in prices(teacher, halves, made.make())}
    assert (table["encoder"].params, table["encoder"].macs) == made.price
    assert table["encoder"].params <= 4_000
    assert table["encoder"].macs <= 150_000
    assert table["encoder"].shape[0] == 5


def test_a_budget_that_nothing_fits_says_what_the_smallest_costs() -> None:
    teacher = students.teacher()
    with pytest.raises(UsageError, match="the smallest here has"):
        design(teacher, split_teacher(teacher, "middle"), TrainOptions(head_macs=10))


def test_an_encoder_begins_with_the_teachers_own_layers_where_that_is_asked_for() -> None:
    teacher = students.teacher()
    halves = split_teacher(teacher, "late")
    made = design(teacher, halves, TrainOptions(channels=4, stem="early", head_macs=10**7, head_params=10**5))
    pair = made.make()
    assert pair.has_stem
    assert torch.equal(next(pair.encoder[0].parameters()), teacher.module.stem.weight)
    assert next(pair.encoder[0].parameters()) is not teacher.module.stem.weight
    assert {price.part: price for price in prices(teacher, halves, pair)}["encoder"].params == made.price[0]
    assert stems(teacher, "late")[0].name == "stem"


def test_a_large_teacher_is_left_eighty_times_larger_than_the_head() -> None:
    wide = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 64, 3, 2, 1), nn.ReLU(), nn.Conv2d(64, 128, 3, 2, 1),
        nn.Conv2d(128, 1024, 3, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, 10),
    )  # fmt: skip
    teacher = Teacher("wide", wide.eval(), Preprocess(64, 64))
    assert teacher.params > 10**6
    made = design(teacher, split_teacher(teacher, "4"), TrainOptions())
    assert made.price[0] * 80 <= teacher.params


def test_a_pair_that_restores_another_shape_is_refused() -> None:
    teacher = students.teacher()
    halves = split_teacher(teacher, "middle")
    pair = replace(design(teacher, halves, TrainOptions(channels=4)).make(), decoder=nn.Conv2d(4, 7, 1))
    with pytest.raises(UsageError, match="the decoder puts out 7"):
        prices(teacher, halves, pair)


def test_a_race_times_every_entrant() -> None:
    teacher = students.teacher()
    halves = split_teacher(teacher, "late")
    modules = {"front": halves.front, "stem": nn.Conv2d(3, 4, 3)}
    taken = race({name: entrant(module, teacher.example) for name, module in modules.items()})
    assert set(taken) == {"front", "stem"}
    assert min(taken.values()) > 0


def test_the_activation_is_chosen_by_a_race() -> None:
    teacher = students.teacher()
    options = TrainOptions(channels=4)
    assert choose_activation(teacher, split_teacher(teacher, "late"), options) in ("relu", "gdn")
    assert choose_activation(teacher, split_teacher(teacher, "late"), replace(options, activation="gdn")) == "gdn"
