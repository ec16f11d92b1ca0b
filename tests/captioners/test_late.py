"""A product whose weight learns late gives the gradients of one that learns at once."""

import pytest
import torch

from pipeline.captioners.late import Late


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_gradients_equal_those_of_the_layer(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    layer = torch.nn.Linear(5, 3).to(torch.promote_types(dtype, torch.float32))
    first = torch.randn(4, 5, generator=generator).to(dtype)
    found = []
    for late in (False, True):
        values = first.clone().requires_grad_()
        layer.zero_grad()
        call = Late(layer, first) if late else layer.to(dtype)
        product = call(values)
        for count in (3, 1):  # fewer go on, with what the last product made of them
            product = call(torch.tanh(product[:count].repeat(1, 2)[:, :5]))
        (product * product).sum().backward()
        layer = layer.to(torch.promote_types(dtype, torch.float32))
        assert values.grad is not None
        found.append(
            [values.grad.double(), *(weight.grad.double() for weight in layer.parameters() if weight.grad is not None)]
        )
    bound = 1e-12 if dtype == torch.float64 else 0.03
    for expected, one in zip(*found, strict=True):
        assert float((one - expected).norm()) <= bound * float(expected.norm())


def test_a_second_batch_starts_anew() -> None:
    layer, values = torch.nn.Linear(2, 3), torch.randn(4, 2)
    late, grown = Late(layer, values), []
    for _ in range(2):
        late(values).sum().backward(retain_graph=True)  # the root stays
        grown.append(layer.weight.grad.clone())  # type: ignore[union-attr]
    torch.testing.assert_close(grown[1], 2 * grown[0])


def test_the_weights_of_a_product_without_gradients_stay_as_they_are() -> None:
    layer, values = torch.nn.Linear(2, 3), torch.randn(4, 2)
    with torch.no_grad():
        torch.testing.assert_close(Late(layer, values)(values), layer(values))
