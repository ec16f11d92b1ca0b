"""Reading the cache: rows in, features out, checked.

Owns the opening (what is refused, and why) and the threads that read ahead. Does not know images, encoders or
decoders; imports neither torch nor PIL.
"""

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CacheError
from pipeline.features.integrity import check_fingerprint, check_ids, check_store
from pipeline.features.quantise import restore
from pipeline.features.shards import Shards
from pipeline.features.store import REMEDY, Layout, Quantisation, read_attributes, read_layout, read_shape

_MOST_THREADS = 8


class Reading:
    """Rows on their way; threads read them, `result` waits."""

    def __init__(self, features: NDArray[np.generic], parts: Sequence[Future[None]]) -> None:
        self._features, self._parts = features, parts

    def result(self) -> NDArray[np.generic]:
        """The features, (B, R, C), in the stored dtype.

        Raises:
            CacheError: a row's bytes are damaged or gone; the message has the shard. Or the cache was replaced.
        """
        for part in self._parts:
            part.result()
        return self._features


class FeatureReader:
    """A complete cache, open for reading; threads may share it.

    Attributes:
        ids: of the images, in row order.
        layout: as its metadata say; `grid`, `channels` and `quantisation` are those of it.
        dtype: of the features as stored.
        fingerprint: of how they were made.
        fields: what the fingerprint is of.
    """

    def __init__(
        self,
        path: Path,
        expected_fingerprint: str | None = None,
        expected_fields: Mapping[str, Any] | None = None,
    ) -> None:
        """Open a cache; threads start at the first reading, so that a process may be forked before.

        Args:
            path: of the store.
            expected_fingerprint: refuse any other.
            expected_fields: what that fingerprint is of, if known: then the message says what differs.

        Raises:
            MissingError: there is no store.
            CacheError: it is not complete, or not the one expected.
        """
        manifest = check_store(path)
        said = read_attributes(path)
        self.layout: Layout = read_layout(path)
        (images, _, _), _, _ = read_shape(path)
        self.path = path
        self.ids: tuple[str, ...] = tuple(said["ids"])
        self.fingerprint: str = said["fingerprint"]
        self.fields: dict[str, Any] = said["fields"]
        self.dtype = np.dtype(self.layout.dtype)
        if manifest.fingerprint != self.fingerprint or len(self.ids) != images:
            raise CacheError(f"{path}: its manifest, its attributes and its array contradict each other. {REMEDY}")
        if expected_fingerprint is not None:
            check_fingerprint(path, self.fingerprint, self.fields, expected_fingerprint, expected_fields)
        self._shards = Shards(path, self.layout, manifest)
        self._count = max(2, min(_MOST_THREADS, len(os.sched_getaffinity(0))))
        self._threads: ThreadPoolExecutor | None = None
        self._starting = threading.Lock()

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of regions; None where they have no place."""
        return self.layout.grid

    @property
    def channels(self) -> int:
        """C."""
        return self.layout.channels

    @property
    def quantisation(self) -> Quantisation | None:
        """What a stored byte means; None for floats, which mean themselves."""
        return self.layout.quantisation

    def require_ids(self, ids: Sequence[str]) -> None:
        """Refuse to serve another data set.

        Raises:
            CacheError: the ids, or their order, are not those of the cache.
        """
        check_ids(self.path, self.ids, ids)

    def keep(self, rows: Iterable[int]) -> None:
        """From now on these rows, and no others, stay in memory once read, as they are stored."""
        self._shards.keep(rows)

    def stored_bytes(self, rows: Iterable[int]) -> int:
        """How much memory `keep` would fill, about: the rows of a shard are taken for alike."""
        return self._shards.size(rows)

    def start(self, rows: Sequence[int], target: NDArray[np.generic] | None = None) -> Reading:
        """Begin to read rows, any order, repeated or not.

        Args:
            rows: B of them.
            target: where they go, (B, R, C) contiguous in the stored dtype; nobody else may use it until they are
                there.

        Raises:
            CacheError: a row is beyond the cache.
        """
        wrong = [row for row in rows if not 0 <= row < len(self.ids)]
        if wrong:
            raise CacheError(f"{self.path} holds rows 0 to {len(self.ids) - 1:,}, not {wrong[0]:,}. {REMEDY}")
        if target is None:
            target = np.empty((len(rows), self.layout.cells, self.channels), self.dtype)
        size = max(1, -(-len(rows) // self._count))  # a part a thread: small parts wait for Python's lock more often
        starts, submit = range(0, len(rows), size), self._started().submit
        return Reading(target, [submit(self._fill, rows[at : at + size], target[at : at + size]) for at in starts])

    def read(self, rows: Sequence[int]) -> NDArray[np.generic]:
        """Read rows: (B, R, C) in the stored dtype.

        Raises:
            CacheError: a row is beyond the cache, or damaged.
        """
        return self.start(rows).result()

    def restore(self, stored: NDArray[np.generic]) -> NDArray[np.float32]:
        """What stored features mean, float32."""
        return restore(stored, self.quantisation)

    def _fill(self, rows: Sequence[int], targets: NDArray[np.generic]) -> None:
        for row, target in zip(rows, targets, strict=True):
            self._shards.fill(int(row), target)

    def _started(self) -> ThreadPoolExecutor:
        with self._starting:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._count, "reader")
            return self._threads
