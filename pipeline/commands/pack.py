"""`freezeframe pack`: the data set as the older tutorials' files.

Owns what goes into them: squared images, words by this project's rules, a fixed number of captions an image. How the
files look is `pipeline.datasets.hdf5`'s.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.datasets.dataset import Dataset, DataSettings, images_folder, read_dataset
from pipeline.datasets.hdf5 import CAPTIONS_PER_IMAGE, END, IMAGES, MARKS, PAD, PARTS, START, UNKNOWN, Names, word_map
from pipeline.errors import SettingsError
from pipeline.files import Workspace, replacing, require
from pipeline.hdf5 import writing_hdf5
from pipeline.language.captions import choose, short_enough
from pipeline.language.vocabulary import TokenizeSettings, Vocabulary
from pipeline.language.words import tokenize
from pipeline.vision.images import Preprocessing, load_image

Words = Sequence[str]


@dataclass(frozen=True)
class PackSettings:
    """What the tutorials' own script takes.

    Attributes:
        image_size: pixels, the side of the square.
        captions_per_image: how many each image has in the files.
        min_word_frequency: words said no more often in the training captions are unknown; None asks for the words of
            the stage tokenize, one less than its `min_count`.
        name: the data set's, with which the files' base name begins; None is its format's.
    """

    image_size: int
    captions_per_image: int
    min_word_frequency: int | None
    name: str | None


def pack_dataset(
    workspace: Workspace,
    data: DataSettings,
    words: TokenizeSettings,
    folder: Path,
    settings: PackSettings,
    tell: Callable[[str], None],
) -> None:
    """Write `data/dataset/` as the tutorials' ten files, an image at a time.

    Images are squashed to a square with bilinear interpolation. An image's captions are sampled where there are more
    than asked for, and repeated where there are fewer. None of the files takes its name before all are written.

    Args:
        workspace: whose data set is packed.
        data: says where the user's images are.
        words: `max_length`, `max_words` and `seed` count here too.
        folder: for the files; others in it stay, older ones of the same name are replaced.
        settings: what to write.
        tell: takes sentences for the user.

    Raises:
        MissingError: ingest has not run, or the images are gone.
        ImageError: an image cannot be decoded.
        SettingsError: the name would lead out of the folder.
        SpaceError: the disk is full.
    """
    dataset = read_dataset(workspace.dataset)
    images = require(images_folder(workspace.dataset, workspace.root / data.images))
    often = words.min_count - 1 if settings.min_word_frequency is None else settings.min_word_frequency
    names = Names(folder, _base(settings.name or dataset.summary["format"], settings.captions_per_image, often))
    spoken = [[tokenize(text) for text in example.captions] for example in dataset.examples]
    training = (said for row in dataset.rows("train") for said in spoken[row])
    known = word_map(list(Vocabulary.of(training, often + 1, words.max_words).ids))
    chosen = [
        choose(short_enough(said, words.max_length), settings.captions_per_image, words.seed, example.id)
        for example, said in zip(dataset.examples, spoken, strict=True)
    ]
    with ExitStack() as whole:
        # The last to be entered takes its name first, so the word map, without which no reader starts, comes last.
        whole.enter_context(replacing(names.word_map)).write_text(json.dumps(known), encoding="utf-8")
        for part in PARTS:
            rows = [row for row in dataset.rows(PARTS[part]) if chosen[row]]
            _write_captions(whole, names, part, [chosen[row] for row in rows], known, words.max_length)
            pixels = _pixels([images / dataset.examples[row].file for row in rows], settings.image_size)
            target = whole.enter_context(replacing(names.images(part)))
            _write_images(target, tqdm(pixels, part, len(rows), unit=" images"), len(rows), settings)
    _tell(tell, dataset, chosen, names, known)


def _base(name: str, captions_per_image: int, min_word_frequency: int) -> str:
    """The base name of the files, as the tutorials build it."""
    base = f"{name}_{captions_per_image}_cap_per_img_{min_word_frequency}_min_word_freq"
    if Path(base).name != base or base.startswith("."):
        raise SettingsError(f"--name must be part of a file's name; expected something like flickr8k, found {name!r}.")
    return base


def _pixels(paths: Sequence[Path], size: int) -> Iterator[NDArray[np.uint8]]:
    """Squared images, (3, size, size) each."""
    square = Preprocessing(size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear")
    return (square.apply(load_image(path)).transpose(2, 0, 1) for path in paths)


def _write_images(path: Path, pixels: Iterable[NDArray[np.uint8]], count: int, settings: PackSettings) -> None:
    with writing_hdf5(path) as (file, check):
        file.attrs[CAPTIONS_PER_IMAGE] = settings.captions_per_image
        images = file.create_dataset(IMAGES, (count, 3, settings.image_size, settings.image_size), np.uint8)
        for row, own in enumerate(pixels):
            images[row] = own
            check()


def _write_captions(
    whole: ExitStack,
    names: Names,
    part: str,
    captions: Sequence[Sequence[Words]],
    numbers: Mapping[str, int],
    max_length: int,
) -> None:
    said = [words for own in captions for words in own]
    encoded = (_encoded(words, numbers, max_length) for words in said)
    _write_list(whole.enter_context(replacing(names.captions(part))), map(json.dumps, encoded))
    _write_list(whole.enter_context(replacing(names.lengths(part))), (str(len(words) + 2) for words in said))


def _encoded(words: Words, numbers: Mapping[str, int], max_length: int) -> list[int]:
    """`<start> w1 .. wn <end>`, padded to the longest caption that may be."""
    said = (numbers[word] if _is_known(word, numbers) else numbers[UNKNOWN] for word in words)
    return [numbers[START], *said, numbers[END], *[numbers[PAD]] * (max_length - len(words))]


def _is_known(word: str, numbers: Mapping[str, int]) -> bool:
    return word in numbers and word not in MARKS  # no caption can write a mark


def _write_list(path: Path, entries: Iterator[str]) -> None:
    """A JSON list, an entry at a time."""
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        for number, entry in enumerate(entries):
            file.write(f", {entry}" if number else entry)
        file.write("]")


def _tell(
    tell: Callable[[str], None],
    dataset: Dataset,
    chosen: Sequence[Sequence[Words]],
    names: Names,
    known: Mapping[str, int],
) -> None:
    packed = sum(bool(own) for own in chosen)
    words = [word for own in chosen for said in own for word in said]
    unknown = sum(not _is_known(word, known) for word in words)
    tell(
        f"Packed {packed:,} images and {sum(map(len, chosen)):,} captions into {names.folder} as *_{names.base}.*: "
        f"{len(known) - len(MARKS):,} words are known, {unknown:,} of {len(words):,} said ones are {UNKNOWN}. The "
        "files carry no ids: images are in the order of dataset.jsonl, a split a file."
    )
    silent = [example.id for example, own in zip(dataset.examples, chosen, strict=True) if not own]
    if silent:
        tell(f"Left out {len(silent):,} images whose captions have no word: {', '.join(silent[:10])}.")
