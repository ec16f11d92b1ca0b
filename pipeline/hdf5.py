"""HDF5 files, opened and written so that what goes wrong is told and crashes nothing.

Owns what h5py's errors mean and how a write that fails is kept from HDF5. Does not know what a file holds.
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, FreezeframeError
from pipeline.files import require


@contextlib.contextmanager
def hdf5_errors(path: Path) -> Iterator[None]:
    """Turn what h5py raises on a file that is cut short or damaged into a `DataError` that names it."""
    try:
        yield
    except FreezeframeError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        reason = str(error).strip("'\"").partition(" (file read failed")[0]
        raise DataError(f"{path} cannot be read as HDF5: {reason}. Fetch it again if it was cut short.") from error


def open_hdf5(path: Path) -> Any:
    """Open an HDF5 file for reading, as an `h5py.File`; read from it within `hdf5_errors`.

    Raises:
        MissingError: it is not there.
        DataError: it is no whole HDF5 file.
    """
    import h5py

    require(path)
    with hdf5_errors(path):
        return h5py.File(path, "r")


@contextlib.contextmanager
def writing_hdf5(path: Path) -> Iterator[tuple[Any, Callable[[], None]]]:
    """Create an HDF5 file, as an `h5py.File`, with a function that raises the error of a write that has failed.

    Call it after each large write, so as not to go on for nothing; it is called once more when all is written.

    Raises:
        OSError: of the first write that failed.
    """
    import h5py

    with _Sink(path) as sink:
        with h5py.File(sink, "w") as file:
            yield file, sink.check
        sink.check()


class _Sink(io.FileIO):
    """A file whose writes never fail to HDF5, which crashes the process after one that does.

    What could not be written stays in memory for HDF5 to read again; `check` sees that it is not much.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self._trouble: OSError | None = None
        self._lost: list[tuple[int, bytes]] = []

    def check(self) -> None:
        if self._trouble is not None:
            raise self._trouble

    def write(self, content: Any) -> int:
        start, rest = self.tell(), memoryview(content)
        try:
            self.check()
            while rest:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self._trouble = error
            self._lost.append((start, bytes(content)))
            self.seek(start + len(content))
        return len(content)

    def readinto(self, target: Any) -> int:
        start, size = self.tell(), len(target)
        found = bytearray(size)
        super().readinto(found)
        for place, content in self._lost:
            first, last = max(place, start), min(place + len(content), start + size)
            if first < last:
                found[first - start : last - start] = content[first - place : last - place]
        target[:] = found
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self._trouble = error
            return self.tell() if size is None else size
