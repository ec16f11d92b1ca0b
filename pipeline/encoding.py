"""From images to a finished cache: what the encode stage and a repair share.

Owns the order of the work: one dask task a missing shard, several decoding threads, one engine, and how a killed run
goes on. Does not know what a backbone is or how a shard is laid out. Loads no torch until an encoder is opened.
"""

import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline.datasets.dataset import ImageFile
from pipeline.errors import DataError, SpaceError
from pipeline.features.integrity import work_file, work_folder, work_lock
from pipeline.features.store import Layout, Shard, fingerprint_of, plan
from pipeline.features.writer import assemble, shard_bytes, to_dtype, write_shard
from pipeline.files import Workspace, lock, sha256
from pipeline.vision.encoder import Encoder, EncodeSettings, encoder_like, open_encoder

__all__ = ["EncodeSettings", "Encoder", "Receipt", "encode_dataset", "encoder_like", "open_encoder"]

SHARDS_IN_WORK = 2  # one in the engine while the other is decoded, compressed or written
BATCHES_AHEAD = 2
SAFETY = 1.1  # of the estimated size on disk


@dataclass(frozen=True)
class Receipt:
    """What a run did.

    Attributes:
        images: N.
        found: images that an earlier, unfinished run had encoded.
        seconds: the rest took.
        raw_bytes: of all features before compression.
        stored_bytes: of all shards.
    """

    images: int
    found: int
    seconds: float
    raw_bytes: int
    stored_bytes: int


def encode_dataset(
    workspace: Workspace,
    images: Sequence[ImageFile],
    folder: Path,
    encoder: Encoder,
    settings: EncodeSettings,
    tell: Callable[[str], None],
) -> Receipt:
    """Encode what is missing and put the store together.

    Args:
        workspace: has the places of the store and of the work in progress.
        images: in row order.
        folder: where their files lie.
        encoder: encodes them.
        settings: sizes of shards and batches, threads.
        tell: takes sentences for the user.

    Raises:
        BusyError: another process encodes here.
        SpaceError: the cache cannot fit, or the disk has filled.
        ImageError, DataError: an image cannot be decoded, or is not the one that ingest saw.
        CacheError: features that the dtype cannot hold.
    """
    hashes = [image.sha256 for image in images]
    layout = Layout(encoder.engine.grid, encoder.engine.channels, settings.dtype, settings.shard_images)
    shards = plan(fingerprint_of(encoder.fields), hashes, layout)
    with lock(work_lock(workspace), work="encoding images"):
        run = _Run(workspace, images, folder, encoder, settings, layout, shards)
        run.clear_partial()
        found = sum(shard.rows for shard in shards if run.file(shard).exists())
        if found:
            tell(f"{found:,} of {len(hashes):,} images are already encoded.")
        run.check_space(tell)
        started = time.monotonic()
        run.encode_missing()
        seconds = time.monotonic() - started
        pairs = [(shard, run.file(shard)) for shard in shards]
        assemble(workspace.features, pairs, layout, encoder.fields, [image.id for image in images], hashes)
        stored = sum(path.stat().st_size for _, path in pairs)
    return Receipt(len(hashes), found, seconds, len(hashes) * layout.image_bytes, stored)


class _Run:
    """One run over the missing shards."""

    def __init__(
        self,
        workspace: Workspace,
        examples: Sequence[ImageFile],
        folder: Path,
        encoder: Encoder,
        settings: EncodeSettings,
        layout: Layout,
        shards: list[Shard],
    ) -> None:
        self._workspace, self._examples, self._folder = workspace, examples, folder
        self._encoder, self._layout, self._shards = encoder, layout, shards
        self._batch = settings.batch_size
        self._threads = settings.workers or os.cpu_count() or 1
        self._fingerprint = fingerprint_of(encoder.fields)

    def file(self, shard: Shard) -> Path:
        return work_file(self._workspace, self._fingerprint, shard)

    def clear_partial(self) -> None:
        """Remove what a killed process was writing; the lock is ours, so nobody still is."""
        folder = work_folder(self._workspace, self._fingerprint)
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(".*.partial"):
            path.unlink()

    @property
    def _missing(self) -> list[Shard]:
        return [shard for shard in self._shards if not self.file(shard).exists()]

    def check_space(self, tell: Callable[[str], None]) -> None:
        """Say the size on disk and refuse what cannot fit; DVC keeps a second copy in its cache.

        Only if the raw size would not fit are some images encoded to see how far they compress.
        """
        images, todo = len(self._examples), sum(shard.rows for shard in self._missing)
        free = shutil.disk_usage(self._workspace.root).free
        each = float(self._layout.image_bytes)
        tell(
            f"The cache needs at most {_size(images * each)} ({images:,} x {self._layout.cells} regions x "
            f"{self._layout.channels} channels, {self._layout.dtype}, before compression); {_size(free)} are free."
        )
        if (images + todo) * each > free and todo:
            each = SAFETY * self._compressed_image()
            tell(f"Compressed, about {_size(images * each)}.")
        if (images + todo) * each > free:
            raise SpaceError(
                f"The feature cache cannot fit: {_size(todo * each)} are still to be written and DVC keeps a copy of "
                f"{_size(images * each)}, together {_size((images + todo) * each)}, but {self._workspace.root} has "
                f"{_size(free)} free. Make room, or set a smaller encode.image_size or encode.dtype: float16."
            )

    def _compressed_image(self) -> float:
        done = [shard for shard in self._shards if self.file(shard).exists()]
        if done:
            return sum(self.file(shard).stat().st_size for shard in done) / sum(shard.rows for shard in done)
        few = self._examples[: min(8, self._layout.shard_images)]
        regions = self._encoder.encode([self._load(example) for example in few])
        return len(shard_bytes(to_dtype(regions, self._layout, [one.id for one in few]), self._layout)) / len(few)

    def encode_missing(self) -> None:
        """One task a missing shard; an error or Ctrl-C ends all of them after their present batch."""
        from dask.base import compute
        from dask.delayed import delayed

        missing = self._missing
        if not missing:
            return
        with ExitStack() as stack:
            total = len(self._examples)
            done = total - sum(shard.rows for shard in missing)
            self._progress = stack.enter_context(tqdm(total=total, initial=done, unit=" images", desc="encode"))
            tasks = stack.enter_context(ThreadPoolExecutor(SHARDS_IN_WORK, "shard"))
            self._decoding = stack.enter_context(ThreadPoolExecutor(self._threads, "decode"))
            # One thread of its own: an arithmetic library keeps a team of threads for each one that calls it. The
            # last to open is the first to close, and then no task gets beyond its present batch.
            self._computing = stack.enter_context(ThreadPoolExecutor(1, "engine"))
            work = [delayed(self._encode_shard, pure=False, traverse=False)(shard) for shard in missing]
            compute(*work, scheduler="threads", pool=tasks)  # type: ignore[no-untyped-call]

    def _encode_shard(self, shard: Shard) -> int:
        """Encode and write one shard; returns its bytes."""
        examples = self._examples[shard.start : shard.stop]
        regions = np.empty((shard.rows, self._layout.cells, self._layout.channels), self._layout.dtype)
        row = 0
        for images in self._batches(examples):
            encoded = self._computing.submit(self._encoder.encode, images).result()
            names = [example.id for example in examples[row : row + len(images)]]
            regions[row : row + len(images)] = to_dtype(encoded, self._layout, names)
            row += len(images)
            self._progress.update(len(images))
        return write_shard(self.file(shard), regions, self._layout)

    def _batches(self, examples: Sequence[ImageFile]) -> Iterator[list[np.ndarray]]:
        """Decoded batches, a few of them ahead of the engine."""
        ahead: deque[list[Future[np.ndarray]]] = deque()
        for start in range(0, len(examples), self._batch):
            ahead.append([self._decoding.submit(self._load, one) for one in examples[start : start + self._batch]])
            if len(ahead) > BATCHES_AHEAD:
                yield [future.result() for future in ahead.popleft()]
        while ahead:
            yield [future.result() for future in ahead.popleft()]

    def _load(self, example: ImageFile) -> np.ndarray:
        path = self._folder / example.file
        if path.exists() and sha256(path) != example.sha256:
            raise DataError(f'{path} has changed since ingest saw it. Run "dvc repro ingest" to take it in again.')
        return self._encoder.load(path)


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
