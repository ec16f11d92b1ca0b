"""The step of a GRU is torch's and Keras' one."""

import pytest
import torch

from pipeline.captioners.gru import gru_step


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_step_and_its_gradients_equal_torchs(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    cell = torch.nn.GRUCell(5, 3).double()
    words, hidden, above = (torch.randn(4, n, dtype=torch.float64, generator=generator) for n in (5, 3, 3))
    found = []
    for ours in (False, True):
        inputs, before = words.clone().requires_grad_(), hidden.clone().requires_grad_()
        cell.zero_grad()
        if ours:
            from_input = torch.nn.functional.linear(inputs, cell.weight_ih, cell.bias_ih).to(dtype)
            from_hidden = torch.nn.functional.linear(before, cell.weight_hh, cell.bias_hh).to(dtype)
            wide = torch.promote_types(dtype, torch.float32)
            after = gru_step(from_input, from_hidden, before.to(wide))
            assert after.dtype == wide
        else:
            after = cell(inputs, before)
        (after * above).sum().backward()
        found.append(
            [
                after.detach(),
                inputs.grad,
                before.grad,
                *(weight.grad.clone() for weight in cell.parameters() if weight.grad is not None),
            ]
        )
    bound = 1e-12 if dtype == torch.float64 else 0.02
    for expected, one in zip(*found, strict=True):
        assert expected is not None
        assert one is not None
        assert float((one - expected).norm()) <= bound * float(expected.norm())


def test_update_keeps_and_reset_forgets() -> None:
    hidden = torch.tensor([[0.5, -0.25]])
    nothing, open_, shut = torch.zeros(1, 2), torch.full((1, 2), 99.0), torch.full((1, 2), -99.0)
    kept = gru_step(torch.cat((nothing, open_, nothing), 1), torch.zeros(1, 6), hidden)
    torch.testing.assert_close(kept, hidden)
    forgotten = gru_step(torch.cat((shut, shut, nothing), 1), torch.ones(1, 6), hidden)
    torch.testing.assert_close(forgotten, nothing)
