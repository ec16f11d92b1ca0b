"""The built-in data set: coloured shapes on paper, drawn and captioned by the project.

Owns what is drawn and what is said about it: two or three shapes in a row or a column, of two sizes, and five
sentences that word the same relation differently. An image depends on the seed and its number alone, so a larger
set begins with the smaller one. It demonstrates the pipeline; it says nothing about photographs.
"""

import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from pipeline.datasets.dataset import Split
from pipeline.datasets.records import Record

SIDE = 128  # pixels
_FINE = 4  # drawn this much larger, then averaged down: smooth edges

_COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 150, 44),
    "blue": (31, 90, 200),
    "yellow": (240, 200, 20),
    "purple": (140, 50, 170),
    "black": (25, 25, 25),
}
_KINDS = ("circle", "square", "triangle", "cross")
_SIZES = {"small": 22, "large": 42}  # pixels; three large ones fit side by side
_PAPER = (244, 242, 236)
_RELATIONS = {"row": ("left of", "right of"), "column": ("above", "below")}


@dataclass(frozen=True)
class Shape:
    """One shape, as it is drawn and as it is called."""

    size: str
    colour: str
    kind: str

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """Shapes from left to right (`row`) or from top to bottom (`column`)."""

    layout: str
    shapes: tuple[Shape, ...]


def draw_shapes(folder: Path, count: int, seed: int) -> tuple[Record, ...]:
    """Draw images into an existing folder, the same bytes on every run (of one Pillow version).

    Args:
        folder: where the PNG files go.
        count: how many.
        seed: of all choices.

    Returns:
        One record an image, split 6 : 1 : 1 by number, so that every split is filled.
    """
    return tuple(_draw_one(folder, number, seed) for number in range(count))


def scene(number: int, seed: int) -> Scene:
    """What image `number` shows; one in six shows three shapes."""
    chance = random.Random(f"{seed}:{number}")
    layout = chance.choice(tuple(_RELATIONS))
    colours = chance.sample(tuple(_COLOURS), 3 if chance.random() < 1 / 6 else 2)
    return Scene(layout, tuple(Shape(chance.choice(tuple(_SIZES)), c, chance.choice(_KINDS)) for c in colours))


def captions(shown: Scene) -> tuple[str, ...]:
    """Five sentences about a scene; each names every shape."""
    forth, back = _RELATIONS[shown.layout]
    first, last = shown.shapes[0], shown.shapes[-1]
    ahead = f" {forth} a ".join(map(str, shown.shapes))
    reverse = f" {back} a ".join(map(str, reversed(shown.shapes)))
    after_first, after_last = ahead.removeprefix(str(first)), reverse.removeprefix(str(last))
    return (
        f"a {ahead}",
        f"a {reverse}",
        f"there is a {ahead}",
        f"the {first} is{after_first}",
        f"the {last} is{after_last}",
    )


def render(shown: Scene, chance: random.Random) -> Image.Image:
    """Draw a scene, mode RGB, `SIDE` pixels square; `chance` shifts each shape a little."""
    fine = Image.new("RGB", (SIDE * _FINE, SIDE * _FINE), _PAPER)
    pen = ImageDraw.Draw(fine)
    for place, shape in enumerate(shown.shapes):
        along = SIDE * (place + 0.5) / len(shown.shapes)
        across = SIDE / 2 + chance.randint(-10, 10)
        centre = (along, across) if shown.layout == "row" else (across, along)
        _draw_shape(pen, shape, centre)
    return fine.resize((SIDE, SIDE), Image.Resampling.BOX)


def _draw_one(folder: Path, number: int, seed: int) -> Record:
    shown, name = scene(number, seed), f"shapes-{number:05d}.png"
    render(shown, random.Random(f"{seed}:{number}:place")).save(folder / name)
    return Record(name, (name,), captions(shown), _split(number))


def _split(number: int) -> Split:
    return {6: "validation", 7: "test"}.get(number % 8, "train")  # type: ignore[return-value]


def _draw_shape(pen: ImageDraw.ImageDraw, shape: Shape, centre: tuple[float, float]) -> None:
    x, y = (round(value * _FINE) for value in centre)
    half = _SIZES[shape.size] * _FINE // 2
    colour = _COLOURS[shape.colour]
    if shape.kind == "circle":
        pen.ellipse((x - half, y - half, x + half, y + half), fill=colour)
    elif shape.kind == "square":
        pen.rectangle((x - half, y - half, x + half, y + half), fill=colour)
    elif shape.kind == "triangle":
        pen.polygon([(x, y - half), (x + half, y + half), (x - half, y + half)], fill=colour)
    else:
        arm = half // 3
        pen.rectangle((x - half, y - arm, x + half, y + arm), fill=colour)
        pen.rectangle((x - arm, y - half, x + arm, y + half), fill=colour)
