"""What makes shards: threads of this process, a cluster, or the reading of another program's file.

Owns what the run asks of any of them, and the one that works here. Does not know which shards are missing.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pipeline.datasets.dataset import ImageFile
from pipeline.encoding.job import SHARDS_IN_WORK, Job, Workshop
from pipeline.features.store import Layout, Quantisation
from pipeline.vision.encoder import Encoder, EncodeSettings


class Maker(Protocol):
    """Whatever makes shards.

    Attributes:
        fields: all that determines an image's features, apart from the image.
        grid: rows and columns; None where regions have no place.
        cells: R.
        channels: C.
    """

    fields: dict[str, Any]
    grid: tuple[int, int] | None
    cells: int
    channels: int

    def calibrate(self, images: Sequence[ImageFile], folder: Path) -> Quantisation:
        """Find the scales for uint8 from some images."""
        ...

    def sample(self, images: Sequence[ImageFile], folder: Path, layout: Layout) -> float:
        """Bytes an image needs in the cache, from some images."""
        ...

    def make(self, jobs: Sequence[Job], advance: Callable[[int], object]) -> None:
        """Make all shards; `advance` is told how many images have been encoded."""
        ...


class LocalMaker:
    """Makes shards in this process: one dask task a shard, two at once so that the engine never waits."""

    def __init__(self, encoder: Encoder, settings: EncodeSettings) -> None:
        self.fields, self.channels = encoder.fields, encoder.engine.channels
        self.grid: tuple[int, int] | None = encoder.engine.grid
        self.cells = encoder.engine.grid[0] * encoder.engine.grid[1]
        self._encoder, self._settings = encoder, settings

    def calibrate(self, images: Sequence[ImageFile], folder: Path) -> Quantisation:
        """See `Maker.calibrate`."""
        with Workshop(self._encoder, self._settings) as workshop:
            return workshop.calibrate(images, folder)

    def sample(self, images: Sequence[ImageFile], folder: Path, layout: Layout) -> float:
        """See `Maker.sample`."""
        with Workshop(self._encoder, self._settings) as workshop:
            return workshop.sample(images, folder, layout)

    def make(self, jobs: Sequence[Job], advance: Callable[[int], object]) -> None:
        """See `Maker.make`; an error or Ctrl-C ends all tasks after their present batch."""
        from dask.base import compute
        from dask.delayed import delayed

        with ThreadPoolExecutor(SHARDS_IN_WORK, "shard") as tasks, Workshop(self._encoder, self._settings) as workshop:
            # An argument of a task would be searched for other tasks, through every image and every scale of a job.
            work = [delayed(partial(workshop.make, job, advance), pure=False, traverse=False)() for job in jobs]
            compute(*work, scheduler="threads", pool=tasks)  # type: ignore[no-untyped-call]
