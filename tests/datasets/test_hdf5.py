import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.hdf5 import unpack_images, word_map
from pipeline.datasets.readers import holds_images, read_captions
from pipeline.errors import DataError, MissingError
from tests.datasets.packed import BASE, WORDS, numbers, pixels, write, write_packed


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    write(path, change(json.loads(path.read_text())))


def test_captions_are_read_through_the_word_map_and_ids_are_made(tmp_path: Path) -> None:
    found, records = read_captions(write_packed(tmp_path), "auto")
    assert found == "hdf5"
    assert [(record.id, record.split) for record in records] == [
        ("train-000000", "train"),
        ("train-000001", "train"),
        ("train-000002", "train"),
        ("validation-000000", "validation"),
        ("test-000000", "test"),
    ]
    assert [record.captions for record in records] == [
        ("a cat",),  # repeated to fill up, kept once
        ("dog runs", "a dog runs"),
        ("runs", "a <unk> cat"),
        ("cat runs", "cat"),
        ("dog", "a dog"),
    ]
    assert records[2].files == ("train-000002.png",)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_images_are_unpacked_without_loss(tmp_path: Path, workers: int) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    unpacked = list(unpack_images(write_packed(tmp_path / "packed"), folder, workers))
    assert [name for name, _ in unpacked] == [
        "train-000000.png",
        "train-000001.png",
        "train-000002.png",
        "validation-000000.png",
        "test-000000.png",
    ]
    found = [np.asarray(Image.open(folder / name)).transpose(2, 0, 1) for name, _ in unpacked]
    expected = np.concatenate([pixels(part) for part in ("TRAIN", "VAL", "TEST")])
    assert np.array_equal(np.stack(found), expected)
    for name, sha256 in unpacked:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256


def test_more_images_than_a_block_keep_their_order(tmp_path: Path) -> None:
    count = 131
    write_packed(tmp_path)
    many = np.arange(count, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 3, 2, 2), np.uint8)
    with h5py.File(tmp_path / f"TRAIN_IMAGES_{BASE}.hdf5", "w") as file:
        file["images"] = many
    (tmp_path / "out").mkdir()
    names = [name for name, _ in unpack_images(tmp_path, tmp_path / "out", 2)][:count]
    shown = [int(np.asarray(Image.open(tmp_path / "out" / name))[0, 0, 0]) for name in names]
    assert shown == list(range(count))


def test_a_word_map_is_the_tutorials() -> None:
    assert word_map(["a", "cat", "dog", "runs"]) == WORDS


def test_only_a_folder_of_such_files_holds_its_images(tmp_path: Path) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("a.png#0\tA\n")
    assert not holds_images(captions, "auto")
    assert not holds_images(captions, "flickr")
    assert holds_images(write_packed(tmp_path / "packed"), "auto")
    assert not holds_images(tmp_path / "packed", "coco")
    with pytest.raises(DataError, match=r"not of the format hdf5:\n  hdf5: it is a file"):
        holds_images(captions, "hdf5")


def test_a_folder_of_no_format_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"of no known format:(.|\n)*hdf5: the folder has no TRAIN_IMAGES_"):
        holds_images(tmp_path, "auto")


def swapped(words: list[int]) -> list[int]:
    return [words[0], words[-1], *words[1:-1]]


TRAIN_CAPTIONS, TRAIN_LENGTHS = f"TRAIN_CAPTIONS_{BASE}.json", f"TRAIN_CAPLENS_{BASE}.json"
WORD_MAP = f"WORDMAP_{BASE}.json"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (TRAIN_CAPTIONS, lambda own: own[:-1], r"expected a list of 6 entries, .* found 5"),
        (TRAIN_LENGTHS, lambda own: [*own, 3], r"expected a list of 6 entries, .* found 7"),
        (TRAIN_CAPTIONS, lambda own: {"captions": own}, r"found no list"),
        (TRAIN_CAPTIONS, lambda own: [*own[:2], [6, 99, 7, 0], *own[3:]], r"entry 2: the word map has no word for 99"),
        (TRAIN_CAPTIONS, lambda own: [*own[:4], "runs", own[5]], r"entry 4: expected a list of whole numbers"),
        (TRAIN_CAPTIONS, lambda own: [own[0], [*own[1][:2], 1.5], *own[2:]], r"entry 1: expected a list of whole"),
        (TRAIN_LENGTHS, lambda own: [*own[:3], 4, *own[4:]], r"entry 3: expected <start>, words and <end>, together 4"),
        (TRAIN_LENGTHS, lambda own: ["4", *own[1:]], r"entry 0: .* together \"4\""),
        (TRAIN_CAPTIONS, lambda own: [own[0][1:], *own[1:]], r"entry 0: expected <start>"),
        (TRAIN_CAPTIONS, lambda own: [[6, 7, 1, 7, 0, 0], *own[1:]], r"entry 0: expected <start>"),
        (WORD_MAP, lambda words: {**words, "cat": 1}, r"gives one number to two words"),
        (WORD_MAP, lambda words: {k: v for k, v in words.items() if k != "<end>"}, r"lacks <end>"),
        (WORD_MAP, lambda words: list(words), r"is no word map"),
        (WORD_MAP, lambda words: {**words, "cat": "2"}, r"is no word map"),
    ],
)
def test_files_that_contradict_each_other_are_refused(
    tmp_path: Path, file: str, change: Callable[[Any], Any], message: str
) -> None:
    write_packed(tmp_path)
    edit(tmp_path / file, change)
    with pytest.raises(DataError, match=rf"(?s){BASE}.json.*{message}"):
        read_captions(tmp_path, "hdf5")


def test_a_missing_file_of_the_set_is_named(tmp_path: Path) -> None:
    write_packed(tmp_path)
    (tmp_path / f"VAL_CAPLENS_{BASE}.json").unlink()
    with pytest.raises(MissingError, match="VAL_CAPLENS"):
        read_captions(tmp_path, "auto")


def test_two_sets_in_a_folder_are_refused(tmp_path: Path) -> None:
    write_packed(write_packed(tmp_path), "other")
    with pytest.raises(DataError, match=rf"found 2 \(other, {BASE}\). Give each set a folder of its own"):
        read_captions(tmp_path, "auto")


@pytest.mark.parametrize("kept", [3, 700, 2000])
def test_a_cut_file_of_images_is_named(tmp_path: Path, kept: int) -> None:
    path = write_packed(tmp_path) / f"TRAIN_IMAGES_{BASE}.hdf5"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"TRAIN_IMAGES_.*cannot be read as HDF5: .*cut short"):
        read_captions(tmp_path, "auto")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (np.zeros((3, 3, 4, 4), np.float32), r"float32 \(3, 3, 4, 4\)"),
        (np.zeros((3, 4, 4, 3), np.uint8), r"uint8 \(3, 4, 4, 3\)"),
        (np.zeros((3, 3, 4), np.uint8), r"uint8 \(3, 3, 4\)"),
        (None, r"none; the file holds pictures"),
    ],
)
def test_images_of_another_shape_are_refused(tmp_path: Path, data: Any, found: str) -> None:
    with h5py.File(write_packed(tmp_path) / f"TRAIN_IMAGES_{BASE}.hdf5", "w") as file:
        file.attrs["captions_per_image"] = 2
        file["pictures" if data is None else "images"] = 1 if data is None else data
    with pytest.raises(DataError, match=rf'expected a dataset "images", uint8 \(N, 3, rows, columns\), found {found}'):
        read_captions(tmp_path, "auto")


@pytest.mark.parametrize("value", [None, 0, "two", [2, 2]])
def test_the_number_of_captions_an_image_must_be_there(tmp_path: Path, value: Any) -> None:
    with h5py.File(write_packed(tmp_path) / f"TRAIN_IMAGES_{BASE}.hdf5", "a") as file:
        del file.attrs["captions_per_image"]
        if value is not None:
            file.attrs["captions_per_image"] = value
    with pytest.raises(DataError, match='expected the attribute "captions_per_image", a number from 1'):
        read_captions(tmp_path, "auto")


def test_the_samples_are_what_they_say() -> None:
    assert numbers(["a", "cat"]) == [6, 1, 2, 7, 0, 0]
