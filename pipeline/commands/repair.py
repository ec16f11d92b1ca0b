"""Mending a feature cache: broken and missing shards made whole, byte for byte what they were.

Owns where a shard's bytes come from (another whole copy, else the encoder of the cache) and in which places they are
put: the store, the work folder and DVC's own cache, whose read-only files may be the same file by a hard link and then
have the same damage. DVC trusts whatever it finds there, so a store mended alone would be broken again by the next
checkout. Does not know how a fault is found.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from pipeline.datasets.dataset import ImageFile
from pipeline.encoding.imported import ImportMaker
from pipeline.encoding.job import Job
from pipeline.encoding.maker import LocalMaker, Maker
from pipeline.errors import CacheError, WeightsError
from pipeline.features.audit import Fault, Store, digest
from pipeline.features.foreign import open_foreign
from pipeline.features.integrity import SHARD, differences, work_file
from pipeline.features.store import GROUP, ShardRecord
from pipeline.files import Workspace, dvc_object, md5, put, read_json, sha256
from pipeline.settings import read_params
from pipeline.vision.encoder import IMPORTED, EncodeSettings, encoder_like

READ_ONLY = 0o444  # the mode of DVC's own files; one of another mode it would hash again at every look


@dataclass(frozen=True)
class Mended:
    """A file that is whole again, and how it became so."""

    file: str
    how: str


class Repair:
    """One repair of a store; the caller holds the lock of the encode stage."""

    def __init__(
        self,
        workspace: Workspace,
        store: Store,
        images: Sequence[ImageFile],
        folder: Path,
        settings: EncodeSettings,
    ) -> None:
        """Look up what else there is.

        Args:
            workspace: of the store.
            store: as it was read.
            images: of the data set, in row order.
            folder: where their files lie.
            settings: where weights and devices are on this machine.
        """
        self._workspace, self._store, self._images, self._folder = workspace, store, images, folder
        self._settings = settings
        self._objects = dvc_objects(workspace)
        self._scratch = workspace.work("repair")

    def mend(self, faults: Sequence[Fault]) -> tuple[list[Mended], list[Fault]]:
        """Make broken and missing shards whole; returns what was mended, and the faults that are left.

        Raises:
            ImageError, DataError: a source image cannot be decoded, or is not the one that ingest saw.
            WeightsError, DependencyError, DeviceError: the encoder of the cache cannot be built here.
            SpaceError: the disk is full.
        """
        records = {record.file: record for record in self._store.manifest.shards}
        stale = {fault.file for fault in faults if fault.kind == "stale"}
        broken = {fault.file for fault in faults if fault.kind in ("broken", "missing")} & records.keys() - stale
        mended = [self._put(records[file], copy) for file in sorted(broken) if (copy := self._copy(records[file]))]
        left = broken - {one.file for one in mended}
        if any((fault.kind, fault.file) == ("broken", GROUP) for fault in faults):  # so who encoded them is not known
            return mended, [fault for fault in faults if fault.file not in broken or fault.file in left]
        encoded, refused = self._encode([records[file] for file in sorted(left)])
        return [*mended, *encoded], [*(fault for fault in faults if fault.file not in broken), *refused]

    def mend_copies(self, faults: Sequence[Fault]) -> list[Mended]:
        """Replace what DVC's cache and the work folder hold otherwise than the store, apart from its broken shards."""
        wrong = {fault.file for fault in faults}
        records = [record for record in self._store.manifest.shards if record.file not in wrong]
        total = sum(record.bytes for record in records)
        mended = []
        with tqdm(total=total, unit="B", unit_scale=True, desc="copies", disable=not self._objects) as bar:
            for record in records:
                mended += self._mend_copies(record)
                bar.update(record.bytes)
        return mended

    def _real(self, record: ShardRecord) -> Path:
        """The file itself, where the store holds a symbolic link to it."""
        path = self._store.path / record.file
        return path.resolve() if path.is_symlink() else path

    def _copies(self, record: ShardRecord) -> list[Path]:
        work, dvc = self._work_file(record), self._objects.get(record.file)
        return [work, dvc] if dvc else [work]

    def _work_file(self, record: ShardRecord) -> Path:
        return work_file(self._workspace, self._store.manifest.fingerprint, record.key)

    def _copy(self, record: ShardRecord) -> Path | None:
        """Another file with the bytes that the manifest asks for."""
        return next((path for path in self._copies(record) if digest(path).sha256 == record.sha256), None)

    def _put(self, record: ShardRecord, source: Path, how: str | None = None) -> Mended:
        self._replace(source, self._real(record))
        return Mended(record.file, how or f"taken from {source}")

    def _replace(self, source: Path, target: Path) -> None:
        try:
            put(source, target)
            if target in self._objects.values():
                target.chmod(READ_ONLY)
        except PermissionError as error:
            raise CacheError(
                f"{target} is damaged and may not be replaced by you ({error.strerror}). Have its owner run the repair."
            ) from error

    def _encode(self, records: Sequence[ShardRecord]) -> tuple[list[Mended], list[Fault]]:
        if not records:
            return [], []
        mended, refused, total = list[Mended](), list[Fault](), sum(record.rows for record in records)
        shutil.rmtree(self._scratch, ignore_errors=True)
        with self._maker() as maker, tqdm(total=total, unit=" images", desc="repair") as bar:
            for record in records:
                differing = differences(self._store.said["fields"], maker.fields)
                if refused and differing:  # nor would the others come out the same
                    refused.append(_refusal(record, differing))
                    continue
                job = self._job(record)
                maker.make([job], bar.update)
                if sha256(job.target) == record.sha256:
                    mended.append(self._put(record, job.target, "encoded again"))
                else:
                    refused.append(_refusal(record, differing))
                    self._work_file(record).unlink(missing_ok=True)  # or encode would take the damage for finished
                job.target.unlink()
        shutil.rmtree(self._scratch, ignore_errors=True)
        return mended, refused

    @contextmanager
    def _maker(self) -> Iterator[Maker]:
        """What made the store, or the nearest that this machine has."""
        fields = self._store.said["fields"]
        if fields["backbone"] == IMPORTED:
            source = self._workspace.root / self._settings.weights
            if self._settings.backbone != IMPORTED or not source.exists():
                raise WeightsError(
                    f"The features were imported from {fields['weights']} (SHA-256 {fields['weights_sha256']}), which "
                    f"params.yaml does not name. To repair them, set encode.backbone to {IMPORTED} and encode.weights "
                    f'to the path of {fields["weights"]}; found "{self._settings.backbone}" and '
                    f'"{self._settings.weights}".'
                )
            with open_foreign(source) as foreign:
                yield ImportMaker(foreign, self._images, self._settings)
        else:
            yield LocalMaker(encoder_like(fields, self._settings)[0], self._settings)

    def _job(self, record: ShardRecord) -> Job:
        number = self._store.manifest.shards.index(record)
        shard = self._store.planned[number]
        images = tuple(self._images[shard.start : shard.stop])
        target = self._scratch / f"{shard.key}{SHARD}"
        layout, fingerprint = self._store.layout, self._store.manifest.fingerprint
        return Job(shard, images, (None,) * len(images), self._folder, target, layout, fingerprint)

    def _mend_copies(self, record: ShardRecord) -> list[Mended]:
        real, mended = self._real(record), []
        for path in self._copies(record):
            is_dvcs = path == self._objects.get(record.file)
            if path.exists() and (path.samefile(real) or digest(path).sha256 == record.sha256):
                continue
            if is_dvcs and md5(real) == path.parent.name + path.name:
                self._replace(real, path)
                mended.append(Mended(str(path), "DVC's copy, replaced by the store's"))
            elif not is_dvcs and path.exists():
                self._replace(real, path)
                mended.append(Mended(str(path), "the work folder's copy, replaced by the store's"))
        return mended


def dvc_objects(workspace: Workspace) -> dict[str, Path]:
    """By file of the store as DVC last recorded it: the file of DVC's cache that should hold the same bytes.

    Empty where this is no DVC project, or DVC has never taken the store over, or has forgotten it.
    """
    record = workspace.root / "dvc.lock"
    stages = read_params(record).get("stages", {}) if record.exists() else {}
    own = workspace.features.relative_to(workspace.root).as_posix()
    names = [out["md5"] for out in stages.get("encode", {}).get("outs", ()) if out["path"] == own and "md5" in out]
    listing = dvc_object(workspace.root, names[0]) if names else None
    if listing is None:
        return {}
    folder = listing.resolve().parents[1]
    entries = read_json(listing)
    return {entry["relpath"]: folder / entry["md5"][:2] / entry["md5"][2:] for entry in entries}


def _refusal(record: ShardRecord, differing: Sequence[str]) -> Fault:
    """Why a shard that was encoded again is not put in."""
    why = "; ".join(differing) or "the processor's instructions or a library's build differ"
    reason = f"made again on this machine it has other bytes than those written ({why}), so it was not put in"
    return Fault("refused", record.file, record.start, record.start + record.rows, reason)
