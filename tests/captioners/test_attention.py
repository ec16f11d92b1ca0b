"""The fused energy: same values and gradients whichever way it is computed."""

import pytest
import torch
from torch import Tensor

from pipeline.captioners import attention
from pipeline.captioners.attention import Activation, AdditiveAttention, additive_energy, compiler_works
from pipeline.captioners.linear import WordLinear


def plain(keys: Tensor, queries: Tensor, score: Tensor, activation: Activation) -> Tensor:
    """Element by element, by autograd."""
    function = torch.relu if activation == "relu" else torch.tanh
    images = []
    for own, asked in zip(keys, queries, strict=True):
        images.append(torch.stack([torch.stack([(score * function(key + q)).sum() for key in own]) for q in asked]))
    return torch.stack(images)


def sample(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    keys, queries, score = (torch.randn(*size, generator=generator).to(dtype) for size in ((2, 5, 7), (2, 3, 7), (7,)))
    return keys.requires_grad_(), queries.requires_grad_(), score.requires_grad_()


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_energy_and_gradients_equal_the_formula(activation: Activation) -> None:
    ours, theirs = sample(torch.float64), sample(torch.float64)
    weight = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    energy, expected = additive_energy(*ours, activation), plain(*theirs, activation)
    torch.testing.assert_close(energy, expected, rtol=1e-12, atol=1e-12)
    (energy * weight).sum().backward()
    (expected * weight).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-11, atol=1e-12)


@pytest.mark.filterwarnings("default")  # of the compiler's own libraries
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_compiled_kernels_equal_the_plain_ones(activation: Activation, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiler_works("cpu"):
        pytest.skip("no C++ compiler here")
    ours, theirs = sample(torch.float32), sample(torch.float32)
    expected = additive_energy(*theirs, activation)
    expected.square().sum().backward()
    monkeypatch.setattr(attention, "_WORTH_COMPILING", 1)
    energy = additive_energy(*ours, activation)
    energy.square().sum().backward()
    # float32 sums of 7 to 42 terms of order 1, in another order
    torch.testing.assert_close(energy, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-4)


def test_weights_sum_to_one_and_weigh_the_regions() -> None:
    torch.manual_seed(0)
    layer = AdditiveAttention(channels=6, attention_size=5, activation="tanh")
    regions, queries = torch.randn(2, 9, 6), torch.randn(2, 4, 5)
    contexts, weights = layer(layer.keys(regions), regions, queries)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4))
    torch.testing.assert_close(contexts[1, 2], (weights[1, 2, :, None] * regions[1]).sum(0))


def test_a_word_linear_equals_a_linear_layer_with_its_gradients() -> None:
    torch.manual_seed(1)
    layer = WordLinear(4, 3).double()
    other = torch.nn.Linear(4, 3).double()
    other.load_state_dict(layer.state_dict())
    inputs = [torch.randn(2, size, 4, dtype=torch.float64, requires_grad=True) for size in (3, 2, 1)]
    copies = [value.detach().clone().requires_grad_() for value in inputs]
    over = layer.over_words()
    sum(over(value).square().sum() for value in inputs).backward()  # type: ignore[union-attr]
    sum(other(value).square().sum() for value in copies).backward()
    for one, two in zip([*inputs, *layer.parameters()], [*copies, *other.parameters()], strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-12, atol=1e-12)


def test_relu_has_no_slope_at_zero_as_in_torch() -> None:
    keys, queries = torch.tensor([[[-1.0, 2.0]]], requires_grad=True), torch.tensor([[[1.0, 1.0]]])
    additive_energy(keys, queries, torch.tensor([3.0, 5.0]), "relu").sum().backward()
    assert keys.grad is not None
    assert keys.grad.tolist() == [[[0.0, 5.0]]]


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_half_precision_keys_are_summed_in_float32(activation: Activation) -> None:
    keys, queries, score = (value.detach() for value in sample(torch.bfloat16))
    energy = additive_energy(keys, queries, score, activation)
    assert energy.dtype == torch.float32
    expected = plain(keys.double(), queries.double(), score.double(), activation)
    torch.testing.assert_close(energy.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_score_starts_small_and_of_both_signs() -> None:
    torch.manual_seed(0)
    score = AdditiveAttention(channels=3, attention_size=400, activation="relu").score.detach()
    assert score.abs().max() <= 0.05  # 400 ** -0.5
    assert abs(float(score.mean())) < 0.005
    assert float(score.std()) == pytest.approx(0.05 / 3**0.5, rel=0.1)


def test_a_word_linear_computes_in_autocasts_precision() -> None:
    torch.manual_seed(1)
    layer, other = WordLinear(4, 3), torch.nn.Linear(4, 3)
    other.load_state_dict(layer.state_dict())
    values = [torch.randn(2, size, 4) for size in (3, 1)]
    with torch.autocast("cpu", torch.bfloat16):
        over = layer.over_words()
        ours, theirs = [over(value) for value in values], [other(value) for value in values]
    assert all(torch.equal(one, two) and one.dtype == torch.bfloat16 for one, two in zip(ours, theirs, strict=True))
    sum(value.float().sum() for value in ours).backward()  # type: ignore[union-attr]
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(layer.weight.grad, torch.cat(values, 1).sum((0, 1)).expand(3, 4), rtol=0.02, atol=0.02)
