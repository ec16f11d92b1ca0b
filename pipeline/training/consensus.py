"""Consensus: of several captions of an image, the one that people who described similar images would agree with most.

Owns how the captions of similar training images judge a candidate, and the choice (Mao et al. 2015, "Deep Captioning
with Multimodal Recurrent Neural Networks", section 8; Devlin et al. 2015, "Exploring Nearest Neighbor Approaches for
Image Captioning"; here nearer images weigh more). Does not know how captions are found, nor what makes images similar.

Shapes: B images, R regions, C channels, N training images.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from pipeline.captioners.captioner import Captioner
from pipeline.captioners.hypothesis import Hypothesis
from pipeline.captioners.options import EvaluateSettings
from pipeline.captioners.sampling import sample_captions
from pipeline.datasets.dataset import Dataset
from pipeline.errors import DataError
from pipeline.features.likeness import Likeness
from pipeline.features.reader import FeatureReader
from pipeline.language.vocabulary import Vocabulary
from pipeline.language.words import tokenize
from pipeline.scoring.cider import CiderD
from pipeline.training.batches import Regions

_TOGETHER = 4096  # captions drawn at once
FOCUS = 0.1  # a neighbour whose cosine is less than the nearest one's by this weighs 1 / e of it


class Consensus:
    """The training images of a cache, with what is said of them."""

    def __init__(
        self, dataset: Dataset, reader: FeatureReader, vocabulary: Vocabulary, settings: EvaluateSettings
    ) -> None:
        """Read every training image's features once.

        Args:
            dataset: of the cache; its training captions judge.
            reader: of the cache.
            vocabulary: of the candidates.
            settings: `consensus`, and of the search what holds for drawn captions too.

        Raises:
            CacheError: the cache is of other images, or damaged.
            DataError: fewer than two training images have captions; of one, no word is rarer than another.
        """
        reader.require_ids(dataset.ids)
        rows = [row for row in dataset.rows("train") if dataset.examples[row].captions]
        if len(rows) < 2:
            raise DataError(
                "evaluate.consensus asks the captions of at least two training images, and the data set has "
                f"{len(rows)}. Set evaluate.consensus.neighbours to 0, or give training images (data.splits)."
            )
        self._settings, self._options, self._vocabulary = settings, settings.consensus, vocabulary
        self._judges = CiderD([[tokenize(caption) for caption in dataset.examples[row].captions] for row in rows])
        self._likeness = Likeness(_read_means(reader, rows))

    def choose(
        self, captioner: Captioner, regions: Tensor, found: Sequence[Hypothesis], keys: Sequence[str]
    ) -> list[Hypothesis]:
        """Of each image, the best of the caption that was found and of others that are drawn.

        Args:
            captioner: in eval mode.
            regions: (B, R, C) float32 on the captioner's device, as the cache holds them.
            found: by the search, one an image.
            keys: the SHA-256 of each image's content.
        """
        drawing = replace(self._settings, temperature=self._options.temperature, top_k=0, top_p=1.0)
        drawn: list[list[Hypothesis]] = []
        size = max(1, _TOGETHER // self._options.samples)
        for start in range(0, len(keys), size):
            part = slice(start, start + size)
            drawn += sample_captions(captioner, regions[part], drawing, keys[part], self._options.samples)
        images = zip(regions.cpu().numpy(), found, drawn, strict=True)
        return [self._best(image.mean(axis=0), [first, *others]) for image, first, others in images]

    def _best(self, mean: NDArray[np.float32], candidates: Sequence[Hypothesis]) -> Hypothesis:
        """The candidate of the largest sum of weighted CIDEr-D and likelihood; of equal ones the first.

        Captions that were cut are no candidates beside whole ones.
        """
        different: dict[tuple[tuple[int, ...], bool], Hypothesis] = {}
        for caption in candidates:
            different.setdefault((caption.words, caption.finished), caption)
        whole = [caption for caption in different.values() if caption.finished] or list(different.values())
        judges, cosines = self._likeness.nearest(mean, self._options.neighbours)
        said = [self._vocabulary.decode(caption.words) for caption in whole]
        agreement = self._judges.agreement(said, judges.tolist()) @ weights_of(cosines)
        lengths = np.array([len(caption.words) + 1 for caption in whole])  # END counts, as in the search
        logs = np.array([caption.log_probability for caption in whole])
        likelihood = logs / lengths**self._settings.length_penalty
        return whole[int(np.argmax(agreement + self._options.likelihood * likelihood))]


def weights_of(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much each neighbour's word weighs, (N,): exp(cosine / FOCUS), summing to 1."""
    weights = np.exp((cosines - cosines.max()) / FOCUS)
    return weights / weights.sum()  # type: ignore[no-any-return]


def _read_means(reader: FeatureReader, rows: Sequence[int]) -> NDArray[np.float32]:
    """The mean region of each of N images, (N, C)."""
    regions = Regions(reader, reader.grid, torch.device("cpu"), torch.float32)
    means = np.empty((len(rows), reader.channels), np.float32)
    done = 0
    with tqdm(total=len(rows), desc="training images", unit="image") as bar:
        for part, seen in regions.parts(rows):
            means[done : done + len(part)] = [image.mean(axis=0) for image in seen.numpy()]
            done += len(part)
            bar.update(len(part))
    return means
