"""Products that leave zeros out equal those that do not, image by image."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.captioners import native
from pipeline.captioners.nonzero import nonzero_of, product
from pipeline.captioners.projection import AdditiveAttention

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler works here")
# No multiples of any vector; more columns than a block, more channels than a part of the kernels.
IMAGES, CELLS, CHANNELS, SIZE = 5, 13, 517, 139
FULL = 3  # the image of which most is not zero


@pytest.fixture
def features() -> Tensor:
    generator = torch.Generator().manual_seed(7)
    drawn = torch.randn(IMAGES, CELLS, CHANNELS, generator=generator)
    few = torch.rand(drawn.shape, generator=generator) < torch.tensor([0.1, 0.2, 0.0, 1.0, 0.05])[:, None, None]
    drawn = torch.where(few, drawn, 0.0)
    drawn[0, 0, :9], drawn[0, 1, 5] = 1.0, -0.0
    return drawn


@pytest.fixture
def weights() -> Tensor:
    return torch.randn(SIZE, CHANNELS, generator=torch.Generator().manual_seed(8), requires_grad=True)


def gradient(products: Tensor, weights: Tensor) -> Tensor:
    above = torch.randn(products.shape, generator=torch.Generator().manual_seed(9)).to(products.dtype)
    (found,) = torch.autograd.grad(products, weights, above)
    return found


def test_a_product_and_its_gradient_equal_the_ordinary_ones(features: Tensor, weights: Tensor) -> None:
    found = product(features, nonzero_of(features), weights)
    wide = weights.detach().double().requires_grad_()
    expected = functional.linear(features.double(), wide)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=5e-5)
    torch.testing.assert_close(gradient(found, weights).double(), gradient(expected, wide), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_lists_hold_every_value_that_is_not_zero_channel_by_channel(features: Tensor, dtype: torch.dtype) -> None:
    features = features.to(dtype)
    nonzero = nonzero_of(features)
    assert nonzero is not None
    assert nonzero.left_out.tolist() == [FULL]
    for image, starts in enumerate(nonzero.starts):
        if image != FULL:
            channels, cells = features[image].T.nonzero(as_tuple=True)
            assert starts.tolist() == [int((channels < channel).sum()) for channel in range(CHANNELS + 1)]
            assert nonzero.places[image, : len(cells)].tolist() == cells.tolist()
            assert nonzero.values[image, : len(cells)].tolist() == features[image].T[channels, cells].tolist()


def test_an_images_product_is_the_same_whatever_is_beside_it(features: Tensor, weights: Tensor) -> None:
    together = product(features, nonzero_of(features), weights)
    for image in (0, 1, 2, 4):
        own = features[image : image + 1]
        assert torch.equal(product(own, nonzero_of(own), weights)[0], together[image])


def test_the_number_of_threads_changes_no_byte(features: Tensor, weights: Tensor) -> None:
    features = features[torch.arange(IMAGES) != FULL]
    found, before = [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            products = product(features, nonzero_of(features), weights)
            found.append((products.detach(), gradient(products, weights)))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


def test_selected_images_have_their_own_lists(features: Tensor, weights: Tensor) -> None:
    nonzero, images = nonzero_of(features), torch.tensor([4, 0, FULL])
    assert nonzero is not None
    found = product(features[images], nonzero.select(images), weights)
    torch.testing.assert_close(found, functional.linear(features[images], weights), rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_is_not_zero(features: Tensor, weights: Tensor, value: float) -> None:
    features[1, 2, 3] = value
    assert not product(features, nonzero_of(features), weights)[1, 2].isfinite().any()


def test_features_without_enough_zeros_and_other_dtypes_have_no_lists(features: Tensor) -> None:
    assert nonzero_of(features[FULL : FULL + 1]) is None
    assert nonzero_of(features[:0]) is None
    assert nonzero_of(features.double()) is None
    assert nonzero_of(torch.zeros(1, 2**16 + 1, 1)) is None


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("pooled", [True, False])
def test_keys_and_their_gradients_are_those_of_float64(features: Tensor, normalise: bool, pooled: bool) -> None:
    torch.manual_seed(10)
    attention = AdditiveAttention(channels=CHANNELS, size=SIZE, activation="relu", normalise=normalise)
    pooling = torch.softmax(torch.randn(17, CELLS), -1) if pooled else None
    wide = copy.deepcopy(attention).double()
    keys, expected = attention.share(features, pooling).keys, wide.share(features.double(), pooling).keys
    torch.testing.assert_close(keys.double(), expected, rtol=1e-4, atol=1e-4)
    (keys**2).sum().backward()
    (expected**2).sum().backward()
    for own, other in zip(attention.key.parameters(), wide.key.parameters(), strict=True):
        assert own.grad is not None and other.grad is not None
        assert float((own.grad - other.grad).norm() / other.grad.norm()) < 1e-5
