import random

import numpy as np
import pytest

from pipeline.scoring.bleu import bleu
from pipeline.scoring.blind import bleu4_of_each, blind_caption
from tests.golden.grammar import sentence


@pytest.mark.parametrize("seed", range(5))
def test_captions_score_as_if_each_were_said_of_every_image(seed: int) -> None:
    source = random.Random(seed)
    references = [[sentence(source).split() for _ in range(source.randint(1, 4))] for _ in range(7)]
    references.append([["the", "the", "the", "the", "cat"], ["the"], ["the"] * 9])
    captions = [sentence(source).split() for _ in range(20)]
    captions += [[], ["dog"], ["a"] * 30, *(["the"] * count for count in range(2, 9))]
    plain = [bleu([words] * len(references), references)[3] for words in captions]
    np.testing.assert_allclose(bleu4_of_each(captions, references), plain, rtol=1e-12)
    assert blind_caption(captions, references) == captions[int(np.argmax(plain))]


def test_of_captions_equally_good_the_first_in_the_alphabet_is_taken() -> None:
    assert blind_caption([["b"], ["a"], ["c"]], [[["x", "y"]]]) == ["a"]
