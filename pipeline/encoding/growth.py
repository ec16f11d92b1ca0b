"""What was encoded before: shards and rows that a changed data set takes over instead of encoding them again.

Owns the catalogue of a fingerprint's shards: which images each holds and, once its store was finished, its MD5, by
which DVC's own cache has it after the stage's out has been deleted. Does not know how a shard is made.
"""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline.encoding.job import OldRow
from pipeline.errors import CacheError, DataError
from pipeline.features.integrity import SHARD, shard_is_whole, work_file, work_folder
from pipeline.features.store import Codec, Layout, Quantisation, Shard, quantisation_json, quantisation_of
from pipeline.files import Workspace, dvc_object, md5, put, read_json, write_json

CATALOGUE = "catalogue.json"


@dataclass(frozen=True)
class Entry:
    """One shard that was planned or finished.

    Attributes:
        key: its name in the work folder.
        images: SHA-256 of each row's image.
        codec: of its rows.
        shard_images: rows that its index has room for.
        md5: of its file, None until its store was finished.
    """

    key: str
    images: tuple[str, ...]
    codec: Codec
    shard_images: int
    md5: str | None


class Catalogue:
    """The shards of one fingerprint, over all data sets that were encoded with it here."""

    def __init__(self, workspace: Workspace, fingerprint: str) -> None:
        self._workspace, self._fingerprint = workspace, fingerprint
        self._path = work_folder(workspace, fingerprint) / CATALOGUE
        self._entries: dict[str, Entry] = {}
        self.quantisation: Quantisation | None = None
        if self._path.exists():
            self._read()

    def _read(self) -> None:
        try:
            said = read_json(self._path)
            entries = [Entry(**{**entry, "images": tuple(entry["images"])}) for entry in said["shards"]]
            self.quantisation = quantisation_of(said["quantisation"])
        except (DataError, TypeError, KeyError, ValueError, AttributeError) as error:
            raise CacheError(
                f"{self._path}, which notes where older features lie, is damaged ({error}). Delete it. What "
                "only an older cache holds is encoded anew then; of uint8, whose scales it keeps, perhaps everything."
            ) from error
        self._entries = {entry.key: entry for entry in entries}

    def images(self) -> dict[str, tuple[str, ...]]:
        """By key, the image hashes of every shard that is known here."""
        return {key: entry.images for key, entry in self._entries.items()}

    def knows(self, hashes: Iterable[str]) -> bool:
        """Whether any of these images was planned or encoded before."""
        return any(not entry.isdisjoint(hashes) for entry in map(frozenset, self.images().values()))

    def forget(self) -> None:
        """Forget everything that was made with the scales of uint8 so far; entries do not tell by which they were."""
        self._entries, self.quantisation = {}, None
        self._delete_forgotten()
        self._write()

    def keep_scales(self, quantisation: Quantisation) -> None:
        """Fix the scales of uint8 for as long as images that were encoded with them are among the present ones."""
        self.quantisation = quantisation
        self._write()

    def plan(self, shards: Sequence[Shard], hashes: Sequence[str], layout: Layout) -> None:
        """Note the shards of the present data set, so that whatever is finished of them can be found again."""
        for shard in shards:
            images = tuple(hashes[shard.start : shard.stop])
            self._entries.setdefault(shard.key, Entry(shard.key, images, layout.codec, layout.shard_images, None))
        self._write()

    def finish(self, shards: Sequence[Shard]) -> None:
        """Note where DVC will have the shards of a finished store, and forget those that hold nothing more."""
        unknown = [shard.key for shard in shards if self._entries[shard.key].md5 is None]
        files = [work_file(self._workspace, self._fingerprint, key) for key in unknown]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "hash") as pool:
            for key, name in zip(unknown, pool.map(md5, files), strict=True):
                self._entries[key] = replace(self._entries[key], md5=name)
        kept = {shard.key: self._entries[shard.key] for shard in shards}
        present = {image for entry in kept.values() for image in entry.images}
        for key, entry in self._entries.items():
            if key not in kept and not present.issuperset(entry.images):
                kept[key] = entry
        self._entries = kept
        self._delete_forgotten()
        self._write()

    def _delete_forgotten(self) -> None:
        for path in self._path.parent.glob(f"*{SHARD}"):
            if path.name.removesuffix(SHARD) not in self._entries:
                path.unlink()

    def take_shards(self, shards: Iterable[Shard]) -> int:
        """Link those shards into the work folder that lie elsewhere as they are; returns how many rows they hold."""
        rows = 0
        for shard in shards:
            target = work_file(self._workspace, self._fingerprint, shard.key)
            entry = self._entries[shard.key]
            source = None if target.exists() else self._elsewhere(entry)
            if source is not None and shard_is_whole(source, entry.shard_images, shard.rows):
                put(source, target)
                rows += shard.rows
        return rows

    def old_rows(self, hashes: Sequence[str], layout: Layout) -> list[OldRow | None]:
        """Where the features of each image lie already."""
        wanted = set(hashes)
        places: dict[str, OldRow] = {}
        for entry in self._entries.values():
            if not wanted.isdisjoint(entry.images) and (path := self._somewhere(entry)):
                own = replace(layout, codec=entry.codec, shard_images=entry.shard_images)
                for row, image in enumerate(entry.images):
                    places.setdefault(image, OldRow(path, row, len(entry.images), own))
        return [places.get(image) for image in hashes]

    def _somewhere(self, entry: Entry) -> Path | None:
        file = work_file(self._workspace, self._fingerprint, entry.key)
        return file if file.exists() else self._elsewhere(entry)

    def _elsewhere(self, entry: Entry) -> Path | None:
        """The shard in DVC's cache, if what lies there is still what was put there."""
        if entry.md5 is None:
            return None
        path = dvc_object(self._workspace.root, entry.md5)
        return path if path is not None and md5(path) == entry.md5 else None

    def _write(self) -> None:
        shards = [asdict(entry) for entry in self._entries.values()]
        write_json(self._path, {"quantisation": quantisation_json(self.quantisation), "shards": shards})
