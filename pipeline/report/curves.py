"""Training curves, from DVCLive's tables to numbers ready to draw.

Owns which series share a chart, the axes and their ticks, and which epoch was kept. The template turns a `Chart` into
SVG. Does not know what the series mean: a series that training adds appears by itself.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError
from pipeline.files import read_json, read_text, require

WIDTH, HEIGHT = 380, 220  # of the drawing, in its own units
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 34  # margins; the plot lies between them
TITLES = {
    "loss": "Loss",
    "penalty": "Attention penalty",
    "top5_accuracy": "Top-5 accuracy",
    "bleu4": "BLEU-4",
    "cider": "CIDEr-D",
    "learning_rate": "Learning rate",
}

_DIGITS = 9

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """One line: its name, the drawn points as SVG wants them, and what it says in words."""

    name: str
    path: str
    end: tuple[float, float]
    first: str
    last: str


@dataclass(frozen=True)
class Chart:
    """Series of one quantity, with ticks as (position in the drawing, label)."""

    name: str
    title: str
    series: list[Series]
    across: list[tuple[float, str]]
    up: list[tuple[float, str]]
    epochs: tuple[str, str]


def read_charts(folder: Path) -> list[Chart]:
    """One chart a quantity from `FOLDER/plots/metrics/**/*.tsv`; `train/loss` and `validation/loss` share one.

    Raises:
        MissingError: train has not run.
        DataError: a table is not `step<TAB>name`; the message has the line.
    """
    root = require(folder / "plots" / "metrics", made_by="train")
    groups: dict[str, dict[str, Points]] = {}
    for path in sorted(root.rglob("*.tsv")):
        where = path.relative_to(root).parent.as_posix()
        points = _read_points(path)
        if points:
            groups.setdefault(path.stem, {})[where if where != "." else "train"] = points
    order = [*TITLES, *sorted(groups.keys() - TITLES.keys())]
    return [draw(name, groups[name]) for name in order if name in groups]


def read_kept(folder: Path) -> int:
    """The epoch whose weights were kept, counted from 1.

    Raises:
        MissingError: train has not run.
        DataError: `FOLDER/metrics.json` does not say.
    """
    path = folder / "metrics.json"
    found = read_json(path, made_by="train")
    kept = found.get("kept_epoch") if isinstance(found, dict) else None
    if not isinstance(kept, int) or kept < 1:
        raise DataError(f'{path} does not say which epoch was kept (kept_epoch). Run "dvc repro -f train" to write it.')
    return kept


def _read_points(path: Path) -> Points:
    points = []
    rows = csv.DictReader(read_text(path, made_by="train").splitlines(), delimiter="\t")
    for number, row in enumerate(rows, start=2):
        try:
            # DVCLive counts epochs from 0. Of a score without a match only the metrics' epsilon is left.
            point = float(row["step"]) + 1, round(float(row[path.stem]), _DIGITS)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f'{path}, line {number}: expected the columns "step" and "{path.stem}" with a number each. '
                'Run "dvc repro -f train" to write it again.'
            ) from error
        if all(map(math.isfinite, point)):
            points.append(point)
    return points


def draw(name: str, groups: dict[str, Points]) -> Chart:
    """Lay out one chart.

    Args:
        name: the quantity.
        groups: series name to its points (step, value), at least one each.
    """
    steps, values = zip(*(point for points in groups.values() for point in points), strict=True)
    across, up = _axis(min(steps), max(steps), whole=True), _axis(min(values), max(values))
    x = _Scale(min(steps), max(max(steps), min(steps) + 1), LEFT, WIDTH - RIGHT)
    y = _Scale(min(up[0], min(values)), max(up[-1], max(values)), HEIGHT - BOTTOM, TOP)
    return Chart(
        name=name,
        title=TITLES.get(name, name.replace("_", " ").capitalize()),
        series=[_series(label, points, x, y) for label, points in groups.items()],
        across=[(x(tick), f"{tick:g}") for tick in across],
        up=[(y(tick), f"{tick:g}") for tick in up],
        epochs=(f"{min(steps):g}", f"{max(steps):g}"),
    )


def _series(name: str, points: Points, x: "_Scale", y: "_Scale") -> Series:
    drawn = [(x(step), y(value)) for step, value in points]
    path = " ".join(f"{left:g},{top:g}" for left, top in drawn)
    return Series(name, path, drawn[-1], f"{points[0][1]:.4g}", f"{points[-1][1]:.4g}")


@dataclass(frozen=True)
class _Scale:
    """From values to positions in the drawing, to a tenth of a unit."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)


def _axis(low: float, high: float, whole: bool = False) -> list[float]:
    """Four to seven round numbers: within the range if whole, else the first and last enclose it."""
    if high == low:
        high = low + (1 if whole else abs(low) or 1)
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    if whole:
        step = max(1, round(step))
        return [float(tick) for tick in range(math.ceil(low / step) * step, math.floor(high) + 1, step)]
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(tick * step, 12) for tick in range(first, last + 1)]
