"""The captions that the page shows, each as a card: a small picture, words, references and attention.

Owns which captions are shown and how a card is packed into the page. Does not know HTML.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.report.attention import looked, region_alone
from pipeline.report.results import Caption
from pipeline.scoring.cider import CiderD
from pipeline.vision.images import load_image

LONG_SIDE = 320  # pixels of a card's picture
QUALITY = 78  # of its JPEG


@dataclass(frozen=True)
class Card:
    """One caption, ready for the page.

    Attributes:
        number: its place on the page, from 1; `#caption-NUMBER-word-W` selects a word.
        caption: as read.
        picture: the small picture as a data address.
        size: its width and height.
        weights: base64 of T x R bytes, each word's attention with its strongest region at 255.
        peaks: (T,) each word's strongest region, as a multiple of the mean region.
        alone: (T,) the region that has a word's attention alone, if one has, as hard attention's.
        looked: (T,) how many hundredths of a word come from looking.
        cider: CIDEr-D of this caption, x 100; None where it has no meaning.
    """

    number: int
    caption: Caption
    picture: str
    size: tuple[int, int]
    weights: str
    peaks: list[str]
    alone: list[int | None]
    looked: list[int]
    cider: float | None


def image_scores(captions: Sequence[Caption]) -> NDArray[np.float64] | None:
    """CIDEr-D of every caption, x 100, (N,); None for a single image, whose words are neither rare nor common."""
    if len(captions) < 2:
        return None
    references = [[reference.split() for reference in caption.references] for caption in captions]
    return 100.0 * np.asarray(CiderD(references).score([caption.words for caption in captions]), dtype=np.float64)


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` places, ascending: the middles of equal stretches."""
    wanted = min(count, wanted)
    return [(2 * number + 1) * count // (2 * wanted) for number in range(wanted)]


def extremes(scores: NDArray[np.float64], few: int) -> tuple[list[int], list[int]]:
    """The rows of the best and of the worst `few`, most extreme first, equals in order; none is in both."""
    few = min(few, len(scores) // 2)
    best: list[int] = np.argsort(-scores, kind="stable")[:few].tolist()
    worst = [row for row in np.argsort(scores, kind="stable").tolist() if row not in best]
    return best, worst[:few]


def card(number: int, caption: Caption, file: Path, cider: float | None) -> Card:
    """Pack one caption.

    Args:
        number: its place on the page.
        caption: what was said.
        file: the image.
        cider: its own CIDEr-D x 100.

    Raises:
        ImageError: the image cannot be decoded any more.
        MissingError: it is gone.
    """
    picture = load_image(file)
    picture.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
    weights, peaks = pack(caption.attention)
    alone, shares = [region_alone(own) for own in caption.attention], [looked(own) for own in caption.attention]
    return Card(number, caption, _jpeg(picture), picture.size, weights, peaks, alone, shares, cider)


def pack(attention: NDArray[np.float32]) -> tuple[str, list[str]]:
    """Each word's attention in a byte a region, relative to its strongest; and that one relative to the mean.

    Args:
        attention: (T, R), not negative.
    """
    strongest = attention.max(axis=1, keepdims=True, initial=0)
    mean = attention.mean(axis=1, keepdims=True)
    relative = np.divide(attention, strongest, out=np.zeros_like(attention), where=strongest > 0)
    peaks = np.divide(strongest, mean, out=np.zeros_like(mean), where=mean > 0)
    packed = np.rint(255 * relative).astype(np.uint8)
    return base64.b64encode(packed.tobytes()).decode("ascii"), [f"{peak:.1f}" for peak in peaks[:, 0]]


def _jpeg(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=QUALITY, optimize=True, progressive=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
