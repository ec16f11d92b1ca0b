from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError
from pipeline.report import attention


def b_spline(x: float) -> float:
    """The cubic B-spline from its truncated powers."""
    signs = (1, -4, 6, -4, 1)
    return sum(sign * max(0.0, x + 2 - k) ** 3 for k, sign in enumerate(signs)) / 6


@pytest.mark.parametrize(("size", "cells"), [(17, 5), (4, 7), (9, 1)])
def test_spline_equals_the_truncated_power_form(size: int, cells: int) -> None:
    expected = np.zeros((size, cells))
    for pixel in range(size):
        for cell in range(-3, cells + 3):
            place = (pixel + 0.5) * cells / size - 0.5
            expected[pixel, min(max(cell, 0), cells - 1)] += b_spline(place - cell)
    np.testing.assert_allclose(attention.spline(size, cells), expected, atol=1e-12)
    np.testing.assert_allclose(attention.spline(size, cells).sum(axis=1), 1)


def test_map_peaks_in_the_middle_of_its_region_row_major() -> None:
    weights = np.zeros(15)
    weights[1 * 5 + 3] = 0.4
    field = attention.attention_map(weights, (3, 5), (50, 33))
    assert field.shape == (33, 50)
    assert field.max() == 1
    assert divmod(int(field.argmax()), 50) in [(16, 34), (16, 35)]
    assert field[:, :15].max() == 0


def test_even_attention_lights_the_whole_picture_and_none_darkens_it() -> None:
    image = Image.new("RGB", (8, 6), (100, 100, 100))
    even = np.asarray(attention.overlay(image, np.full(6, 0.1), (2, 3)))
    none = np.asarray(attention.overlay(image, np.zeros(6), (2, 3)))
    glow, shade = attention.GLOW, attention.SHADE
    assert even[3, 4].tolist() == [round(100 * (1 - attention.TINT) + attention.TINT * channel) for channel in glow]
    assert none[3, 4].tolist() == [round(100 * (1 - attention.DEPTH) + attention.DEPTH * channel) for channel in shade]
    assert (even == even[0, 0]).all()


def test_figure_has_the_picture_and_a_panel_a_word(tmp_path: Path) -> None:
    weights = np.eye(6)
    path = tmp_path / "out.png"
    attention.save_figure(Image.new("L", (40, 20), 200), list("abcdef"), weights, (2, 3), path)
    with Image.open(path) as opened:
        figure = opened.copy()
    panels, rows = 4, 2
    assert figure.size == (panels * 378 - 18, rows * (180 + 52 + 18) - 18)
    assert figure.getpixel((180, 52 + 90)) == (200, 200, 200)
    first = figure.crop((378, 52, 738, 232))
    grey = np.asarray(first.convert("L"), dtype=int)
    assert grey[30, 40] > 100 > grey[150, 300]
    assert figure.getpixel((figure.width - 100, figure.height - 100)) == (255, 255, 255)


def test_figure_is_the_same_bytes_again_and_holds_no_word_at_all(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        attention.save_figure(Image.new("RGB", (30, 30)), [], np.zeros((0, 4)), (2, 2), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as figure:
        assert figure.size == (360, 412)


def test_figure_refuses_weights_of_another_shape(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"needs attention of shape \(2, 6\).*found \(3, 6\)"):
        attention.save_figure(Image.new("RGB", (9, 9)), ["a", "b"], np.ones((3, 6)), (2, 3), tmp_path / "out.png")
    assert not list(tmp_path.iterdir())
