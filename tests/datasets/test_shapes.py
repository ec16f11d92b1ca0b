import random
from pathlib import Path

import numpy as np

from pipeline.datasets.shapes import SIDE, Scene, Shape, captions, draw_shapes, render, scene

PAIR = Scene("row", (Shape("small", "red", "circle"), Shape("large", "blue", "square")))


def test_the_same_seed_draws_the_same_bytes_and_more_images_only_add(tmp_path: Path) -> None:
    few, many, other = (tmp_path / name for name in ("few", "many", "other"))
    for folder in (few, many, other):
        folder.mkdir()
    first, second = draw_shapes(few, 5, 7), draw_shapes(many, 9, 7)
    draw_shapes(other, 5, 8)
    assert second[:5] == first
    assert all((few / r.id).read_bytes() == (many / r.id).read_bytes() for r in first)
    assert any((few / r.id).read_bytes() != (other / r.id).read_bytes() for r in first)
    assert sorted(path.name for path in many.iterdir()) == [record.files[0] for record in second]


def test_every_split_is_filled(tmp_path: Path) -> None:
    splits = [record.split for record in draw_shapes(tmp_path, 30, 0)]
    assert [splits.count(name) for name in ("train", "validation", "test")] == [24, 3, 3]


def test_five_differently_worded_captions_say_the_relation() -> None:
    assert captions(PAIR) == (
        "a small red circle left of a large blue square",
        "a large blue square right of a small red circle",
        "there is a small red circle left of a large blue square",
        "the small red circle is left of a large blue square",
        "the large blue square is right of a small red circle",
    )


def test_three_shapes_are_named_in_order_and_in_reverse() -> None:
    shown = Scene("column", (*PAIR.shapes, Shape("small", "black", "cross")))
    forth, back, *_ = captions(shown)
    assert forth == "a small red circle above a large blue square above a small black cross"
    assert back == "a small black cross below a large blue square below a small red circle"


def test_scenes_show_two_or_three_shapes_of_different_colours() -> None:
    scenes = [scene(number, 0) for number in range(200)]
    assert {len(shown.shapes) for shown in scenes} == {2, 3}
    assert {shown.layout for shown in scenes} == {"row", "column"}
    assert all(len({shape.colour for shape in shown.shapes}) == len(shown.shapes) for shown in scenes)


def where(pixels: np.ndarray, colour: tuple[int, int, int]) -> tuple[float, float, int]:
    rows, columns = np.nonzero((pixels == colour).all(axis=2))
    return rows.mean(), columns.mean(), len(rows)


def test_what_is_said_is_what_is_drawn() -> None:
    for layout in ("row", "column"):
        image = render(Scene(layout, PAIR.shapes), random.Random(1))
        assert image.size == (SIDE, SIDE)
        pixels = np.asarray(image).astype(int)
        red, blue = where(pixels, (214, 39, 40)), where(pixels, (31, 90, 200))
        axis = 1 if layout == "row" else 0
        assert red[axis] < blue[axis] - 30
        assert blue[2] == 42 * 42 or abs(blue[2] - 42 * 42) < 100  # a square of 42 pixels
        assert abs(red[2] - np.pi * 11**2) < 60  # a circle of radius 11, less its smooth edge
