import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ImageError
from pipeline.vision.images import Preprocessing, decode, load_image


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def huge_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 9))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def test_a_png_is_decoded_to_its_own_pixels(tmp_path: Path) -> None:
    pixels = noise(7, 5)
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(pixels), "PNG"))
    image = load_image(tmp_path / "a.png")
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), pixels)


def test_a_jpeg_is_decoded_as_pillow_does() -> None:
    content = encoded(Image.fromarray(noise(33, 17)), "JPEG")
    assert np.array_equal(np.asarray(decode(content).image), np.asarray(Image.open(io.BytesIO(content))))


def test_cmyk_becomes_rgb() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    pixel = np.asarray(decode(encoded(red, "JPEG", quality=100)).image)[8, 8].astype(int)
    assert np.abs(pixel - (255, 0, 0)).max() <= 4


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "16-bit PNG"), ("TIFF", "16-bit TIFF"), ("PPM", "16-bit PGM")])
def test_sixteen_bits_are_scaled_and_not_clipped(kind: str, mode: str) -> None:
    # Beside exact multiples of 257, two that rounding tells from a mere cut of the low byte: 0.502 and 254.498.
    samples = np.array([[0, 129, 257, 128 * 257, 200 * 257, 65406, 65535]], dtype=np.uint16)
    image = decode(encoded(Image.fromarray(samples), kind)).image
    assert np.asarray(image)[0, :, 1].tolist() == [0, 1, 1, 128, 200, 254, 255], mode


def test_float_samples_are_refused() -> None:
    with pytest.raises(ImageError, match="floating-point samples"):
        decode(encoded(Image.fromarray(np.ones((3, 4), np.float32)), "TIFF"))


def test_transparent_colour_of_a_palette_becomes_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 30, 40, 250])
    image.putdata([0, 1])
    decoded = decode(encoded(image, "PNG", transparency=1)).image
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(200, 10, 20), (255, 255, 255)]


def test_palette_with_an_alpha_a_colour_gives_no_warning() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 30, 40, 250])
    image.putdata([0, 1])
    decoded = decode(encoded(image, "PNG", transparency=bytes([255, 0])))
    assert decoded.image.getpixel((1, 0)) == (255, 255, 255)
    assert not decoded.complaints


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (255, 0, 0, 51), (255, 204, 204)),
        ("LA", (100, 0), (255, 255, 255)),
        ("LA", (100, 255), (100, 100, 100)),
    ],
)
def test_alpha_is_laid_on_white(mode: str, colour: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert decode(encoded(Image.new(mode, (3, 2), colour), "PNG")).image.getpixel((1, 1)) == expected


def test_transparent_grey_without_alpha_becomes_white() -> None:
    decoded = decode(encoded(Image.new("L", (3, 2), 9), "PNG", transparency=9)).image
    assert decoded.getpixel((0, 0)) == (255, 255, 255)


# A 2 x 3 image stored so that a viewer which turns it as its orientation says shows `upright`.
UPRIGHT = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT[::-1, ::-1].T,
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied_once(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(np.ascontiguousarray(STORED[orientation])), kind, exif=exif)
    assert np.array_equal(np.asarray(decode(content).image)[:, :, 0], UPRIGHT)


def test_orientation_of_a_jpeg_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(Image.fromarray(noise(24, 16)), "JPEG", exif=exif)).image.size == (16, 24)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation_counts(kind: str) -> None:
    first, second = Image.new("RGB", (9, 8), (250, 0, 0)), Image.new("RGB", (9, 8), (0, 0, 250))
    content = encoded(first, kind, save_all=True, append_images=[second])
    red, _, blue = np.asarray(decode(content).image)[4, 4]
    assert red > 200
    assert blue < 50


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_a_truncated_file_is_refused(kind: str) -> None:
    content = encoded(Image.fromarray(noise(61, 47)), kind)
    with pytest.raises(ImageError):
        decode(content[: len(content) * 2 // 3])


def test_a_progressive_jpeg_that_lacks_its_last_scans_is_refused() -> None:
    content = encoded(Image.fromarray(noise(61, 47)), "JPEG", progressive=True)
    with pytest.raises(ImageError, match="truncated"):
        decode(content[: len(content) * 9 // 10])


def test_message_names_the_file_and_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "odd.jpg"
    path.write_bytes(encoded(Image.fromarray(noise(61, 47)), "JPEG")[:1500])
    with pytest.raises(ImageError, match=r"odd\.jpg cannot be decoded: image file is truncated"):
        load_image(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello, I am text\n", r"not an image of a known kind \(it begins with b'hello, I'\)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image of a known kind"),
        (huge_png(60000, 60000), "too many pixels: Image size"),
        (huge_png(10000, 10000), "too many pixels: Image size"),  # Pillow only warns of this one
    ],
    ids=["empty", "text", "postscript", "bomb", "smaller bomb"],
)
def test_what_is_no_image_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode(content)


def test_missing_file_is_an_image_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.jpg cannot be read: No such file"):
        load_image(tmp_path / "gone.jpg")


def jpeg_with_corrupt_exif() -> bytes:
    content = encoded(Image.fromarray(noise(24, 16)), "JPEG")
    # A TIFF header whose first directory claims three entries and holds half of one.
    body = b"Exif\0\0" + b"II*\0\x08\0\0\0" + b"\x03\0" + b"\x12\x01\x03\0"
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + content[2:]


def test_corrupt_exif_is_told_and_the_pixels_are_used() -> None:
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        decoded = decode(jpeg_with_corrupt_exif())
    assert not leaked
    assert any("EXIF" in complaint for complaint in decoded.complaints)
    assert decoded.image.size == (24, 16)


def test_warnings_do_not_leak_or_get_mixed_up_between_threads() -> None:
    bad, good = jpeg_with_corrupt_exif(), encoded(Image.fromarray(noise(24, 16)), "JPEG")
    filters = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        complained = list(pool.map(lambda content: bool(decode(content).complaints), [bad, good] * 60))
    assert complained == [True, False] * 60
    assert warnings.filters == filters


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_preprocessing_resizes_as_torchvision_does(interpolation: str) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    image = Image.fromarray(noise(31, 22))
    expected = transforms.Resize((13, 13), transforms.InterpolationMode(interpolation))(image)
    ours = Preprocessing(13, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), interpolation).apply(image)  # type: ignore[arg-type]
    assert ours.dtype == np.uint8
    assert np.array_equal(ours, np.asarray(expected))
