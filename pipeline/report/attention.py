"""Attention over the picture: smooth maps from a coarse grid, a frame around a region looked at alone, overlays.

Owns how weights become light: a picture darkens where a word's attention is weak and glows where it is strong, so
that it shows on a night scene as well as on snow, and in grey print. A word that looked at one region alone, as hard
attention does, has that region framed: a smooth map would blur where it jumped to. A word that a decoder said from
memory, in part or all, glows less by that part. The page's script does the same in the browser. Does not know
captions' scores, the page, or where weights come from.

The encoder sees the whole picture resized to a square, so the grid covers the whole picture.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SHADE = (9, 12, 22)  # the colour of no attention
DEPTH = 0.78  # how far the shade covers the picture there
GLOW = (255, 176, 46)  # the colour over it that stands for the strongest attention, and of a frame
TINT = 0.4  # how far the glow covers the picture there
AROUND = 0.55  # how far the shade covers the picture around a frame
ALONE = 0.999  # the share of the attention from which on a region has it alone


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


def looked(weights: NDArray[np.floating]) -> int:
    """How many hundredths of a word come from looking: what its weights, (R,), sum to; rounding does not show."""
    return min(100, round(100 * float(np.sum(weights, dtype=np.float64))))


def region_alone(weights: NDArray[np.floating]) -> int | None:
    """The region, if it is one of several, that a word comes from alone, (R,); None where there is none."""
    region = int(np.argmax(weights))
    return region if len(weights) > 1 and weights[region] >= ALONE else None


def overlay(image: Image.Image, weights: NDArray[np.floating], grid: tuple[int, int]) -> Image.Image:
    """The picture, darker where this word's attention is weak; where it is strong it glows, or is framed.

    Args:
        image: any mode; RGB comes back.
        weights: (R,), row-major over the grid; they sum to the share of the word that comes from looking.
        grid: rows, columns.
    """
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    region = region_alone(weights)
    if region is None:
        covers = _light(looked(weights) / 100 * attention_map(weights, grid, image.size))
    else:
        covers = _frame(region, grid, image.size)
    for colour, cover in zip((SHADE, GLOW), covers, strict=True):
        pixels = pixels * (1 - cover[:, :, None]) + np.array(colour) * cover[:, :, None]
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def _light(strength: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How far shade, and then glow, cover each pixel."""
    return DEPTH * (1 - strength), TINT * strength**2


def _frame(
    region: int, grid: tuple[int, int], size: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same around one region: a line of glow, a thin one of shade within, and the region as it is."""
    line = max(2, (max(size) + 60) // 120)
    across, down = (
        _inward(place, cells, pixels, line + 1)
        for place, cells, pixels in zip(divmod(region, grid[1])[::-1], grid[::-1], size, strict=True)
    )
    inward = np.minimum(down[:, None], across[None])
    shade = np.where(inward < 0, AROUND, np.where(inward == line, 1.0, 0.0))
    return shade, ((inward >= 0) & (inward < line)).astype(np.float64)


def _inward(place: int, cells: int, pixels: int, margin: int) -> NDArray[np.int64]:
    """How far each pixel lies within cell `place` and the margin around it, as far as the picture goes; < 0 outside."""
    first, last = (max(0, min(pixels, (2 * edge * pixels + cells) // (2 * cells))) for edge in (place, place + 1))
    here = np.arange(pixels)
    return np.minimum(here - max(0, first - margin), min(pixels, last + margin) - 1 - here)
