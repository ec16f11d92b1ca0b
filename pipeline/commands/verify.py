"""`freezeframe cache verify`: is every byte of the cache what was written, and is it of the data set as it is?

Owns the order of looking, what is done about a store that is being replaced meanwhile, and the wording. Does not know
how a file is judged (`features.audit`) nor how it is mended (`commands.repair`).
"""

import errno
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.commands.repair import Mended, Repair
from pipeline.datasets.dataset import ImageFile, images_folder, read_images
from pipeline.encoding.growth import Catalogue
from pipeline.errors import CacheError, MissingError
from pipeline.features.audit import Fault, Store, audit_metadata, audit_plan, audit_shards, audit_sources, open_store
from pipeline.features.integrity import work_lock
from pipeline.files import Workspace, lock
from pipeline.vision.encoder import EncodeSettings

REMEDIES = {
    "shard": 'Broken and missing shards: run "freezeframe cache verify --repair".',
    "refused": (
        'What a repair here cannot mend: have these shards encoded anew by "dvc repro --force encode", or, if another '
        "machine made the cache, run the repair there."
    ),
    "metadata": (
        'Broken metadata: run "freezeframe encode", which puts the store together anew from what is whole, then '
        '"freezeframe cache verify --repair".'
    ),
    "stale": 'The data set has changed since: run "dvc repro".',
    "stray": "What does not belong to the store: delete it; DVC would count it as a change.",
    "changed": (
        'Changed source images: put them back, or take them in by "dvc repro --force ingest", then "dvc repro": only '
        "they are encoded."
    ),
}


@dataclass(frozen=True)
class Report:
    """What a verification found.

    Attributes:
        path: of the store.
        shards: its manifest lists.
        images: N.
        bytes: its shards have, all of them read.
        seconds: that took.
        sources: source images read, None if they were not.
        mended: what was made whole again.
        faults: what is wrong, or still wrong after a repair.
    """

    path: str
    shards: int
    images: int
    bytes: int
    seconds: float
    sources: int | None
    mended: tuple[Mended, ...]
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class _Look:
    store: Store
    faults: list[Fault]
    seconds: float


def verify(workspace: Workspace, settings: Mapping[str, Any], fast: bool = False, repair: bool = False) -> Report:
    """Read the whole cache, and the source images unless `fast`; with `repair`, mend what can be mended.

    Args:
        workspace: of the cache.
        settings: all sections.
        fast: leave the source images out.
        repair: make broken and missing shards whole again.

    Raises:
        MissingError: there is no cache, or no data set.
        CacheError: the cache's metadata cannot be understood.
        BusyError: something seems wrong and the cache is being written; or, for a repair, another process encodes.
    """
    images = read_images(workspace.dataset)
    folder = images_folder(workspace.dataset, workspace.root / settings["data"].images)
    mended: list[Mended] = []
    if repair:
        with _writing(workspace):
            found = _look(workspace, images)
            mended, faults = _repair(workspace, found, images, folder, settings["encode"])
    else:
        found = _look_twice(workspace, images)
        faults = found.faults
    sources = [] if fast else _sources(folder, images)
    shards = found.store.manifest.shards
    return Report(
        path=str(workspace.features),
        shards=len(shards),
        images=found.store.shape[0],
        bytes=sum(record.bytes for record in shards),
        seconds=round(found.seconds, 3),
        sources=None if fast else len(images),
        mended=tuple(mended),
        faults=(*faults, *sources),
    )


def _writing(workspace: Workspace) -> AbstractContextManager[None]:
    return lock(work_lock(workspace), work="encoding images")


def _look_twice(workspace: Workspace, images: Sequence[ImageFile]) -> _Look:
    """Look, and again at what seems wrong while nobody can be replacing it.

    A store is replaced by renaming a folder, so that a reader of many files may meet two stores, or for an instant
    none. Only what is still wrong under the writers' lock is wrong. Where no writer has ever been there is none now,
    and who may not write cannot have the lock: then the first look counts.
    """
    with ExitStack() as held:
        try:
            found = _look(workspace, images)
        except (CacheError, MissingError):
            if not _lock_out(workspace, held):
                raise
            return _look(workspace, images)
        if not found.faults or not _lock_out(workspace, held):
            return found
        return _look(workspace, images, found)


def _lock_out(workspace: Workspace, held: ExitStack) -> bool:
    """Keep writers out until `held` is left; False where there is no lock, or none for this user."""
    if not work_lock(workspace).exists():
        return False
    try:
        held.enter_context(_writing(workspace))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return False
    return True


def _look(workspace: Workspace, images: Sequence[ImageFile], before: _Look | None = None) -> _Look:
    """Read the store; of one that has been looked at before, only the shards that were found wrong."""
    store = _open(workspace, images)
    same = before is not None and before.store.manifest == store.manifest
    only = {fault.file for fault in before.faults} if before is not None and same else None
    records = [record for record in store.manifest.shards if only is None or record.file in only]
    started = time.monotonic()
    with tqdm(total=sum(record.bytes for record in records), unit="B", unit_scale=True, desc="verify") as bar:
        faults = audit_shards(store, records, bar.update)
    seconds = before.seconds if before is not None and same else time.monotonic() - started
    faults += audit_metadata(store, images) + audit_plan(
        store, images, Catalogue(workspace, store.manifest.fingerprint).images()
    )
    return _Look(store, faults, seconds)


def _open(workspace: Workspace, images: Sequence[ImageFile]) -> Store:
    try:
        return open_store(workspace.features, images)
    except CacheError as error:
        raise CacheError(
            f"{error} If that brings the same back, DVC's own copy is damaged as well. {REMEDIES['metadata']}"
        ) from error


def _repair(
    workspace: Workspace, found: _Look, images: Sequence[ImageFile], folder: Path, settings: EncodeSettings
) -> tuple[list[Mended], list[Fault]]:
    work = Repair(workspace, found.store, images, folder, settings)
    mended, faults = work.mend(found.faults)
    return [*mended, *work.mend_copies(faults)], faults


def _sources(folder: Path, images: Sequence[ImageFile]) -> list[Fault]:
    with tqdm(total=len(images), unit=" images", desc="sources") as bar:
        return audit_sources(folder, images, bar.update)


def report_text(report: Report) -> str:
    """The same for people: one line if all is well."""
    size = f"{report.bytes / 1e9:.2f} GB" if report.bytes >= 1e9 else f"{report.bytes / 1e6:.1f} MB"
    size = (
        f"{report.shards:,} shards, {report.images:,} images, {size} read in {report.seconds:.1f} s "
        f"({report.bytes / 1e9 / max(report.seconds, 1e-3):.2f} GB/s)"
    )
    mended = [f"mended   {one.file}: {one.how}" for one in report.mended]
    if not report.faults:
        sources = f"; {report.sources:,} source images are unchanged" if report.sources is not None else ""
        return "\n".join([*mended, f"{report.path} is whole: {size}{sources}."])
    remedies = dict.fromkeys(REMEDIES[_remedy(fault)] for fault in report.faults)
    return "\n".join([f"{report.path}: {size}", *mended, *map(_line, report.faults), *remedies])


def _line(fault: Fault) -> str:
    rows = f", rows {fault.start:,}-{fault.stop - 1:,}" if fault.stop - fault.start > 1 else f", row {fault.start:,}"
    return f"{fault.kind:<8} {fault.file}{rows if fault.stop > fault.start else ''}: {fault.reason}"


def _remedy(fault: Fault) -> str:
    if fault.kind not in ("broken", "missing"):
        return fault.kind
    return "metadata" if fault.file.endswith(".json") else "shard"
