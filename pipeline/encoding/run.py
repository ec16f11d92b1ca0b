"""From images to a finished cache: what the encode stage and a repair share.

Owns the order of the work: what is there already, what an older cache has, what is still to be made, and the store
put together from it. How a killed run goes on is decided here: by the names of finished shards, and by their own
checksums. Does not know how shards are made.
"""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from pipeline.datasets.dataset import ImageFile
from pipeline.encoding.growth import Catalogue
from pipeline.encoding.job import Job
from pipeline.encoding.maker import LocalMaker, Maker
from pipeline.errors import SpaceError
from pipeline.features.integrity import shard_is_whole, work_file, work_folder, work_lock
from pipeline.features.store import Layout, Quantisation, Shard, fingerprint_of, plan
from pipeline.features.writer import assemble
from pipeline.files import Workspace, lock
from pipeline.vision.encoder import Encoder, EncodeSettings

SAFETY = 1.1  # of the estimated size on disk
SAMPLE, CALIBRATION = 8, 256  # images


@dataclass(frozen=True)
class Receipt:
    """What a run did.

    Attributes:
        images: N.
        found: images that an earlier, unfinished run had encoded.
        taken: images whose features came from an older cache of the same encoder.
        seconds: the rest took.
        raw_bytes: of all features before compression.
        stored_bytes: of all shards.
    """

    images: int
    found: int
    taken: int
    seconds: float
    raw_bytes: int
    stored_bytes: int

    @property
    def encoded(self) -> int:
        """Images that this run encoded."""
        return self.images - self.found - self.taken


def encode_dataset(
    workspace: Workspace,
    images: Sequence[ImageFile],
    folder: Path,
    encoder: Encoder,
    settings: EncodeSettings,
    tell: Callable[[str], None],
) -> Receipt:
    """Encode what is missing, here, and put the store together; see `make_cache`."""
    return make_cache(workspace, images, folder, LocalMaker(encoder, settings), settings, tell)


def make_cache(
    workspace: Workspace,
    images: Sequence[ImageFile],
    folder: Path,
    maker: Maker,
    settings: EncodeSettings,
    tell: Callable[[str], None],
) -> Receipt:
    """Make what is missing and put the store together.

    Args:
        workspace: has the places of the store and of the work in progress.
        images: in row order.
        folder: where their files lie.
        maker: makes shards.
        settings: dtype, codec and size of shards.
        tell: takes sentences for the user.

    Raises:
        BusyError: another process encodes here.
        SpaceError: the cache cannot fit, or the disk has filled.
        ImageError, DataError: an image cannot be decoded, or is not the one that ingest saw.
        CacheError: features that the dtype cannot hold.
    """
    with lock(work_lock(workspace), work="encoding images"):
        run = _Run(workspace, images, folder, maker, settings)
        run.drop_damaged(tell)
        found = run.rows_there()
        if found:
            tell(f"{found:,} of {len(images):,} images are already encoded.")
        taken = run.take_over(tell)
        run.check_space(tell)
        started = time.monotonic()
        run.make_missing()
        seconds = time.monotonic() - started
        stored = run.assemble()
    return Receipt(len(images), found, taken, seconds, len(images) * run.layout.image_bytes, stored)


class _Run:
    """One run over the missing shards."""

    def __init__(
        self, workspace: Workspace, images: Sequence[ImageFile], folder: Path, maker: Maker, settings: EncodeSettings
    ) -> None:
        self._workspace, self._images, self._folder, self._maker = workspace, images, folder, maker
        self._fingerprint = fingerprint_of(maker.fields)
        self._hashes = [image.sha256 for image in images]
        self._clear_partial()
        self._catalogue = Catalogue(workspace, self._fingerprint)
        self.layout = Layout(
            maker.grid,
            maker.cells,
            maker.channels,
            settings.dtype,
            settings.codec,
            settings.shard_images,
            self._scales() if settings.dtype == "uint8" else None,
        )
        self._shards = plan(self._fingerprint, self._hashes, self.layout)
        self._catalogue.plan(self._shards, self._hashes, self.layout)
        self._jobs: list[Job] = []

    def _clear_partial(self) -> None:
        """Remove what a killed process was writing; the lock is ours, so nobody still is."""
        folder = work_folder(self._workspace, self._fingerprint)
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(".*.partial"):
            path.unlink(missing_ok=True)

    def _scales(self) -> Quantisation:
        """The scales that these images' features were first given here, or those that fit the first of them.

        Those of a data set of which no image is left would cut this one's features off.
        """
        if not self._catalogue.knows(self._hashes):
            self._catalogue.forget()
        if self._catalogue.quantisation is None:
            self._catalogue.keep_scales(self._maker.calibrate(self._images[:CALIBRATION], self._folder))
        assert self._catalogue.quantisation is not None
        return self._catalogue.quantisation

    def _file(self, shard: Shard) -> Path:
        return work_file(self._workspace, self._fingerprint, shard.key)

    def _missing(self) -> list[Shard]:
        return [shard for shard in self._shards if not self._file(shard).exists()]

    def drop_damaged(self, tell: Callable[[str], None]) -> None:
        """Delete finished shards that are not what was written: assembled, their hash would vouch for the damage."""
        there = {self._file(shard): shard.rows for shard in self._shards if self._file(shard).exists()}
        with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "check") as pool:
            whole = pool.map(lambda path: shard_is_whole(path, self.layout.shard_images, there[path]), there)
            damaged = [path for path, fits in zip(there, whole, strict=True) if not fits]
        for path in damaged:
            path.unlink()
        if damaged:
            tell(f"{len(damaged):,} of {len(there):,} finished shards are damaged and are made again.")

    def rows_there(self) -> int:
        """Rows that an earlier run has finished."""
        return len(self._images) - sum(shard.rows for shard in self._missing())

    def take_over(self, tell: Callable[[str], None]) -> int:
        """Link whole shards of an older cache, and find the rows that lie in others; returns how many rows."""
        linked = self._catalogue.take_shards(self._missing())
        missing = self._missing()
        hashes = [self._hashes[row] for shard in missing for row in range(shard.start, shard.stop)]
        old = iter(self._catalogue.old_rows(hashes, self.layout))
        for shard in missing:
            self._jobs.append(
                Job(
                    shard,
                    tuple(self._images[shard.start : shard.stop]),
                    tuple(next(old) for _ in range(shard.rows)),
                    self._folder,
                    self._file(shard),
                    self.layout,
                    self._fingerprint,
                )
            )
        taken = linked + len(hashes) - self._new
        if taken:
            tell(f"{taken:,} of {len(self._images):,} images are taken over from an earlier cache of the same encoder.")
        return taken

    @property
    def _new(self) -> int:
        """Images to be encoded."""
        return sum(old is None for job in self._jobs for old in job.old)

    def check_space(self, tell: Callable[[str], None]) -> None:
        """Say the size on disk and refuse what cannot fit; DVC keeps a second copy in its cache.

        Only if the raw size would not fit are some images encoded to see how far they compress.
        """
        images, todo = len(self._images), sum(job.shard.rows for job in self._jobs)
        free = shutil.disk_usage(self._workspace.root).free
        each = float(self.layout.image_bytes)
        tell(
            f"The cache needs at most {_size(images * each)} ({images:,} x {self.layout.cells} regions x "
            f"{self.layout.channels} channels, {self.layout.dtype}, before compression); {_size(free)} are free."
        )
        if (images + todo) * each > free:
            each = SAFETY * self._compressed_image()
            tell(f"Compressed, about {_size(images * each)}.")
        if (images + todo) * each > free:
            raise SpaceError(
                f"The feature cache cannot fit: {_size(todo * each)} are still to be written and DVC keeps a copy of "
                f"{_size(images * each)}, together {_size((images + todo) * each)}, but {self._workspace.root} has "
                f"{_size(free)} free. Make room, or set a smaller encode.image_size, or encode.dtype: uint8."
            )

    def _compressed_image(self) -> float:
        done = [shard for shard in self._shards if self._file(shard).exists()]
        if done:
            return sum(self._file(shard).stat().st_size for shard in done) / sum(shard.rows for shard in done)
        return self._maker.sample(self._images[:SAMPLE], self._folder, self.layout)

    def make_missing(self) -> None:
        """Make every missing shard."""
        if not self._jobs:
            return
        total, done = len(self._images), len(self._images) - self._new
        with tqdm(total=total, initial=done, unit=" images", desc="encode") as bar:
            self._maker.make(self._jobs, bar.update)

    def assemble(self) -> int:
        """Put the store together; returns its bytes."""
        pairs = [(shard, self._file(shard)) for shard in self._shards]
        ids = [image.id for image in self._images]
        assemble(self._workspace.features, pairs, self.layout, self._maker.fields, ids, self._hashes)
        self._catalogue.finish(self._shards)
        return sum(path.stat().st_size for _, path in pairs)


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
