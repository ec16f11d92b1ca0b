"""Features that other programs left in files.

Owns these forms, recognised by content: an HDF5 file with one array and ids, or with a dataset an image; a folder of
`.npy` or `.npz`; bottom-up attention's table. Does not know the cache, nor which image is wanted.
"""

import base64
import binascii
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.features.matching import Foreign, Form, quoted
from pipeline.files import NUMPY_ERRORS, read_json, require, sha256, sha256_of_json
from pipeline.hdf5 import hdf5_errors, open_hdf5

FEATURES, IDS = "features", "ids"  # datasets of an HDF5 file
ARRAY_KEY = "feat"  # of an .npz
FACTS = "features.json"  # beside .npy and .npz: what no such file has room for
EXPECTED = (
    "expected one HDF5 file (an array with ids, or a dataset an image), a folder with one .npy or .npz an image, or "
    "bottom-up attention's TSV"
)
_ARRAYS = (FEATURES, "image_features", "feat", "feats", "att_feats")
_ID_LISTS = (IDS, "image_ids", "image_id", "img_ids", "names")
_COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
_TABLE = re.compile(rb"(image_id|[^\t\n]+)\t(image_w|\d+)\t(image_h|\d+)\t(num_boxes|\d+)\t")


def open_foreign(path: Path) -> Foreign:
    """Recognise what lies at a path, and list it.

    Raises:
        MissingError: nothing is there.
        DataError: it is of no known form, or cut short.
    """
    require(path)
    if path.is_dir():
        return NumpyFolder(path)
    with path.open("rb") as file:
        start = file.read(4096)
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return _hdf5(path)
    if _TABLE.match(start):
        return BottomUpTable(path)
    raise DataError(f"{path} is of no known form: {EXPECTED}; found a file that begins with {start[:16]!r}.")


def _hdf5(path: Path) -> "HDF5Array | HDF5Keys":
    file = open_hdf5(path)
    with hdf5_errors(path):
        lists = [name for name in _ID_LISTS if getattr(file.get(name), "ndim", None) == 1]
        arrays = [] if lists else [name for name in _ARRAYS if getattr(file.get(name), "ndim", 0) in (3, 4)]
    if arrays:
        raise DataError(
            f"{path} holds {arrays[0]} {file[arrays[0]].shape} and no ids, so nobody can tell which image a row is of. "
            f'Add a dataset "{IDS}" with the names of the images in the order of the rows.'
        )
    return HDF5Array(path, file, lists[0]) if lists else HDF5Keys(path, file)


def _hdf5_grid(file: Any) -> tuple[int, int] | None:
    grid = file.attrs.get("grid")
    return None if grid is None else _grid(np.atleast_1d(grid).tolist(), Path(file.filename))


def _grid(said: Any, path: Path) -> tuple[int, int] | None:
    if said is None:
        return None
    if not isinstance(said, list) or len(said) != 2 or not all(isinstance(side, int) for side in said):
        raise DataError(f"{path}: expected a grid of rows and columns, found {said!r:.60}.")
    return (said[0], said[1])


class HDF5Array(Foreign):
    """One dataset (N, ...) and a list of N ids."""

    def __init__(self, path: Path, file: Any, ids: str) -> None:
        self.path, self._file = path, file
        with hdf5_errors(path):
            self.grid = _hdf5_grid(file)
            self._array = self._choose()
            found = file[ids][:].tolist()
        texts = [name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in found]
        if len(texts) != len(self._array):
            raise DataError(f"{path}: {len(texts):,} {ids} for {len(self._array):,} rows of {self._array.name}.")
        self._rows = {quoted(name): row for row, name in enumerate(texts)}
        if len(self._rows) != len(texts):
            raise DataError(f"{path}: a name stands twice among its {ids}, so rows cannot be told apart.")

    def _choose(self) -> Any:
        arrays = {name: own for name, own in self._file.items() if getattr(own, "ndim", 0) in (3, 4)}
        known = [name for name in _ARRAYS if name in arrays] or (list(arrays) if len(arrays) == 1 else [])
        if not known:
            found = ", ".join(f"{name} {getattr(own, 'shape', '(a group)')}" for name, own in self._file.items())
            raise DataError(
                f'{self.path}: expected a dataset "{FEATURES}", (images, regions, channels), beside the ids, found '
                f"{found}."
            )
        return arrays[known[0]]

    def names(self) -> Iterable[str]:
        return self._rows

    def form(self, name: str) -> Form:  # every row has it
        return tuple(self._array.shape[1:]), self._array.dtype

    def read(self, name: str) -> NDArray[Any]:
        with hdf5_errors(self.path):
            return np.asarray(self._array[self._rows[name]])

    def close(self) -> None:
        self._file.close()


class HDF5Keys(Foreign):
    """One dataset an image, in groups or not."""

    def __init__(self, path: Path, file: Any) -> None:
        import h5py

        self.path, self._file = path, file
        self._names: list[str] = []
        with hdf5_errors(path):
            self.grid = _hdf5_grid(file)
            file.visititems(lambda name, own: self._names.append(name) if isinstance(own, h5py.Dataset) else None)

    def names(self) -> Iterable[str]:
        return self._names

    def form(self, name: str) -> Form:
        with hdf5_errors(self.path):
            own = self._file[name]
            return tuple(own.shape or ()), own.dtype

    def read(self, name: str) -> NDArray[Any]:
        with hdf5_errors(self.path):
            return np.asarray(self._file[name][()])

    def close(self) -> None:
        self._file.close()


class NumpyFolder(Foreign):
    """One `.npy` an image, or one `.npz` with the key `feat`; in folders or not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        facts = path / FACTS
        said = read_json(facts) if facts.exists() else {}
        self.grid = _grid(said.get("grid") if isinstance(said, dict) else None, facts)
        self._files: dict[str, Path] = {}
        for file in sorted((*path.rglob("*.npy"), *path.rglob("*.npz"))):
            name = file.relative_to(path).as_posix()[:-4]
            if (other := self._files.setdefault(name, file)) != file:
                raise DataError(f"{path} holds {other.name} and {file.name}; keep one of the two kinds.")
        if not self._files:
            raise DataError(f"{path} holds no .npy and no .npz; {EXPECTED}.")

    def names(self) -> Iterable[str]:
        return self._files

    def form(self, name: str) -> Form:
        path = self._files[name]
        try:
            if path.suffix == ".npy":
                with path.open("rb") as file:
                    return _header(file)
            with zipfile.ZipFile(path) as archive:
                if f"{ARRAY_KEY}.npy" not in archive.namelist():
                    found = ", ".join(member.removesuffix(".npy") for member in archive.namelist()) or "none"
                    raise DataError(f'{path}: expected an array under the key "{ARRAY_KEY}", found {found}.')
                with archive.open(f"{ARRAY_KEY}.npy") as member:
                    return _header(member)
        except DataError:
            raise
        except NUMPY_ERRORS as error:
            raise _damaged(path, error) from error

    def read(self, name: str) -> NDArray[Any]:
        path = self._files[name]
        try:
            with path.open("rb") as file:
                found = np.load(file, allow_pickle=False)
                return np.asarray(found if isinstance(found, np.ndarray) else found[ARRAY_KEY])
        except NUMPY_ERRORS as error:
            raise _damaged(path, error) from error

    def digest(self) -> str:
        """The SHA-256 of the sorted names and hashes."""
        facts = self.path / FACTS
        own = [["", sha256(facts)]] if facts.exists() else []
        return sha256_of_json([*own, *([name, sha256(path)] for name, path in self._files.items())])


def _header(file: IO[bytes]) -> Form:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded")
    return shape, dtype


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read as a NumPy array: {error}. Write it again; pickled arrays are not read.")


class BottomUpTable(Foreign):
    """Bottom-up attention's TSV: a line an image, boxes and features as base64 of float32.

    Anderson et al. 2018, https://github.com/peteanderson80/bottom-up-attention: columns image_id, image_w, image_h,
    num_boxes, boxes, features, without a header.
    """

    grid = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[str, tuple[int, int]] = {}  # a line's place and its boxes
        self._forms: dict[str, Form] = {}
        place = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not (number == 1 and line.split(b"\t")[0] == b"image_id"):
                    self._list(number, place, line)
                place += len(line)

    def _list(self, number: int, place: int, line: bytes) -> None:
        cells = line.rstrip(b"\r\n").split(b"\t")
        if len(cells) != len(_COLUMNS) or not cells[3].isdigit():
            raise self._wrong(number, f"expected the columns {', '.join(_COLUMNS)}, found {len(cells)} of them")
        name, boxes, features = quoted(cells[0].decode(errors="replace")), int(cells[3]), cells[5]
        size = len(features) // 4 * 3 - features[-2:].count(b"=")
        if boxes < 1 or len(features) % 4 or size % (4 * boxes):
            raise self._wrong(number, f"{size:,} bytes of features are no whole vectors for {boxes} boxes")
        if name in self._lines:
            raise self._wrong(number, f"the image {name} stands there twice")
        self._lines[name] = (place, number)
        self._forms[name] = ((boxes, size // (4 * boxes)), np.dtype(np.float32))

    def _wrong(self, number: int, reason: str) -> DataError:
        return DataError(f"{self.path}, line {number:,}: {reason}. Fetch the file again if it was cut short.")

    def names(self) -> Iterable[str]:
        return self._lines

    def form(self, name: str) -> Form:
        return self._forms[name]

    def read(self, name: str) -> NDArray[Any]:
        place, number = self._lines[name]
        with self.path.open("rb") as file:
            file.seek(place)
            features = file.readline().rstrip(b"\r\n").split(b"\t")[5]
        try:
            return np.frombuffer(base64.b64decode(features, validate=True), "<f4").reshape(self._forms[name][0])
        except (binascii.Error, ValueError) as error:
            raise self._wrong(number, f"its features are no base64 of float32 ({error})") from error
