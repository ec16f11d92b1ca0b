"""The page: one HTML file that holds everything and asks the network for nothing.

Owns what the page says, in which order; `page.html`, `page.css` and `page.js` own how it looks and moves. The same
inputs give the same bytes: no date, no time, no absolute path. Does not know where the inputs lie.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any

import jinja2
from markupsafe import Markup

from pipeline.datasets.dataset import Dataset
from pipeline.errors import DataError
from pipeline.report import attention, curves, gallery
from pipeline.report.gallery import Card
from pipeline.report.results import Caption, Evaluation
from pipeline.settings import Range

FEW = 6  # best and worst captions, each
LISTED = 200  # skipped images named on the page
# Settings that change no byte of any result: DVC does not watch them, and the page does not show them.
WITHOUT_EFFECT = {
    "data.workers",
    "encode.workers",
    "encode.scheduler",
    "encode.resource",
    "encode.shared",
    "train.cache",
}


@dataclass(frozen=True)
class ReportSettings:
    """The section `report`."""

    gallery: Annotated[int, Range(0, 500)]


@dataclass(frozen=True)
class Sections:
    """The cards by section."""

    gallery: list[Card]
    best: list[Card]
    worst: list[Card]

    @property
    def remembers(self) -> bool:
        """Whether a word was said from memory, in part at least."""
        return any(share < 100 for card in (*self.gallery, *self.best, *self.worst) for share in card.looked)

    @property
    def shape(self) -> str:
        """`wide` where most pictures are wider than high, else `square`; all frames of the page have one shape."""
        wide = [width > 1.15 * height for width, height in (card.size for card in (*self.gallery, *self.best))]
        return "wide" if 2 * sum(wide) > len(wide) else "square"


def render(
    evaluation: Evaluation,
    charts: Sequence[curves.Chart],
    kept: int,
    dataset: Dataset,
    params: Mapping[str, Any],
    images: Path,
    wanted: int,
) -> str:
    """The whole page.

    Args:
        evaluation: scores, captions, attention and what was left out.
        charts: the training curves.
        kept: the epoch whose weights training kept.
        dataset: which file an image is.
        params: all settings as read, for the table and the opening sentence.
        images: the folder of the images.
        wanted: captions in the gallery.

    Raises:
        ImageError: an image that is to be shown cannot be decoded any more.
        DataError: a caption is about an image that the data set does not list.
    """
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return environment.get_template("page.html").render(
        style=Markup(style),
        script=Markup(script),
        policy=content_policy(style, script),
        metrics=evaluation.metrics,
        sections=choose(
            evaluation.captions, {example.id: images / example.file for example in dataset.examples}, wanted
        ),
        captions=evaluation.captions,
        grid=evaluation.grid,
        skipped=evaluation.skipped,
        listed=LISTED,
        charts=charts,
        kept=kept,
        drawing=curves,
        light=attention,
        drawn=dataset.summary["drawn"],
        params=params,
        settings={section: flatten(effective(section, values)) for section, values in params.items()},
    )


def content_policy(style: str, script: str) -> str:
    """The content security policy: pictures from the page itself, this style and this script, nothing else."""

    def hashed(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")

    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashed(style)}'; "
        f"script-src 'sha256-{hashed(script)}'; base-uri 'none'; form-action 'none'"
    )


def choose(captions: Sequence[Caption], files: Mapping[str, Path], wanted: int) -> Sections:
    """The gallery, spread evenly over the images whatever their scores; then the best and the worst by CIDEr-D."""
    unknown = [caption.image for caption in captions if caption.image not in files]
    if unknown:
        raise DataError(
            f"{len(unknown):,} captions are about images that the data set does not list; first: {unknown[0]}. "
            'Run "dvc repro" to caption the images of this data set.'
        )
    scores = gallery.image_scores(captions)
    best, worst = gallery.extremes(scores, FEW) if scores is not None else ([], [])
    chosen = gallery.spread(len(captions), wanted)
    cards = [
        gallery.card(number, captions[row], files[captions[row].image], None if scores is None else float(scores[row]))
        for number, row in enumerate([*chosen, *best, *worst], start=1)
    ]
    first, second = len(chosen), len(chosen) + len(best)
    return Sections(cards[:first], cards[first:second], cards[second:])


def effective(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a section that a result depends on."""
    return {key: value for key, value in values.items() if f"{section}.{key}" not in WITHOUT_EFFECT}


def flatten(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Settings as (path, text) in their order; of an absolute path, which differs between machines, only its name."""
    if not isinstance(values, Mapping):
        return [(prefix, _text(values))]
    return [row for key, value in values.items() for row in flatten(value, f"{prefix}.{key}" if prefix else str(key))]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return PurePath(value).name if PurePath(value).is_absolute() else value
    return json.dumps(value)


def _number(value: float | None, digits: int = 1) -> str:
    """A number for people: thousands apart, a true minus sign, a dash for none."""
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")
