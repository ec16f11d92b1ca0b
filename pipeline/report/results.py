"""What evaluate left for the page, read and checked.

Owns `Evaluation`: the scores, every caption with its attention, and what was left out. Does not know how any of it
is shown, nor what training did (`curves`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files import NUMPY_ERRORS, read_json, require

# What the page shows of metrics.json.
METRICS = (
    *("bleu1", "bleu2", "bleu3", "bleu4", "cider", "rouge_l", "bleu4_blind"),
    *("images", "mean_length", "distinct", "vocabulary_used", "signature"),
)
_SAID = {"image", "caption", "references", "log_probability"}  # what captions.json has of an image


@dataclass(frozen=True)
class Caption:
    """What was said of one image.

    Attributes:
        image: the image's id.
        words: (T,) the caption.
        references: what people said.
        log_probability: of the whole caption.
        attention: (T, R) float32, row-major over the grid, if there is one.
    """

    image: str
    words: list[str]
    references: list[str]
    log_probability: float
    attention: NDArray[np.float32]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Attributes:
        metrics: as in `metrics.json`.
        captions: one an image, in the order of `captions.json`.
        grid: rows, columns of the attention; None for boxes, which have no place that could be shown.
        skipped: `{"image", "reason"}` of every image left out at ingest.
    """

    metrics: dict[str, Any]
    captions: list[Caption]
    grid: tuple[int, int] | None
    skipped: list[dict[str, str]]


def read_evaluation(folder: Path) -> Evaluation:
    """Read `results/evaluate/`.

    Raises:
        MissingError: evaluate has not run.
        DataError: a file is not what evaluate writes, or the files do not belong together.
    """
    metrics = read_json(folder / "metrics.json", made_by="evaluate")
    absent = [name for name in METRICS if name not in metrics]
    if absent:
        _refuse(folder / "metrics.json", f"lacks {', '.join(absent)}")
    skipped = read_json(folder / "skipped.json", made_by="evaluate")
    weights, offsets, grid = _read_attention(folder / "attention.npz")
    said = read_json(folder / "captions.json", made_by="evaluate")
    if not isinstance(said, list) or not all(isinstance(entry, dict) and entry.keys() >= _SAID for entry in said):
        _refuse(folder / "captions.json", f"is no list of objects with {', '.join(sorted(_SAID))}")
    if len(offsets) != len(said) + 1:
        _refuse(folder / "attention.npz", f"holds {len(offsets) - 1} captions where captions.json lists {len(said)}")
    if offsets[-1] != len(weights):
        _refuse(folder / "attention.npz", f"ends at word {offsets[-1]} where it holds {len(weights)}")
    captions = []
    for entry, first, last in zip(said, offsets[:-1], offsets[1:], strict=True):
        words = entry["caption"].split()
        if last - first != len(words):
            _refuse(folder / "attention.npz", f"holds {last - first} words of {entry['image']}, not {len(words)}")
        captions.append(
            Caption(entry["image"], words, entry["references"], entry["log_probability"], weights[first:last])
        )
    return Evaluation(metrics, captions, grid, skipped)


def _read_attention(path: Path) -> tuple[NDArray[np.float32], list[int], tuple[int, int] | None]:
    require(path, made_by="evaluate")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            weights, offsets = arrays["weights"].astype(np.float32), arrays["offsets"].tolist()
            rows, columns = arrays["grid"].tolist()
    except NUMPY_ERRORS as error:
        _refuse(path, f"cannot be read ({error})")
    grid = (rows, columns) if (rows, columns) != (0, 0) else None
    if weights.ndim != 2 or (grid and weights.shape[1] != rows * columns):
        _refuse(path, f"holds weights of shape {weights.shape} for a grid of {rows} x {columns}")
    return weights, offsets, grid


def _refuse(path: Path, problem: str) -> NoReturn:
    raise DataError(f'{path} {problem}. Run "dvc repro -f evaluate" to write it again.')
