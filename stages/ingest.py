"""The stage ingest: captions and images of any format become `data/dataset/`.

Owns the order of its steps and what it tells. Knows no format and no decoder.
"""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pipeline import files
from pipeline.datasets.checked import Checked, check_images
from pipeline.datasets.dataset import SPLITS, DataSettings, Example, write_dataset
from pipeline.datasets.readers import Source, open_source
from pipeline.datasets.shapes import draw_shapes
from pipeline.datasets.splits import require_every_split
from pipeline.errors import ImageError
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
        decoded = _draw(workspace, settings) if settings.format == "shapes" else _read(workspace, settings)
        workspace.log("ingest", {"seconds": round(time.monotonic() - started, 2), "decoded": decoded})


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
