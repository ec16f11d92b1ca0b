"""One shard: from image files to its file, which is there whole or not at all.

Owns the overlap of decoding, forward pass and compression, with bounded memory. Runs alike in a thread of the encode
stage and in a worker of a cluster. Does not know which shards are missing, nor what becomes of them.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.ahead import ahead
from pipeline.datasets.dataset import ImageFile
from pipeline.errors import CacheError, DataError, ImageError
from pipeline.features.quantise import calibrate, restore
from pipeline.features.rows import decode_row, encode_row, is_whole, split_rows
from pipeline.features.store import Layout, Quantisation, Shard
from pipeline.features.writer import write_shard
from pipeline.vision.encoder import Encoder, EncodeSettings

SHARDS_IN_WORK = 2  # of a workshop: one in the engine while the other is decoded, compressed or written
DECODING, COMPUTING = 2, 2  # batches of a shard that are on their way at each station


@dataclass(frozen=True)
class OldRow:
    """Where a row of the same features lies already.

    Attributes:
        path: of a finished shard.
        row: its place there.
        rows: that the shard holds.
        layout: it was written with; its codec and size of shards may be others than the new one's.
    """

    path: Path
    row: int
    rows: int
    layout: Layout


@dataclass(frozen=True)
class Job:
    """A shard to make. Small, so that it can be sent to a worker.

    Attributes:
        shard: its rows and its key.
        images: one a row.
        old: for each row, where it lies already; None is to be encoded.
        folder: where the image files lie.
        target: path of the finished shard.
        layout: of the cache.
        fingerprint: of the encoder that is to make it.
    """

    shard: Shard
    images: tuple[ImageFile, ...]
    old: tuple[OldRow | None, ...]
    folder: Path
    target: Path
    layout: Layout
    fingerprint: str


@dataclass(frozen=True)
class Made:
    """What a finished job tells: never features.

    Attributes:
        number: of the shard.
        rows: it holds.
        bytes: of its file.
    """

    number: int
    rows: int
    bytes: int


class Workshop:
    """An encoder and the threads beside it: one a process, shared by the jobs that run there at once."""

    def __init__(self, encoder: Encoder, settings: EncodeSettings) -> None:
        self.encoder = encoder
        self._batch = settings.batch_size
        self._hands = ThreadPoolExecutor(settings.workers or len(os.sched_getaffinity(0)), "hands")
        self._computing: set[Future[NDArray[np.float32]]] = set()

    def make(self, job: Job, advance: Callable[[int], object]) -> Made:
        """Make one shard; several threads may each make one.

        Args:
            job: the shard.
            advance: called with the number of images whose features are there.

        Raises:
            ImageError, DataError: an image cannot be decoded, or is not the one that ingest saw.
            CacheError: features that the dtype cannot hold.
            SpaceError: the disk is full.
        """
        rows = self._rows(job, advance)
        return Made(job.shard.number, job.shard.rows, write_shard(job.target, rows, job.layout))

    def calibrate(self, images: Sequence[ImageFile], folder: Path) -> Quantisation:
        """Find the scales for uint8 from the features of some images."""
        return calibrate(row for part in self._encoded(images, folder) for row in part)

    def sample(self, images: Sequence[ImageFile], folder: Path, layout: Layout) -> float:
        """Bytes an image needs in the cache: the mean of some images."""
        parts = zip(self._encoded(images, folder), self._parts(images), strict=True)
        sizes = [
            len(encode_row(row, layout, image.id))
            for regions, part in parts
            for row, image in zip(regions, part, strict=True)
        ]
        return sum(sizes) / len(sizes)

    def close(self) -> None:
        """Stop: a job that is still running fails at its next batch, and the engine begins none that waits."""
        self._hands.shutdown(wait=False, cancel_futures=True)
        for future in tuple(self._computing):
            future.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _rows(self, job: Job, advance: Callable[[int], object]) -> list[bytes]:
        """The bytes of every row: of those that lie somewhere already, and of new ones."""
        rows = taken_rows(job)
        new = [row for row in range(len(job.images)) if row not in rows]
        images = [job.images[row] for row in new]
        compressing: list[Future[bytes]] = []
        for regions, part in zip(self._encoded(images, job.folder), self._parts(images), strict=True):
            compressing += [
                self._hands.submit(encode_row, own, job.layout, image.id)
                for own, image in zip(regions, part, strict=True)
            ]
            advance(len(part))
        rows |= {row: future.result() for row, future in zip(new, compressing, strict=True)}
        return [rows[row] for row in range(len(job.images))]

    def _encoded(self, images: Sequence[ImageFile], folder: Path) -> Iterator[NDArray[np.float32]]:
        """Features batch by batch, (B, R, C), while the next batches are decoded and computed."""
        decoding = ([self._hands.submit(self._load, folder, one) for one in part] for part in self._parts(images))
        computing = (self._start([image.result() for image in part]) for part in ahead(decoding, DECODING))
        return (future.result() for future in ahead(computing, COMPUTING))

    def _start(self, images: Sequence[NDArray[np.uint8]]) -> Future[NDArray[np.float32]]:
        future = self.encoder.start(images)
        self._computing.add(future)
        future.add_done_callback(self._computing.discard)
        return future

    def _parts(self, images: Sequence[ImageFile]) -> Iterator[Sequence[ImageFile]]:
        return (images[start : start + self._batch] for start in range(0, len(images), self._batch))

    def _load(self, folder: Path, image: ImageFile) -> NDArray[np.uint8]:
        path = folder / image.file
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ImageError(f"{path} cannot be read: {error.strerror}.") from error
        if hashlib.sha256(content).hexdigest() != image.sha256:
            raise DataError(
                f'{path} has changed since ingest saw it. Run "dvc repro --force ingest" to take it in again.'
            )
        try:
            return self.encoder.load(content)
        except ImageError as error:
            raise ImageError(f"{path} cannot be decoded: {error}. Mend it or leave it out.") from error


def taken_rows(job: Job) -> dict[int, bytes]:
    """The bytes of the rows that lie in older shards, by their place in the new one; what is damaged is left out."""
    rows: dict[int, bytes] = {}
    places: dict[Path, list[tuple[int, OldRow]]] = {}
    for row, old in enumerate(job.old):
        if old is not None:
            places.setdefault(old.path, []).append((row, old))
    for path, own in places.items():
        layout, count = own[0][1].layout, own[0][1].rows
        try:
            found = split_rows(path.read_bytes(), layout.shard_images, count)
        except CacheError:  # its index: none of its rows can be found
            continue
        for row, old in own:
            if is_whole(found[old.row]):
                rows[row] = _recoded(found[old.row], layout, job.layout, job.images[row].id)
    return rows


def _recoded(row: bytes, found: Layout, wanted: Layout, name: str) -> bytes:
    if found.codec == wanted.codec:
        return row
    return encode_row(restore(decode_row(row, found), found.quantisation), wanted, name)
