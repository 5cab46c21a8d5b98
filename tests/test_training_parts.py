"""Quantiser, prior, rate, losses, calibration: each by the law that it keeps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from narrows.partitioner.training import TrainOptions
from narrows.partitioner.training.exits import calibrated, calibration_error, fit_temperature, softmax
from narrows.partitioner.training.folding import folded
from narrows.partitioner.training.losses import RateControl, distillation, feature_loss
from narrows.partitioner.training.prior import FactorisedPrior
from narrows.partitioner.training.quantiser import Quantiser
from narrows.partitioner.training.steps import draw_qualities, mean_of, one_cycle, seeded
from narrows.runtime.errors import UsageError
from torch import nn


def started(levels: int = 8, qualities: int = 3, rated: bool = True) -> tuple[Quantiser, torch.Tensor]:
    features = (
        torch.randn(32, 4, 6, 6, generator=seeded("features")) * torch.tensor([0.1, 1.0, 3.0, 20.0])[:, None, None]
    )
    quantiser = Quantiser(4, levels, qualities)
    quantiser.start(features, rated=rated)
    return quantiser, features


# -- quantiser ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(levels=st.integers(2, 256), quality=st.integers(0, 2), scale=st.floats(0.01, 1e4))
def test_what_the_decoder_sees_is_what_the_symbols_say(levels: int, quality: int, scale: float) -> None:
    quantiser, features = started(levels)
    features, chosen = features * scale, torch.full((32,), quality)
    symbols, table = quantiser.symbols(features, chosen), quantiser.table()
    assert symbols.dtype == torch.uint8
    assert int(symbols.max()) < levels
    steps, zeros = (torch.from_numpy(a[quality])[:, None, None] for a in (table.steps, table.zeros))
    restored = (symbols.float() - zeros) * steps
    seen = quantiser(features, chosen)
    # Both divide by a step, one of them by multiplying with its inverse: a value on an edge may fall on either side.
    assert float(((seen - restored).abs() > 1e-4 * steps).float().mean()) < 1e-3


def test_a_ladder_starts_with_falling_steps_and_a_fixed_alphabet_covers_its_range() -> None:
    quantiser, _ = started()
    steps = quantiser.table().steps
    assert np.all(np.diff(steps, axis=0) < 0)
    fixed, features = started(levels=8, qualities=1, rated=False)
    symbols = fixed.symbols(features, torch.zeros(32, dtype=torch.int64))
    assert int(symbols.min()) == 0
    assert int(symbols.max()) == 7


def test_steps_and_features_have_gradients_and_what_is_clipped_pulls_at_the_step_alone() -> None:
    quantiser, _ = started(qualities=1)
    features = torch.tensor([0.3, 1e6]).reshape(1, 1, 1, 2).expand(1, 4, 1, 2).clone().requires_grad_()
    quantiser(features, torch.zeros(1, dtype=torch.int64)).sum().backward()
    assert torch.equal(features.grad[0, 1, 0], torch.tensor([1.0, 0.0]))
    assert bool((quantiser.log_steps.grad.abs() > 0).all())


# -- prior -------------------------------------------------------------------------------------------------------------


def test_a_priors_probabilities_sum_to_one_at_every_step() -> None:
    torch.manual_seed(0)
    prior = FactorisedPrior(3)
    for step in (0.1, 1.0, 7.0):
        grid = torch.arange(-3000, 3001) * step
        bits = prior.bits(grid.reshape(-1, 1, 1, 1).expand(-1, 3, 1, 1), torch.full((len(grid), 3, 1, 1), step))
        assert bits.shape == (6001,)
        each = torch.stack([_bits_of(prior, grid, step, channel) for channel in range(3)])
        assert torch.allclose(torch.exp2(-each).sum(1), torch.ones(3), atol=1e-3)


def _bits_of(prior: FactorisedPrior, grid: torch.Tensor, step: float, channel: int) -> torch.Tensor:
    lower, upper = (prior._logits((grid + s * step / 2).reshape(-1, 1, 1, 1).expand(-1, 3, 1, 1)) for s in (-1, 1))
    mass = (torch.sigmoid(upper) - torch.sigmoid(lower))[:, channel, 0, 0]
    return -torch.log2(mass.clamp(min=1e-12))


def test_a_prior_learns_the_entropy_of_what_it_is_shown() -> None:
    torch.manual_seed(0)
    prior, step = FactorisedPrior(1), torch.full((256, 1, 1, 1), 1.0)
    optimiser = torch.optim.Adam(prior.parameters(), lr=2e-2)
    generator = seeded("prior")
    for _ in range(400):
        values = torch.randn(256, 1, 4, 4, generator=generator).mul(2.0).round()
        loss = prior.bits(values, step).mean() / 16
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) == pytest.approx(0.5 * math.log2(2 * math.pi * math.e * 4.08), abs=0.1)


# -- rate --------------------------------------------------------------------------------------------------------------


def test_the_price_of_a_byte_follows_its_target() -> None:
    control = RateControl((1e-3,), (100.0,))
    rate = 400.0
    for step in range(400):
        rate = 300 / (1 + 100 * control.beta[0])  # what a dearer byte leaves
        control.follow(torch.full((8,), rate * 8), torch.zeros(8, dtype=torch.int64), step / 400, 400)
    assert rate == pytest.approx(100, rel=0.05)


def test_the_price_goes_by_what_the_codec_makes_and_not_by_what_the_prior_says() -> None:
    control = RateControl((1e-3,), (100.0,))
    control.follow(torch.full((8,), 800.0), torch.zeros(8, dtype=torch.int64), 1.0, 100)
    control.measured([50.0])
    assert control.scale == [0.5]
    again = RateControl((1e-3,), (100.0,))
    again.restore(control.state())
    assert again.state() == control.state()


# -- losses ------------------------------------------------------------------------------------------------------------


def test_a_share_of_variance_is_the_same_at_every_scale() -> None:
    wanted, made = torch.randn(2, 64, 3, 5, 5, generator=seeded("maps"))
    small = feature_loss([made], [wanted], [float(wanted.var())])
    large = feature_loss([1e3 * made], [1e3 * wanted], [float((1e3 * wanted).var())])
    assert float(small) == pytest.approx(float(large), rel=1e-4)
    assert float(small) == pytest.approx(2, rel=0.1)


def test_distillation_is_nothing_where_the_answers_are_the_same() -> None:
    answer = torch.randn(8, 10, generator=seeded("answers"))
    assert float(distillation(answer, answer + 3, 4.0)) == pytest.approx(0, abs=1e-5)
    assert float(distillation(answer, -answer, 4.0)) > 0.1


@given(count=st.integers(4, 64), qualities=st.integers(1, 9))
def test_every_batch_has_the_smallest_and_the_largest_quality(count: int, qualities: int) -> None:
    drawn = draw_qualities(count, qualities, seeded(count, qualities))
    assert drawn.min() == 0
    assert drawn.max() == qualities - 1


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [one_cycle(step, 100) for step in range(100)]
    assert max(rates) == 1
    assert rates.index(1.0) < 11
    assert rates[-1] < 0.02


def test_a_mean_of_weights_follows_and_takes_what_single_steps_add_away() -> None:
    module = torch.nn.BatchNorm1d(1)
    mean = mean_of(module)
    noise = torch.randn(2_000, generator=seeded("steps"))
    for step, value in enumerate(noise):
        with torch.no_grad():
            module.weight.fill_(5.0 + value)
            module.running_mean.fill_(7.0)
            module.num_batches_tracked.fill_(step)
        mean.update_parameters(module)
    assert float(mean.module.weight.detach()) == pytest.approx(5.0, abs=0.3)
    assert float(mean.module.running_mean) == pytest.approx(7.0)
    assert int(mean.module.num_batches_tracked) == len(noise) - 1
    assert float(module.weight.detach()) == pytest.approx(5.0 + float(noise[-1]))


# -- exits -------------------------------------------------------------------------------------------------------------


def test_calibration_finds_the_temperature_and_mends_the_confidence() -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 2, (20_000, 5))
    labels = np.array([rng.choice(5, p=p) for p in softmax(honest)])
    boasting = 3 * honest
    temperature = fit_temperature(boasting, labels)
    assert temperature == pytest.approx(3, rel=0.1)
    before, after = (softmax(boasting / t) for t in (1.0, temperature))
    errors = [calibration_error(p.max(1), p.argmax(1) == labels) for p in (before, after)]
    assert errors[1] < 0.02 < errors[0]


def test_the_surer_an_exit_the_more_often_it_is_right() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (8_000, 4))
    labels = np.array([rng.choice(4, p=p) for p in softmax(logits)])
    quality = calibrated(logits, labels, labels)
    assert [p.coverage for p in quality.points] == sorted((p.coverage for p in quality.points), reverse=True)
    assert quality.points[-1].agreement > quality.points[0].agreement > quality.agreement - 1e-9


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"method": "magic"}, "method is one of"),
        ({"channels": 0}, "1 to 4096 channels"),
        ({"levels": 300}, "2 to 256 symbols"),
        ({"method": "ladder", "target_bytes": (80.0, 40.0)}, "rise"),
        ({"target_bytes": (80.0,)}, "no rate term"),
        ({"method": "entropic", "target_bytes": (40.0, 80.0)}, "need the method ladder"),
        ({"epochs": (0, 0)}, "epochs"),
        ({"distil_weight": 1.5}, "share of the loss"),
        ({"epochs": (1, 1, 1)}, "as many epochs and learning rates"),
        ({"epochs": (1,), "rates": (1e-3,)}, "two or three stages"),
        ({"beta": (1e-4, 1e-3), "method": "ladder"}, "falls"),
    ],
)
def test_options_that_cannot_be_are_refused(said: dict, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        TrainOptions(**said)


class Tangled(nn.Module):
    """Convolutions that are normalised, one that is used twice, and one whose output is wanted as it is, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.twice, self.then = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.seen, self.last = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x))
        x = self.then(self.twice(x)) + self.twice(x)
        seen = self.seen(x)
        return seen + self.last(seen)


class Untraceable(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.sum()) > 0 else -x


def test_folding_changes_nothing_but_the_number_of_normalisations() -> None:
    torch.manual_seed(0)
    module = Tangled()
    for norm in (module.norm, module.then, module.last):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 6, 6)
    made = folded(module)
    with torch.no_grad():
        torch.testing.assert_close(made(x), module.eval()(x), rtol=1e-5, atol=1e-5)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in made.modules()) == 2  # of what is shared, or seen twice
    assert sum(isinstance(m, nn.BatchNorm2d) for m in module.modules()) == 3
    plain = folded(Untraceable())
    assert torch.equal(plain(-x.abs()), x.abs())
