"""Reading the cache: rows in, features out, checked.

Owns the opening (what is refused, and why) and the reading by tensorstore. Does not know images, encoders or
decoders; imports neither torch nor PIL.
"""

import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from pipeline.errors import CacheError
from pipeline.features.integrity import MEND, check_fingerprint, check_ids, check_store
from pipeline.features.quantise import restore
from pipeline.features.store import ARRAY, REMEDY, Layout, Quantisation, read_attributes, read_layout, read_shape

INDEX_CACHE_BYTES = 32 * 2**20  # shard indices and the chunks that come with them


class Reading:
    """Rows on their way.

    Tensorstore reads them in threads of its own; `result` waits.
    """

    def __init__(self, path: Path, rows: Sequence[int], future: Any) -> None:
        self._path, self._rows, self._future = path, rows, future

    def result(self) -> np.ndarray:
        """The features, (B, R, C), in the stored dtype.

        Raises:
            CacheError: a row's bytes are damaged or gone; the message has the shard.
        """
        try:
            return np.asarray(self._future.result())
        except (ValueError, OSError) as error:
            shard = re.search(rf"{ARRAY}/c/\d+/0/0", str(error))
            place = f"shard {shard.group()}" if shard else f"one of the rows {list(self._rows)[:10]}"
            raise CacheError(
                f"{self._path} is damaged: {place} cannot be read ({_reason(str(error))}). {MEND}"
            ) from error


def _reason(text: str) -> str:
    """Tensorstore's reason without its addresses; what it says of a damaged row depends on where the damage is."""
    lowered = text.lower()
    if "not_found" in lowered or "not found" in lowered:
        return "it is gone"
    if any(word in lowered for word in ("crc", "checksum", "digest")):
        return "its checksum does not fit"
    return text.partition("[")[0].strip()[:200]


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
        """Open a cache; the array itself is opened at the first reading, so that a process may be forked before.

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
        self._array: Any = None
        self._opening = threading.Lock()

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

    def start(self, rows: Sequence[int]) -> Reading:
        """Begin to read rows, any order, repeated or not.

        Raises:
            CacheError: a row is beyond the cache.
        """
        wrong = [row for row in rows if not 0 <= row < len(self.ids)]
        if wrong:
            raise CacheError(f"{self.path} holds rows 0 to {len(self.ids) - 1:,}, not {wrong[0]:,}. {REMEDY}")
        return Reading(self.path, rows, self._open()[np.asarray(rows, np.int64)].read())

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """Read rows: (B, R, C) in the stored dtype.

        Raises:
            CacheError: a row is beyond the cache, or damaged.
        """
        return self.start(rows).result()

    def restore(self, stored: np.ndarray) -> np.ndarray:
        """What stored features mean, float32."""
        return restore(stored, self.quantisation)

    def _open(self) -> Any:
        with self._opening:
            if self._array is None:
                spec = {
                    "driver": "zarr3",
                    "kvstore": {"driver": "file", "path": str((self.path / ARRAY).absolute()) + "/"},
                    "fill_missing_data_reads": False,  # a shard that has gone is an error, not zeros
                    "recheck_cached_data": "open",
                    "context": {"cache_pool": {"total_bytes_limit": INDEX_CACHE_BYTES}},
                }
                self._array = tensorstore.open(spec, read=True).result()
            return self._array
