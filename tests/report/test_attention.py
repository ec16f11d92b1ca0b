import numpy as np
import pytest
from PIL import Image

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
    even = np.asarray(attention.overlay(image, np.full(6, 1 / 6), (2, 3)))
    none = np.asarray(attention.overlay(image, np.zeros(6), (2, 3)))
    glow, shade = attention.GLOW, attention.SHADE
    assert even[3, 4].tolist() == [round(100 * (1 - attention.TINT) + attention.TINT * channel) for channel in glow]
    assert none[3, 4].tolist() == [round(100 * (1 - attention.DEPTH) + attention.DEPTH * channel) for channel in shade]
    assert (even == even[0, 0]).all()


def test_a_word_said_from_memory_in_part_glows_less_by_that_part() -> None:
    image, even = Image.new("RGB", (8, 6), (100, 100, 100)), np.full(6, 1 / 6)
    drawn = [np.asarray(attention.overlay(image, share * even, (2, 3)))[0, 0] for share in (1.0, 0.5, 0.0)]
    assert drawn[0].tolist() > drawn[1].tolist() > drawn[2].tolist()
    shade, glow = (1 - 0.5) * attention.DEPTH, 0.25 * attention.TINT
    dark = 100 * (1 - shade) + shade * np.array(attention.SHADE)
    assert drawn[1].tolist() == np.rint(dark * (1 - glow) + glow * np.array(attention.GLOW)).tolist()
    assert [attention.looked(share * even) for share in (1, 0.996, 0.12, 0)] == [100, 100, 12, 0]
    many = np.random.default_rng(1).dirichlet(np.ones(196)).astype(np.float16)
    assert attention.looked(many) == 100


@pytest.mark.parametrize(
    ("weights", "region"),
    [
        ([0, 0, 1, 0], 2),
        ([0, 0.0005, 0.9995, 0], 2),
        ([0, 0.002, 0.998, 0], None),
        ([0.25, 0.25, 0.25, 0.25], None),
        ([0, 0, 0, 0], None),
        ([0, 0.1, 0, 0], None),
        ([1], None),
    ],
    ids=str,
)
def test_a_region_is_alone_where_it_holds_all_the_attention_of_several(
    weights: list[float], region: int | None
) -> None:
    assert attention.region_alone(np.array(weights)) == region
    assert attention.region_alone(np.array(weights, dtype=np.float16)) == region


@pytest.mark.parametrize("size", [(50, 33), (33, 50), (360, 270), (7, 7)])
@pytest.mark.parametrize("grid", [(3, 5), (7, 7), (14, 14)])
def test_a_region_alone_is_seen_as_it_is_within_a_whole_frame(size: tuple[int, int], grid: tuple[int, int]) -> None:
    white = Image.new("RGB", size, "white")
    line = max(2, round(max(size) / 120 + 1e-9))
    for region in (0, grid[1] + 1, grid[0] * grid[1] - 1):
        drawn = np.asarray(attention.overlay(white, np.eye(grid[0] * grid[1])[region], grid), dtype=int)
        kinds = {"glow": attention.GLOW, "seen": (255, 255, 255), "thin": attention.SHADE}
        places = {name: np.argwhere((drawn == colour).all(-1)) for name, colour in kinds.items()}
        around = np.rint(255 * (1 - attention.AROUND) + attention.AROUND * np.array(attention.SHADE)).astype(int)
        frame, thin = places["glow"], places["thin"]
        (top, left), (bottom, right) = frame.min(0).tolist(), frame.max(0).tolist()
        outside = np.ones(drawn.shape[:2], dtype=bool)
        outside[top : bottom + 1, left : right + 1] = False
        assert (drawn[outside] == around).all()
        edges = np.concatenate([drawn[top, left:right], drawn[bottom, left:right], drawn[top:bottom, right]])
        assert (edges == attention.GLOW).all()
        row, column = divmod(region, grid[1])
        for first, last, place, cells, pixels in (
            (top, bottom, row, grid[0], size[1]),
            (left, right, column, grid[1], size[0]),
        ):
            start, end = place * pixels / cells, (place + 1) * pixels / cells
            assert abs(first - max(0, start - line - 1)) <= 0.5
            assert abs(last + 1 - min(pixels, end + line + 1)) <= 0.5
        if min(size[0] / grid[1], size[1] / grid[0]) > 2 * (line + 2):  # else a frame leaves nothing of it
            assert len(thin) > 0
            middle = (row + 0.5) * size[1] / grid[0], (column + 0.5) * size[0] / grid[1]
            assert drawn[int(middle[0]), int(middle[1])].tolist() == [255, 255, 255]


def test_a_frame_stands_out_in_grey_print_on_snow_and_at_night() -> None:
    for brightness in (0, 128, 255):
        picture = Image.new("RGB", (280, 280), (brightness,) * 3)
        grey = np.asarray(attention.overlay(picture, np.eye(49)[24], (7, 7)).convert("L"), dtype=int)
        across = grey[140]
        frame = np.flatnonzero(np.abs(across - 184) <= 2)  # the grey of the glow
        assert len(frame) == 4  # two lines of two pixels
        assert abs(across[frame[0] - 1] - 184) > 40
        assert abs(across[frame[1] + 1] - 184) > 100


def test_light_falls_with_attention_in_grey_print_too() -> None:
    strength = np.linspace(0, 1, 9)
    shade, glow = attention._light(strength)
    for brightness in (40, 128, 255):
        grey = [np.dot((0.299, 0.587, 0.114), colour) for colour in (attention.SHADE, attention.GLOW)]
        seen = (brightness * (1 - shade) + grey[0] * shade) * (1 - glow) + grey[1] * glow
        assert (np.diff(seen[: 8 if brightness == 255 else 9]) > 0).all()
        assert seen[-1] - seen[0] > 75
