"""The fast soft decoder equals the paper's equations."""

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.captioners import soft
from pipeline.captioners.build import build_captioner
from pipeline.captioners.captioner import Captioner, dropped
from pipeline.errors import SettingsError
from pipeline.training.losses import captioning_loss
from tests.captioners.conftest import SHAPE, Make
from tests.captioners.reference import Array, PlainSoft, log_softmax

Captions = list[list[list[int]]]
# Slopes of the reference by central differences: exact to 1e-9 where numpy has a type wider than float64.
STEP, BOUND = (1e-6, 1e-9) if np.finfo(np.longdouble).eps < 1e-18 else (1e-5, 1e-5)
SOFT = {"activation": "relu", "gate": True, "normalise": False, "tie": False}
OPTIONS = [
    {"activation": "relu", "gate": True},
    {"activation": "tanh", "gate": False},
    {"activation": "tanh", "gate": True, "normalise": True},
    {"activation": "relu", "gate": True, "tie": True},
]


def plain_logits(plain: PlainSoft, regions: torch.Tensor, captions: Captions) -> np.ndarray:
    return np.stack(
        [
            row
            for image, own in enumerate(captions)
            for caption in own
            for row in plain.caption(regions[image].numpy(), caption)[0]
        ]
    )


@pytest.mark.parametrize("options", OPTIONS)
def test_logits_equal_the_reference(
    make: Make,
    regions: torch.Tensor,
    captions: Captions,
    padded: tuple[torch.Tensor, torch.Tensor],
    options: dict[str, bool],
) -> None:
    captioner, plain = make(**options)
    output = captioner(regions, *padded, None)
    np.testing.assert_allclose(output.logits.detach().numpy(), plain_logits(plain, regions, captions), rtol=1e-9)


@pytest.mark.parametrize("options", OPTIONS)
def test_attention_equals_the_reference_and_is_zero_after_the_end(
    make: Make,
    regions: torch.Tensor,
    captions: Captions,
    padded: tuple[torch.Tensor, torch.Tensor],
    options: dict[str, bool],
) -> None:
    captioner, plain = make(**options)
    attention = captioner(regions, *padded, None).attention.detach().numpy()
    for image, own in enumerate(captions):
        for index, caption in enumerate(own):
            expected = np.stack(plain.caption(regions[image].numpy(), caption)[1])
            np.testing.assert_allclose(attention[image, index, : len(expected)], expected, rtol=1e-9)
            assert not attention[image, index, len(expected) :].any()
    assert attention.shape == (3, 3, 7, 11)


def plain_loss(plain: PlainSoft, regions: Array, captions: Captions, weight: float) -> np.floating[Any]:
    words, penalties = [], []
    for image, own in enumerate(captions):
        for caption in own:
            logits, weights = plain.caption(regions[image], caption)
            words += [-log_softmax(row)[word] for row, word in zip(logits, caption[1:], strict=True)]
            penalties += [(1 - total) ** 2 for total in np.sum(weights, axis=0)]
    total: np.floating[Any] = np.mean(words) + weight * np.mean(penalties)
    return total


@pytest.mark.parametrize("options", OPTIONS)
def test_every_gradient_equals_finite_differences_of_the_reference(
    make: Make,
    regions: torch.Tensor,
    captions: Captions,
    padded: tuple[torch.Tensor, torch.Tensor],
    options: dict[str, bool],
) -> None:
    captioner, plain = make(**options)
    loss = captioning_loss(captioner(regions, *padded, None), *padded, label_smoothing=0.0)
    total = loss.words + 0.7 * loss.penalty
    total.backward()
    wide = {name: value.astype(np.longdouble) for name, value in plain.w.items()}
    seen = regions.numpy().astype(np.longdouble)
    assert total.item() == pytest.approx(float(plain_loss(moved_by(plain, wide), seen, captions, 0.7)), rel=1e-12)
    tied = {"embedding.weight": "output.weight", "output.weight": "embedding.weight"} if options.get("tie") else {}
    for name, parameter in captioner.named_parameters():
        assert parameter.grad is not None
        direction = np.random.default_rng(7).standard_normal(parameter.shape)
        slopes = []
        for sign in (1, -1):
            moved = dict(wide)
            moved[name] = wide[name] + sign * STEP * direction
            if name in tied:
                moved[tied[name]] = moved[name]
            slopes.append(plain_loss(moved_by(plain, moved), seen, captions, 0.7))
        expected = float((slopes[0] - slopes[1]) / (2 * STEP))
        found = float((parameter.grad.numpy() * direction).sum())
        assert found == pytest.approx(expected, rel=BOUND, abs=BOUND), name


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("pooled", [False, True])
def test_the_gradient_of_regions_equals_finite_differences_of_the_reference(
    make: Make,
    regions: torch.Tensor,
    captions: Captions,
    padded: tuple[torch.Tensor, torch.Tensor],
    options: dict[str, bool],
    pooled: bool,
) -> None:
    captioner, plain = make(**options)
    pooling = torch.softmax(torch.randn(5, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(4)), -1)
    captioner.look_through(pooling if pooled else None)
    leaf = regions.clone().requires_grad_()
    loss = captioning_loss(captioner(leaf, *padded, None), *padded, label_smoothing=0.0)
    (loss.words + 0.7 * loss.penalty).backward()
    assert leaf.grad is not None
    wide = moved_by(plain, {name: value.astype(np.longdouble) for name, value in plain.w.items()})
    direction, slopes = np.random.default_rng(7).standard_normal(regions.shape), []
    for sign in (1, -1):
        moved = regions.numpy().astype(np.longdouble) + sign * STEP * direction
        seen = np.stack([pooling.numpy() @ image for image in moved]) if pooled else moved
        slopes.append(plain_loss(wide, seen, captions, 0.7))
    found = float((leaf.grad.numpy() * direction).sum())
    assert found == pytest.approx(float((slopes[0] - slopes[1]) / (2 * STEP)), rel=BOUND, abs=BOUND)


def moved_by(plain: PlainSoft, weights: dict[str, Array]) -> PlainSoft:
    return PlainSoft(weights, plain.activation, plain.gate, plain.normalise)


@pytest.mark.parametrize("options", OPTIONS)
def test_cells_seen_through_a_pooling_are_the_pooled_regions(
    make: Make,
    regions: torch.Tensor,
    captions: Captions,
    padded: tuple[torch.Tensor, torch.Tensor],
    options: dict[str, bool],
) -> None:
    captioner, plain = make(**options)
    pooling = torch.softmax(torch.randn(17, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(4)), -1)
    output = captioner.look_through(pooling)(regions, *padded, None)
    expected = plain_logits(plain, pooling @ regions, captions)
    np.testing.assert_allclose(output.logits.detach().numpy(), expected, rtol=1e-9)
    assert output.attention.shape == (3, 3, 7, 17)
    logits, attention, _ = captioner.step(padded[0][:, 0, 0], captioner.start(regions))
    torch.testing.assert_close(attention, output.attention[:, 0, 0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(logits[0], output.logits[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.08)], ids=str)
def test_lower_precisions_stay_near_float64(
    make: Make,
    regions: torch.Tensor,
    padded: tuple[torch.Tensor, torch.Tensor],
    options: dict[str, bool],
    dtype: torch.dtype,
    bound: float,
) -> None:
    """The bound is of each gradient's length: bfloat16 keeps 8 bits, and eight words pass their error on."""
    gradients = []
    for kind in (torch.float64, dtype):
        captioner, _ = make(**options)
        wide = torch.promote_types(kind, torch.float32)
        with torch.autocast("cpu", kind, enabled=kind == torch.bfloat16):
            output = captioner.to(wide)(regions.to(kind), *padded, None)
            loss = captioning_loss(output, *padded, label_smoothing=0.1)
        (loss.words + 0.7 * loss.penalty).backward()
        gradients.append([parameter.grad.double() for parameter in captioner.parameters()])  # type: ignore[union-attr]
    for expected, found in zip(*gradients, strict=True):
        assert float((found - expected).norm()) <= bound * float(expected.norm()) + 1e-9


def test_one_step_at_a_time_equals_all_at_once(
    make: Make, regions: torch.Tensor, padded: tuple[torch.Tensor, torch.Tensor]
) -> None:
    captioner, _ = make()
    words, lengths = padded
    output = captioner(regions, words[:, :1], lengths[:, :1], None)
    state = captioner.start(regions)
    for time in range(2):
        logits, attention, state = captioner.step(words[:, 0, time], state)
        torch.testing.assert_close(attention, output.attention[:, 0, time], rtol=1e-9, atol=1e-12)
        spoken = Captioner.spoken(lengths[:, :1], 7)
        row = [int(spoken.flatten(1)[:image].sum()) + time for image in range(3)]
        torch.testing.assert_close(logits, output.logits[row], rtol=1e-9, atol=1e-12)


def test_the_order_of_images_and_captions_changes_nothing(
    make: Make, regions: torch.Tensor, padded: tuple[torch.Tensor, torch.Tensor]
) -> None:
    captioner, _ = make()
    words, lengths = padded
    images, columns = torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0])
    plain = captioner(regions, words, lengths, None).attention
    moved = captioner(regions[images], words[images][:, columns], lengths[images][:, columns], None).attention
    torch.testing.assert_close(moved, plain[images][:, columns], rtol=1e-9, atol=1e-12)


def test_a_selected_state_goes_on_as_the_captions_it_was_taken_from(make: Make, regions: torch.Tensor) -> None:
    captioner, _ = make()
    _, _, state = captioner.step(torch.tensor([1, 5, 9]), captioner.start(regions))
    for rows in ([0, 0, 1, 1, 2, 2], [2, 2], [1, 0, 0, 2]):
        chosen = torch.tensor(rows)
        logits, attention, _ = captioner.step(torch.full((len(rows),), 4), state.select(chosen))
        expected, weights, _ = captioner.step(torch.full((3,), 4), state)
        torch.testing.assert_close(logits, expected[chosen], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(attention, weights[chosen], rtol=1e-9, atol=1e-12)


def test_dropout_depends_on_the_generator_alone(
    make: Make, regions: torch.Tensor, padded: tuple[torch.Tensor, torch.Tensor]
) -> None:
    captioner, _ = make()
    first, second, other = (
        captioner(regions, *padded, torch.Generator().manual_seed(seed)).logits for seed in (5, 5, 6)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert not torch.equal(first, captioner(regions, *padded, None).logits)


def test_an_unknown_decoder_is_refused_with_the_choices() -> None:
    with pytest.raises(SettingsError, match=r"train\.decoder: expected .*soft.*, found 'hart'"):
        build_captioner("hart", SHAPE, {})


def test_wrong_options_are_all_told() -> None:
    with pytest.raises(SettingsError) as caught:
        build_captioner("soft", SHAPE, {"activation": "gelu", "gate": 1, "normalise": False})
    message = str(caught.value)
    assert "train.decoder_options.activation: expected relu or tanh, found 'gelu'" in message
    assert "train.decoder_options.gate: expected true or false, found 1" in message
    assert "train.decoder_options.tie: missing" in message


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    thinned = dropped(torch.ones(5000), 0.2, torch.Generator().manual_seed(1))
    assert thinned.unique().tolist() == [0.0, 1.25]
    assert float((thinned == 0).double().mean()) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("place", [0, 1])
def test_dropout_thins_the_words_and_what_is_scored(
    make: Make,
    regions: torch.Tensor,
    padded: tuple[torch.Tensor, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    place: int,
) -> None:
    captioner, _ = make()
    shares = []

    def emptied(values: torch.Tensor, share: float, _: torch.Generator | None) -> torch.Tensor:
        shares.append(share)
        return values * (len(shares) != place + 1)

    monkeypatch.setattr(soft, "dropped", emptied)
    found = captioner(regions, *padded, torch.Generator()).logits
    assert shares == [SHAPE.dropout] * 2
    monkeypatch.undo()
    with torch.no_grad():
        (captioner.embedding if place == 0 else captioner.output).weight.zero_()  # type: ignore[union-attr,operator]
    torch.testing.assert_close(found, captioner(regions, *padded, None).logits)


def test_words_start_small() -> None:
    torch.manual_seed(0)
    weight = build_captioner("soft", SHAPE, SOFT).state_dict()["embedding.weight"]
    assert 0.05 < float(weight.abs().max()) <= 0.1
