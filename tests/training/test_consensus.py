"""Consensus: the caption chosen is the one that a plain reading of the formula chooses, image by image."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.captioners.hypothesis import Hypothesis
from pipeline.captioners.options import EvaluateSettings
from pipeline.captioners.sampling import sample_captions
from pipeline.captioners.search import find_captions
from pipeline.datasets.dataset import Dataset, read_dataset
from pipeline.errors import CacheError, DataError
from pipeline.features.likeness import Likeness
from pipeline.features.reader import FeatureReader
from pipeline.files import Workspace
from pipeline.language.words import tokenize
from pipeline.scoring.cider import CiderD
from pipeline.training.batches import Regions
from pipeline.training.consensus import Consensus, weights_of
from pipeline.training.models import Models, read_models
from tests import tiny

CPU = torch.device("cpu")
OPTIONS = {"neighbours": 5, "samples": 7, "temperature": 1.3, "likelihood": 0.2}


def settings(**changes: Any) -> EvaluateSettings:
    found: EvaluateSettings = tiny.settings("evaluate", evaluate__consensus={**OPTIONS, **changes})
    return found


@pytest.fixture(scope="module")
def dataset(evaluated_once: Workspace) -> Dataset:
    return read_dataset(evaluated_once.dataset)


@pytest.fixture(scope="module")
def reader(evaluated_once: Workspace) -> FeatureReader:
    return FeatureReader(evaluated_once.features)


@pytest.fixture(scope="module")
def models(evaluated_once: Workspace) -> Models:
    return read_models(evaluated_once, ["captioner"], CPU)


def regions_of(reader: FeatureReader, rows: list[int]) -> torch.Tensor:
    regions = Regions(reader, reader.grid, CPU, torch.float32)
    return regions.ready(regions.start(rows))


def plainly_chosen(
    dataset: Dataset, reader: FeatureReader, models: Models, row: int, candidates: list[Hypothesis], own: Any
) -> tuple[int, ...]:
    """One image, one candidate and one neighbour at a time."""
    train = dataset.rows("train")
    said = [[tokenize(caption) for caption in dataset.examples[one].captions] for one in train]
    image = regions_of(reader, [row])[0].numpy()
    likeness = Likeness(np.stack([regions.numpy().mean(axis=0) for regions in regions_of(reader, train)]))
    nearest, cosines = likeness.nearest(image.mean(axis=0), own.consensus.neighbours)
    weights = [math.exp((cosine - cosines[0]) / 0.1) for cosine in cosines]
    judge = CiderD(said)

    def worth(caption: Hypothesis) -> float:
        words = models.vocabulary.decode(caption.words)
        scores = [float(judge.score([words], [place])[0]) for place in nearest]
        agreed = sum(weight * score for weight, score in zip(weights, scores, strict=True)) / sum(weights)
        log = caption.log_probability / (len(caption.words) + 1) ** own.length_penalty
        return float(agreed + own.consensus.likelihood * log)

    whole = [caption for caption in candidates if caption.finished] or candidates
    return max(whole, key=worth).words


@pytest.mark.parametrize("changes", [{}, {"neighbours": 1}, {"neighbours": 900, "likelihood": 0.0}, {"samples": 1}])
def test_the_choice_is_that_of_the_formula(
    dataset: Dataset, reader: FeatureReader, models: Models, changes: dict[str, Any]
) -> None:
    own, rows = settings(**changes), [*dataset.rows("test"), *dataset.rows("validation")]
    captioner, seen = models.captioner(reader.grid), regions_of(reader, rows)
    keys = [dataset.examples[row].sha256 for row in rows]
    found = find_captions(captioner, seen, own, keys)
    drawn = sample_captions(captioner, seen, replace(own, temperature=1.3), keys, own.consensus.samples)
    expected = [
        plainly_chosen(dataset, reader, models, row, [first, *others], own)
        for row, first, others in zip(rows, found, drawn, strict=True)
    ]
    chosen = Consensus(dataset, reader, models.vocabulary, own).choose(captioner, seen, found, keys)
    assert [caption.words for caption in chosen] == expected
    if not changes:
        assert expected != [caption.words for caption in found], "a drawn caption is chosen somewhere"


def test_an_image_alone_gets_the_choice_it_gets_among_others(
    dataset: Dataset, reader: FeatureReader, models: Models
) -> None:
    own, rows = settings(), dataset.rows("test")
    captioner, seen = models.captioner(reader.grid), regions_of(reader, rows)
    keys = [dataset.examples[row].sha256 for row in rows]
    consensus, found = Consensus(dataset, reader, models.vocabulary, own), find_captions(captioner, seen, own, keys)
    together = consensus.choose(captioner, seen, found, keys)
    for place, key in enumerate(keys):
        image = slice(place, place + 1)
        (alone,) = consensus.choose(captioner, seen[image], found[image], [key])
        assert alone.words == together[place].words


def test_captions_drawn_in_parts_are_those_drawn_at_once(
    dataset: Dataset, reader: FeatureReader, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, rows = settings(), [*dataset.rows("test"), *dataset.rows("validation")]
    captioner, seen = models.captioner(reader.grid), regions_of(reader, rows)
    keys = [dataset.examples[row].sha256 for row in rows]
    consensus, found = Consensus(dataset, reader, models.vocabulary, own), find_captions(captioner, seen, own, keys)
    at_once = [caption.words for caption in consensus.choose(captioner, seen, found, keys)]
    sizes: list[int] = []

    def watched(captioner: Any, regions: torch.Tensor, *others: Any) -> list[list[Hypothesis]]:
        sizes.append(len(regions))
        return sample_captions(captioner, regions, *others)

    monkeypatch.setattr("pipeline.training.consensus.sample_captions", watched)
    monkeypatch.setattr("pipeline.training.consensus._TOGETHER", 4 * OPTIONS["samples"] + 3)
    assert [caption.words for caption in consensus.choose(captioner, seen, found, keys)] == at_once
    assert sizes == [4, 2]


def test_a_caption_that_was_cut_is_chosen_only_where_all_were(
    dataset: Dataset, reader: FeatureReader, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    consensus = Consensus(dataset, reader, models.vocabulary, settings())
    words = models.vocabulary.encode(tokenize(dataset.examples[dataset.rows("train")[0]].captions[0]))
    weights = np.full((len(words), 4), 0.25, np.float32)
    good, poor = Hypothesis(tuple(words), -1.0, weights, False), Hypothesis(tuple(words[:1]), -9.0, weights[:1], True)
    seen = regions_of(reader, dataset.rows("train")[:1])
    for others, expected in (([poor], poor), ([], good)):
        monkeypatch.setattr("pipeline.training.consensus.sample_captions", lambda *_, others=others: [others])
        (chosen,) = consensus.choose(models.captioner(reader.grid), seen, [good], ["0" * 64])
        assert chosen is expected


def test_of_equal_candidates_the_one_that_was_searched_for_is_told(
    dataset: Dataset, reader: FeatureReader, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    consensus = Consensus(dataset, reader, models.vocabulary, settings())
    first, again = (Hypothesis((7, 5), -3.0, np.full((2, 4), 0.25, np.float32), True) for _ in range(2))
    monkeypatch.setattr("pipeline.training.consensus.sample_captions", lambda *_: [[again]])
    seen = regions_of(reader, dataset.rows("test")[:1])
    assert consensus.choose(models.captioner(reader.grid), seen, [first], ["0" * 64])[0] is first


def test_weights_fall_with_the_cosine_and_sum_to_one() -> None:
    weights = weights_of(np.array([0.64, 0.6, -0.2]))
    assert weights.sum() == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx(math.exp(-0.4))
    assert weights[2] / weights[0] == pytest.approx(math.exp(-8.4))


def test_captions_of_training_images_are_required(dataset: Dataset, reader: FeatureReader, models: Models) -> None:
    untold = tuple(
        replace(example, captions=()) if example.split == "train" else example for example in dataset.examples
    )
    with pytest.raises(DataError, match=r"at least two training images, and the data set has 0\. .*neighbours to 0"):
        Consensus(replace(dataset, examples=untold), reader, models.vocabulary, settings())


def test_a_cache_of_other_images_is_refused(dataset: Dataset, reader: FeatureReader, models: Models) -> None:
    with pytest.raises(CacheError, match="the data set lists"):
        Consensus(replace(dataset, examples=dataset.examples[1:]), reader, models.vocabulary, settings())


def test_evaluate_scores_what_consensus_chose_and_says_so(evaluated: Workspace) -> None:
    before = captions(evaluated)
    tiny.evaluated(evaluated, evaluate__consensus=OPTIONS)
    told = json.loads((evaluated.evaluate_results / "metrics.json").read_text(encoding="utf-8"))["signature"]
    assert (
        "at most 15 words, that caption or one of 7 sampled at temperature 1.3, as the captions of 5 similar training "
        "images choose (likelihood 0.2), seed 0; CIDEr-D"
    ) in told
    assert captions(evaluated) != before


def captions(workspace: Workspace) -> list[str]:
    path: Path = workspace.evaluate_results / "captions.json"
    return [entry["caption"] for entry in json.loads(path.read_text(encoding="utf-8"))]
