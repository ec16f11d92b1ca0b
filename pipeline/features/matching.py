"""From another program's features to a cache's: which image an array is of, and what its axes mean.

Owns both rules, and what a source of features offers (`Foreign`). Does not know how features lie in files.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.dataset import ImageFile
from pipeline.errors import DataError
from pipeline.files import sha256

_UNSAFE = re.compile(r"[%/\\\x00-\x1f\x7f]|^\.")
_COCO_NUMBER = re.compile(r"(?:.*_)?(\d{12})")
Form = tuple[tuple[int, ...], np.dtype[Any]]


class Foreign(ABC):
    """Features by name, read one at a time.

    Attributes:
        path: where they lie.
        grid: rows and columns, where the source says so beside the shapes.
    """

    path: Path
    grid: tuple[int, int] | None

    @abstractmethod
    def names(self) -> Iterable[str]:
        """What images are called there, `quoted` or as written."""

    @abstractmethod
    def form(self, name: str) -> Form:
        """Shape and dtype of an image's array, without reading it."""

    @abstractmethod
    def read(self, name: str) -> NDArray[Any]:
        """The array itself."""

    def digest(self) -> str:
        """The SHA-256 of all that is there."""
        return sha256(self.path)

    def close(self) -> None:  # noqa: B027 - not every source holds a file open
        """Let go of what is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


@dataclass(frozen=True)
class Regions:
    """How the axes of an array are read.

    Attributes:
        cells: R.
        channels: C.
        grid: rows and columns, if the shape or the source says so.
        channels_first: the shape is (C, rows, columns).
    """

    cells: int
    channels: int
    grid: tuple[int, int] | None
    channels_first: bool = False

    def of(self, array: NDArray[Any]) -> NDArray[np.float32]:
        """(R, C) float32, regions row-major; memory of its own."""
        last = np.moveaxis(array, 0, -1) if self.channels_first else array
        return np.array(last.reshape(self.cells, self.channels), np.float32, order="C")


def axes(form: Form, grid: tuple[int, int] | None) -> Regions:
    """Read a shape: (R, C); (rows, columns, C) or (C, rows, columns), whose longest axis is C.

    Args:
        form: shape and dtype.
        grid: what the source says beside; counts where it fits an (R, C).

    Raises:
        ValueError: the shape or the dtype cannot be features; the message is the bare reason.
    """
    shape, dtype = form
    if dtype.kind != "f":
        raise ValueError(f"expected floating-point numbers, found {dtype}")
    if 0 in shape:
        raise ValueError(f"the shape {shape} is empty")
    if len(shape) == 2:
        cells, channels = shape
        return Regions(cells, channels, grid if grid is not None and grid[0] * grid[1] == cells else None)
    if len(shape) == 3 and 1 not in shape:
        first, middle, last = shape
        if last > max(first, middle):
            return Regions(first * middle, last, (first, middle))
        if first > max(middle, last):
            return Regions(middle * last, first, (middle, last), channels_first=True)
    raise ValueError(
        f"expected (regions, channels), (rows, columns, channels) or (channels, rows, columns) with more channels than "
        f"rows and than columns, and no axis of one, found {shape}"
    )


def quoted(image: str) -> str:
    """An id as a name that leads nowhere: slashes, a leading dot and % become %2F, %2E and %25."""
    return _UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", image)


def find_names(foreign: Foreign, images: Sequence[ImageFile]) -> dict[str, str]:
    """What each image is called in a source, by its id.

    An image is looked for by its id, by its file, by either without folder and suffix, and by COCO's number at the
    end of such a name, in this order.

    Raises:
        DataError: images are missing, or two are found under one name; the message has the first.
    """
    there = set(foreign.names())
    found = {image.id: next((name for name in _candidates(image) if name in there), None) for image in images}
    lost = [image for image, name in found.items() if name is None]
    if lost:
        shown = ", ".join(sorted(there)[:3]) or "nothing"
        raise DataError(
            f"{foreign.path} has the features of {len(found) - len(lost):,} of {len(images):,} images; first missing: "
            f"{lost[0]}. Expected its id, its name without folder or suffix, or COCO's number; there are {shown}."
        )
    names = {image: name for image, name in found.items() if name is not None}
    owners: dict[str, str] = {}
    for image, name in names.items():
        if (other := owners.setdefault(name, image)) != image:
            raise DataError(
                f"{foreign.path}: {other} and {image} would both be {name}. Call one by its whole id there."
            )
    return names


def _candidates(image: ImageFile) -> dict[str, None]:
    names = [name for own in (image.id, image.file) for name in (own, str(PurePosixPath(own).with_suffix("")))]
    names += [PurePosixPath(name).name for name in names]
    numbers = [str(int(match[1])) for name in names if (match := _COCO_NUMBER.fullmatch(name))]
    return dict.fromkeys(own for name in [*names, *numbers] for own in (quoted(name), name))


def common_axes(foreign: Foreign, names: Mapping[str, str]) -> Regions:
    """How the arrays of all these images are read; a cache holds as many regions for each.

    Args:
        foreign: the source.
        names: what each image is called there.

    Raises:
        DataError: an array cannot be features, or they differ in shape.
    """
    counts: dict[Form, list[str]] = {}
    for image, name in names.items():
        counts.setdefault(foreign.form(name), []).append(image)
    forms = {}
    for form, images in counts.items():
        try:
            forms[images[0]] = axes(form, foreign.grid)
        except ValueError as error:
            raise DataError(f"{foreign.path}: the features of {images[0]} cannot be used: {error}.") from error
    common = set(forms.values())
    if len(common) > 1:
        cells, channels = ({getattr(one, axis) for one in common} for axis in ("cells", "channels"))
        first, *others = forms.items()
        other = next(own for own in others if own[1] != first[1])
        raise DataError(
            f"{foreign.path}: expected as many regions and channels for every image, found {_span(cells)} regions of "
            f"{_span(channels)} channels, {first[0]} with {_shown(first[1])} and {other[0]} with {_shown(other[1])}. "
            "Of features with an adaptive number of boxes take the release with a fixed one (36)."
        )
    return common.pop()


def _span(counts: set[int]) -> str:
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def _shown(regions: Regions) -> str:
    grid = f"{regions.grid[0]} x {regions.grid[1]}" if regions.grid else f"{regions.cells}"
    return f"{grid} regions of {regions.channels}"
