"""Additive attention over regions that are embedded first.

Owns the embedding v = ReLU(W a + b) of a region a, with dropout, and the options of decoders that use it. Does not
know what a decoder does with what it saw.

Lu et al. 2017 (section 4) and ruotianluo/self-critical.pytorch (`att_embed` of `AttModel.py`) embed regions before
they attend; Rennie et al. 2017 and Anderson et al. 2018 attend over the channels of the backbone as they come. Here
all embed: what is seen is as wide as the state and not as the cache, so a step is faster and a search copies less.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.captioners.attention import Activation, Shared
from pipeline.captioners.captioner import DecoderShape, dropped
from pipeline.captioners.projection import AdditiveAttention, layer_normalised


@dataclass(frozen=True)
class EmbeddedOptions:
    """`train.decoder_options` of decoders that embed regions.

    Attributes:
        activation: of the attention; tanh in the papers.
        normalise: whether each region is layer-normalised first, without weights (Ba et al. 2016); not in the papers.
    """

    activation: Activation
    normalise: bool


class EmbeddedAttention(nn.Module):
    """The weights that embed regions, (C,) to (H,), and those of attention over what comes of it."""

    def __init__(self, shape: DecoderShape, options: EmbeddedOptions) -> None:
        super().__init__()
        self.normalise, self.dropout = options.normalise, shape.dropout
        self.embed = nn.Linear(shape.channels, shape.hidden_size)
        self.additive = AdditiveAttention(
            channels=shape.hidden_size, size=shape.attention_size, activation=options.activation, normalise=False
        )

    def regions(self, cells: Tensor, pooling: Tensor | None) -> Tensor:
        """Regions as the decoder sees them, pooled and normalised: (B, N, C) to (B, R, C)."""
        regions = cells if pooling is None else pooling.to(cells.dtype) @ cells
        return layer_normalised(regions) if self.normalise else regions

    def share(self, regions: Tensor, generator: torch.Generator | None) -> Shared:
        """Embed regions, once for all captions of an image; gradients reach them if they ask for any.

        Args:
            regions: (B, R, C), of `regions`.
            generator: of dropout; None switches it off.
        """
        return self.additive.share(dropped(torch.relu(self.embed(regions)), self.dropout, generator), None)
