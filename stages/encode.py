"""Stage encode: images in, feature cache out, by a frozen backbone that runs once.

Owns which files the stage reads and writes, who makes the shards, and what it tells. Knows no decoder.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import click

from pipeline.datasets.dataset import images_folder, read_images
from pipeline.encoding.imported import import_features
from pipeline.encoding.maker import LocalMaker, Maker
from pipeline.encoding.run import Receipt, make_cache
from pipeline.files import Workspace
from pipeline.vision.encoder import IMPORTED, EncodeSettings, open_encoder

LOCAL = "local"  # encode.scheduler: no cluster


def run(workspace: Workspace, settings: EncodeSettings, images: str) -> None:
    """Encode every image of the data set into `data/features.zarr`.

    Args:
        workspace: reads `data/dataset/images.jsonl` and the images, writes `data/features.zarr`.
        settings: the section `encode`.
        images: `data.images`, the user's folder.
    """
    files = read_images(workspace.dataset)
    if settings.backbone == IMPORTED:
        done, receipt = "Imported", import_features(workspace, files, settings, click.echo)
    else:
        with _maker(settings) as maker:
            _introduce(maker)
            folder = images_folder(workspace.dataset, workspace.root / images)
            done, receipt = "Encoded", make_cache(workspace, files, folder, maker, settings, click.echo)
    _tell(done, receipt)
    workspace.log("encode", _record(receipt))


@contextmanager
def _maker(settings: EncodeSettings) -> Iterator[Maker]:
    """Whoever makes the shards: a cluster if its address is given, else this process."""
    address = os.environ.get("DASK_SCHEDULER_ADDRESS") if settings.scheduler == LOCAL else settings.scheduler
    if not address:
        yield LocalMaker(open_encoder(settings), settings)
        return
    from pipeline.encoding.cluster import open_cluster

    with open_cluster(address, settings, click.echo) as maker:
        yield maker


def _introduce(maker: Maker) -> None:
    fields = maker.fields
    if fields["weights"] == "random":
        click.echo(
            "The weights of the backbone are random: this is a demonstration of the pipeline. For real captions set "
            "encode.backbone to resnet50 or resnet101 and encode.weights to default."
        )
        if fields["precision"] == "int8":
            click.echo(
                "In int8 it demonstrates speed alone: the batch norms that the ranges come from have seen no "
                "photographs, so features are far from those in float32."
            )
    grid = " x ".join(map(str, maker.grid or (maker.cells,)))
    until = f" up to {fields['layer']}" if "layer" in fields else ""
    click.echo(
        f"{fields['backbone']} ({fields['weights']}){until} at {fields['image_size']} px: {grid} regions of "
        f"{maker.channels} channels, by {fields['engine']} in {fields['precision']} on {fields['device']}."
    )


def _tell(done: str, receipt: Receipt) -> None:
    click.echo(
        f"{done} {receipt.encoded:,} images in {receipt.seconds:.0f} s; the cache holds {receipt.images:,} in "
        f"{receipt.stored_bytes / 1e6:,.1f} MB, {receipt.stored_bytes / receipt.raw_bytes:.3f} of the raw features."
    )


def _record(receipt: Receipt) -> dict[str, float]:
    return {
        "images": receipt.images,
        "encoded": receipt.encoded,
        "seconds": round(receipt.seconds, 3),
        "images_per_second": round(receipt.encoded / max(receipt.seconds, 1e-9), 2),
        "stored_bytes": receipt.stored_bytes,
        "raw_bytes": receipt.raw_bytes,
    }
