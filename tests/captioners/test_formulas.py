"""Additive attention's formulas where values are special: at relu's corner, and in narrow numbers."""

import numpy as np
import pytest
import torch

from pipeline.captioners import native
from pipeline.captioners.attention import Above, Activation, Shared, Words, attend, attend_back
from pipeline.captioners.formulas import formula
from pipeline.captioners.rows import Rows


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float64, id="formula"),
        pytest.param(
            torch.float32,
            id="kernel",
            marks=pytest.mark.skipif(native.library() is None, reason="no C++ compiler works here"),
        ),
    ],
)
def test_relu_has_no_slope_at_zero_as_in_torch(dtype: torch.dtype) -> None:
    regions, size, channels = 3, 5, 2
    shared = Shared(
        keys=torch.zeros(1, regions, size, dtype=dtype),
        features=torch.tensor([[[1.0, 2.0], [3.0, -4.0], [-5.0, 6.0]]], dtype=dtype),
        pooling=None,
        scale=None,
        shift=None,
        score=torch.arange(1.0, size + 1, dtype=dtype),
        activation="relu",
    )
    empty = torch.empty(1, size, dtype=dtype)
    words = Words(
        parts=torch.zeros_like(empty),
        query_bias=torch.zeros(size, dtype=dtype),
        gate_bias=None,
        weights=torch.empty(1, regions, dtype=dtype),
        context=torch.empty(1, channels, dtype=dtype),
    )
    context = torch.tensor([[7.0, 11.0]], dtype=dtype)
    to_keys = torch.zeros(1, regions, size, dtype=dtype)
    above = Above(context, context, torch.zeros(1, regions, dtype=dtype), empty, to_keys, torch.zeros_like(empty))
    rows = Rows(np.array([0]), 1, torch.device("cpu"))
    attend(shared, rows, words)
    attend_back(shared, rows, words, above)
    assert not above.keys.any()
    assert not above.parts.any()


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_narrow_keys_and_queries_are_summed_in_float32(activation: Activation) -> None:
    keys = torch.full((1, 1, 4), 1.0, dtype=torch.bfloat16)
    queries = torch.full((1, 1, 4), 2.0**-10, dtype=torch.bfloat16)  # lost beside 1 in eight bits
    score, one = torch.ones(4), torch.ones(1, 1, 1)
    bend = torch.relu if activation == "relu" else torch.tanh
    expected = bend(torch.full((4,), 1 + 2.0**-10))
    energy = formula(f"{activation}_energy", keys)(keys, queries, score)
    _, _, to_score = formula(f"{activation}_gradients", keys)(keys, queries, one)
    torch.testing.assert_close(energy[0, 0, 0], expected.sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(to_score[0], expected, rtol=1e-6, atol=0)
