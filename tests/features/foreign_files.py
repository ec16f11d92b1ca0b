"""Files as other captioning code leaves them, written by hand."""

import base64
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.dataset import ImageFile


def images(*ids: str) -> list[ImageFile]:
    """Images whose files are called as they are."""
    return [ImageFile(name, name, f"hash of {name}") for name in ids]


def table(path: Path, features: Sequence[NDArray[np.float32]], ids: Sequence[object]) -> Path:
    """Bottom-up attention's TSV: features (boxes, C) each."""
    lines = []
    for name, own in zip(ids, features, strict=True):
        boxes = np.zeros((len(own), 4), np.float32)
        cells = (base64.b64encode(array.astype("<f4").tobytes()).decode() for array in (boxes, own))
        lines.append("\t".join((str(name), "640", "480", str(len(own)), *cells)) + "\n")
    path.write_text("".join(lines))
    return path


def keys(path: Path, features: Sequence[NDArray[np.float32]], ids: Sequence[str]) -> Path:
    """One dataset an image."""
    with h5py.File(path, "w") as file:
        for name, own in zip(ids, features, strict=True):
            file[name] = own
    return path


def array(path: Path, features: NDArray[np.generic], ids: object, named: str = "features", list: str = "ids") -> Path:  # noqa: A002
    """One dataset and a list of ids."""
    with h5py.File(path, "w") as file:
        file[named] = features
        file[list] = ids
    return path


def folder(path: Path, features: Sequence[NDArray[np.generic]], ids: Sequence[str], suffix: str = ".npy") -> Path:
    """One file an image."""
    for name, own in zip(ids, features, strict=True):
        target = path / f"{name}{suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".npy":
            np.save(target, own)
        else:
            np.savez(target, feat=own)
    return path
