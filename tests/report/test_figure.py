"""The figure of a caption: a panel a word, in rows, as PNG, PDF and SVG."""

import base64
import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError
from pipeline.report import attention, figure

SVG = "{http://www.w3.org/2000/svg}"


def sheet(count: int, size: tuple[int, int] = (360, 240), title: str = "word") -> figure.Sheet:
    return figure.lay_out([Image.new("RGB", size)] * count, ["", *[title] * (count - 1)])


def save(path: Path, words: list[str], size: tuple[int, int] = (40, 20)) -> Path:
    figure.save_figure(Image.new("L", size, 200), words, np.eye(6)[: len(words)], (2, 3), path)
    return path


def test_figure_has_the_picture_and_a_panel_a_word(tmp_path: Path) -> None:
    with Image.open(save(tmp_path / "out.png", list("abcdef"))) as opened:
        drawn = opened.copy()
        assert opened.info["dpi"] == pytest.approx((300, 300), rel=1e-4)
    columns, rows = 4, 2
    assert drawn.size == (columns * 378 - 18, rows * (180 + 52 + 18) - 18)
    assert drawn.getpixel((180, 52 + 90)) == (200, 200, 200)
    for number in range(6):
        row, column = divmod(number + 1, columns)
        panel = drawn.crop((column * 378, row * 250 + 52, column * 378 + 360, row * 250 + 232))
        plain = Image.new("RGB", (360, 180), (200, 200, 200))
        assert np.array_equal(np.asarray(panel), np.asarray(attention.overlay(plain, np.eye(6)[number], (2, 3))))
        title = np.asarray(drawn.crop((column * 378, row * 250, column * 378 + 360, row * 250 + 52)).convert("L"))
        assert title.min() < 40
    assert np.asarray(drawn.crop((0, 0, 360, 52))).min() == 255  # the picture itself has no title
    assert drawn.getpixel((drawn.width - 100, drawn.height - 100)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("panels", "columns", "empty"), [(1, 1, 0), (2, 2, 0), (5, 5, 0), (6, 3, 0), (11, 4, 1), (16, 4, 0), (26, 4, 2)]
)
def test_rows_are_filled_within_the_width_of_a_page(panels: int, columns: int, empty: int) -> None:
    found = sheet(panels)
    assert found.columns == columns
    assert -panels % found.columns == empty
    assert found.size[0] <= figure.PAGE
    assert figure.PAGE / figure.DOTS_PER_INCH * 2.54 < 16


@pytest.mark.parametrize(
    ("size", "panel"),
    [((500, 375), (360, 270)), ((375, 500), (360, 480)), ((100, 400), (120, 480)), ((900, 9), (360, 4))],
)
def test_a_picture_keeps_its_shape_and_no_panel_is_higher_than_a_third_of_a_page(
    size: tuple[int, int], panel: tuple[int, int]
) -> None:
    assert figure._fitted(Image.new("RGB", size)).size == panel


def test_narrow_panels_stand_closer_but_no_word_leaves_its_column(tmp_path: Path) -> None:
    assert sheet(10, (120, 480)).columns == 10
    assert sheet(13, (120, 480)).columns == 13
    long = sheet(6, (120, 480), "a-very-long-compound-word")
    assert long.pitch > 300
    assert long.place(1)[0] == long.pitch + figure.GAP + (long.pitch - 120) // 2
    endless = sheet(3, title="w" * 300)
    assert endless.columns == 1
    assert endless.size[0] <= figure.PAGE
    save(tmp_path / "out.png", ["w" * 300])


@pytest.mark.parametrize("letters", range(120, 150))
def test_a_word_wider_than_the_page_is_made_smaller(letters: int) -> None:
    found = figure.lay_out([Image.new("RGB", (360, 240))] * 3, ["", "is", "x" * letters])
    assert found.columns == 1
    assert found.size == (found.pitch, 3 * (240 + 52 + 18) - 18)
    assert 360 <= found.pitch <= figure.PAGE


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_a_word_wider_than_the_page_is_drawn(tmp_path: Path, kind: str) -> None:
    saved = save(tmp_path / f"out.{kind}", ["a", "x" * 150])
    if kind == "svg":
        wide = [text for text in ElementTree.parse(saved).iter(f"{SVG}text") if text.get("font-size")]
        assert [len(text.text or "") for text in wide] == [150]
        assert 5 < float(wide[0].attrib["font-size"]) < figure.TEXT
    elif kind == "png":
        with Image.open(saved) as opened:
            assert opened.width <= figure.PAGE


def test_a_caption_without_a_word_is_the_picture_alone(tmp_path: Path) -> None:
    with Image.open(save(tmp_path / "a.png", [], (30, 30))) as drawn:
        assert drawn.size == (360, 360)


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_figure_is_the_same_bytes_again(tmp_path: Path, kind: str) -> None:
    first, second = (save(tmp_path / f"{name}.{kind}", ["a", "dog"]).read_bytes() for name in "ab")
    assert first == second
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a.{kind}", f"b.{kind}"]


def test_a_pdf_has_one_page_of_the_figures_size(tmp_path: Path) -> None:
    content = save(tmp_path / "out.PDF", ["a", "dog"]).read_bytes()
    assert content.startswith(b"%PDF-")
    width, height = 3 * 378 - 18, 180 + 52
    found = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", content)
    assert [tuple(map(float, box)) for box in found] == [(width * 72 / 300, height * 72 / 300)]
    assert b"(D:1970" in content


def test_an_svg_has_its_titles_as_text_and_its_panels_as_they_are(tmp_path: Path) -> None:
    root = ElementTree.parse(save(tmp_path / "out.svg", ["a", '<&"dög'])).getroot()
    assert root.attrib["viewBox"] == "0 0 1116 232"
    assert root.attrib["width"] == f"{1116 / 300 * 25.4:.2f}mm"
    assert [text.text for text in root.findall(f"{SVG}text")] == ["a", '<&"dög']
    images = root.findall(f"{SVG}image")
    assert [image.attrib["x"] for image in images] == ["0", "378", "756"]
    data = images[2].attrib["href"].removeprefix("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as panel:
        expected = attention.overlay(Image.new("RGB", (360, 180), (200, 200, 200)), np.eye(6)[1], (2, 3))
        difference = np.asarray(panel, dtype=int) - np.asarray(expected, dtype=int)
    assert np.abs(difference).mean() < 2


def test_a_title_has_the_share_that_comes_from_looking_where_it_is_not_all(tmp_path: Path) -> None:
    weights = np.array([[0.02, 0.1], [0.5, 0.5]])
    figure.save_figure(Image.new("L", (40, 20)), ["of", "dogs"], weights, (1, 2), tmp_path / "out.svg")
    root = ElementTree.parse(tmp_path / "out.svg").getroot()
    assert [text.text for text in root.findall(f"{SVG}text")] == ["of (12 %)", "dogs"]


def test_another_ending_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    for name in ("out.jpg", "out"):
        with pytest.raises(DataError, match=r"ends in (\.jpg|nothing); figures are written as \.png, \.pdf, \.svg"):
            figure.check_figure(tmp_path / name)


def test_figure_refuses_weights_of_another_shape(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"needs attention of shape \(2, 6\).*found \(3, 6\)"):
        figure.save_figure(Image.new("RGB", (9, 9)), ["a", "b"], np.ones((3, 6)), (2, 3), tmp_path / "out.png")
    assert not list(tmp_path.iterdir())
