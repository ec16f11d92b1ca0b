"""What the benches of stage one run on: photographs, and the settings of an encoder.

Owns their options on the command line, and drawing photographs where none are given. Measures nothing.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.settings import load_section
from pipeline.vision.encoder import EncodeSettings
from pipeline.vision.images import SUFFIXES

PARAMS = Path(__file__).parents[1] / "params.yaml"
SIDES = (500, 375)  # pixels, of drawn photographs: a size common in Flickr8k
QUALITY = 90
# Noise of many scales, the coarse strong and the fine weak, as in photographs: cells a side, share of the mixture.
SCALES = ((3, 1.0), (9, 0.5), (27, 0.35), (81, 0.2), (243, 0.1))


def options(description: str, count: int) -> argparse.ArgumentParser:
    """The options that all benches of stage one have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--images", type=Path, metavar="DIR", help="photographs; without it, some are drawn")
    parser.add_argument("--resave", type=_sides, metavar="500x375", help="resize them and save them as JPEG first")
    parser.add_argument("--count", type=int, default=count, help="images at most (%(default)s)")
    parser.add_argument("--backbone", default="resnet50", help="%(default)s")
    parser.add_argument("--weights", default="random", help="default, random or a path (%(default)s)")
    parser.add_argument("--image-size", type=int, default=256, help="pixels (%(default)s)")
    for name in ("engine", "precision", "device"):
        parser.add_argument(f"--{name}", help=f"encode.{name}, else as in params.yaml")
    return parser


def settings_of(arguments: argparse.Namespace) -> EncodeSettings:
    """The section `encode` of params.yaml with what the command line changes."""
    names = ("backbone", "weights", "image_size", "engine", "precision", "device", "dtype", "codec")
    given = {name: value for name in names if (value := getattr(arguments, name, None)) is not None}
    return replace(load_section(PARAMS, "encode", EncodeSettings), **given)


def photographs(arguments: argparse.Namespace, folder: Path) -> tuple[Path, ...]:
    """The files to encode, all in one folder.

    Args:
        arguments: has the user's folder, or none, and how many.
        folder: where drawn or resized ones go.
    """
    if arguments.images is None:
        return tuple(_draw(folder / f"{number}.jpg", number) for number in range(arguments.count))
    found = sorted(path for path in arguments.images.iterdir() if path.suffix.lower() in SUFFIXES)[: arguments.count]
    if not found:
        raise SystemExit(f"{arguments.images} holds no images.")
    return tuple(found) if arguments.resave is None else _resaved(found, folder, arguments.resave)


def _sides(text: str) -> tuple[int, int]:
    width, height = map(int, text.split("x"))
    return width, height


def _draw(path: Path, number: int) -> Path:
    chance = np.random.default_rng(number)
    picture = Image.new("RGB", SIDES)
    for cells, share in SCALES:
        noise = Image.fromarray(chance.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        picture = Image.blend(picture, noise.resize(SIDES, Image.Resampling.BICUBIC), share)
    picture.save(path, quality=QUALITY)
    return path


def _resaved(found: Sequence[Path], folder: Path, sides: tuple[int, int]) -> tuple[Path, ...]:
    paths = tuple(folder / f"{path.stem}.jpg" for path in found)
    for source, target in zip(found, paths, strict=True):
        with Image.open(source) as image:
            image.convert("RGB").resize(sides, Image.Resampling.BICUBIC).save(target, quality=QUALITY)
    return paths
