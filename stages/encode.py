"""Stage encode: images in, feature cache out, by a frozen backbone that runs once.

Owns which files the stage reads and writes and what it tells. Knows no decoder.
"""

import click

from pipeline.datasets.dataset import images_folder, read_images
from pipeline.encoding import EncodeSettings, Receipt, encode_dataset, open_encoder
from pipeline.files import Workspace


def run(workspace: Workspace, settings: EncodeSettings, images: str) -> None:
    """Encode every image of the data set into `data/features.zarr`.

    Args:
        workspace: reads `data/dataset/images.jsonl` and the images, writes `data/features.zarr`.
        settings: the section `encode`.
        images: `data.images`, the user's folder.
    """
    files = read_images(workspace.dataset)
    encoder = open_encoder(settings)
    fields, engine = encoder.fields, encoder.engine
    if fields["weights"] == "random":
        click.echo(
            "The weights of the backbone are random: this is a demonstration of the pipeline. For real captions set "
            "encode.backbone to resnet50 or resnet101 and encode.weights to default."
        )
    click.echo(
        f"{fields['backbone']} ({fields['weights']}) at {fields['image_size']} px: {engine.grid[0]} x {engine.grid[1]} "
        f"regions of {engine.channels} channels, by {engine.name} in {engine.precision} on {engine.device}."
    )
    folder = images_folder(workspace.dataset, workspace.root / images)
    receipt = encode_dataset(workspace, files, folder, encoder, settings, click.echo)
    _tell(receipt)
    workspace.log("encode", _record(receipt))


def _tell(receipt: Receipt) -> None:
    new = receipt.images - receipt.found
    click.echo(
        f"Encoded {new:,} images in {receipt.seconds:.0f} s; the cache holds {receipt.images:,} in "
        f"{receipt.stored_bytes / 1e6:,.1f} MB, {receipt.stored_bytes / receipt.raw_bytes:.3f} of the raw features."
    )


def _record(receipt: Receipt) -> dict[str, float]:
    new = receipt.images - receipt.found
    return {
        "images": receipt.images,
        "encoded": new,
        "seconds": round(receipt.seconds, 3),
        "images_per_second": round(new / max(receipt.seconds, 1e-9), 2),
        "stored_bytes": receipt.stored_bytes,
        "raw_bytes": receipt.raw_bytes,
    }
