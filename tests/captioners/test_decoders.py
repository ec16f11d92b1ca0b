"""What holds for every decoder: it equals its plain reference, however it is asked.

A decoder is added by a line in `REFERENCES`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.captioners.build import DECODERS, build_captioner, start_small
from pipeline.captioners.captioner import Captioner
from pipeline.captioners.search import beam_search
from pipeline.training.losses import captioning_loss
from tests.captioners.conftest import SHAPE
from tests.captioners.one_by_one import Plain, search
from tests.captioners.reference import Array, PlainSoft, log_softmax
from tests.captioners.reference_adaptive import PlainAdaptive
from tests.captioners.reference_att2in2 import PlainAtt2in2
from tests.captioners.reference_gru import PlainGru, PlainSoftGru
from tests.captioners.reference_hard import PlainHard
from tests.captioners.reference_topdown import PlainTopDown

Options = dict[str, Any]
Captions = list[list[list[int]]]
Padded = tuple[Tensor, Tensor]
# Slopes of a reference by central differences: exact to 1e-9 where numpy has a type wider than float64.
STEP, BOUND = (1e-6, 1e-9) if np.finfo(np.longdouble).eps < 1e-18 else (1e-5, 1e-5)


class Reference(NamedTuple):
    make: Callable[[dict[str, Array], Mapping[str, Any]], Plain]
    options: list[Options]


def every(**choices: tuple[Any, ...]) -> list[Options]:
    """One dict for each place of the choices, which are equally many."""
    return [dict(zip(choices, values, strict=True)) for values in zip(*choices.values(), strict=True)]


EMBEDDED = every(activation=("tanh", "tanh", "relu"), normalise=(False, True, True))
SOFT = every(
    activation=("relu", "tanh", "tanh", "relu"),
    gate=(True, False, True, True),
    normalise=(False, False, True, False),
    tie=(False, False, False, True),
)


def soft(plain: type[PlainSoft]) -> Callable[[dict[str, Array], Mapping[str, Any]], Plain]:
    return lambda weights, own: plain(weights, own["activation"], own["gate"], own["normalise"])


REFERENCES = {
    "soft": Reference(soft(PlainSoft), SOFT),
    "soft_gru": Reference(soft(PlainSoftGru), SOFT),
    "hard": Reference(soft(PlainHard), [{**own, "reward_weight": 0.5, "entropy_weight": 0.002} for own in SOFT]),
    "gru": Reference(PlainGru, every(normalise=(False, True))),
    "adaptive": Reference(PlainAdaptive, EMBEDDED),
    "att2in2": Reference(PlainAtt2in2, EMBEDDED),
    "topdown": Reference(PlainTopDown, EMBEDDED),
}


class Case(NamedTuple):
    """A decoder with its options; `seed` decides on its weights."""

    decoder: str
    options: Options

    def fast(self, seed: int = 3) -> Captioner:
        torch.manual_seed(seed)
        captioner = build_captioner(self.decoder, SHAPE, self.options).double()
        with torch.no_grad():
            for parameter in captioner.parameters():
                parameter.mul_(3)  # far from linear, so that a wrong formula shows
        return captioner

    def plain(self, seed: int = 3) -> Plain:
        weights = {name: value.numpy() for name, value in self.fast(seed).state_dict().items()}
        return self.moved(weights)

    def moved(self, weights: dict[str, Array]) -> Plain:
        return REFERENCES[self.decoder].make(weights, self.options)

    def tied(self) -> list[set[str]]:
        """Weights with several names."""
        names: dict[int, set[str]] = {}
        for name, value in self.fast().state_dict().items():
            names.setdefault(value.data_ptr(), set()).add(name)
        return list(names.values())


CASES = [Case(decoder, options) for decoder, (_, several) in REFERENCES.items() for options in several]
every_case = pytest.mark.parametrize(
    "case", CASES, ids=lambda case: "-".join([case.decoder, *map(str, case.options.values())])
)
every_decoder = pytest.mark.parametrize(
    "case", [Case(decoder, several[-1]) for decoder, (_, several) in REFERENCES.items()], ids=lambda case: case.decoder
)


def said(plain: Plain, regions: Array, words: list[int]) -> tuple[list[Array], list[Array]]:
    """Logits and weights at each of the words, START included, the last one not."""
    regions = plain.regions(regions)
    memory, logits, weights = plain.initial(regions), [], []
    for word in words[:-1]:
        scores, attention, *kept = plain.step(word, regions, *memory)
        memory = tuple(kept)
        logits.append(scores)
        weights.append(attention / attention.sum())  # of all words; a step's may sum to what comes from looking
    return logits, weights


def check(captioner: Captioner, plain: Plain, regions: Tensor, seen: Array, captions: Captions, padded: Padded) -> None:
    """Hold logits and attention of given captions against the reference's, which sees the regions `seen`."""
    output = captioner(regions, *padded, None)
    attention = output.attention.detach().numpy()
    logits = []
    for image, own in enumerate(captions):
        for index, caption in enumerate(own):
            scores, expected = said(plain, seen[image], caption)
            logits += scores
            np.testing.assert_allclose(attention[image, index, : len(expected)], expected, rtol=1e-9, atol=1e-12)
            assert not attention[image, index, len(expected) :].any()
    np.testing.assert_allclose(output.logits.detach().numpy(), logits, rtol=1e-9, atol=1e-12)
    assert attention.shape == (3, 3, 7, seen.shape[1])


def test_every_decoder_has_a_reference() -> None:
    assert REFERENCES.keys() == DECODERS.keys()


@every_case
def test_logits_and_attention_equal_the_reference(
    case: Case, regions: Tensor, captions: Captions, padded: Padded
) -> None:
    check(case.fast(), case.plain(), regions, regions.numpy(), captions, padded)


@every_case
def test_cells_seen_through_a_pooling_are_the_pooled_regions(
    case: Case, regions: Tensor, captions: Captions, padded: Padded
) -> None:
    pooling = torch.softmax(torch.randn(17, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(4)), -1)
    captioner = case.fast().look_through(pooling)
    check(captioner, case.plain(), regions, (pooling @ regions).numpy(), captions, padded)


def plain_loss(plain: Plain, regions: Array, captions: Captions) -> np.floating[Any]:
    words, penalties = [], []
    for image, own in enumerate(captions):
        for caption in own:
            logits, weights = said(plain, regions[image], caption)
            words += [-log_softmax(row)[word] for row, word in zip(logits, caption[1:], strict=True)]
            penalties += [(1 - total) ** 2 for total in np.sum(weights, axis=0)]
    total: np.floating[Any] = np.mean(words) + 0.7 * np.mean(penalties)
    return total


def fast_loss(captioner: Captioner, regions: Tensor, padded: Padded, smoothing: float = 0.0) -> Tensor:
    loss = captioning_loss(captioner(regions, *padded, None), *padded, label_smoothing=smoothing)
    return loss.words + 0.7 * loss.penalty


def gradient(parameter: torch.nn.Parameter) -> Tensor:
    """Zeros where there is none: no gradient passes the choice of the likeliest region."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@every_case
@pytest.mark.parametrize("pooled", [False, True])
def test_every_gradient_equals_finite_differences_of_the_reference(
    case: Case, regions: Tensor, captions: Captions, padded: Padded, pooled: bool
) -> None:
    """That of the regions, of which those of a trained tail are made, too."""
    captioner, leaf = case.fast(), regions.clone().requires_grad_()
    pooling = torch.softmax(torch.randn(5, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(6)), -1)
    pools = (pooling if pooled else torch.eye(11, dtype=torch.float64)).numpy().astype(np.longdouble)
    total = fast_loss(captioner.look_through(pooling if pooled else None), leaf, padded)
    total.backward()
    wide = {name: value.astype(np.longdouble) for name, value in case.plain().w.items()}

    def loss(changed: dict[str, Array], seen: Array) -> np.floating[Any]:
        return plain_loss(case.moved(wide | changed), pools @ seen, captions)

    def together(names: set[str], step: Array) -> tuple[dict[str, Array], Array]:
        return {own: wide[own] + step for own in names}, seen

    def hold(own: Tensor | None, change: Callable[[Array], tuple[dict[str, Array], Array]], name: str) -> None:
        assert own is not None, name
        direction = np.random.default_rng(7).standard_normal(own.shape)
        slope = (loss(*change(STEP * direction)) - loss(*change(-STEP * direction))) / (2 * STEP)
        found = float((own.numpy() * direction).sum())
        assert found == pytest.approx(float(slope), rel=BOUND, abs=BOUND), name

    seen = regions.numpy().astype(np.longdouble)
    assert total.item() == pytest.approx(float(loss({}, seen)), rel=1e-12)
    hold(leaf.grad, lambda step: ({}, seen + step), "regions")
    for name, parameter in captioner.named_parameters():
        names = next(names for names in case.tied() if name in names)
        hold(gradient(parameter), partial(together, names), name)


@every_case
def test_frozen_and_learning_regions_give_the_same_gradients(case: Case, regions: Tensor, padded: Padded) -> None:
    found = []
    for learns in (False, True):
        captioner = case.fast()
        fast_loss(captioner, regions.clone().requires_grad_(learns), padded).backward()
        found.append([parameter.grad for parameter in captioner.parameters()])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


@every_case
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 0.08)], ids=str)
@pytest.mark.parametrize("pooled", [False, True])
def test_lower_precisions_stay_near_float64(
    case: Case, regions: Tensor, padded: Padded, dtype: torch.dtype, bound: float, pooled: bool
) -> None:
    """The bound is of the length of all gradients together; a weight's own may be four times as far off.

    bfloat16 keeps 8 bits, eight words pass their error on, and a ReLU or a maximum may turn to its other side.
    """
    pooling = torch.softmax(torch.randn(17, 11, generator=torch.Generator().manual_seed(4)), -1) if pooled else None
    gradients = []
    for kind in (torch.float64, dtype):
        captioner = case.fast().look_through(pooling)
        with torch.autocast("cpu", kind, enabled=kind == torch.bfloat16):
            loss = fast_loss(captioner.to(torch.promote_types(kind, torch.float32)), regions.to(kind), padded, 0.1)
        loss.backward()
        gradients.append([gradient(parameter).double() for parameter in captioner.parameters()])
    whole, all_found = (torch.cat([one.flatten() for one in each]) for each in gradients)
    assert float((all_found - whole).norm()) <= bound * float(whole.norm())
    for expected, found in zip(*gradients, strict=True):
        assert float((found - expected).norm()) <= 4 * bound * max(float(expected.norm()), float(whole.norm()) / 20)


@every_case
@pytest.mark.parametrize("pooled", [False, True])
def test_one_step_at_a_time_equals_all_at_once(case: Case, regions: Tensor, padded: Padded, pooled: bool) -> None:
    pooling = torch.softmax(torch.randn(17, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(4)), -1)
    captioner, (words, lengths) = case.fast().look_through(pooling if pooled else None), padded
    output = captioner(regions, words[:, :1], lengths[:, :1], None)
    spoken = Captioner.spoken(lengths[:, :1], 7)
    state = captioner.start(regions)
    for time in range(2):
        logits, attention, state = captioner.step(words[:, 0, time], state)
        share = 1 - output.extras["sentinel"][:, 0, time, None] if case.decoder == "adaptive" else 1
        torch.testing.assert_close(attention, share * output.attention[:, 0, time], rtol=1e-9, atol=1e-12)
        row = [int(spoken.flatten(1)[:image].sum()) + time for image in range(3)]
        torch.testing.assert_close(logits, output.logits[row], rtol=1e-9, atol=1e-12)


@every_decoder
def test_the_order_of_images_and_captions_changes_nothing(case: Case, regions: Tensor, padded: Padded) -> None:
    captioner, (words, lengths) = case.fast(), padded
    images, columns = torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0])
    plain = captioner(regions, words, lengths, None)
    moved = captioner(regions[images], words[images][:, columns], lengths[images][:, columns], None)
    torch.testing.assert_close(moved.attention, plain.attention[images][:, columns], rtol=1e-9, atol=1e-12)
    assert moved.extras.keys() == plain.extras.keys()
    for name, value in plain.extras.items():
        torch.testing.assert_close(moved.extras[name], value[images][:, columns], rtol=1e-9, atol=1e-12)


@every_decoder
def test_a_selected_state_goes_on_as_the_captions_it_was_taken_from(case: Case, regions: Tensor) -> None:
    captioner = case.fast()
    _, _, state = captioner.step(torch.tensor([1, 5, 9]), captioner.start(regions))
    for rows in ([0, 0, 1, 1, 2, 2], [2, 2], [1, 0, 0, 2]):
        chosen = torch.tensor(rows)
        logits, attention, _ = captioner.step(torch.full((len(rows),), 4), state.select(chosen))
        expected, weights, _ = captioner.step(torch.full((3,), 4), state)
        torch.testing.assert_close(logits, expected[chosen], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(attention, weights[chosen], rtol=1e-9, atol=1e-12)


@every_decoder
@pytest.mark.parametrize(("beam", "seed"), [(1, 3), (3, 3), (3, 8)])
def test_search_equals_one_by_one(case: Case, beam: int, seed: int) -> None:
    regions = torch.randn(5, 11, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = beam_search(case.fast(seed).eval(), regions, beam=beam, length_penalty=0.7, max_length=6)
    for image, hypothesis in enumerate(found):
        expected = search(case.plain(seed), regions[image].numpy(), beam, 0.7, 6)
        assert hypothesis.words == expected.words
        assert hypothesis.finished == expected.finished
        assert hypothesis.log_probability == pytest.approx(expected.log, rel=1e-5)
        if expected.words:
            np.testing.assert_allclose(hypothesis.attention, expected.attention, rtol=1e-5, atol=1e-7)


@every_decoder
def test_chance_comes_from_the_generator_alone(case: Case, regions: Tensor, padded: Padded) -> None:
    captioner = case.fast()
    first, second, other = (
        captioner(regions, *padded, torch.Generator().manual_seed(seed)).logits for seed in (5, 5, 6)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    state = torch.random.get_rng_state()
    without = captioner(regions, *padded, None).logits
    assert torch.equal(without, captioner(regions, *padded, None).logits)
    assert not torch.equal(first, without)
    assert torch.equal(state, torch.random.get_rng_state())


@every_decoder
def test_words_start_small(case: Case) -> None:
    torch.manual_seed(0)
    weight = build_captioner(case.decoder, SHAPE, case.options).state_dict()["embedding.weight"]
    assert 0.05 < float(weight.abs().max()) <= 0.1


@pytest.mark.parametrize("decoder", DECODERS)
def test_small_first_weights_are_small_and_biases_zero(decoder: str) -> None:
    captioner = next(case for case in CASES if case.decoder == decoder).fast()
    start_small(captioner)
    for name, weight in captioner.named_parameters():
        if name.endswith("bias"):
            assert not bool(weight.any()), name
        elif not name.startswith("norm"):
            assert 0.02 < float(weight.detach().abs().max()) <= 0.08, name


@pytest.mark.parametrize("decoder", DECODERS)
def test_normalised_regions_keep_their_precision_where_autocast_would_widen_them(
    decoder: str, regions: Tensor, padded: Padded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As autocast does on a GPU, and not on a CPU."""
    normal = torch.nn.functional.layer_norm
    monkeypatch.setattr(torch.nn.functional, "layer_norm", lambda *given, **named: normal(*given, **named).float())
    captioner = next(case for case in CASES if case.decoder == decoder and case.options["normalise"]).fast().float()
    leaf = regions.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        captioner(leaf, *padded, torch.Generator().manual_seed(1)).logits.float().square().mean().backward()
    assert leaf.grad is not None
