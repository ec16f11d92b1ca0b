"""Small decoders of odd, distinct sizes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pipeline.captioners.build import build_captioner
from pipeline.captioners.captioner import Captioner, DecoderShape
from tests.captioners.reference import PlainSoft

SHAPE = DecoderShape(vocabulary_size=13, channels=7, embedding_size=5, attention_size=6, hidden_size=4, dropout=0.4)

Make = Callable[..., tuple[Captioner, PlainSoft]]


@pytest.fixture
def make() -> Make:
    """The fast decoder in float64 and its plain reference with the same weights."""

    def build(
        activation: str = "relu", gate: bool = True, normalise: bool = False, tie: bool = False, seed: int = 3
    ) -> tuple[Captioner, PlainSoft]:
        torch.manual_seed(seed)
        options = {"activation": activation, "gate": gate, "normalise": normalise, "tie": tie}
        captioner = build_captioner("soft", SHAPE, options).double()
        with torch.no_grad():
            for parameter in captioner.parameters():
                parameter.mul_(3)  # far from linear, so that a wrong formula shows
        weights = {name: value.numpy().astype(np.float64) for name, value in captioner.state_dict().items()}
        return captioner, PlainSoft(weights, activation, gate, normalise)

    return build


@pytest.fixture
def regions() -> torch.Tensor:
    """Three images of 11 regions."""
    return torch.randn(3, 11, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def captions() -> list[list[list[int]]]:
    """Two, one and three captions of different lengths, in no order."""
    return [
        [[1, 5, 9, 2], [1, 4, 4, 12, 7, 2]],
        [[1, 8, 2]],
        [[1, 6, 2], [1, 11, 10, 5, 8, 9, 3, 2], [1, 7, 7, 2]],
    ]


@pytest.fixture
def padded(captions: list[list[list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    words, lengths = torch.zeros(3, 3, 9, dtype=torch.long), torch.zeros(3, 3, dtype=torch.long)
    for image, own in enumerate(captions):
        for index, caption in enumerate(own):
            words[image, index, : len(caption)] = torch.tensor(caption)
            lengths[image, index] = len(caption)
    return words, lengths
