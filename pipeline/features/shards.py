"""Single rows out of the files of shards, each checked; in memory once read, for those that are to stay there.

Owns where a row lies in its file and how its bytes come from there. Does not know which rows are wanted, nor when;
threads may share it. A file is opened for each row: no limit on open files, nothing to close, nothing a fork breaks.
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
from pipeline.features.store import Layout, ShardRecord


class Shards:
    """The rows of a complete store.

    Args:
        path: of the store.
        layout: as its metadata say.
        records: of its shards, as the manifest has them.
    """

    def __init__(self, path: Path, layout: Layout, records: tuple[ShardRecord, ...]) -> None:
        self._path, self._layout, self._records = path, layout, records
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
            CacheError: its bytes, or those that say where it is, are damaged or gone; the message has the shard.
        """
        number = row // self._layout.shard_images
        try:
            if self._layout.codec == "none" and row not in self._staying:
                self._read_plain(row, target)
            else:
                self._decode(row, target)
        except (CacheError, OSError) as error:
            raise CacheError(
                f"{self._path} is damaged: shard {self._records[number].file} cannot be read ({_reason(error)}). {MEND}"
            ) from error

    def _decode(self, row: int, target: NDArray[np.generic]) -> None:
        content = self._held.get(row)
        if content is None:
            with self._open(row) as file:
                offset, size = self._place(row, file)
                content = os.pread(file.fileno(), size, offset)
        target[...] = decode_row(content, self._layout)
        if row in self._staying:
            self._held[row] = content

    def _read_plain(self, row: int, target: NDArray[np.generic]) -> None:
        """Straight from the file to where it belongs: one copy."""
        content, checksum = target.reshape(-1).view(np.uint8), bytearray(CHECKSUM)
        with self._open(row) as file:
            offset, size = self._place(row, file)
            found = os.preadv(file.fileno(), [content.data, checksum], offset)
        if not found == size == len(content) + CHECKSUM or not fits(content, checksum):
            raise CacheError("A row's checksum does not fit.")

    def _open(self, row: int) -> FileIO:
        return FileIO(self._path / self._records[row // self._layout.shard_images].file)

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
