"""Titles are drawn in a font that has their letters; what none has is told."""

from pathlib import Path

import pytest
from PIL import Image, ImageFont

from pipeline.report import lettering
from pipeline.report.figure import save_figure


@pytest.fixture(autouse=True)
def _forgotten() -> None:
    lettering._has.cache_clear()
    lettering._open.cache_clear()


def name(text: str) -> str | None:
    font = lettering.font_of(text, 30)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font.getname()[0]


def own() -> str | None:
    font = ImageFont.load_default(30)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font.getname()[0]


def test_words_of_english_letters_are_in_pillows_own_font() -> None:
    assert name("dog (12 %)") == own()
    assert lettering.lacking("a dog's") == ""


def test_another_words_font_is_the_first_of_the_system_that_has_all_its_letters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lettering, "FONTS", ("absent.ttf", "second.ttf", "third.ttf"))
    has = {"absent.ttf": "", "second.ttf": "\u00e9", "third.ttf": "\u00e9\u0142"}
    monkeypatch.setattr(
        lettering, "_has", lambda font, letter: letter.isascii() if font is None else letter in has[font]
    )
    opened: list[str | None] = []

    def load(font: str | None, size: float) -> lettering.Font:
        opened.append(font)
        return ImageFont.load_default(size)

    monkeypatch.setattr(lettering, "_open", load)
    lettering.font_of("\u00e9", 30)
    lettering.font_of("\u00e9\u0142", 30)
    lettering.font_of("dog", 30)
    assert opened == ["second.ttf", "third.ttf", None]
    assert lettering.lacking("\u0142\u00e9") == ""


def test_a_font_of_the_system_is_asked_for_its_letters(tmp_path: Path) -> None:
    font = ImageFont.load_default(30)
    assert isinstance(font, ImageFont.FreeTypeFont)
    path = tmp_path / "own.ttf"
    path.write_bytes(font.font_bytes)
    found = [lettering._has(name, letter) for name in (str(path), "absent.ttf") for letter in ("a", " ", "\u00fc")]
    assert found == [True, True, False, False, False, False]


def test_letters_that_no_font_has_are_told_once_and_drawn_as_boxes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lettering, "FONTS", ("absent.ttf",))
    assert lettering.lacking("h\u00fcnd\u00fcn") == "\u00fc"
    assert name("h\u00fcndin") == own()
    given = (Image.new("RGB", (40, 20)), ["\u4e2d", "h\u00fc", "\u4e2da"], [[1.0, 0.0]] * 3, (1, 2))
    assert save_figure(*given, tmp_path / "out.png") == "\u4e2d\u00fc"  # type: ignore[arg-type]
    assert save_figure(*given, tmp_path / "out.svg") == ""  # type: ignore[arg-type]
