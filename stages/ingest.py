"""The stage ingest: captions and images of any format become `data/dataset/`.

Owns the order of its steps and what it tells. Knows no format and no decoder.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from pipeline import files
from pipeline.datasets.checked import Checked, check_images
from pipeline.datasets.dataset import SPLITS, DataSettings, Example, write_dataset
from pipeline.datasets.hdf5 import UNKNOWN, unpack_images
from pipeline.datasets.readers import NO_CAPTION, Source, holds_images, open_source, read_captions
from pipeline.datasets.records import Record
from pipeline.datasets.shapes import draw_shapes
from pipeline.datasets.splits import require_every_split
from pipeline.errors import DataError, ImageError
from pipeline.files import Workspace


@dataclass(frozen=True)
class _Survivors:
    examples: list[Example]
    bad: list[tuple[str, str]]


def run(workspace: Workspace, settings: DataSettings) -> None:
    """Write `data/dataset/`: what each image is, its split, its captions and its hash.

    Raises:
        MissingError, DataError: captions, splits or the folder cannot be used.
        ImageError: images cannot be decoded, and `on_bad_image` is `stop`.
        BusyError: another process is at it.
    """
    with files.lock(workspace.work("ingest") / "lock", "ingesting"):
        started = time.monotonic()
        decoded = _source(workspace, settings)(workspace, settings)
        workspace.log("ingest", {"seconds": round(time.monotonic() - started, 2), "decoded": decoded})


def _source(workspace: Workspace, settings: DataSettings) -> Callable[[Workspace, DataSettings], int]:
    """What brings the images; each returns how many image files it decoded."""
    if settings.format == "shapes":
        return _draw
    return _unpack if holds_images(workspace.root / settings.captions, settings.format) else _read


def _draw(workspace: Workspace, settings: DataSettings) -> int:
    click.echo(
        "This is a demonstration: coloured shapes drawn by the project, no photographs. "
        'For images of yours: "freezeframe use PRESET --images DIR --captions FILE".'
    )
    with files.replacing_folder(workspace.dataset) as folder:
        images = folder / "images"
        images.mkdir()
        records = draw_shapes(images, settings.drawn_images, settings.seed)
        examples = [
            Example(record.id, record.files[0], record.split, record.captions, files.sha256(images / record.files[0]))
            for record in records
            if record.split is not None
        ]
        _write(folder, examples, {"format": "shapes", "drawn": True, "unlisted": 0, "empty_captions": 0, "skipped": []})
    return 0


def _unpack(workspace: Workspace, settings: DataSettings) -> int:
    """Images that lie in HDF5 become files of the data set, as drawn ones are."""
    place = workspace.root / settings.captions
    _require_one_place(workspace, settings)
    _, records = read_captions(place, "hdf5")
    captions = [tuple(filter(None, record.captions)) for record in records]
    silent = [record.id for record, own in zip(records, captions, strict=True) if not own]
    if silent and settings.on_missing == "stop":
        raise DataError(
            f"{place} holds {len(silent):,} images whose captions have no word, first {', '.join(silent[:10])}. Leave "
            "them out with data.on_missing: skip."
        )
    told = zip(records, captions, strict=True)
    require_every_split(record.split for record, own in told if own and record.split is not None)
    _tell_unpacked(place, records)
    with files.replacing_folder(workspace.dataset) as folder:
        images = folder / "images"
        images.mkdir()
        examples = []
        unpacked = tqdm(unpack_images(place, images, settings.workers), "unpacking", len(records), unit=" images")
        for record, own, (file, sha256) in zip(records, captions, unpacked, strict=True):
            assert record.split is not None
            if own:
                examples.append(Example(record.id, file, record.split, own, sha256))
        empty = sum(not caption for record in records for caption in record.captions)
        skipped = [{"image": name, "reason": NO_CAPTION} for name in silent]
        summary = {"format": "hdf5", "drawn": False, "generated_ids": True, "unlisted": 0, "empty_captions": empty}
        _write(folder, examples, {**summary, "skipped": skipped})
    return 0


def _require_one_place(workspace: Workspace, settings: DataSettings) -> None:
    places = (settings.images, settings.captions, settings.splits)
    if len({(workspace.root / place).resolve() for place in places}) > 1:
        raise DataError(
            f"{settings.captions} holds images, captions and splits in one, so data.images, data.captions and "
            f"data.splits all name that folder; found data.images: {settings.images} and data.splits: "
            f"{settings.splits}."
        )


def _tell_unpacked(place: Path, records: Sequence[Record]) -> None:
    words = [word for record in records for caption in record.captions for word in caption.split()]
    click.echo(
        f"Read {place} as hdf5. Such files carry no ids, so the images are called by split and place, "
        f"{records[0].id} and so on; {words.count(UNKNOWN):,} of {len(words):,} words are {UNKNOWN}, rare words that "
        "their writer left out."
    )


def _read(workspace: Workspace, settings: DataSettings) -> int:
    source = open_source(settings, workspace.root)
    folder = workspace.root / settings.images
    listed = list(dict.fromkeys(image.file for image in source.images))
    checked, decoded = check_images(folder, listed, settings.workers, workspace.work("ingest") / "checked.jsonl")
    survivors = _survivors(source, checked)
    if survivors.bad and settings.on_bad_image == "stop":
        raise ImageError(_told(survivors.bad, folder))
    require_every_split(example.split for example in survivors.examples)
    skipped = [*source.skipped, *survivors.bad]
    summary = {
        "format": source.format,
        "drawn": False,
        "unlisted": source.unlisted,
        "empty_captions": source.empty_captions,
        "skipped": [{"image": name, "reason": reason} for name, reason in skipped],
    }
    click.echo(f"Read {settings.captions} as {source.format}; {decoded} images decoded, {len(listed) - decoded} known.")
    _tell_complaints(checked)
    with files.replacing_folder(workspace.dataset) as temporary:
        _write(temporary, survivors.examples, summary)
    return decoded


def _survivors(source: Source, checked: dict[str, Checked]) -> _Survivors:
    examples, bad = [], []
    for image in source.images:
        found = checked[image.file]
        if found.reason is not None:
            bad.append((image.file, found.reason))
        else:
            examples.append(Example(image.id, image.file, image.split, image.captions, found.sha256))
    return _Survivors(examples, bad)


def _write(folder: Path, examples: list[Example], summary: dict[str, Any]) -> None:
    images = Counter(example.split for example in examples)
    captions = sum(len(example.captions) for example in examples)
    counts = {split: images[split] for split in SPLITS}
    write_dataset(folder, examples, {**summary, "images": counts, "captions": captions})
    parts = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    click.echo(f"{len(examples):,} images ({parts}) with {captions:,} captions.")
    _tell_left_out(summary)


def _tell_left_out(summary: dict[str, Any]) -> None:
    if summary["unlisted"]:
        click.echo(f"Left out {summary['unlisted']:,} images that no split list has.")
    if summary["empty_captions"]:
        click.echo(f"Left out {summary['empty_captions']:,} empty captions.")
    if skipped := summary["skipped"]:
        first = ", ".join(f"{entry['image']} ({entry['reason']})" for entry in skipped[:10])
        click.echo(f"Skipped {len(skipped):,} (all are in summary.json), first: {first}.")


def _tell_complaints(checked: dict[str, Checked]) -> None:
    damaged = [file for file, found in checked.items() if found.complaints and found.reason is None]
    if damaged:
        complaint = checked[damaged[0]].complaints[0].strip()
        click.echo(
            f"Used although their metadata are damaged: {len(damaged):,} images, first {', '.join(damaged[:10])} "
            f"({complaint})."
        )


def _told(bad: list[tuple[str, str]], folder: Path) -> str:
    named = "".join(f"\n  {file}: {reason}" for file, reason in bad[:10])
    more = "\n  ..." if len(bad) > 10 else ""
    count = "1 image cannot" if len(bad) == 1 else f"{len(bad):,} images cannot"
    return (
        f"{count} be decoded in {folder}:{named}{more}\n"
        "Mend or remove what is wrong, or leave these out with data.on_bad_image: skip."
    )
