"""`freezeframe score`: this project's metrics for anyone's captions.

Owns the matching of captions with references. Does not know the files' forms, and prints nothing.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from pipeline.commands.caption_files import References, read_references, read_said
from pipeline.errors import DataError
from pipeline.language.words import tokenize
from pipeline.scoring.scores import score_captions, signature


def score_files(captions: Path, references: Path) -> dict[str, Any]:
    """Score captions against references; both are split into words as everywhere in this project.

    Where the references know splits, every image of a captioned split must have a caption. Where they are of a whole
    data set without splits (COCO's annotations, a Flickr token file), the captioned images count. In any other file
    captions and references must be of the same images.

    Args:
        captions: this project's `captions.json`, a COCO result file, a JSON mapping of image to caption, JSON lines,
            or a table `image,caption`.
        references: any captions file that ingest reads, `dataset.jsonl`, this project's `captions.json`, or a JSON
            mapping of image to a list of captions.

    Returns:
        The scores as `metrics.json` names them, `images` and `signature`.

    Raises:
        MissingError: a file is not there.
        DataError: a file is of no known form, an image stands twice, or the two do not hold the same images.
    """
    said = read_said(captions)
    known = read_references(references, said)
    _refuse(said.keys() - known.captions.keys(), f"captioned in {captions} have no references in {references}")
    expected, split = _expected(said, known)
    _refuse(expected - said.keys(), f"of {references} have no caption in {captions}")
    words = {image: [tokenize(text) for text in known.captions[image]] for image in said}
    scores = score_captions([tokenize(text) for text in said.values()], list(words.values()))
    line = signature(words, split=split, search="search not told", unknown="<unk> counts as a word")
    return {**scores, "images": len(said), "signature": line}


def _expected(said: Collection[str], known: References) -> tuple[set[str], str]:
    """The images that must be captioned, and what to call them."""
    splits = {known.splits[image] for image in said if image in known.splits}
    if splits:
        return {image for image, split in known.splits.items() if split in splits}, " and ".join(sorted(splits))
    if known.partial:
        return set(), f"not told, of {len(known.captions):,} images with references"
    return set(known.captions), "not told"


def _refuse(missing: set[str], where: str) -> None:
    if missing:
        more = ", ..." if len(missing) > 10 else ""
        raise DataError(
            f"{len(missing):,} images {where}: {', '.join(sorted(missing)[:10])}{more}. Scores are comparable "
            "only over the same images: give both files the same ids."
        )
