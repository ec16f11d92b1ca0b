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
