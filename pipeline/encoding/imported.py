"""`encode.backbone: imported`: the cache from another program's features, without a backbone.

Owns the maker of such shards and the fields of their fingerprint. Does not know how features lie in files. They are
read an image at a time, and a killed run goes on as any other does.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.dataset import ImageFile
from pipeline.encoding.job import Job, taken_rows
from pipeline.encoding.run import Receipt, make_cache
from pipeline.errors import DataError, WeightsError
from pipeline.features.foreign import EXPECTED, open_foreign
from pipeline.features.integrity import work_folder, work_lock
from pipeline.features.matching import Foreign, common_axes, find_names
from pipeline.features.quantise import calibrate
from pipeline.features.rows import encode_row
from pipeline.features.store import Layout, Quantisation, fingerprint_of
from pipeline.features.writer import write_shard
from pipeline.files import Workspace, lock, read_json, write_json
from pipeline.vision.encoder import ENCODING_VERSION, IMPORTED, EncodeSettings

NAMES = "names.json"  # in the work folder: what each image was called in the source, by its hash


class ImportMaker:
    """Makes shards of features that lie in a file; see `Maker`.

    Attributes:
        names: what each image is called in the source, by its id; of files of the same content, what the first is.
    """

    def __init__(self, foreign: Foreign, images: Sequence[ImageFile], settings: EncodeSettings) -> None:
        """Find every image in the source, and see that all have features of one shape.

        Raises:
            DataError: an image is missing, files of the same content have several features, or the arrays cannot be
                features of one cache.
        """
        self._foreign = foreign
        self.names = _one_name_a_content(foreign, images, find_names(foreign, images))
        self._regions = common_axes(foreign, self.names)
        self.grid, self.cells, self.channels = self._regions.grid, self._regions.cells, self._regions.channels
        self.fields: dict[str, Any] = {
            "encoding_version": ENCODING_VERSION,
            "backbone": IMPORTED,
            "weights": foreign.path.name,
            "weights_sha256": foreign.digest(),
            "dtype": settings.dtype,
        }

    def calibrate(self, images: Sequence[ImageFile], folder: Path) -> Quantisation:  # no image is read
        """See `Maker.calibrate`."""
        return calibrate(map(self._read, images))

    def sample(self, images: Sequence[ImageFile], folder: Path, layout: Layout) -> float:
        """See `Maker.sample`."""
        return sum(len(encode_row(self._read(image), layout, image.id)) for image in images) / len(images)

    def make(self, jobs: Sequence[Job], advance: Callable[[int], object]) -> None:
        """See `Maker.make`."""
        for job in jobs:
            rows = taken_rows(job)
            for row, image in enumerate(job.images):
                if row not in rows:
                    rows[row] = encode_row(self._read(image), job.layout, image.id)
                    advance(1)
            write_shard(job.target, [rows[row] for row in range(len(job.images))], job.layout)

    def _read(self, image: ImageFile) -> NDArray[np.float32]:
        """(R, C) float32."""
        return self._regions.of(self._foreign.read(self.names[image.id]))


def import_features(
    workspace: Workspace, images: Sequence[ImageFile], settings: EncodeSettings, tell: Callable[[str], None]
) -> Receipt:
    """Make the cache from the file or folder that `encode.weights` names.

    Args:
        workspace: has the places of the store and of the work in progress.
        images: in row order; each must be in the source.
        settings: `weights`, `dtype`, `codec` and `shard_images`; the rest is a backbone's.
        tell: takes sentences for the user.

    Raises:
        WeightsError: nothing is at that path.
        DataError: the source is damaged, of no known form, lacks an image, or its arrays do not fit one cache.
        CacheError: features that the dtype cannot hold.
        BusyError, SpaceError: as `make_cache`.
    """
    path = workspace.root / settings.weights
    if not path.exists():
        raise WeightsError(
            f"encode.backbone is {IMPORTED}, so encode.weights names what to import: {EXPECTED}; found "
            f'"{settings.weights}", where nothing is. Run "freezeframe cache import PATH".'
        )
    with open_foreign(path) as foreign:
        maker = ImportMaker(foreign, images, settings)
        grid = f"{maker.grid[0]} x {maker.grid[1]}" if maker.grid else f"{maker.cells} (boxes, without a grid)"
        tell(f"Importing {path}: {grid} regions of {maker.channels} channels an image; no backbone is run.")
        with lock(work_lock(workspace), work="encoding images"):
            _forget_renamed(work_folder(workspace, fingerprint_of(maker.fields)), images, maker.names)
        return make_cache(workspace, images, path, maker, settings, tell)


def _one_name_a_content(foreign: Foreign, images: Sequence[ImageFile], names: Mapping[str, str]) -> dict[str, str]:
    """Of files of the same content the first one's name: shards know contents only, and would swap their features.

    Raises:
        DataError: such files have different features.
    """
    first: dict[str, ImageFile] = {}
    for image in images:
        other = first.setdefault(image.sha256, image)
        mine, theirs = names[image.id], names[other.id]
        if mine != theirs and not _alike(foreign.read(mine), foreign.read(theirs)):
            raise DataError(
                f"The images {other.id} and {image.id} are the same file, byte for byte, and {foreign.path} has other "
                "features for each. A cache knows images by their content: give each its own picture."
            )
    return {image.id: names[first[image.sha256].id] for image in images}


def _alike(mine: NDArray[Any], theirs: NDArray[Any]) -> bool:
    """The same but for what another run of the same network leaves."""
    return mine.shape == theirs.shape and np.allclose(mine, theirs, rtol=1e-2, atol=1e-2 * float(np.abs(theirs).mean()))


def _forget_renamed(folder: Path, images: Sequence[ImageFile], names: Mapping[str, str]) -> None:
    """Begin anew where an image of the same content has another name in the source: shards know contents only."""
    record = folder / NAMES
    before: dict[str, str] = read_json(record) if record.exists() else {}
    now = {image.sha256: names[image.id] for image in images}
    if any(before.get(content, name) != name for content, name in now.items()):
        shutil.rmtree(folder)
        before = {}
    write_json(record, before | now)
