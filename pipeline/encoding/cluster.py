"""The same shards on a dask.distributed cluster, byte for byte.

Owns the client's side: who may work, which jobs are out, what their receipts say, and how it is told when something is
missing or lost. Does not know how a worker makes a shard, nor which shards there are.
"""

import contextlib
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from operator import methodcaller
from pathlib import Path
from typing import Any, cast

from distributed import Client, Future, KilledWorker, wait
from distributed.protocol.pickle import dumps

from pipeline.datasets.dataset import ImageFile
from pipeline.encoding.connection import LOST, ROOT, connected, guest, plugin_name, station_task
from pipeline.encoding.handover import Parcel, fetch
from pipeline.encoding.job import SHARDS_IN_WORK, Job, Made, taken_rows
from pipeline.encoding.station import Description, Making, Request, Station, identity, misfit
from pipeline.errors import CacheError, ClusterError, FreezeframeError
from pipeline.features.integrity import differences
from pipeline.features.store import Layout, Quantisation
from pipeline.features.writer import write_shard
from pipeline.vision.encoder import EncodeSettings

LOOK, ARRIVE = 2.0, 60.0  # seconds: between looks for workers; for a network disk to show a file


@contextlib.contextmanager
def open_cluster(address: str, settings: EncodeSettings, tell: Callable[[str], None]) -> Iterator["ClusterMaker"]:
    """Connect to a scheduler and see that its workers fit; at the end they forget their encoders.

    Args:
        address: of the scheduler, `tcp://HOST:8786`.
        settings: the section `encode`; `resource` is what a worker must offer, `shared` where shards are handed over.
        tell: takes sentences for the user.

    Raises:
        ClusterError: no scheduler, no worker, none that offers the resource, workers of different code or encoders, or
            the scheduler was lost.
        WeightsError, MissingError, DependencyError, DeviceError: what a worker says when it opens the encoder.
    """
    with connected(address) as client:
        maker = ClusterMaker(client, address, settings, tell)
        maker.admit()
        yield maker


class ClusterMaker:
    """Makes shards on the workers of a cluster; see `Maker`."""

    def __init__(self, client: Client, address: str, settings: EncodeSettings, tell: Callable[[str], None]) -> None:
        self._client, self._address, self._settings, self._tell = client, address, settings, tell
        self._resources = {settings.resource: 1 / SHARDS_IN_WORK} if settings.resource else None
        self._waiting_told = False

    def admit(self) -> None:
        """Refuse workers that would not write the same bytes, and learn what the encoder is.

        Raises:
            ClusterError: see `open_cluster`.
        """
        workers = self._workers()
        self._client.register_plugin(guest(Station(self._settings, identity())), name=plugin_name(self._client))
        for address, found in self._ask(workers, identity).items():
            self._require(address, "its code", identity(), found)
        descriptions = self._ask(workers, _describe, plugin_name(self._client))
        first = next(iter(descriptions.values()))
        for address, found in descriptions.items():
            self._require(address, "its encoder", first.fields, found.fields)
        self.fields, self.grid, self.cells, self.channels = first.fields, first.grid, first.cells, first.channels
        self._tell(f"{len(workers)} worker{'s' * (len(workers) != 1)} at {self._address}{self._dashboard()}.")

    def calibrate(self, images: Sequence[ImageFile], folder: Path) -> Quantisation:
        """See `Maker.calibrate`."""
        work = methodcaller("calibrate", images, folder)
        return cast(Quantisation, self._one(Request(self.fields, (folder / images[0].file,), work)))

    def sample(self, images: Sequence[ImageFile], folder: Path, layout: Layout) -> float:
        """See `Maker.sample`."""
        work = methodcaller("sample", images, folder, layout)
        return cast(float, self._one(Request(self.fields, (folder / images[0].file,), work)))

    def make(self, jobs: Sequence[Job], advance: Callable[[int], object]) -> None:
        """See `Maker.make`; what an error or Ctrl-C leaves undone is taken back.

        Raises:
            ClusterError: workers were lost again and again over one shard, or cannot see the files, or the scheduler
                was lost.
            FreezeframeError: whatever a worker says of an image or a disk.
        """
        waiting, out = deque(self._sendable(jobs)), dict[Future[Any], Job]()
        with _beacon(jobs[0].target.parent) as beacon:
            try:
                while waiting or out:
                    while waiting and len(out) < SHARDS_IN_WORK * max(1, len(self._offering())):
                        job = waiting.popleft()
                        out[self._submit(self._making(job, beacon))] = job
                    for future in self._finished(out):
                        job = out.pop(future)
                        self._receive(job, self._result(future, f"Shard {job.shard.number}"))
                        advance(sum(old is None for old in job.old))
            finally:
                with contextlib.suppress(*LOST, OSError):
                    self._client.cancel(list(out))

    def _sendable(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """The jobs for workers: where they share no disk, shards of old rows alone are put together here."""
        for job in jobs:
            rows = taken_rows(job) if self._settings.shared and None not in job.old else {}
            if len(rows) == job.shard.rows:
                write_shard(job.target, [rows[row] for row in range(job.shard.rows)], job.layout)
            else:
                yield job

    def _making(self, job: Job, beacon: Path) -> Request:
        image, shared = job.folder / job.images[0].file, self._settings.shared
        if shared:  # old rows are not at hand there; encoded again they are the same
            return Request(self.fields, (image,), Making(replace(job, old=(None,) * len(job.old)), shared))
        older = {old.path for old in job.old if old is not None}
        return Request(self.fields, (image, beacon, *sorted(older)), Making(job, None))

    def _submit(self, request: Request) -> Future[Any]:
        # All at once would assign them all at once: a worker that joins later would find none, and one that dies again
        # and again would drag into its death what it had not begun.
        work = station_task(plugin_name(self._client))
        return self._client.submit(work, dumps(request), pure=False, resources=self._resources)

    def _one(self, request: Request) -> Any:
        return self._result(self._submit(request), "A first look at the images")

    def _finished(self, out: dict[Future[Any], Job]) -> set[Future[Any]]:
        try:
            return cast(set[Future[Any]], wait(list(out), timeout=LOOK, return_when="FIRST_COMPLETED").done)
        except TimeoutError:
            alone = not self._offering()
            if alone and not self._waiting_told:
                self._tell(f"No worker is left; waiting for one. {self._remedy()}")
            self._waiting_told = alone
            return set()

    def _result(self, future: Future[Any], what: str) -> Any:
        error = future.exception()
        if error is None or isinstance(error, FreezeframeError):
            return future.result()
        if isinstance(error, KilledWorker):
            raise ClusterError(
                f"{what} has ended {error.allowed_failures + 1} workers, the last of them {error.last_worker.address}. "
                "Their logs say why; most often the memory was too small: give them more, or set a smaller "
                "encode.batch_size. What was finished is kept."
            ) from error
        raise ClusterError(
            f"{what} failed on a worker: {type(error).__name__}: {error}. The worker's log says more. What was "
            "finished is kept; run the same command again to go on."
        ) from error

    def _receive(self, job: Job, receipt: tuple[Made, Parcel | None]) -> None:
        made, parcel = receipt
        if parcel is not None:
            fetch(parcel, job.target)
        deadline = time.monotonic() + ARRIVE
        while not (job.target.exists() and job.target.stat().st_size == made.bytes):
            if time.monotonic() > deadline:
                raise CacheError(
                    f"A worker has written {job.target} with {made.bytes:,} bytes, but this machine does not see it. "
                    "Both must share that disk, or set encode.shared."
                )
            time.sleep(0.2)  # a network disk may show another machine's files late

    def _known(self) -> dict[str, Any]:
        """The workers that the scheduler knows.

        Raises:
            ConnectionError: the scheduler was lost, and what it knew with it.
        """
        info = self._client.scheduler_info(n_workers=-1)
        if "workers" not in info:
            raise ConnectionError(f"{self._address} knows no workers any more")
        return cast(dict[str, Any], info["workers"])

    def _offering(self) -> list[str]:
        """The workers that may be given work."""
        workers, resource = self._known(), self._settings.resource
        return [address for address, worker in workers.items() if not resource or resource in worker["resources"]]

    def _workers(self) -> list[str]:
        workers = self._known()
        if not workers:
            raise ClusterError(f"The scheduler at {self._address} has no worker. {self._remedy()}")
        offering = self._offering()
        if not offering:
            offered = sorted({name for worker in workers.values() for name in worker["resources"]})
            raise ClusterError(
                f"encode.resource {self._settings.resource}: none of the {len(workers)} workers at {self._address} "
                f"offers it; they offer {', '.join(offered) or 'nothing'}. {self._remedy()}"
            )
        return offering

    def _remedy(self) -> str:
        resource = self._settings.resource
        offering = f" --resources {resource}=1" if resource else ""
        return f'Start one in the environment of this project: "dask worker {self._address}{offering}".'

    def _ask(self, workers: list[str], question: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """Ask every worker at once.

        Raises:
            FreezeframeError: the first error of ours that a worker tells, with its name.
            ClusterError: a worker cannot even be asked.
        """
        answers = self._client.run(question, *arguments, workers=workers, on_error="return")
        for address, answer in answers.items():
            if isinstance(answer, FreezeframeError):
                raise type(answer)(f"{answer} (Said by worker {address}.)") from answer
            if isinstance(answer, Exception):
                raise ClusterError(
                    f"Worker {address} cannot run this project's code: {type(answer).__name__}: {answer}. Start it in "
                    f"the environment of this project, or with PYTHONPATH set to {ROOT}."
                ) from answer
        return cast(dict[str, Any], answers)

    def _require(self, address: str, what: str, expected: dict[str, Any], found: dict[str, Any]) -> None:
        if expected != found:
            raise ClusterError(misfit(address, what, differences(expected, found)))

    def _dashboard(self) -> str:
        with contextlib.suppress(KeyError):  # the scheduler has none
            return f"; dashboard: {self._client.dashboard_link}"
        return ""


@contextlib.contextmanager
def _beacon(folder: Path) -> Iterator[Path]:
    """A file in the folder of shards, for workers to see whether they share its disk."""
    path = folder / f".beacon.{secrets.token_hex(8)}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


async def _describe(name: str, dask_worker: Any) -> Description:
    import asyncio

    return await asyncio.to_thread(lambda: dask_worker.plugins[name].station.describe())
