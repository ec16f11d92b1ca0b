"""Single rows out of the files of shards, each checked; in memory once read, for those that are to stay there.

Owns where a row lies in its file, how its bytes come from there, and that they are of the store that was opened. Does
not know which rows are wanted, nor when; threads may share it. A file is opened for each row: no limit on open files,
nothing to close, nothing a fork breaks.
"""

import os
from collections.abc import Iterable
from io import FileIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CacheError
from pipeline.features.integrity import MEND
from pipeline.features.rows import CHECKSUM, decode_row, fits, index_size, read_index
from pipeline.features.store import MANIFEST, Layout, Manifest, read_manifest


class Shards:
    """The rows of a complete store.

    Args:
        path: of the store.
        layout: as its metadata say.
        manifest: of it.

    Raises:
        CacheError: another store lies there by now.
    """

    def __init__(self, path: Path, layout: Layout, manifest: Manifest) -> None:
        self._path, self._layout, self._manifest, self._records = path, layout, manifest, manifest.shards
        self._files = [str(path / record.file) for record in self._records]  # joined once: it takes longer than to open
        self._manifest_file, self._seen = str(path / MANIFEST), (0, 0)
        self._require_same()
        self._places: dict[int, list[tuple[int, int]]] = {}
        self._staying: frozenset[int] = frozenset()
        self._held: dict[int, bytes] = {}

    def keep(self, rows: Iterable[int]) -> None:
        """From now on these rows, and no others, stay in memory once read, as they are stored."""
        self._staying = frozenset(rows)
        self._held = {row: content for row, content in self._held.items() if row in self._staying}

    def size(self, rows: Iterable[int]) -> int:
        """Bytes of these rows as they are stored, taking the rows of a shard for alike."""
        counts = np.bincount([row // self._layout.shard_images for row in rows], minlength=len(self._records))
        pairs = zip(self._records, counts.tolist(), strict=True)
        return sum(record.bytes * count // record.rows for record, count in pairs)

    def fill(self, row: int, target: NDArray[np.generic]) -> None:
        """Read one row into `target`, (R, C) and contiguous.

        Raises:
            CacheError: its bytes, or those that say where it is, are damaged or gone; the message has the shard. Or
                another store has taken this one's place.
        """
        held, trouble = self._held.get(row), None
        if held is not None:
            target[...] = decode_row(held, self._layout)
            return
        try:
            content = self._read(row, target)
        except (CacheError, OSError) as error:
            trouble = error
        self._require_same(trouble)
        if trouble is not None:
            file = self._records[row // self._layout.shard_images].file
            raise CacheError(
                f"{self._path} is damaged: shard {file} cannot be read ({_reason(trouble)}). {MEND}"
            ) from trouble
        if content and row in self._staying:
            self._held[row] = content

    def _require_same(self, trouble: Exception | None = None) -> None:
        """Refuse what was read if the manifest is another one by now; to be called after each reading.

        A row's checksum fits in whichever store it lies, so that only this tells two stores of one layout apart.
        """
        try:
            status = os.stat(self._manifest_file)  # noqa: PTH116 - a Path would take longer, and this is done for each row
            seen = (status.st_ino, status.st_mtime_ns)
            if seen == self._seen:
                return
            same = read_manifest(self._path) == self._manifest  # DVC may put another file of the same bytes there
        except (CacheError, OSError) as error:
            same, trouble = False, error
        if not same:
            raise CacheError(f"{self._path} was replaced while it was read. Run this again.") from trouble
        self._seen = seen

    def _read(self, row: int, target: NDArray[np.generic]) -> bytes:
        """Read one row into `target`; returns it as it is stored, or nothing where it need not stay."""
        if self._layout.codec == "none" and row not in self._staying:
            self._read_plain(row, target)
            return b""
        with self._open(row) as file:
            offset, size = self._place(row, file)
            content = os.pread(file.fileno(), size, offset)
        target[...] = decode_row(content, self._layout)
        return content

    def _read_plain(self, row: int, target: NDArray[np.generic]) -> None:
        """Straight from the file to where it belongs: one copy."""
        content, checksum = target.reshape(-1).view(np.uint8), bytearray(CHECKSUM)
        with self._open(row) as file:
            offset, size = self._place(row, file)
            found = os.preadv(file.fileno(), [content.data, checksum], offset)
        if not found == size == len(content) + CHECKSUM or not fits(content, checksum):
            raise CacheError("A row's checksum does not fit.")

    def _open(self, row: int) -> FileIO:
        return FileIO(self._files[row // self._layout.shard_images])

    def _place(self, row: int, file: FileIO) -> tuple[int, int]:
        number, place = divmod(row, self._layout.shard_images)
        if number not in self._places:
            record, size = self._records[number], index_size(self._layout.shard_images)
            index = os.pread(file.fileno(), size, record.bytes - size)
            self._places[number] = read_index(index, record.bytes, record.rows)
        return self._places[number][place]


def _reason(error: CacheError | OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is gone"
    return str(error).rstrip(".") if isinstance(error, CacheError) else error.strerror or str(error)
