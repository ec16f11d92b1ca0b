"""The figure of one caption, fit for a paper: the picture, then a panel a word with what that word looked at.

Owns the sheet: sizes, rows, titles, and the kinds of file. Does not know how attention becomes light (`attention`),
nor where it comes from.

A sheet is at most 16 cm wide, the width of a page, at 300 dots per inch.
"""

import base64
import html
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.errors import DataError
from pipeline.files import replacing
from pipeline.report.attention import looked, overlay
from pipeline.report.lettering import font_of, lacking

DOTS_PER_INCH = 300
PAGE, PANEL, TALLEST, GAP, TITLE, TEXT, RAISED = 1872, 360, 480, 18, 52, 30, 14  # pixels: five panels of 3 cm a row


@dataclass(frozen=True)
class Sheet:
    """Panels of one size in rows, each with its title above it.

    Attributes:
        panels: the pictures.
        titles: of each; "" has none.
        pitch: the width of a column without the gap: a panel's, or that of a longer word.
        columns: how many.
        title: the height of a row's titles; 0 where no panel has one.
    """

    panels: Sequence[Image.Image]
    titles: Sequence[str]
    pitch: int
    columns: int
    title: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        rows = -(-len(self.panels) // self.columns)
        row = self.panels[0].height + self.title + GAP
        return self.columns * (self.pitch + GAP) - GAP, rows * row - GAP

    def place(self, number: int) -> tuple[int, int]:
        """The upper left corner of a panel."""
        row, column = divmod(number, self.columns)
        left = column * (self.pitch + GAP) + (self.pitch - self.panels[0].width) // 2
        return left, row * (self.panels[0].height + self.title + GAP) + self.title


def check_figure(path: Path) -> Path:
    """Return `path` if a figure can be written to a file of its name.

    Raises:
        DataError: its ending names another kind of file.
    """
    if path.suffix.lower() not in _WRITERS:
        raise DataError(
            f"{path} ends in {path.suffix or 'nothing'}; figures are written as {', '.join(_WRITERS)}. "
            "Name the file with one of these endings."
        )
    return path


def save_figure(
    image: Image.Image, words: list[str], weights: NDArray[np.floating], grid: tuple[int, int], path: Path
) -> str:
    """Save the picture and, for each word, the picture under that word's attention; the same bytes again.

    Of a word that was said from memory in part, the title has the share that comes from looking: "of (12 %)".

    Args:
        image: the picture.
        words: (T,) the caption.
        weights: (T, R), one row a word, row-major over the grid.
        grid: rows, columns.
        path: where it goes, atomically; its ending says what it is: PNG, PDF, or SVG, whose titles are text.

    Returns:
        The letters that boxes stand for, because no font here has them; none in an SVG.

    Raises:
        DataError: the ending is of no such kind, or the weights do not have one row a word and one column a region.
    """
    expected = (len(words), grid[0] * grid[1])
    if np.shape(weights) != expected:
        raise DataError(
            f"The figure for {path} needs attention of shape {expected}: {len(words)} words over a grid of "
            f"{grid[0]} x {grid[1]}; found {np.shape(weights)}. Caption the image again with --attention."
        )
    write = _WRITERS[check_figure(path).suffix.lower()]
    picture = _fitted(image.convert("RGB"))
    titles = [
        word if looked(row) == 100 else f"{word} ({looked(row)} %)" for word, row in zip(words, weights, strict=True)
    ]
    sheet = lay_out([picture, *(overlay(picture, row, grid) for row in weights)], ["", *titles])
    with replacing(path) as temporary:
        temporary.write_bytes(write(sheet))
    return "" if write is _svg else "".join(dict.fromkeys("".join(map(lacking, titles))))


def lay_out(panels: Sequence[Image.Image], titles: Sequence[str]) -> Sheet:
    """As many columns as a page takes, or one fewer where that leaves fewer places empty."""
    widest = max(round(font_of(title, _height(title)).getlength(title)) for title in titles)
    pitch = min(max(panels[0].width, widest), PAGE)
    most = (PAGE + GAP) // (pitch + GAP)
    columns = min(
        (-(-len(panels) // -(-len(panels) // number)) for number in (most, most - 1) if number),
        key=lambda number: -len(panels) % number,
    )
    return Sheet(panels, titles, pitch, columns, TITLE if any(titles) else 0)


def _fitted(image: Image.Image) -> Image.Image:
    """As wide as a panel, or as high as one may be."""
    scale = min(PANEL / image.width, TALLEST / image.height)
    size = tuple(max(1, round(scale * side)) for side in image.size)
    return image.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def _height(title: str) -> float:
    """Of a title's letters: `TEXT`, less for a word wider than the page."""
    length = font_of(title, TEXT).getlength(title)
    return TEXT if length <= PAGE else TEXT * PAGE / (length + 1)


def _drawn(sheet: Sheet) -> Image.Image:
    drawn = Image.new("RGB", sheet.size, "white")
    draw = ImageDraw.Draw(drawn)
    for number, (panel, title) in enumerate(zip(sheet.panels, sheet.titles, strict=True)):
        left, top = sheet.place(number)
        drawn.paste(panel, (left, top))
        font = font_of(title, _height(title))
        draw.text((left + panel.width / 2, top - RAISED), title, fill="black", font=font, anchor="ms")
    return drawn


def _png(sheet: Sheet) -> bytes:
    return _encoded(_drawn(sheet), "PNG", dpi=(DOTS_PER_INCH, DOTS_PER_INCH), optimize=True)


def _pdf(sheet: Sheet) -> bytes:
    undated = time.gmtime(0)  # a date would change the bytes
    dated = {"creationDate": undated, "modDate": undated}
    return _encoded(_drawn(sheet), "PDF", resolution=DOTS_PER_INCH, quality=95, subsampling=0, **dated)


def _svg(sheet: Sheet) -> bytes:
    width, height = sheet.size
    parts = []
    for number, (panel, title) in enumerate(zip(sheet.panels, sheet.titles, strict=True)):
        left, top = sheet.place(number)
        data = base64.b64encode(_encoded(panel, "JPEG", quality=95, subsampling=0, optimize=True)).decode("ascii")
        parts.append(
            f'<image x="{left}" y="{top}" width="{panel.width}" height="{panel.height}" '
            f'href="data:image/jpeg;base64,{data}"/>'
        )
        middle = left + panel.width / 2
        smaller = "" if _height(title) == TEXT else f' font-size="{_height(title):.2f}"'
        parts.append(f'<text x="{middle:g}" y="{top - RAISED}"{smaller}>{html.escape(title)}</text>' if title else "")
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{25.4 * width / DOTS_PER_INCH:.2f}mm" height="{25.4 * height / DOTS_PER_INCH:.2f}mm" '
            f'font-family="Helvetica, Arial, sans-serif" font-size="{TEXT}" text-anchor="middle">',
            f"<title>{html.escape(' '.join(sheet.titles[1:]))}</title>",
            *filter(None, parts),
            "</svg>\n",
        )
    ).encode()


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


_WRITERS: dict[str, Callable[[Sheet], bytes]] = {".png": _png, ".pdf": _pdf, ".svg": _svg}
