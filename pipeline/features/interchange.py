"""The cache's features in files that other captioning code reads.

Owns their writing: one HDF5 file, as one array with ids or with a dataset an image, or a folder with one `.npy` or
`.npz` an image. What is called how in them, and how they are read back, is `foreign`'s.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, SettingsError, SpaceError
from pipeline.features.foreign import FACTS, FEATURES, IDS
from pipeline.features.matching import quoted
from pipeline.features.reader import FeatureReader
from pipeline.files import replacing, replacing_folder, write_json
from pipeline.hdf5 import writing_hdf5

Format = Literal["hdf5", "npz", "npy"]
Keeping = Literal["array", "keys"]

_BLOCK_BYTES = 2**26  # of features in memory at once
_LONGEST = 250  # bytes of a file's name, suffix included


def export_features(reader: FeatureReader, path: Path, kind: Format, keeping: Keeping) -> np.dtype[Any]:
    """Write a cache's features, restored to floating point, at `path`, which is there whole or not at all.

    Features of a uint8 cache become float32, which holds what they mean without rounding; others keep their dtype.

    Args:
        reader: of the cache.
        path: the file (hdf5) or the folder (npz, npy) to be written.
        kind: hdf5, npz or npy.
        keeping: of hdf5: one array with ids, or a dataset an image.

    Returns:
        The dtype that was written.

    Raises:
        SettingsError: something is there already, other than an empty folder for npz and npy.
        SpaceError: the disk cannot hold it.
        CacheError: a row of the cache is damaged.
        DataError: an id is too long for a file's name.
    """
    dtype = np.dtype(np.float32) if reader.quantisation is not None else reader.dtype
    if path.exists() and not (kind != "hdf5" and path.is_dir() and not any(path.iterdir())):
        wanted = "file" if kind == "hdf5" else "folder"
        raise SettingsError(f"{path} is there already, and an export replaces nothing; name a new {wanted}.")
    _check_space(reader, path, dtype)
    if kind == "hdf5":
        with replacing(path) as temporary:
            _write_hdf5(reader, temporary, dtype, keeping)
    else:
        with replacing_folder(path) as folder:
            _write_folder(reader, folder, kind)
    return dtype


def _check_space(reader: FeatureReader, path: Path, dtype: np.dtype[Any]) -> None:
    """Compression may help an .npz; what is promised is that nothing begins which cannot end."""
    layout = reader.layout
    needed = len(reader.ids) * layout.cells * layout.channels * dtype.itemsize
    place = next(folder for folder in path.absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise SpaceError(
            f"{path} needs {needed / 1e9:.1f} GB, but {place} has {free / 1e9:.1f} GB free. Make room, or name a path "
            "on another disk."
        )


def _rows(reader: FeatureReader) -> Iterator[tuple[int, str, NDArray[Any]]]:
    """Row by row: its number, its id, and its features (R, C) in floating point."""
    layout = reader.layout
    size = max(1, _BLOCK_BYTES // (layout.cells * layout.channels * 4))
    for start in range(0, len(reader.ids), size):
        rows = range(start, min(start + size, len(reader.ids)))
        stored = reader.read(rows)
        block = stored if reader.quantisation is None else reader.restore(stored)
        yield from zip(rows, reader.ids[start : rows.stop], block, strict=True)


def _facts(reader: FeatureReader) -> dict[str, Any]:
    return {"grid": reader.grid, "fingerprint": reader.fingerprint, "fields": reader.fields}


def _write_hdf5(reader: FeatureReader, path: Path, dtype: np.dtype[Any], keeping: Keeping) -> None:
    import h5py

    layout, facts = reader.layout, _facts(reader)
    with writing_hdf5(path) as (file, check):
        for key, value in facts.items():
            if value is not None:
                file.attrs[key] = json.dumps(value) if isinstance(value, dict) else value
        if keeping == "keys":
            for _, image, regions in _rows(reader):
                file.create_dataset(quoted(image), data=regions)
                check()
            return
        array = file.create_dataset(FEATURES, (len(reader.ids), layout.cells, layout.channels), dtype)
        file.create_dataset(IDS, data=list(reader.ids), dtype=h5py.string_dtype())
        for row, _, regions in _rows(reader):
            array[row] = regions
            check()


def _write_folder(reader: FeatureReader, folder: Path, kind: Format) -> None:
    for _, image, regions in _rows(reader):
        name = f"{quoted(image)}.{kind}"
        if len(os.fsencode(name)) > _LONGEST:
            raise DataError(f"The id {image} is too long for the name of a file. Export with --format hdf5.")
        with (folder / name).open("wb") as file:
            if kind == "npy":
                np.save(file, regions, allow_pickle=False)
            else:
                np.savez_compressed(file, feat=regions)
    write_json(folder / FACTS, {**_facts(reader), "ids": list(reader.ids)})
