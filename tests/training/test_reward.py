"""The reward of a batch is CIDEr-D of each of its captions, END being a word."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from pipeline.language.vocabulary import END, PAD
from pipeline.scoring.cider import CiderD
from pipeline.training.reward import CiderReward

CPU = torch.device("cpu")
References = dict[int, list[list[int]]]


def drawn(vocabulary: int, seed: int, images: int = 9, longest: int = 8) -> References:
    """Different numbers of references, of few words so that n-grams repeat; rows leave gaps; one has no word."""
    chance = np.random.default_rng(seed)
    found = {
        3 * row: [
            [*chance.integers(3, vocabulary, chance.integers(1, longest)).tolist(), END]
            for _ in range(chance.integers(1, 6))
        ]
        for row in range(images)
    }
    found[3].append([END])
    return found


def padded(captions: Sequence[Sequence[Sequence[int]]], filled: int = PAD) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([[len(caption) for caption in own] for own in captions])
    words = torch.full((*lengths.shape, int(lengths.max()) + 2), filled)
    for image, own in enumerate(captions):
        for number, caption in enumerate(own):
            words[image, number, : len(caption)] = torch.tensor(caption, dtype=torch.long)
    return words, lengths


def spelled(words: Sequence[int]) -> list[str]:
    return [f"word {word}" for word in words]


def scored(references: References, rows: Sequence[int], captions: Sequence[Sequence[Sequence[int]]]) -> np.ndarray:
    """What `scoring.cider` says."""
    judge = CiderD([[spelled(one) for one in others] for others in references.values()])
    places = [list(references).index(row) for row in rows for _ in captions[0]]
    scores = judge.score([spelled(one) for own in captions for one in own], places)
    return scores.reshape(len(rows), -1)


@pytest.mark.parametrize("vocabulary", [6, 9, 70_001, 3_000_000_000])
@pytest.mark.parametrize("seed", range(4))
def test_random_captions_score_as_the_words_do(vocabulary: int, seed: int) -> None:
    references = drawn(min(vocabulary, 9) if seed % 2 else vocabulary, seed)
    if vocabulary > 70_000:  # the same few words, far apart: keys of four would not fit into 64 bits
        references = {row: [[w if w == END else vocabulary - 1 - w % 5 for w in one] for one in others]
                      for row, others in references.items()}  # fmt: skip
    chance = np.random.default_rng(100 + seed)
    pool = sorted({word for others in references.values() for one in others for word in one} - {END})
    pool.append(5)  # perhaps in no reference
    rows = [12, 3, 24, 0]
    captions = [
        [
            [*chance.choice(pool, chance.integers(0, 10)).tolist(), *([END] if chance.random() < 0.7 else [])]
            for _ in range(3)
        ]
        for _ in rows
    ]
    captions[0][0] = references[12][0]  # one that is right, one that is cut, one that says nothing at all
    captions[1][1] = references[3][0][:-1]
    captions[2][2] = []
    found = CiderReward(references, vocabulary, CPU)(rows, *padded(captions))
    np.testing.assert_allclose(found.numpy(), scored(references, rows, captions), rtol=1e-9, atol=1e-9)
    assert found.max() > 1


def test_repeated_words_are_clipped_and_unknown_n_grams_lengthen_the_norm() -> None:
    references = {0: [[4, 5, 4, 5, END]], 1: [[6, 7, END], [6, 6, 8, END]], 2: [[9, END]]}
    captions = [[[4, 5, 4, 5, 4, 5, END], [4, 4, 4, 4], [4, 10, 10, 10, END], [10, 10, 10, 10, 10]]]
    found = CiderReward(references, 11, CPU)([0], *padded(captions))
    np.testing.assert_allclose(found.numpy(), scored(references, [0], captions), rtol=1e-12)
    assert found[0, 3] == 0 < found[0, 2] < found[0, 0]


def test_what_stands_behind_a_captions_end_does_not_count() -> None:
    references = drawn(7, 3)
    captions = [[[4, 5, END], [4]], [[3, 4, 4, 6, END], []]]
    judge = CiderReward(references, 7, CPU)
    words, lengths = padded(captions)
    others, _ = padded(captions, filled=4)
    assert torch.equal(judge([0, 6], words, lengths), judge([0, 6], others, lengths))


def test_a_caption_that_is_cut_scores_less_than_the_whole() -> None:
    references = {0: [[4, 5, 6, 7, END]], 1: [[8, 9, END]], 2: [[8, 5, 9, END]]}
    judge = CiderReward(references, 10, CPU)
    whole, cut = judge([0], *padded([[[4, 5, 6, 7, END], [4, 5, 6, 7]]]))[0]
    assert whole == pytest.approx(10)
    assert cut < 8.5


def test_references_that_are_all_short_have_no_long_n_grams() -> None:
    references = {0: [[4, END]], 1: [[5, END]]}
    captions = [[[4, END], [4, 5, 4, 5, END]]]
    found = CiderReward(references, 6, CPU)([0], *padded(captions))
    np.testing.assert_allclose(found.numpy(), scored(references, [0], captions), rtol=1e-12)


def test_an_image_scores_the_same_beside_any_others() -> None:
    references = drawn(8, 5)
    judge = CiderReward(references, 8, CPU)
    words, lengths = padded([[[4, 5, END], [6, 4, 5, 7]], [[3, END], [4, 5, END]], [[7, 7, END], []]])
    rows = [9, 15, 3]
    together = judge(rows, words, lengths)
    for place, row in enumerate(rows):
        part = judge([row], words[place : place + 1], lengths[place : place + 1])[0]
        torch.testing.assert_close(part, together[place], rtol=1e-14, atol=0)
