"""Attention as a function of a query: its gradients are those of the formulas, kernels or not, features included."""

from itertools import product

import numpy as np
import pytest
import torch

from pipeline.captioners import native
from pipeline.captioners.attention import Activation, Shared
from pipeline.captioners.looking import Looking
from pipeline.captioners.lstm import lstm_step
from pipeline.captioners.rows import Rows

IMAGES, REGIONS, CELLS, SIZE, CHANNELS = 4, 6, 5, 7, 9
IMAGE = np.array([2, 0, 2, 3, 2, 0])  # image 1 has no caption
COUNTS = (6, 6, 4, 1)
Leaves = dict[str, torch.Tensor]


def drawn(dtype: torch.dtype, pooled: bool) -> Leaves:
    generator = torch.Generator().manual_seed(4)
    sizes = {
        "keys": (IMAGES, REGIONS, SIZE),
        "features": (IMAGES, CELLS if pooled else REGIONS, CHANNELS),
        "score": (SIZE,),
        **{f"query{step}": (count, SIZE) for step, count in enumerate(COUNTS)},
    }
    return {
        name: torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for name, size in sizes.items()
    }


def pooling() -> torch.Tensor:
    return torch.softmax(torch.randn(REGIONS, CELLS, generator=torch.Generator().manual_seed(8)), -1)


def above(step: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(90 + step)
    sizes = ((count, CHANNELS), (count, REGIONS), (count,))
    context, weights, total = (torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)
    return context, weights, total


def plain(leaves: Leaves, activation: Activation, pooled: bool) -> torch.Tensor:
    """What is differentiated, by the formulas, a caption at a time."""
    bend, result = torch.relu if activation == "relu" else torch.tanh, torch.zeros((), dtype=torch.float64)
    regions = pooling().double() @ leaves["features"] if pooled else leaves["features"]
    for step, count in enumerate(COUNTS):
        to_context, to_weights, to_total = above(step, count)
        for row, image in enumerate(IMAGE[:count]):
            energies = bend(leaves["keys"][image] + leaves[f"query{step}"][row]) @ leaves["score"]
            weights = torch.exp(energies) / torch.exp(energies).sum()
            result = result + (weights @ regions[image]) @ to_context[row] + weights @ to_weights[row]
            result = result + torch.log(torch.exp(energies).sum()) * to_total[row]
    return result


def looked(leaves: Leaves, activation: Activation, pooled: bool) -> torch.Tensor:
    keys, features, score = leaves["keys"], leaves["features"], leaves["score"]
    shared = Shared(keys, features, pooling() if pooled else None, None, None, score, activation)
    look = Looking(shared, Rows(IMAGE, IMAGES, torch.device("cpu")))
    result = torch.zeros((), dtype=torch.float64)
    for step, count in enumerate(COUNTS):
        seen = look(leaves[f"query{step}"])
        for found, gradient in zip(seen, above(step, count), strict=True):
            result = result + (found.double() * gradient).sum()
    return result


@pytest.mark.parametrize(("activation", "pooled"), [*product(("relu", "tanh"), (True, False))])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_values_and_gradients_are_those_of_the_formulas(
    activation: Activation, pooled: bool, dtype: torch.dtype
) -> None:
    expected, found = drawn(torch.float64, pooled), drawn(dtype, pooled)
    bound = 1e-10 if dtype == torch.float64 else 1e-5
    want, have = plain(expected, activation, pooled), looked(found, activation, pooled)
    torch.testing.assert_close(have.detach(), want.detach(), rtol=bound, atol=bound)
    want.backward()
    have.backward()
    for name, leaf in found.items():
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad.double(), expected[name].grad, rtol=10 * bound, atol=10 * bound, msg=name)


def test_features_that_ask_for_no_gradient_get_none() -> None:
    leaves = drawn(torch.float32, True)
    leaves["features"].requires_grad_(False)
    looked(leaves, "relu", True).backward()
    assert leaves["features"].grad is None
    assert leaves["keys"].grad is not None


def test_a_second_way_back_gives_the_same_gradients() -> None:
    leaves = drawn(torch.float64, False)
    result = looked(leaves, "tanh", False)
    result.backward(retain_graph=True)
    once = {name: leaf.grad.clone() for name, leaf in leaves.items() if leaf.grad is not None}
    for leaf in leaves.values():
        leaf.grad = None
    result.backward()
    assert once.keys() == leaves.keys()
    assert all(torch.equal(once[name], leaf.grad) for name, leaf in leaves.items() if leaf.grad is not None)


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler works here")
def test_gradients_in_bfloat16_are_near() -> None:
    expected = drawn(torch.float64, True)
    plain(expected, "relu", True).backward()
    narrow = {name: torch.float32 if name == "score" else torch.bfloat16 for name in expected}
    leaves = {name: leaf.detach().to(narrow[name]).requires_grad_() for name, leaf in expected.items()}
    looked(leaves, "relu", True).backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        want = expected[name].grad
        assert want is not None
        assert float((leaf.grad.double() - want).norm()) < 0.03 * float(want.norm()), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_lstm_step_has_the_gradients_of_its_formula(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(7)
    sizes = (20, 20, 20, 5)
    parts = [torch.randn(3, n, generator=generator, dtype=torch.float64).requires_grad_() for n in sizes]
    to_hidden, to_cell = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    enter, forget, leave, candidate = sum(parts[:3]).chunk(4, -1)  # type: ignore[union-attr]
    cell = torch.sigmoid(forget) * parts[3] + torch.sigmoid(enter) * torch.tanh(candidate)
    ((torch.sigmoid(leave) * torch.tanh(cell) * to_hidden).sum() + (cell * to_cell).sum()).backward()
    own = [part.detach().to(dtype).requires_grad_() for part in parts]
    hidden, after = lstm_step(*own)
    ((hidden * to_hidden.to(dtype)).sum() + (after * to_cell.to(dtype)).sum()).backward()
    bound = 1e-9 if dtype == torch.float64 else 1e-5
    for one, other in zip(own, parts, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=bound, atol=bound)
