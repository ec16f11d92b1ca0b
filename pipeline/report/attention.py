"""Attention over the picture: smooth maps from a coarse grid, overlays, and the figure of one caption.

Owns how weights become light: a picture darkens where a word's attention is weak and glows where it is strong, so
that it shows on a night scene as well as on snow. The page's script does the same in the browser. Does not know
captions' scores, the page, or where weights come from.

The encoder sees the whole picture resized to a square, so the grid covers the whole picture.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.errors import DataError
from pipeline.files import replacing

SHADE = (9, 12, 22)  # the colour of no attention
DEPTH = 0.78  # how far the shade covers the picture there
GLOW = (255, 176, 46)  # the colour over it that stands for the strongest attention
TINT = 0.4  # how far the glow covers the picture there
PANEL, GAP, LABEL, COLUMNS, TEXT = 360, 18, 52, 5, 30  # pixels; columns at most
DOTS_PER_INCH = 300  # five panels are 16 cm wide, the width of a page


def spline(size: int, cells: int) -> NDArray[np.float64]:
    """The uniform cubic B-spline that carries `cells` values, at the centres of equal cells, to `size` pixels.

    Its weights are positive and sum to 1 at every pixel, so a map neither overshoots nor rings; beyond the border
    the outermost value goes on.

    Returns:
        (size, cells).
    """
    place = (np.arange(size) + 0.5) * cells / size - 0.5
    first = np.floor(place).astype(np.int64)
    t = place - first
    taps = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    basis = np.zeros((size, cells))
    for offset, tap in enumerate(taps, start=-1):
        np.add.at(basis, (np.arange(size), np.clip(first + offset, 0, cells - 1)), tap / 6)
    return basis


def attention_map(weights: NDArray[np.floating], grid: tuple[int, int], size: tuple[int, int]) -> NDArray[np.float64]:
    """One word's attention as a smooth map, 1 where it is strongest; no attention at all stays 0.

    Args:
        weights: (R,), row-major over the grid, not negative.
        grid: rows, columns.
        size: width and height in pixels, as PIL has them.

    Returns:
        (height, width), from 0 to 1.
    """
    width, height = size
    cells = np.asarray(weights, dtype=np.float64).reshape(grid)
    smooth = spline(height, grid[0]) @ cells @ spline(width, grid[1]).T
    strongest = smooth.max()
    return smooth / strongest if strongest > 0 else smooth


def overlay(image: Image.Image, weights: NDArray[np.floating], grid: tuple[int, int]) -> Image.Image:
    """The picture, darker where this word's attention is weak, glowing where it is strong.

    Args:
        image: any mode; RGB comes back.
        weights: (R,), row-major over the grid.
        grid: rows, columns.
    """
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    strength = attention_map(weights, grid, image.size)[:, :, None]
    for colour, cover in ((SHADE, DEPTH * (1 - strength)), (GLOW, TINT * strength**2)):
        pixels = pixels * (1 - cover) + np.array(colour) * cover
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def save_figure(
    image: Image.Image, words: list[str], weights: NDArray[np.floating], grid: tuple[int, int], path: Path
) -> None:
    """Save the picture and, for each word, the picture under that word's attention, as one PNG fit for a paper.

    Args:
        image: the picture.
        words: (T,) the caption.
        weights: (T, R), one row a word, row-major over the grid.
        grid: rows, columns.
        path: where the PNG goes, atomically.

    Raises:
        DataError: the weights do not have one row a word and one column a region of the grid.
    """
    expected = (len(words), grid[0] * grid[1])
    if np.shape(weights) != expected:
        raise DataError(
            f"The figure for {path} needs attention of shape {expected}: {len(words)} words over a grid of "
            f"{grid[0]} x {grid[1]}; found {np.shape(weights)}. Caption the image again with --attention."
        )
    picture = image.convert("RGB")
    picture = picture.resize((PANEL, max(1, round(PANEL * picture.height / picture.width))), Image.Resampling.LANCZOS)
    panels = [picture] + [overlay(picture, row, grid) for row in weights]
    with replacing(path) as temporary:
        _sheet(panels, ["", *words]).save(temporary, format="PNG", dpi=(DOTS_PER_INCH, DOTS_PER_INCH))


def _sheet(panels: list[Image.Image], labels: list[str]) -> Image.Image:
    rows = -(-len(panels) // COLUMNS)
    columns = -(-len(panels) // rows)
    height = panels[0].height + LABEL
    sheet = Image.new("RGB", (columns * (PANEL + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (panel, label) in enumerate(zip(panels, labels, strict=True)):
        left, top = number % columns * (PANEL + GAP), number // columns * (height + GAP)
        sheet.paste(panel, (left, top + LABEL))
        draw.text((left + PANEL / 2, top + LABEL - 14), label, fill="black", font=_font(label), anchor="ms")
    return sheet


def _font(label: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, smaller for a word wider than its panel."""
    font = ImageFont.load_default(TEXT)
    return ImageFont.load_default(TEXT * min(1.0, PANEL / max(1.0, font.getlength(label))))
