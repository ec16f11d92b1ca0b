import hashlib
import json
from pathlib import Path

import pytest

from pipeline import files
from pipeline.datasets.dataset import images_folder, read_dataset
from pipeline.errors import BusyError, DataError, ImageError
from pipeline.files import Workspace
from stages import ingest
from tests.datasets.builders import settings, write_images


def source(root: Path) -> Workspace:
    """Five images with the captions' own splits."""
    write_images(root / "images", "a.png", "b.png", "c.png", "d.png", "e.png")
    rows = zip("dabce", ("train", "val", "test", "train", "train"), strict=True)
    lines = [f"{name}.png,A {name},{split}\n" for name, split in rows]
    (root / "captions.txt").write_text("image,caption,split\n" + "".join(lines))
    return Workspace(root)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_data_set_holds_rows_splits_captions_and_hashes(tmp_path: Path) -> None:
    workspace = source(tmp_path)
    ingest.run(workspace, settings(tmp_path))
    dataset = read_dataset(workspace.dataset)
    assert dataset.ids == ("d.png", "a.png", "b.png", "c.png", "e.png")
    assert dataset.rows("train") == [0, 3, 4]
    assert dataset.examples[1].captions == ("A a",)
    assert dataset.examples[1].sha256 == hashlib.sha256((tmp_path / "images/a.png").read_bytes()).hexdigest()
    assert dataset.summary == {
        "format": "csv",
        "drawn": False,
        "unlisted": 0,
        "empty_captions": 0,
        "skipped": [],
        "images": {"train": 3, "validation": 1, "test": 1},
        "captions": 5,
    }


def test_two_places_and_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    here, there = source(tmp_path / "here"), source(tmp_path / "elsewhere")
    ingest.run(here, settings(here.root, workers=1))
    ingest.run(there, settings(there.root, workers=3))
    assert content(here.dataset) == content(there.dataset)
    ingest.run(here, settings(here.root))
    assert content(here.dataset) == content(there.dataset)


def bad_images(root: Path) -> None:
    image = root / "images/c.png"
    image.write_bytes(image.read_bytes()[:50])
    (root / "images/e.png").write_bytes(b"")


def test_bad_images_stop_and_leave_the_older_data_set(tmp_path: Path) -> None:
    workspace = source(tmp_path)
    ingest.run(workspace, settings(tmp_path))
    before = content(tmp_path / "data")
    bad_images(tmp_path)
    with pytest.raises(
        ImageError, match=r"(?s)2 images cannot be decoded in .*\n  c\.png: .*\n  e\.png: the file is empty\n"
    ):
        ingest.run(workspace, settings(tmp_path))
    assert content(tmp_path / "data") == before


def test_only_the_first_ten_bad_images_are_named(tmp_path: Path) -> None:
    names = [f"{number:02d}.png" for number in range(13)]
    write_images(tmp_path / "images", *names)
    for name in names[:12]:
        (tmp_path / "images" / name).write_text("no image")
    rows = [f"{name},A,{('train', 'val', 'test')[number % 3]}\n" for number, name in enumerate(names)]
    (tmp_path / "captions.txt").write_text("image,caption,split\n" + "".join(rows))
    with pytest.raises(ImageError, match="12 images cannot") as caught:
        ingest.run(Workspace(tmp_path), settings(tmp_path))
    assert "09.png: " in str(caught.value)
    assert "10.png" not in str(caught.value)
    assert not (tmp_path / "data").exists()
    with pytest.raises(DataError, match="No image is in validation and test"):
        ingest.run(Workspace(tmp_path), settings(tmp_path, on_bad_image="skip"))


def test_skipped_images_are_listed_without_their_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = source(tmp_path)
    bad_images(tmp_path)
    ingest.run(workspace, settings(tmp_path, on_bad_image="skip"))
    dataset = read_dataset(workspace.dataset)
    assert dataset.ids == ("d.png", "a.png", "b.png")
    assert [entry["image"] for entry in dataset.summary["skipped"]] == ["c.png", "e.png"]
    assert dataset.summary["skipped"][1] == {"image": "e.png", "reason": "the file is empty"}
    assert str(tmp_path) not in (workspace.dataset / "summary.json").read_text()
    assert "Skipped 2" in capsys.readouterr().out


def test_times_go_to_the_log_and_not_into_the_data_set(tmp_path: Path) -> None:
    workspace = source(tmp_path)
    for _ in range(2):
        ingest.run(workspace, settings(tmp_path))
    lines = (workspace.work("logs") / "ingest.jsonl").read_text().splitlines()
    assert [json.loads(line)["decoded"] for line in lines] == [5, 0]


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    workspace = source(tmp_path)
    with (
        files.lock(workspace.work("ingest") / "lock", "ingesting"),
        pytest.raises(BusyError, match="Another process is ingesting"),
    ):
        ingest.run(workspace, settings(tmp_path))


def test_shapes_are_drawn_and_called_a_demonstration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here, there = Workspace(tmp_path / "here"), Workspace(tmp_path / "there")
    for workspace in (here, there):
        ingest.run(workspace, settings(tmp_path, format="shapes"))
    assert "This is a demonstration" in capsys.readouterr().out
    assert content(here.dataset) == content(there.dataset)
    dataset = read_dataset(here.dataset)
    folder = images_folder(here.dataset, Path("unused"))
    assert len(dataset.examples) == 30
    assert all(len(example.captions) == 5 for example in dataset.examples)
    first = dataset.examples[0]
    assert hashlib.sha256((folder / first.file).read_bytes()).hexdigest() == first.sha256
