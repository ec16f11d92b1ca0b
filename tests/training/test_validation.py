"""What is validated is what was said freely, over all images, against all references."""

import contextlib
import itertools
import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.captioners.build import build_captioner
from pipeline.captioners.captioner import Captioner, DecoderShape
from pipeline.captioners.search import beam_search
from pipeline.language.captions import EncodedCaptions
from pipeline.language.vocabulary import MARKS, Vocabulary
from pipeline.scoring.scores import score_captions
from pipeline.training import batches, validation
from pipeline.training.batches import CaptionedImages, Regions
from pipeline.training.validation import Validation, generate
from tests.training.conftest import SETTINGS, MemoryReader

VOCABULARY = Vocabulary((*MARKS, "a", "red", "blue", "dot"))
CAPTIONS = {3: [[1, 4, 5, 7, 2], [1, 7, 2]], 4: [[1, 6, 7, 2]], 6: [[1, 4, 6, 6, 4, 7, 2]]}


def captioner() -> Captioner:
    torch.manual_seed(7)
    return build_captioner("soft", DecoderShape(8, 5, 6, 4, 7, 0.5), SETTINGS.decoder_options).eval()


def regions() -> Regions:
    return Regions(cast(Any, MemoryReader(9)), (2, 3), torch.device("cpu"), torch.float32)


def validate(rows: list[int], references: list[list[list[str]]], batch: int) -> dict[str, float]:
    lines = [row for row, own in CAPTIONS.items() for _ in own]
    encoded = EncodedCaptions.of(lines, [caption for own in CAPTIONS.values() for caption in own])
    judge = Validation(CaptionedImages(encoded, rows, regions()), rows, references, VOCABULARY, batch)
    return judge(captioner(), cast(Any, contextlib.nullcontext))


REFERENCES = [[["a", "red", "dot"]], [["blue", "dot"], ["a", "dot"]], [["a", "blue", "dot"]], [["dot"]]]


@torch.no_grad()
def loss_word_by_word() -> float:
    decoder, losses = captioner(), []
    features = torch.from_numpy(MemoryReader(9).features).float()
    for row, own in CAPTIONS.items():
        for caption in own:
            state = decoder.start(features[row : row + 1])
            for word, following in itertools.pairwise(caption):
                logits, _, state = decoder.step(torch.tensor([word]), state)
                losses.append(float(functional.cross_entropy(logits.double(), torch.tensor([following]))))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_loss_is_the_mean_over_words_without_dropout(batch: int) -> None:
    assert validate([3, 4, 6], REFERENCES[:3], batch)["loss"] == pytest.approx(loss_word_by_word(), rel=1e-5)


def test_scores_are_of_greedy_captions_of_every_image_even_one_without_a_caption() -> None:
    rows = [3, 4, 6, 8]  # row 8 has references but no encoded caption
    features = torch.from_numpy(MemoryReader(9).features).float()[rows]
    found = beam_search(captioner(), features, beam=1, length_penalty=0.0, max_length=30)
    said = [VOCABULARY.decode(one.words) for one in found]
    references = [[said[0][:7]], *REFERENCES[1:]]  # so that some 4-gram is right
    expected = score_captions(said, references)
    scores = validate(rows, references, 2)
    assert expected["bleu4"] and (scores["bleu4"], scores["cider"]) == pytest.approx(
        (expected["bleu4"], expected["cider"])
    )


def test_a_single_image_has_no_cider_and_scores_nothing() -> None:
    assert validate([3], REFERENCES[:1], 2)["cider"] == 0
    assert math.isfinite(validate([3], REFERENCES[:1], 2)["bleu4"])


def test_bleu4_is_nothing_where_no_4gram_is_right_and_coco_captions_guards_remain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = [["a", "dot"], ["a", "blue", "dot"]]
    monkeypatch.setattr(validation, "generate", lambda *_: said)
    assert 0 < score_captions(said, REFERENCES[:2])["bleu4"] < 4  # type: ignore[operator]
    assert validate([3, 4], REFERENCES[:2], 2)["bleu4"] == 0


def test_what_was_said_is_split_again_before_it_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    said, references = [["a", "big", "red", "dog.", "ran"]], [["a", "big", "red", "dog", "ran"]]
    monkeypatch.setattr(validation, "generate", lambda *_: said)
    assert validate([3], [references], 2)["bleu4"] == pytest.approx(100)


def test_captions_come_in_the_order_of_the_rows_however_many_are_searched_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [5, 0, 8, 2, 7]
    at_once = generate(captioner(), regions(), rows, VOCABULARY)
    monkeypatch.setattr(batches, "_SEARCHED", 2)
    assert generate(captioner(), regions(), rows, VOCABULARY) == at_once
    order = np.argsort(rows).tolist()
    assert generate(captioner(), regions(), sorted(rows), VOCABULARY) == [at_once[index] for index in order]


def test_captions_are_searched_greedily(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def noted(*arguments: Any, **options: Any) -> Any:
        asked.append((options["beam"], options["max_length"]))
        return beam_search(*arguments, **options)

    monkeypatch.setattr(validation, "beam_search", noted)
    generate(captioner(), regions(), [3, 4], VOCABULARY)
    assert asked == [(1, 30)]
