"""What runs on a worker of a cluster: one workshop, opened once, and the checks that its bytes are those of the others.

Owns what a worker must have in common with the client (code, libraries, encoder, disk) and how many cores it uses. Does
not know which jobs there are, nor which other workers.
"""

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from distributed import Worker
from distributed.protocol.pickle import loads

from pipeline.encoding.handover import Parcel, send
from pipeline.encoding.job import SHARDS_IN_WORK, Job, Made, Workshop
from pipeline.errors import ClusterError, FreezeframeError
from pipeline.features.integrity import differences
from pipeline.files import sha256, sha256_of_json
from pipeline.version import VERSION
from pipeline.vision.encoder import Encoder, EncodeSettings, open_encoder

CODE = ("*.py", "encoding/*.py", "features/*.py", "vision/*.py")  # of pipeline/: what decides about a shard's bytes
LIBRARIES = ("dask", "distributed", "numcodecs", "numpy")  # beside those of the encoder's fields


@cache
def identity() -> dict[str, str]:
    """What code this process runs, as it was when first asked: a file edited later is not what has been loaded."""
    root = Path(__file__).parents[1]
    files = sorted(path for pattern in CODE for path in root.glob(pattern))
    code = sha256_of_json([[path.relative_to(root).as_posix(), sha256(path)] for path in files])
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {"freezeframe": VERSION, "code": code[:12], "python": python, **{name: version(name) for name in LIBRARIES}}


@dataclass(frozen=True)
class Description:
    """What a worker's encoder is: see `Maker`."""

    fields: dict[str, Any]
    grid: tuple[int, int] | None
    cells: int
    channels: int


@dataclass(frozen=True)
class Request:
    """Work for a worker, and what it must be to do it.

    Attributes:
        fields: its encoder must have.
        seen: files that it must see.
        work: what to do in its workshop.
    """

    fields: dict[str, Any]
    seen: tuple[Path, ...]
    work: Callable[[Workshop], Any]


class Station:
    """A worker's workshop: opened when first needed, in the thread that needs it, so that the worker stays responsive.

    The worker's `--nthreads` is the number of cores it uses, for arithmetic as for decoding: dask's own meaning, and
    right on a machine of several workers, where each would otherwise take all cores.
    """

    def __init__(self, settings: EncodeSettings, expected: dict[str, str]) -> None:
        self._settings, self._expected = settings, expected

    def settle(self, worker: Worker) -> None:
        """Take a place on a worker: its address, its cores."""
        self._address, self._cores = worker.address, worker.state.nthreads
        self._opening, self._turns = threading.Lock(), threading.BoundedSemaphore(SHARDS_IN_WORK)
        self._workshop: Workshop | None = None

    def close(self) -> None:
        """The client has done or gone: what still runs fails at its next batch."""
        if self._workshop is not None:
            self._workshop.close()

    def describe(self) -> Description:
        """What the encoder of this worker is."""
        encoder = self._open().encoder
        grid = encoder.engine.grid
        return Description(encoder.fields, grid, grid[0] * grid[1], encoder.engine.channels)

    def do(self, pickled: bytes) -> Any:
        """Do a `Request`.

        Raises:
            ClusterError: this worker is not fit for it.
            FreezeframeError: whatever the work raises, with the worker's name.
        """
        self._require("its code", self._expected, identity())
        request: Request = loads(pickled)
        with self._turns:
            workshop = self._open()
            self._require("its encoder", request.fields, workshop.encoder.fields)
            for path in request.seen:
                self._require_seen(path)
            try:
                return request.work(workshop)
            except FreezeframeError as error:
                raise type(error)(f"{error} (Said by worker {self._address}.)") from error

    def _open(self) -> Workshop:
        with self._opening:
            if self._workshop is None:
                settings = replace(self._settings, workers=self._settings.workers or self._cores)
                self._workshop = Workshop(open_on(self._cores, settings), settings)
            return self._workshop

    def _require(self, what: str, expected: dict[str, Any], found: dict[str, Any]) -> None:
        if expected != found:
            raise ClusterError(misfit(self._address, what, differences(expected, found)))

    def _require_seen(self, path: Path) -> None:
        try:
            path.stat()
        except OSError as error:
            raise ClusterError(
                f"Worker {self._address} cannot see {path}: {error.strerror}. Images must be readable on every worker "
                "under the same path, and so must the project's folder, unless encode.shared names another place where "
                "shards are handed over."
            ) from error


def open_on(cores: int, settings: EncodeSettings) -> Encoder:
    """Open the encoder, its arithmetic on that many cores, at least two: beyond one their number changes no byte."""
    import torch

    # dask leaves one. Never one: torch then takes other kernels for small batches, which round otherwise, while two
    # threads or more agree.
    torch.set_num_threads(max(2, cores))
    return open_encoder(settings)


def misfit(address: str, what: str, differing: list[str]) -> str:
    """The sentence that refuses a worker."""
    return (
        f"Worker {address} would not write the bytes that the others do, for {what} differs: {'; '.join(differing)}. "
        "Restart it with this clone's code and environment; where machines differ, set encode.precision and "
        "encode.engine to what all have, or stop that worker. What was finished is kept."
    )


@dataclass(frozen=True)
class Making:
    """The work of one job: its shard goes to its final place, or to where the client will fetch it.

    Attributes:
        job: the shard to make.
        shared: the address where it is handed over; None on a shared disk.
    """

    job: Job
    shared: str | None

    def __call__(self, workshop: Workshop) -> tuple[Made, Parcel | None]:
        """Make the shard; returns its receipt, and where it was handed over."""
        if self.shared is None:
            return workshop.make(self.job, _no_progress), None
        with TemporaryDirectory(prefix="freezeframe-") as folder:
            path = Path(folder) / self.job.target.name
            made = workshop.make(replace(self.job, target=path), _no_progress)
            return made, send(path, f"{self.shared.rstrip('/')}/{self.job.fingerprint}")


def _no_progress(images: int) -> None:
    """The client counts shards as their receipts come."""
