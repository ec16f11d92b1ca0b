from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.datasets.dataset import Example, images_folder, read_dataset, read_images, write_dataset
from pipeline.errors import DataError, MissingError

EXAMPLES = (
    Example("b.jpg", "x/b.jpg", "test", ("A dog", "na\u00efve\u2028line\x85end\nlast"), "00"),
    Example("a.jpg", "a.jpg", "train", ("A cat",), "11"),
)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_dataset(tmp_path, EXAMPLES, {"drawn": False})
    dataset = read_dataset(tmp_path)
    assert dataset.examples == EXAMPLES
    assert dataset.ids == ("b.jpg", "a.jpg")
    assert (dataset.rows("train"), dataset.rows("validation")) == ([1], [])


def test_drawn_images_lie_beside_the_list_and_others_where_the_user_keeps_them(tmp_path: Path) -> None:
    assert images_folder(tmp_path, Path("/photos")) == Path("/photos")
    (tmp_path / "images").mkdir()
    assert images_folder(tmp_path, Path("/photos")) == tmp_path / "images"


def test_encoding_depends_on_nothing_that_is_said_of_an_image(tmp_path: Path) -> None:
    write_dataset(tmp_path, EXAMPLES, {"drawn": False})
    before = (tmp_path / "images.jsonl").read_bytes()
    files = read_images(tmp_path)
    assert [(file.id, file.file, file.sha256) for file in files] == [(e.id, e.file, e.sha256) for e in EXAMPLES]
    said = [replace(example, captions=("another",), split="test") for example in EXAMPLES]
    write_dataset(tmp_path, said, {"drawn": False})
    assert (tmp_path / "images.jsonl").read_bytes() == before


def test_a_line_that_was_cut_is_named(tmp_path: Path) -> None:
    write_dataset(tmp_path, EXAMPLES, {"drawn": False})
    path = tmp_path / "dataset.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"dataset\.jsonl, line 2: .*dvc repro -f ingest"):
        read_dataset(tmp_path)


def test_an_absent_data_set_names_the_stage_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="dvc repro ingest"):
        read_dataset(tmp_path)
