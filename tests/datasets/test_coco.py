import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.datasets import coco
from pipeline.datasets.records import CaptionsFile
from pipeline.errors import DataError


def write(path: Path, names: dict[Any, str], captions: list[tuple[Any, str]]) -> Path:
    images = [{"id": key, "file_name": name} for key, name in names.items()]
    annotations = [{"id": n, "image_id": key, "caption": text} for n, (key, text) in enumerate(captions)]
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations}), encoding="utf-8")
    return path


def test_annotations_are_gathered_in_the_order_of_the_images(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.json", {9: "b.jpg", 4: "a.jpg"}, [(4, "A"), (9, "B"), (4, "AA")])
    records = coco.read(CaptionsFile(path))
    assert [(r.id, r.captions, r.split) for r in records] == [("b.jpg", ("B",), None), ("a.jpg", ("A", "AA"), None)]


def test_the_sub_folder_comes_from_the_name_of_the_image_or_of_the_file(tmp_path: Path) -> None:
    old = write(tmp_path / "captions_val2014.json", {1: "COCO_train2014_000000000001.jpg"}, [(1, "A")])
    assert coco.read(CaptionsFile(old))[0].files[1] == "train2014/COCO_train2014_000000000001.jpg"
    new = write(tmp_path / "captions_val2017.json", {1: "000000000001.jpg"}, [(1, "A")])
    assert coco.read(CaptionsFile(new))[0].files == ("000000000001.jpg", "val2017/000000000001.jpg")


def test_a_name_that_holds_a_parts_name_by_chance_is_looked_for_in_the_files_own_sub_folder_too(tmp_path: Path) -> None:
    path = write(tmp_path / "captions_train2014.json", {1: "carnival_1.jpg"}, [(1, "A")])
    assert coco.read(CaptionsFile(path))[0].files == (
        "carnival_1.jpg",
        "val/carnival_1.jpg",
        "train2014/carnival_1.jpg",
    )


def test_captions_of_an_image_that_is_not_listed_become_a_record_without_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.json", {1: "a.jpg"}, [(1, "A"), (77, "B")])
    assert [(r.id, r.files, r.captions) for r in coco.read(CaptionsFile(path))][1] == ("image_id 77", (), ("B",))


def folder_of(tmp_path: Path, *parts: str, images: int = 40) -> CaptionsFile:
    for part in parts:
        names = {n: f"COCO_{part}_{n:012d}.jpg" for n in range(images)}
        write(tmp_path / f"captions_{part}.json", names, [(n, f"{part} {n}") for n in range(images)])
    (tmp_path / "instances_val2014.json").write_text("{}")
    return CaptionsFile(tmp_path)


def test_of_several_files_each_name_says_the_split(tmp_path: Path) -> None:
    records = coco.read(folder_of(tmp_path, "train2014", "val2014", "test2014"))
    assert len(records) == 120
    kinds = {"train": "train", "validation": "val", "test": "test"}
    assert all(record.captions[0].startswith(kinds[record.split or ""]) for record in records)


def test_without_a_test_file_validation_is_halved_for_good(tmp_path: Path) -> None:
    records = coco.read(folder_of(tmp_path, "train2014", "val2014"))
    assert {r.split for r in records if "train" in r.id} == {"train"}
    halves = [r.split for r in records if "val2014" in r.id]
    assert 10 <= halves.count("test") <= 30
    assert halves.count("test") + halves.count("validation") == 40
    more = coco.read(folder_of(tmp_path, "train2014", "val2014", images=50))
    assert {r.id: r.split for r in records}.items() <= {r.id: r.split for r in more}.items()


def test_a_file_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.json", {1: "a.jpg", 2: "a.jpg"}, [(1, "A"), (2, "B")])
    with pytest.raises(DataError, match=r"a\.jpg stands twice"):
        coco.read(CaptionsFile(path))


def test_an_instances_file_is_not_a_captions_file(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_text('{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "bbox": []}]}')
    assert "instances" in (coco.mismatch(CaptionsFile(path)) or "")
