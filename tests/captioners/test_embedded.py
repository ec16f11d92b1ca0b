"""Regions embedded before attention: dropout, and that what is embedded learns."""

import torch
from torch import Tensor

from pipeline.captioners.embedded import EmbeddedAttention, EmbeddedOptions
from tests.captioners.conftest import SHAPE


def test_embedded_regions_are_thinned_by_the_generator_alone(regions: Tensor) -> None:
    torch.manual_seed(0)
    attention = EmbeddedAttention(SHAPE, EmbeddedOptions(activation="tanh", normalise=False)).double()
    whole = attention.share(regions, None).features
    thinned = attention.share(regions, torch.Generator().manual_seed(1)).features
    kept = thinned[whole > 0] / whole[whole > 0]
    torch.testing.assert_close(kept[kept > 0], torch.full_like(kept[kept > 0], 1 / (1 - SHAPE.dropout)))
    assert 0.2 < float((kept == 0).double().mean()) < 0.6
    assert torch.equal(attention.share(regions, torch.Generator().manual_seed(1)).features, thinned)
    torch.testing.assert_close(whole, torch.relu(attention.embed(regions)))
