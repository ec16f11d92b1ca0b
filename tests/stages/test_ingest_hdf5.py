"""Ingest of the older tutorials' files: images leave HDF5 and become the data set's own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.dataset import DataSettings, images_folder, read_dataset, read_images
from pipeline.errors import DataError
from pipeline.files import Workspace, sha256
from stages import ingest
from tests.datasets import builders
from tests.datasets.packed import BASE, numbers, pixels, write, write_packed


def settings(root: Path, **changes: Any) -> DataSettings:
    place = str(root / "packed")
    return builders.settings(root, **{"images": place, "captions": place, "splits": place, **changes})


@pytest.mark.parametrize("named", ["auto", "hdf5"])
def test_packed_files_become_a_data_set_with_images_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], named: str
) -> None:
    write_packed(tmp_path / "packed")
    workspace = Workspace(tmp_path)
    ingest.run(workspace, settings(tmp_path, format=named))
    dataset = read_dataset(workspace.dataset)
    assert [dataset.rows(split) for split in ("train", "validation", "test")] == [[0, 1, 2], [3], [4]]
    assert dataset.examples[1].captions == ("dog runs", "a dog runs")
    folder = images_folder(workspace.dataset, tmp_path / "nowhere")
    for image in read_images(workspace.dataset):
        assert sha256(folder / image.file) == image.sha256
    third = np.asarray(Image.open(folder / dataset.examples[2].file)).transpose(2, 0, 1)
    assert np.array_equal(third, pixels("TRAIN")[2])
    assert dataset.summary == {
        "format": "hdf5",
        "drawn": False,
        "generated_ids": True,
        "unlisted": 0,
        "empty_captions": 0,
        "skipped": [],
        "images": {"train": 3, "validation": 1, "test": 1},
        "captions": 9,
    }
    told = capsys.readouterr().out
    assert "carry no ids" in told and "train-000000 and so on; 1 of 17 words are <unk>" in told


def test_a_second_run_gives_the_same_bytes(tmp_path: Path) -> None:
    write_packed(tmp_path / "packed")
    workspace, contents = Workspace(tmp_path), []
    for workers in (1, 3):
        ingest.run(workspace, settings(tmp_path, workers=workers))
        contents.append({path: path.read_bytes() for path in workspace.dataset.rglob("*") if path.is_file()})
    assert contents[0] == contents[1]


@pytest.mark.parametrize("key", ["images", "splits"])
def test_images_captions_and_splits_are_one_folder(tmp_path: Path, key: str) -> None:
    write_packed(tmp_path / "packed")
    with pytest.raises(DataError, match=rf"data\.images, data\.captions and data\.splits all name that folder.*{key}"):
        ingest.run(Workspace(tmp_path), settings(tmp_path, **{key: str(tmp_path)}))


def silence(folder: Path) -> None:
    """The second training image says nothing."""
    path = folder / f"TRAIN_CAPTIONS_{BASE}.json"
    captions = json.loads(path.read_text())
    write(path, [*captions[:2], numbers([]), numbers([]), *captions[4:]])
    write(folder / f"TRAIN_CAPLENS_{BASE}.json", [4, 4, 2, 2, 3, 5])


def test_images_without_a_word_stop_or_are_skipped(tmp_path: Path) -> None:
    silence(write_packed(tmp_path / "packed"))
    workspace = Workspace(tmp_path)
    with pytest.raises(DataError, match=r"1 images whose captions have no word, first train-000001\. .*on_missing"):
        ingest.run(workspace, settings(tmp_path))
    assert not workspace.dataset.exists()
    ingest.run(workspace, settings(tmp_path, on_missing="skip"))
    dataset = read_dataset(workspace.dataset)
    assert dataset.ids == ("train-000000", "train-000002", "validation-000000", "test-000000")
    assert dataset.summary["skipped"] == [{"image": "train-000001", "reason": "no caption"}]
    assert dataset.summary["empty_captions"] == 1


def test_damaged_images_leave_the_older_data_set(tmp_path: Path) -> None:
    write_packed(tmp_path / "packed")
    workspace = Workspace(tmp_path)
    ingest.run(workspace, settings(tmp_path))
    before = read_dataset(workspace.dataset)
    path = tmp_path / "packed" / f"TEST_IMAGES_{BASE}.hdf5"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"TEST_IMAGES_.*cannot be read as HDF5"):
        ingest.run(workspace, settings(tmp_path))
    assert read_dataset(workspace.dataset) == before


def test_a_part_whose_images_are_all_silent_is_told(tmp_path: Path) -> None:
    write_packed(tmp_path / "packed")
    write(tmp_path / "packed" / f"TEST_CAPTIONS_{BASE}.json", [numbers([]), numbers([])])
    write(tmp_path / "packed" / f"TEST_CAPLENS_{BASE}.json", [2, 2])
    with pytest.raises(DataError, match="No image is in test"):
        ingest.run(Workspace(tmp_path), settings(tmp_path, on_missing="skip"))
    assert not Workspace(tmp_path).dataset.exists()


def test_a_part_that_is_missing_is_told_before_anything_is_written(tmp_path: Path) -> None:
    (write_packed(tmp_path / "packed") / f"VAL_IMAGES_{BASE}.hdf5").unlink()
    with pytest.raises(DataError, match="No image is in validation"):
        ingest.run(Workspace(tmp_path), settings(tmp_path))
    assert not Workspace(tmp_path).dataset.exists()
