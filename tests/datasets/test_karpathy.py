import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.datasets import karpathy
from pipeline.datasets.records import CaptionsFile, Record
from pipeline.errors import DataError


def source(tmp_path: Path, *images: Any) -> CaptionsFile:
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images, "dataset": "odd"}), encoding="utf-8")
    return CaptionsFile(tmp_path / "dataset.json")


def image(name: str, split: str, *captions: str, **more: Any) -> dict[str, Any]:
    return {"filename": name, "split": split, "sentences": [{"raw": c, "tokens": ["x"]} for c in captions], **more}


def test_raw_sentences_and_splits_are_read(tmp_path: Path) -> None:
    captions = source(tmp_path, image("a.jpg", "train", "A dog.", "Dogs"), image("b.jpg", "val", "B"))
    assert karpathy.mismatch(captions) is None
    assert karpathy.read(captions) == (
        Record("a.jpg", ("a.jpg",), ("A dog.", "Dogs"), "train"),
        Record("b.jpg", ("b.jpg",), ("B",), "validation"),
    )


def test_restval_is_train(tmp_path: Path) -> None:
    assert karpathy.read(source(tmp_path, image("a.jpg", "restval", "A")))[0].split == "train"


def test_a_file_path_is_tried_before_the_bare_name(tmp_path: Path) -> None:
    (record,) = karpathy.read(source(tmp_path, image("a.jpg", "test", "A", filepath="val2014")))
    assert (record.id, record.files) == ("a.jpg", ("val2014/a.jpg", "a.jpg"))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (image("a.jpg", "training", "A"), r"images\[0\]: 'training' is not a split; expected one of train, restval"),
        ({"split": "train", "sentences": []}, r'images\[0\]: expected the key "filename", found split, sentences'),
        ({**image("a.jpg", "val"), "sentences": {"raw": "A"}}, r'images\[0\]: expected a list under "sentences"'),
        ({**image("a.jpg", "val"), "sentences": [{"raw": 7}]}, r'sentences\[0\], "raw": expected text, found 7'),
        ("a.jpg", r"images\[0\]: expected an object, found 'a.jpg'"),
        (image("a.jpg", "val", "half \ud83d"), "half of a surrogate pair"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, bad: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        karpathy.read(source(tmp_path, bad))


def test_a_file_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images\[1\]: a\.jpg stands twice"):
        karpathy.read(source(tmp_path, image("a.jpg", "train", "A"), image("a.jpg", "val", "B")))
