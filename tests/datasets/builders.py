"""Small sources for the tests of readers: a folder of images, and settings that point into it."""

from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.datasets.dataset import DataSettings


def write_images(folder: Path, *names: str) -> Path:
    """Write small images of distinct colours."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (7 + number, 5), (number * 9 % 256, 80, 200)).save(path)
    return folder


def settings(root: Path, **changes: Any) -> DataSettings:
    """Images in `images`, captions in `captions.txt`, which is also asked for the splits."""
    values: dict[str, Any] = {
        "format": "auto",
        "images": str(root / "images"),
        "captions": str(root / "captions.txt"),
        "splits": str(changes.get("captions", root / "captions.txt")),
        "seed": 3,
        "drawn_images": 30,
        "on_missing": "stop",
        "on_bad_image": "stop",
        "workers": 2,
    }
    return DataSettings(**{**values, **{name: str(v) if isinstance(v, Path) else v for name, v in changes.items()}})
