"""The compiled kernels compute what the formulas say, for every number of captions an image may have."""

import re
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from pipeline.captioners import native, projection
from pipeline.captioners.attention import Above, Activation, Shared, Words, attend, attend_back
from pipeline.captioners.lstm import Cells, CellsAbove, remember, remember_back
from pipeline.captioners.nonzero import nonzero_of
from pipeline.captioners.projection import AdditiveAttention
from pipeline.captioners.rows import Rows
from pipeline.captioners.scores import word_losses

needs_compiler = pytest.mark.skipif(native.library() is None, reason="no C++ compiler works here")
# Images of no, one, two, five and eleven captions; rows of finished ones come last, as in training.
IMAGES = [3, 1, 4, 4, 3, 4, 4, 4, 2, 4, 4, 3, 4, 4, 3, 4, 3, 4, 2]
COUNT = 17  # the last two rows have finished
# Sizes that are no multiple of any vector, one beyond a tile of the kernels.
REGIONS, CELLS, SIZE, CHANNELS = 11, 7, 277, 1043
BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


class Case(NamedTuple):
    shared: Shared
    rows: Rows
    words: Words
    above: Above


def made(activation: Activation, gate: bool, normalise: bool, pooled: bool, dtype: torch.dtype) -> Case:
    generator = torch.Generator().manual_seed(5)

    def drawn(*size: int, kept: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(kept)

    images, count = 5, COUNT
    cells = CELLS if pooled else REGIONS
    pooling = torch.softmax(drawn(REGIONS, cells), -1) * (drawn(REGIONS, cells) > 0) if pooled else None
    shared = Shared(
        keys=drawn(images, REGIONS, SIZE, kept=dtype),
        features=drawn(images, cells, CHANNELS, kept=dtype),
        pooling=pooling,
        scale=drawn(images, REGIONS).exp() if normalise else None,
        shift=drawn(images, REGIONS) if normalise else None,
        score=drawn(SIZE) / 8,
        activation=activation,
    )
    width = SIZE + gate * CHANNELS + 3  # three columns that are another's
    words = Words(
        parts=drawn(count, width, kept=dtype),
        query_bias=drawn(SIZE),
        gate_bias=drawn(CHANNELS) if gate else None,
        weights=torch.full((count, REGIONS), torch.nan),
        context=torch.full((count, CHANNELS), torch.nan, dtype=dtype),
        total=torch.full((count,), torch.nan),
    )
    above = Above(
        context=drawn(count, CHANNELS, kept=dtype),
        through=drawn(count, CHANNELS, kept=dtype),
        weights=drawn(count, REGIONS),
        parts=torch.full((count, width), 7.0, dtype=dtype),
        keys=drawn(images, REGIONS, SIZE),
        score=drawn(images, SIZE),
        total=drawn(count),
    )
    return Case(shared, Rows(np.array(IMAGES), images, torch.device("cpu")), words, above)


def widened(part: Any) -> Any:
    values = {name: value for name, value in vars(part).items() if isinstance(value, torch.Tensor)}
    return replace(part, **{name: value.double() for name, value in values.items()})


def copied(case: Case) -> Case:
    """The same values, apart, in float64, which the formulas serve."""
    return Case(widened(case.shared), case.rows, widened(case.words), widened(case.above))


def assert_near(found: torch.Tensor, expected: torch.Tensor, bound: float) -> None:
    error = (found.double() - expected).norm() / expected.norm()
    assert float(error) < bound


@needs_compiler
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize(
    ("activation", "gate", "normalise", "pooled"),
    [*product(("relu", "tanh"), (True, False), (True, False), (True, False))],
)
def test_kernels_equal_the_formulas(
    activation: Activation, gate: bool, normalise: bool, pooled: bool, dtype: torch.dtype
) -> None:
    assert_equal_to_the_formulas(made(activation, gate, normalise, pooled, dtype), BOUNDS[dtype])


@needs_compiler
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("pooled", [True, False])
def test_kernels_equal_the_formulas_where_most_of_the_features_is_zero(pooled: bool, dtype: torch.dtype) -> None:
    case = made("relu", True, True, pooled, dtype)
    few = torch.rand(case.shared.features.shape, generator=torch.Generator().manual_seed(6)) < 0.1
    few[4] = True  # of an image that has no lists
    features = case.shared.features * few
    nonzero = nonzero_of(features)
    assert nonzero is not None
    assert nonzero.left_out.tolist() == [4]
    shared = replace(case.shared, features=features, nonzero=nonzero)
    assert_equal_to_the_formulas(case._replace(shared=shared), BOUNDS[dtype])


def assert_equal_to_the_formulas(case: Case, bound: float) -> None:
    expected = copied(case)
    assert case.shared.record is not None
    assert expected.shared.record is None
    for shared, rows, words, _ in (case, expected):
        attend(shared, rows, words)
    for name in ("weights", "context", "parts", "total"):
        assert_near(getattr(case.words, name), getattr(expected.words, name), bound)
    for shared, rows, words, above in (case, expected):
        attend_back(shared, rows, words, above)
    for name in ("parts", "keys", "score"):
        assert_near(getattr(case.above, name), getattr(expected.above, name), bound)
    assert bool((case.above.parts[:, -3:] == 7).all())


@pytest.mark.parametrize(
    ("activation", "gate", "normalise"), [*product(("relu", "tanh"), (True, False), (True, False))]
)
def test_the_formulas_gradients_equal_automatic_ones(activation: Activation, gate: bool, normalise: bool) -> None:
    shared, rows, words, above = copied(made(activation, gate, normalise, True, torch.float32))
    leaves = {name: getattr(shared, name).requires_grad_() for name in ("keys", "score")}
    parts = words.parts.clone().requires_grad_()
    image = rows.image[:COUNT]
    bend = torch.relu if activation == "relu" else torch.tanh
    queries = parts[:, :SIZE] + words.query_bias
    energies = bend(leaves["keys"][image] + queries[:, None]) @ leaves["score"]
    weights, total = torch.softmax(energies, -1), torch.logsumexp(energies, -1)
    assert shared.pooling is not None
    regions = shared.pooling @ shared.features
    if shared.scale is not None and shared.shift is not None:
        regions = regions * shared.scale[..., None] - shared.shift[..., None]
    context = (weights[:, None] @ regions[image])[:, 0]
    if words.gate_bias is not None:
        context = context * torch.sigmoid(parts[:, SIZE : SIZE + CHANNELS] + words.gate_bias)
    assert above.total is not None
    said = (context * (above.context + above.through)).sum() + (weights * above.weights).sum()
    (said + (total * above.total).sum()).backward()
    with torch.no_grad():
        attend(shared, rows, words)
        before = above.keys.clone(), above.score.clone()
        attend_back(shared, rows, words, above)
    used = SIZE + gate * CHANNELS
    assert parts.grad is not None
    torch.testing.assert_close(words.weights, weights.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(words.context, context.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(words.total, total.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(above.parts[:, :used], parts.grad[:, :used], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close((above.keys - before[0]) * shared.score, shared.keys.grad, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close((above.score - before[1]).sum(0), shared.score.grad, rtol=1e-9, atol=1e-11)


@needs_compiler
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_the_number_of_threads_changes_no_byte(dtype: torch.dtype) -> None:
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            shared, rows, words, above = made("tanh", True, True, True, dtype)
            attend(shared, rows, words)
            attend_back(shared, rows, words, above)
            found.append([words.weights, words.context, above.parts, above.keys, above.score])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@needs_compiler
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_what_is_no_number_stays_none(activation: Activation) -> None:
    shared, rows, words, _ = made(activation, True, False, False, torch.float32)
    shared.keys[3, 2, 1] = torch.nan
    shared.features[1, 4, 9] = torch.nan
    attend(shared, rows, words)
    image = rows.image[:COUNT]
    assert bool(words.weights[image == 3].isnan().all())
    assert bool(words.context[image == 1][:, 9].isnan().all())
    assert not bool(words.context[image == 4].isnan().any())


@needs_compiler
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("pooled", [True, False])
def test_moments_are_those_of_the_regions(pooled: bool, dtype: torch.dtype) -> None:
    shared = made("relu", True, True, pooled, dtype).shared
    features, pooling = shared.features + 30, shared.pooling  # far from zero: no difference of large squares
    regions = features.double() if pooling is None else pooling.double() @ features.double()
    mean, variance = projection._moments(features, pooling)
    torch.testing.assert_close(mean.double(), regions.mean(-1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(variance.double(), regions.var(-1, correction=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pooled", [True, False])
def test_keys_are_projections_of_pooled_and_normalised_regions(pooled: bool) -> None:
    layer = AdditiveAttention(channels=CHANNELS, size=5, activation="relu", normalise=True).double()
    case = made("relu", True, True, pooled, torch.float32).shared
    features, pooling = case.features.double(), case.pooling
    regions = features if pooling is None else pooling.double() @ features
    regions = torch.nn.functional.layer_norm(regions, (CHANNELS,))
    shared = layer.share(features, pooling)
    torch.testing.assert_close(shared.keys, layer.key(regions), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(projection.mean_region(shared), regions.mean(1), rtol=1e-9, atol=1e-11)


@needs_compiler
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_the_lstm_kernels_equal_the_formulas(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(6)
    rows, size = 5, 37
    summed = [2 * torch.randn(rows, 4 * size + extra, generator=generator).to(dtype) for extra in (0, 6, 0)]
    before, carried_cell = torch.randn(rows, size, generator=generator), torch.randn(rows, size, generator=generator)
    hidden, carried = (torch.randn(rows, size, generator=generator).to(dtype) for _ in range(2))
    found = []
    for kind, cell in ((dtype, torch.float32), (torch.float64, torch.float64)):
        step = Cells(
            before.to(cell), torch.empty(rows, 4 * size, dtype=kind), torch.empty(rows, size, dtype=cell),
            torch.empty(rows, size, dtype=kind),
        )  # fmt: skip
        word, whole, context = (part.to(kind) for part in summed)
        remember(step, word, whole[:, 6:], context)
        to_gates = torch.zeros(rows, 4 * size + 6, dtype=kind)
        above = CellsAbove(hidden.to(kind), carried.to(kind), carried_cell.to(cell).clone(), to_gates[:, 6:])
        remember_back(step, above)
        found.append([step.gates, step.cell, step.hidden, to_gates, above.carried_cell])
    for one, other in zip(*found, strict=True):
        assert_near(one, other, BOUNDS[dtype])


@needs_compiler
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_word_losses_equal_torchs(dtype: torch.dtype, smoothing: float) -> None:
    generator = torch.Generator().manual_seed(8)
    logits = (9 * torch.randn(7, 83, generator=generator)).to(dtype)
    logits[2, 5] = -300.0  # as good as impossible
    targets = torch.tensor([0, 82, 5, 40, 41, 3, 3])
    above = torch.randn(7, generator=generator)
    found = []
    for kind in (dtype, torch.float64):
        own = logits.detach().clone().to(kind).requires_grad_()
        losses, likelier = word_losses(own, targets, smoothing)
        losses.backward(above.to(losses.dtype))
        assert own.grad is not None
        found.append((losses.detach(), own.grad, likelier))
    assert_near(found[0][0], found[1][0], 1e-5)
    assert_near(found[0][1], found[1][1], 1e-5 if dtype == torch.float32 else 5e-3)
    assert torch.equal(found[0][2], found[1][2])
    assert found[0][2].tolist() == (logits > logits[torch.arange(7), targets][:, None]).sum(1).tolist()


@needs_compiler
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_saturated_gates_are_numbers(dtype: torch.dtype) -> None:
    """Also beyond what an exponential can hold."""
    extremes = torch.tensor([-torch.inf, -1e3, -100, -88.1, -87.9, -44.1, 0, 44.1, 87.9, 88.1, 100, 1e3, torch.inf])
    size, found = len(extremes), []
    for kind, cell in ((dtype, torch.float32), (torch.float64, torch.float64)):
        before = extremes.clamp(-1e4, 1e4).to(cell)[None]
        step = Cells(before, *(torch.empty(1, n * size, dtype=t) for n, t in ((4, kind), (1, cell), (1, kind))))
        nothing = torch.zeros(1, 4 * size, dtype=kind)
        remember(step, extremes.repeat(4).to(kind)[None], nothing, nothing)
        found.append((step.gates, step.cell, step.hidden))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-7)


def test_the_lstm_gradients_equal_automatic_ones() -> None:
    generator = torch.Generator().manual_seed(7)
    total, before = (torch.randn(3, n, dtype=torch.float64, generator=generator).requires_grad_() for n in (20, 5))
    to_hidden, to_cell = (torch.randn(3, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    enter, forget, leave = torch.sigmoid(total[:, :15]).chunk(3, -1)
    cell = forget * before + enter * torch.tanh(total[:, 15:])
    ((leave * torch.tanh(cell) * to_hidden).sum() + (cell * to_cell).sum()).backward()
    step = Cells(before.detach(), *(torch.empty(3, n, dtype=torch.float64) for n in (20, 5, 5)))
    nothing = torch.zeros(3, 20, dtype=torch.float64)
    remember(step, total.detach(), nothing, nothing)
    above = CellsAbove(to_hidden, torch.zeros_like(to_hidden), to_cell, torch.empty(3, 20, dtype=torch.float64))
    remember_back(step, above)
    torch.testing.assert_close(step.hidden, (leave * torch.tanh(cell)).detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(above.gates, total.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(above.carried_cell, before.grad, rtol=1e-9, atol=1e-12)


@needs_compiler
def test_the_identity_is_that_of_the_compiled_file() -> None:
    assert re.fullmatch(r"kernels-[0-9a-f]{16}", native.identity())


@needs_compiler
def test_float64_and_other_devices_have_no_kernels() -> None:
    assert native.usable(torch.zeros(1))
    assert native.usable(torch.zeros(1, dtype=torch.bfloat16))
    assert not native.usable(torch.zeros(1, dtype=torch.float64))
    assert not native.usable(torch.zeros(1, device="meta"))
