"""Hard attention: what is drawn, what of it is learnt, and what a search sees."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.captioners import hard
from pipeline.captioners.build import build_captioner
from pipeline.captioners.captioner import Captioner, Output
from pipeline.captioners.hard import HardCaptioner
from pipeline.training.losses import captioning_loss
from tests.captioners.conftest import SHAPE
from tests.captioners.reference import Array
from tests.captioners.reference_hard import expected_loss

OPTIONS: dict[str, Any] = {"activation": "tanh", "gate": True, "normalise": True, "tie": False}
PLAIN = ("tanh", True, True)
SURE = replace(SHAPE, dropout=0.0)
# Slopes of the reference by central differences: exact to 1e-9 where numpy has a type wider than float64.
STEP, BOUND = (1e-6, 1e-9) if np.finfo(np.longdouble).eps < 1e-18 else (1e-5, 1e-5)


def made(reward: float = 1.0, entropy: float = 0.0) -> HardCaptioner:
    torch.manual_seed(3)
    options = {**OPTIONS, "reward_weight": reward, "entropy_weight": entropy}
    captioner = build_captioner("hard", SURE, options).double()
    assert isinstance(captioner, HardCaptioner)
    with torch.no_grad():
        for parameter in captioner.parameters():
            parameter.mul_(3)
    return captioner


def chance(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def own(captioner: Captioner, output: Output, padded: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    loss = captioning_loss(output, *padded, label_smoothing=0.0)
    added = captioner.own_loss(output, loss.each.detach(), padded[1])
    assert added is not None
    return loss.words, added


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """No image is seen softly, and the regions of each step are those said here."""
    said: list[tuple[int, ...]] = []

    def chosen(weights: Tensor, generator: torch.Generator | None) -> Tensor:
        assert generator is not None
        return torch.tensor(said.pop(0)[: len(weights)])

    monkeypatch.setattr(hard, "_SOFT", 0.0)
    monkeypatch.setattr(hard, "_chosen", chosen)
    return said


def slope(
    captioner: HardCaptioner, regions: Tensor, captions: list[list[int]], directions: Mapping[str, Array]
) -> float:
    """Of the mean expected loss a word, along the directions; the reference normalises the regions itself."""
    words = sum(len(caption) - 1 for caption in captions)
    losses = []
    for sign in (1, -1):
        weights = {name: value.numpy().astype(np.longdouble) for name, value in captioner.state_dict().items()}
        weights |= {name: weights[name] + sign * STEP * direction for name, direction in directions.items()}
        seen = regions[0].numpy().astype(np.longdouble)
        losses.append(sum(expected_loss(weights, PLAIN, seen, one) for one in captions))
    return float((losses[0] - losses[1]) / (2 * STEP * words))


def test_the_estimate_is_on_average_the_gradient_of_the_expected_loss(forced: list[tuple[int, ...]]) -> None:
    """By all choices there are, each as often as its probability says; of the entropy nothing, which is another's."""
    captioner = made()
    regions = torch.randn(1, 3, 7, dtype=torch.float64, generator=chance())
    captions = [[1, 5, 9, 2], [1, 2]]
    padded = torch.tensor([[[1, 5, 9, 2], [1, 2, 0, 0]]]), torch.tensor([[4, 2]])
    directions = {
        name: np.random.default_rng(7).standard_normal(parameter.shape)
        for name, parameter in captioner.named_parameters()
    }
    found = whole = 0.0
    for first in itertools.product(range(3), repeat=3):
        for second in range(3):
            captioner.zero_grad()
            captioner.baseline.fill_(-0.7)
            forced[:] = [(first[0], second), (first[1],), (first[2],)]
            output = captioner(regions, *padded, chance())
            sum(own(captioner, output, padded)).backward()  # type: ignore[union-attr]
            share = math.exp(output.extras["log_choice"].sum().item())
            whole += share
            for name, parameter in captioner.named_parameters():
                assert parameter.grad is not None
                found += share * float((parameter.grad.numpy() * directions[name]).sum())
    assert whole == pytest.approx(1, abs=1e-12)
    assert found == pytest.approx(slope(captioner, regions, captions, directions), rel=BOUND)


def test_own_loss_is_eq_12_a_word(regions: Tensor, padded: tuple[Tensor, Tensor]) -> None:
    captioner = made(reward=0.3, entropy=0.002)
    output = captioner(regions, *padded, chance())
    captioner.baseline.fill_(-1.5)
    losses = torch.randn(len(output.logits), dtype=torch.float64, generator=chance()).abs()
    found = captioner.own_loss(output, losses, padded[1])
    expected, left = 0.0, losses.tolist()
    for image, row in enumerate(padded[1].tolist()):
        for caption, length in enumerate(row):
            words = range(max(length - 1, 0))
            logs = [-left.pop(0) for _ in words]
            for word in words:
                choice, entropy = (
                    output.extras[name][image, caption, word].item() for name in ("log_choice", "entropy")
                )
                expected -= 0.3 * (sum(logs) - len(logs) * -1.5) * choice + 0.002 * entropy
    assert found.item() == pytest.approx(expected / len(losses), rel=1e-12)


def test_the_baseline_is_a_moving_average_of_log_p_a_word(regions: Tensor, padded: tuple[Tensor, Tensor]) -> None:
    captioner = made()
    expected = -math.log(13)
    assert float(captioner.baseline) == pytest.approx(expected, rel=1e-6)
    output = captioner(regions, *padded, chance())
    for level in (3.0, 0.5):
        captioner.own_loss(output, torch.full((len(output.logits),), level, dtype=torch.float64), padded[1])
        expected = 0.9 * expected - 0.1 * level
        assert float(captioner.baseline) == pytest.approx(expected, rel=1e-6)
    assert float(made().baseline) != float(captioner.baseline)
    again = made()
    again.load_state_dict(captioner.state_dict())
    assert float(again.baseline) == float(captioner.baseline)


def test_a_search_leaves_the_baseline_alone(regions: Tensor, padded: tuple[Tensor, Tensor]) -> None:
    captioner = made()
    before = float(captioner.baseline)
    captioner(regions, *padded, None)
    captioner.step(torch.tensor([1, 1, 1]), captioner.start(regions))
    assert float(captioner.baseline) == before


def test_the_cross_entropy_does_not_teach_what_is_drawn(
    monkeypatch: pytest.MonkeyPatch, regions: Tensor, padded: tuple[Tensor, Tensor]
) -> None:
    monkeypatch.setattr(hard, "_SOFT", 0.0)
    captioner = made()
    words, added = own(captioner, captioner(regions, *padded, chance()), padded)
    for loss, taught in ((words, False), (added, True)):
        (gradient,) = torch.autograd.grad(loss, captioner.attention.score, allow_unused=True, retain_graph=True)
        assert (gradient is not None and bool(gradient.any())) == taught


def test_in_eval_mode_nothing_is_drawn(regions: Tensor, padded: tuple[Tensor, Tensor]) -> None:
    captioner = made().eval()
    found, expected = captioner(regions, *padded, chance()), captioner(regions, *padded, None)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.attention, expected.attention)


def test_an_image_seen_softly_is_the_soft_decoders(
    monkeypatch: pytest.MonkeyPatch, regions: Tensor, padded: tuple[Tensor, Tensor]
) -> None:
    monkeypatch.setattr(hard, "_SOFT", 1.0)
    captioner = made()
    soft = build_captioner("soft", SURE, OPTIONS).double()
    weights = {name: value for name, value in captioner.state_dict().items() if name != "baseline"}
    soft.load_state_dict(weights)
    found, expected = captioner(regions, *padded, chance()), soft(regions, *padded, None)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.attention, expected.attention, rtol=1e-9, atol=1e-12)
    words, added = own(captioner, found, padded)
    assert added.item() == 0
    (words + added).backward()
    captioning_loss(expected, *padded, label_smoothing=0.0).words.backward()
    for name, parameter in soft.named_parameters():
        torch.testing.assert_close(captioner.get_parameter(name).grad, parameter.grad, rtol=1e-9, atol=1e-12)


def test_half_of_the_images_are_seen_softly_with_all_their_captions() -> None:
    images = 400
    regions = torch.randn(images, 3, 7, dtype=torch.float64, generator=chance())
    captions = torch.tensor([[[1, 5, 2], [1, 8, 2]]]).expand(images, 2, 3)
    output = made()(regions, captions, torch.full((images, 2), 3), chance(5))
    drawn = output.extras["log_choice"] != 0
    assert torch.equal(drawn.flatten(1).all(1), drawn.flatten(1).any(1))
    assert 0.4 < float(drawn[:, 0, 0].double().mean()) < 0.6
    assert torch.equal(output.extras["entropy"] > 0, drawn)


def test_extras_are_zero_where_no_word_is(
    monkeypatch: pytest.MonkeyPatch, regions: Tensor, padded: tuple[Tensor, Tensor]
) -> None:
    monkeypatch.setattr(hard, "_SOFT", 0.0)
    output = made()(regions, *padded, chance())
    spoken = Captioner.spoken(padded[1], 7)
    for extra in output.extras.values():
        assert torch.equal(extra != 0, spoken)
    weights = output.attention[spoken]
    torch.testing.assert_close(output.extras["entropy"][spoken], torch.special.entr(weights).sum(-1))
    assert bool((weights.max(-1).values < 1).all())  # what is penalised in training is what is drawn from


def test_regions_are_drawn_as_often_as_the_attention_says() -> None:
    weights = torch.tensor([0.5, 0.0, 0.125, 0.375])
    drawn = hard._chosen(weights.expand(20_000, 4), chance())
    shares = torch.bincount(drawn, minlength=4) / 20_000
    torch.testing.assert_close(shares, weights, rtol=0, atol=0.015)
    assert shares[1] == 0
    assert hard._chosen(weights[None], None).tolist() == [0]


def test_attention_that_is_no_number_stops_nothing() -> None:
    drawn = hard._chosen(torch.full((2, 3), torch.nan), chance())
    assert drawn.shape == (2,)
    assert bool(((drawn >= 0) & (drawn < 3)).all())  # a region that there is: training tells of the loss


@pytest.mark.parametrize("pooled", [False, True])
def test_a_search_sees_one_region_and_shows_it(regions: Tensor, pooled: bool) -> None:
    pooling = torch.softmax(torch.randn(17, 11, dtype=torch.float64, generator=chance(4)), -1) if pooled else None
    captioner = made().look_through(pooling)
    _, attention, _ = captioner.step(torch.tensor([1, 5, 9]), captioner.start(regions))
    assert attention.shape == (3, 17 if pooled else 11)
    assert attention.sum(-1).tolist() == [1, 1, 1]
    assert attention.max(-1).values.tolist() == [1, 1, 1]
