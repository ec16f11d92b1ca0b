"""From an image file to what a backbone takes.

Owns decoding (every kind of file becomes an upright RGB image of 8 bits a channel, or an error with a reason) and
the one preprocessing that encoding and captioning share. Knows no backbone and no torch.
"""

import io
import struct
import threading
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.errors import ImageError

Interpolation = Literal["bilinear", "bicubic"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
# By content, whatever the suffix. Formats that run another program to be drawn (EPS) stay out.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's decoders raise on damaged files, beside OSError.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    ArithmeticError,
    struct.error,
    zlib.error,
)
# Python's record of warnings belongs to the whole process; only headers are read while this is held, not pixels.
_warnings_lock = threading.Lock()


@dataclass(frozen=True)
class Decoded:
    """An image with what its decoder complained about.

    Attributes:
        image: mode RGB, upright.
        complaints: damaged metadata and the like, which leave the pixels whole.
    """

    image: Image.Image
    complaints: tuple[str, ...]


@dataclass(frozen=True)
class Preprocessing:
    """How an RGB image becomes a backbone's input; part of the feature cache's fingerprint.

    Attributes:
        image_size: the side of the square, pixels.
        mean: of each channel, on the scale 0 to 1.
        std: of each channel, on the same scale.
        interpolation: of the resizing.
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation

    def apply(self, image: Image.Image) -> NDArray[np.uint8]:
        """An RGB image squashed to a square: (image_size, image_size, 3) uint8.

        An engine then takes it to 0..1, subtracts the mean and divides by the deviation.
        """
        size = (self.image_size, self.image_size)
        return np.asarray(image.resize(size, _RESAMPLING[self.interpolation]))


def load_image(path: Path) -> Image.Image:
    """Decode a file in full: mode RGB, upright, first frame, transparency on white.

    Raises:
        ImageError: it cannot be decoded; the message names the file and the reason.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        return decode(content).image
    except ImageError as error:
        raise ImageError(f"{path} cannot be decoded: {error}. Mend it or leave it out.") from error


def decode(content: bytes) -> Decoded:
    """The same from bytes.

    Raises:
        ImageError: the message is the bare reason, the same on every run.
    """
    if not content:
        raise ImageError("the file is empty")
    complaints: list[str] = []
    try:
        image = _open(content, complaints)
        image.load()
        upright = _upright(image, _orientation(image, complaints))
        return Decoded(_on_white(_eight_bits(upright)), tuple(complaints))
    except UnidentifiedImageError as error:
        raise ImageError(f"not an image of a known kind (it begins with {content[:8]!r})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"too many pixels: {str(error).partition(',')[0]}") from error
    except _DAMAGE as error:
        raise error if isinstance(error, ImageError) else ImageError(str(error) or type(error).__name__) from error


def _open(content: bytes, complaints: list[str]) -> Image.Image:
    """Read the header; Pillow's mere warning of a decompression bomb is an error here."""
    with _warnings_lock, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
    for warning in caught:
        if isinstance(warning.message, Image.DecompressionBombWarning):
            raise warning.message
        complaints.append(str(warning.message))
    return image


def _orientation(image: Image.Image, complaints: list[str]) -> int:
    """The EXIF orientation, 1 (upright) where the metadata cannot be read."""
    with _warnings_lock, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            orientation = image.getexif().get(_ORIENTATION, 1)
        except _DAMAGE as error:
            complaints.append(f"unreadable EXIF ({error})")
            return 1
    complaints += [str(warning.message) for warning in caught]
    return orientation if isinstance(orientation, int) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey, which Pillow would clip at 255."""
    if image.mode == "F":
        raise ImageError("floating-point samples, whose range is unknown; save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    samples = np.asarray(image).astype(np.int64)
    if samples.min() < 0 or samples.max() > 65535:
        raise ImageError("32-bit samples; save it with 8 or 16 bits")
    return Image.fromarray(((samples + 128) // 257).astype(np.uint8))  # 65535 / 255 is 257


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")
