from pathlib import Path

import pytest

from pipeline.datasets import jsonl
from pipeline.datasets.records import CaptionsFile, Record
from pipeline.errors import DataError


def source(tmp_path: Path, content: str) -> CaptionsFile:
    (tmp_path / "captions.jsonl").write_bytes(content.encode())
    return CaptionsFile(tmp_path / "captions.jsonl")


def test_captions_caption_split_and_id_are_read(tmp_path: Path) -> None:
    content = (
        '\ufeff{"image": "b/x.jpg", "captions": ["A, b", "A, b"], "split": "val"}\r\n\r\n'
        '{"image": "a.jpg", "caption": "one", "id": 12}\n{"image": "a.jpg", "caption": "two", "id": 12}\n'
    )
    assert jsonl.read(source(tmp_path, content)) == (
        Record("b/x.jpg", ("b/x.jpg",), ("A, b", "A, b"), "validation"),
        Record("12", ("a.jpg",), ("one", "two"), None),
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "a.jpg", "caption": }', "line 2: not valid JSON: Expecting value at column 31"),
        ('{"caption": "A"}', 'line 2: expected the key "image", found caption'),
        ('{"image": "b.jpg", "text": "A"}', 'line 2: expected the key "caption", found image, text'),
        ('{"image": "b.jpg", "captions": "A"}', """line 2: expected a list under "captions", found 'A'"""),
        ('{"image": "b.jpg", "captions": [null]}', "line 2: expected text, found None"),
        ('{"image": "b.jpg", "caption": "A", "id": "a"}', "line 2: the id a stands for b.jpg, and before for a.jpg"),
        ("[1]", r"line 2: expected an object, found \[1\]"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, line: str, message: str) -> None:
    first = '{"image": "a.jpg", "caption": "A", "id": "a"}\n'
    with pytest.raises(DataError, match=message):
        jsonl.read(source(tmp_path, first + line + "\n"))
