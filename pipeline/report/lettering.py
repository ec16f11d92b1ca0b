"""The letters of a figure's titles: which font has them, and which none has.

Owns the choice of a font. Pillow brings one of its own, which has little beyond English; of other words it is a font of
the system, if there is one that has all their letters. Does not know what the titles are of.
"""

from functools import lru_cache

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
# Asked of the system in this order.
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "LiberationSans-Regular.ttf")
_ABSENT = "\U0010fffe"  # no character, so what a font draws for it is what it draws for any it lacks


def font_of(text: str, size: float) -> Font:
    """The font for a text, so high in pixels: Pillow's own, or the first of `FONTS` that has all letters."""
    name = next((name for name in (None, *FONTS) if not _lacking(name, text)), None)
    font = _open(name, size)
    return ImageFont.load_default(size) if font is None else font


def lacking(text: str) -> str:
    """The letters of a text that a box will stand for, each once; "" where a font has them all."""
    if any(not _lacking(name, text) for name in (None, *FONTS)):
        return ""
    return "".join(letter for letter in dict.fromkeys(text) if _lacking(None, letter))


def _lacking(name: str | None, text: str) -> bool:
    """Whether a font lacks a letter of the text, or is not there."""
    return not all(_has(name, letter) for letter in set(text))


@lru_cache(maxsize=4096)
def _has(name: str | None, letter: str) -> bool:
    font = _open(name, 30)
    if font is None or letter.isspace():
        return font is not None
    return bytes(font.getmask(letter)) != bytes(font.getmask(_ABSENT))


@lru_cache(maxsize=64)
def _open(name: str | None, size: float) -> Font | None:
    if name is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None
