"""The fast soft decoder equals the paper's equations."""

import numpy as np
import pytest
import torch

from pipeline.captioners import soft
from pipeline.captioners.build import build_captioner
from pipeline.captioners.captioner import Captioner, dropped
from pipeline.errors import SettingsError
from pipeline.training.losses import captioning_loss
from tests.captioners.conftest import SHAPE, Make
from tests.captioners.reference import PlainSoft, log_softmax

Captions = list[list[list[int]]]
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


def plain_loss(plain: PlainSoft, regions: torch.Tensor, captions: Captions, weight: float) -> float:
    words, penalties = [], []
    for image, own in enumerate(captions):
        for caption in own:
            logits, weights = plain.caption(regions[image].numpy(), caption)
            words += [-log_softmax(row)[word] for row, word in zip(logits, caption[1:], strict=True)]
            penalties += [(1 - total) ** 2 for total in np.sum(weights, axis=0)]
    return float(np.mean(words) + weight * np.mean(penalties))


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
    (loss.words + 0.7 * loss.penalty).backward()
    tied = {"embedding.weight": "output.weight", "output.weight": "embedding.weight"} if options.get("tie") else {}
    for name, parameter in captioner.named_parameters():
        assert parameter.grad is not None
        direction = np.random.default_rng(7).standard_normal(parameter.shape)
        step, slopes = 1e-5, []
        for sign in (1, -1):
            moved = dict(plain.w)
            moved[name] = plain.w[name] + sign * step * direction
            if name in tied:
                moved[tied[name]] = moved[name]
            other = PlainSoft(moved, plain.activation, plain.gate, plain.normalise)
            slopes.append(plain_loss(other, regions, captions, 0.7))
        expected = (slopes[0] - slopes[1]) / (2 * step)
        found = float((parameter.grad.numpy() * direction).sum())
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-8), name


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
    with pytest.raises(SettingsError, match=r"train\.decoder: expected soft, found 'hart'"):
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
